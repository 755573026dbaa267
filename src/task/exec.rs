//! Sessions: commands that are run in a running task (alloc exec, script checks, the `exec` command).
//!
//! Each has a helper process, `nomad-driver-exec2 enter`, which outlives its command by a moment and this plugin by none: when the
//! [`Session`] is dropped, or this process dies, the helper kills all that the command has started.

pub(crate) mod streams;

use std::io::{PipeWriter, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::blocking::blocking;
use super::launch::{Launcher, sealed, shims_cgroup};
use crate::cgroup::{Cgroup, CgroupError, Owner, SessionCgroup};
use crate::record::run_dir::{RunDir, RunDirError};
use crate::record::session::SessionRecord;
use crate::record::spec::StoredSpec;
use crate::sandbox::plan::Root;
use crate::shim::enter::spec::{EnterSpec, SessionStdio};
use crate::shim::fds;
use crate::shim::report::{self, Failure, Received, SessionEnd, StartError};
use crate::shim::spec::{Command, Foreground, Stdio};
use crate::sys::{self, CallError};

/// Sessions of one task at a time. Each takes a process, and a few descriptors and some 70 KiB of the plugin.
pub(crate) const SESSIONS_PER_TASK: usize = 64;
/// How long a command may take to start: as long as a task, on a host that is as busy. A process of the task can stop it once it has the
/// task's user.
pub(crate) const START_LIMIT: Duration = super::launch::START_LIMIT;
/// How long a cancelled session may take to be gone. Its helper gives up a little earlier.
const CANCEL_LIMIT: Duration = Duration::from_secs(3);
/// The type of a terminal if the client sends none: what most systems describe, and most terminals are like.
const TERM: &str = "xterm";
/// Size of a terminal until the client sends its own.
const WINDOW: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
/// Exit codes of a command that could not be run, as in shells.
const NOT_FOUND: i32 = 127;
const NOT_RUN: i32 = 126;

/// A running task in which a session begins.
#[derive(Debug)]
pub(crate) struct Target {
    pub shim: OwnedFd,
    pub run_dir: RunDir,
    pub cgroup: Option<Arc<Cgroup>>,
    pub owner: Owner,
    /// Held until the helper is gone.
    pub turn: Option<OwnedSemaphorePermit>,
}

/// What is run, and how it is connected.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The command and its arguments.
    pub command: Vec<String>,
    pub wiring: Wiring,
}

/// Where standard input, output and error of the command lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// A pipe for each.
    Pipes,
    /// Input from /dev/null, and one pipe for output and error: their order is kept.
    Merged,
    /// A terminal, of this type and size if they are known.
    Terminal { term: Option<String>, size: Option<Winsize> },
}

/// Why a session could not begin. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("the task has ended; a command can only be run in a running task")]
    Ended,
    #[error("the task has {SESSIONS_PER_TASK} sessions, which is the limit; end one of them first")]
    TooMany,
    #[error("the command is empty; write the name or the path of a program")]
    NoCommand,
    #[error(
        "the task was started by a version of this driver that stored too little for sessions; restart the task"
    )]
    NotStored,
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    System(#[from] CallError),
    #[error("failed to encode the session: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
}

/// Why the command of a session did not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRun {
    #[error("failed to start the command: {0}")]
    Failed(Failure),
    #[error(
        "failed to start the command: it was not running after {START_LIMIT:?}; a path to unveil does not respond, or a process \
         of the task has stopped it"
    )]
    TimedOut,
    #[error(
        "failed to start the command: it was killed before it ran; the task has ended, or its memory limit is too low"
    )]
    Killed,
    #[error("failed to start the session's helper process: {0}")]
    Helper(StartError),
    #[error("the exit status is unknown: the session's helper process was killed")]
    Lost,
}

impl NotRun {
    /// The exit code that stands for it.
    pub(crate) fn code(&self) -> i32 {
        match self {
            Self::Failed(failure) if failure.exec_errno() == Some(Errno::ENOENT) => NOT_FOUND,
            _ => NOT_RUN,
        }
    }
}

impl Launcher {
    /// Starts the helper of a session. Blocks for a moment; must be called in a runtime, which then watches the helper.
    pub(crate) fn enter(&self, target: Target, wanted: &Wanted) -> Result<Session, ExecError> {
        let stored = target.run_dir.spec()?.zip(target.run_dir.session()?);
        let (spec, record) = stored.ok_or(ExecError::NotStored)?;
        let cgroup = target.cgroup.as_ref().map(|cgroup| cgroup.new_session(target.owner)).transpose()?;
        let name = cgroup.as_ref().map(|cgroup| cgroup.name().to_owned());
        let started = enter_spec(spec, record, wanted, name)
            .and_then(|spec| self.spawn(&target, &wanted.wiring, &spec, cgroup.as_ref()));
        match started {
            Ok((helper, session)) => {
                tokio::spawn(reap(helper, cgroup, target.turn));
                Ok(session)
            }
            Err(error) => {
                let _ = cgroup.map(|cgroup| cgroup.remove(Instant::now()));
                Err(error)
            }
        }
    }

    fn spawn(
        &self,
        target: &Target,
        wiring: &Wiring,
        spec: &EnterSpec,
        cgroup: Option<&SessionCgroup>,
    ) -> Result<(AsyncFd<OwnedFd>, Session), ExecError> {
        let spec = sealed(&spec.encode()?)?;
        let (receiver, report) = report::pair().map_err(CallError::on("make the report socket"))?;
        let (theirs, alive) = pipe().map_err(CallError::on("make a pipe"))?;
        let given = [spec.as_fd(), report.as_fd(), target.shim.as_fd(), theirs.as_fd()].into_iter();
        let given = given.chain(cgroup.into_iter().flat_map(|cgroup| [cgroup.parent(), cgroup.dir()]));
        let high = |fd| sys::fd::duplicate_from(fd, sys::clone::FIRST_FREE_FD);
        let passed: Vec<OwnedFd> =
            given.map(high).collect::<Result<_, _>>().map_err(CallError::on("duplicate a descriptor"))?;
        let numbered: Vec<_> = passed.iter().map(AsFd::as_fd).collect();
        let (ends, stdio) = Ends::new(wiring)?;
        let shims = target.cgroup.as_deref().and_then(shims_cgroup);
        let child = sys::clone::spawn(&sys::clone::Spawn {
            program: self.program(),
            argv: &[c"nomad-driver-exec2", c"enter"],
            namespaces: 0,
            cgroup: shims.as_ref().map(Cgroup::dir_fd),
            fds: &numbered,
            first_fd: fds::FIRST,
            stdio: Some(stdio.each_ref().map(AsFd::as_fd)),
            report: passed[1].as_fd(),
        })
        .map_err(CallError::on("clone the session's helper"))?;
        // The helper has its own copies; these would keep its pipes and the socket open.
        drop((report, passed, theirs, stdio));
        let helper = register(child.pidfd, Interest::READABLE)?;
        let report = receiver.into_nonblocking().map_err(CallError::on("set up the report socket"))?;
        let report = register(report, Interest::READABLE)?;
        Ok((helper, Session { report, alive: Some(alive), ends, terminal: None, failure: None, ran: false }))
    }
}

fn register(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, CallError> {
    sys::async_fd::register(fd, interest).map_err(|(_, error)| CallError::new("watch a descriptor", error))
}

/// The command with the task's own user, plan, rules and environment.
fn enter_spec(
    spec: StoredSpec<'static>,
    record: SessionRecord<'static>,
    wanted: &Wanted,
    cgroup: Option<String>,
) -> Result<EnterSpec, ExecError> {
    let (program, args) = wanted.command.split_first().ok_or(ExecError::NoCommand)?;
    let rules = record.rules.map(std::borrow::Cow::into_owned);
    if rules.is_none() && matches!(spec.plan.root, Root::Private { .. }) {
        return Err(ExecError::NotStored);
    }
    let mut env = record.env.into_owned();
    let mut foreground = None;
    let mut stdio = SessionStdio::Given;
    if let Wiring::Terminal { term, size } = &wanted.wiring {
        env.retain(|entry| !entry.starts_with("TERM="));
        env.push(format!("TERM={}", term.as_deref().unwrap_or(TERM)));
        foreground = Some(Foreground { ignored: 0, terminal: Some(0) });
        let size = size.unwrap_or(WINDOW);
        stdio = SessionStdio::Terminal { rows: size.ws_row, columns: size.ws_col };
    }
    let command =
        Command { program: program.clone(), args: args.to_vec(), env, stdio: Stdio::Inherited, foreground };
    Ok(EnterSpec {
        user: spec.user.into_owned(),
        plan: spec.plan.into_owned(),
        rules,
        command,
        stdio,
        cgroup,
    })
}

/// This process's ends of the command's standard input, output and error.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub stdin: Option<AsyncFd<OwnedFd>>,
    pub stdout: Option<AsyncFd<OwnedFd>>,
    pub stderr: Option<AsyncFd<OwnedFd>>,
}

impl Ends {
    /// The ends, and what the helper starts with as its descriptors 0, 1 and 2.
    fn new(wiring: &Wiring) -> Result<(Self, [OwnedFd; 3]), ExecError> {
        let high = |fd: OwnedFd| {
            sys::fd::duplicate_from(fd.as_fd(), sys::clone::FIRST_FREE_FD)
                .map_err(CallError::on("duplicate a descriptor"))
        };
        let null = |flags| sys::fd::open_high("/dev/null", flags).map_err(CallError::on("open /dev/null"));
        let make = || pipe().map_err(CallError::on("make a pipe"));
        let ours = |fd: OwnedFd, interest| {
            sys::fd::set_nonblocking(&fd).map_err(CallError::on("set up a pipe"))?;
            register(fd, interest)
        };
        Ok(match wiring {
            Wiring::Terminal { .. } => {
                (Self::default(), [null(OFlag::O_RDONLY)?, null(OFlag::O_WRONLY)?, null(OFlag::O_WRONLY)?])
            }
            Wiring::Merged => {
                let (reader, writer) = make()?;
                let again = writer.try_clone().map_err(CallError::on("duplicate a descriptor"))?;
                let stdout = Some(ours(reader.into(), Interest::READABLE)?);
                let stdio = [null(OFlag::O_RDONLY)?, high(writer.into())?, high(again.into())?];
                (Self { stdout, ..Self::default() }, stdio)
            }
            Wiring::Pipes => {
                let ((input, stdin), (stdout, output), (stderr, error)) = (make()?, make()?, make()?);
                let ends = Self {
                    stdin: Some(ours(stdin.into(), Interest::WRITABLE)?),
                    stdout: Some(ours(stdout.into(), Interest::READABLE)?),
                    stderr: Some(ours(stderr.into(), Interest::READABLE)?),
                };
                (ends, [high(input.into())?, high(output.into())?, high(error.into())?])
            }
        })
    }
}

/// A command in a task. Dropping it kills all that the command has started.
#[derive(Debug)]
pub(crate) struct Session {
    report: AsyncFd<OwnedFd>,
    /// The helper sees its end.
    alive: Option<PipeWriter>,
    ends: Ends,
    terminal: Option<OwnedFd>,
    failure: Option<Failure>,
    /// Whether the command has been executed, or at least that was about to be tried.
    ran: bool,
}

impl Session {
    /// The pipes to the command.
    pub(crate) fn take_ends(&mut self) -> Ends {
        std::mem::take(&mut self.ends)
    }

    /// Returns when the command runs; with the master of its terminal, if it has one.
    pub(crate) async fn started(&mut self) -> Result<Option<AsyncFd<OwnedFd>>, NotRun> {
        let running = async {
            while !self.ran {
                if let Some(end) = self.next().await? {
                    return Err(self.not_run(end));
                }
            }
            Ok(())
        };
        timeout(START_LIMIT, running).await.unwrap_or(Err(NotRun::TimedOut))?;
        let both = Interest::READABLE | Interest::WRITABLE;
        let lost = |error: CallError| NotRun::Helper(StartError::Socket(error.errno));
        self.terminal.take().map(|master| register(master, both).map_err(lost)).transpose()
    }

    /// Returns when nothing is left of the command. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> Result<SessionEnd, NotRun> {
        loop {
            if let Some(end) = self.next().await? {
                return if self.failure.is_some() || !self.ran { Err(self.not_run(end)) } else { Ok(end) };
            }
        }
    }

    /// Kills the command, and waits until nothing is left of it.
    pub(crate) async fn cancel(mut self) {
        self.alive = None;
        let gone = async { while matches!(self.next().await, Ok(None)) {} };
        let _ = timeout(CANCEL_LIMIT, gone).await;
    }

    fn not_run(&mut self, end: SessionEnd) -> NotRun {
        match self.failure.take() {
            Some(failure) => NotRun::Failed(failure),
            None if end.status & 0x7f != 0 => NotRun::Killed,
            None => NotRun::Lost,
        }
    }

    /// Takes note of the next message; the end of the command if it is that.
    async fn next(&mut self) -> Result<Option<SessionEnd>, NotRun> {
        loop {
            let mut ready = self.report.readable().await.map_err(|_| NotRun::Lost)?;
            match report::receive(self.report.get_ref().as_fd()) {
                Err(StartError::Socket(Errno::EAGAIN)) => ready.clear_ready(),
                Err(error) => return Err(NotRun::Helper(error)),
                Ok(Received::ShimExec(errno)) => return Err(NotRun::Helper(StartError::ShimExec(errno))),
                Ok(Received::End) => return Err(self.failure.take().map_or(NotRun::Lost, NotRun::Failed)),
                Ok(Received::Ended(end)) => return Ok(Some(end)),
                Ok(Received::Failed(failure)) => self.failure = Some(failure),
                Ok(Received::Terminal(master)) => self.terminal = Some(master),
                Ok(Received::Exec) => {
                    self.ran = true;
                    return Ok(None);
                }
                Ok(Received::Nothing | Received::Task(_)) => {}
            }
        }
    }
}

/// Removes the cgroups of sessions in a task that has ended. Their helpers do that themselves, unless they were killed.
pub(crate) fn remove_left_over(cgroup: &Cgroup) {
    match cgroup.end_sessions(&[Owner::Plugin, Owner::Cli], Instant::now() + CANCEL_LIMIT) {
        Ok(true) => {}
        Ok(false) => {
            tracing::error!(cgroup = %cgroup.path().display(), "failed to empty the cgroup of a session")
        }
        Err(error) => tracing::warn!(%error, "failed to remove the cgroups of sessions"),
    }
}

/// Ends the sessions of a plugin that is gone, if their helpers were killed with it.
pub(crate) fn end_former(cgroup: &Cgroup) {
    if let Err(error) = cgroup.end_sessions(&[Owner::Plugin], Instant::now()) {
        tracing::warn!(%error, "failed to end the sessions of an earlier plugin");
    }
}

/// Reaps the helper, and removes what a killed one has left.
async fn reap(helper: AsyncFd<OwnedFd>, cgroup: Option<SessionCgroup>, turn: Option<OwnedSemaphorePermit>) {
    if helper.readable().await.is_err() {
        return;
    }
    let _ = waitid(Id::PIDFd(helper.get_ref().as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    if let Some(cgroup) = cgroup
        && cgroup.remove(Instant::now()) != Ok(true)
    {
        let gone = blocking(move || {
            cgroup.kill()?;
            cgroup.remove(Instant::now() + CANCEL_LIMIT)
        });
        match gone.await {
            Ok(Ok(true)) => {}
            other => tracing::warn!(?other, "failed to remove the cgroup of a session"),
        }
    }
    drop(turn);
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::sandbox::plan::Plan;
    use crate::sandbox::root::RootRule;
    use crate::sandbox::unveil::Access;
    use crate::shim::report::Step;
    use crate::users::User;

    fn spec(root: Root) -> StoredSpec<'static> {
        let plan = Plan { root, oom_score_adj: 7, ..Plan::default() };
        StoredSpec {
            task: "a/web/1".into(),
            alloc: "a".into(),
            name: "web".into(),
            user: Cow::Owned(User::unknown("nomad-80000", 80_000, 80_001)),
            plan: Cow::Owned(plan),
        }
    }

    fn record(rules: bool) -> SessionRecord<'static> {
        let rule = RootRule { path: "/usr".into(), access: Access::READ, directory: true };
        SessionRecord {
            env: vec!["PATH=/bin".to_owned(), "TERM=linux".to_owned()].into(),
            rules: rules.then(|| vec![rule].into()),
        }
    }

    fn wanted(command: &[&str], wiring: Wiring) -> Wanted {
        Wanted { command: command.iter().map(|text| (*text).to_owned()).collect(), wiring }
    }

    #[test]
    fn a_session_has_what_was_stored_of_its_task() {
        let wanted = wanted(&["ls", "-l"], Wiring::Pipes);
        let root = Root::Private { defaults: true };
        let made = enter_spec(spec(root), record(true), &wanted, Some("exec-3".into())).unwrap();
        assert_eq!((made.user.uid, made.user.gid, made.plan.oom_score_adj), (80_000, 80_001, 7));
        assert_eq!(made.command.env, ["PATH=/bin", "TERM=linux"]);
        assert_eq!((made.command.program.as_str(), &made.command.args[..]), ("ls", &["-l".to_owned()][..]));
        assert_eq!(made.rules.unwrap().len(), 1);
        assert_eq!((made.stdio, made.cgroup.as_deref()), (SessionStdio::Given, Some("exec-3")));
        assert!(made.command.terminal().is_none());
    }

    #[test]
    fn a_terminal_has_the_clients_type_and_size_or_usual_ones() {
        let size = Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        for (term, size, variable, rows, columns) in
            [(None, None, "TERM=xterm", 24, 80), (Some("foot".to_owned()), Some(size), "TERM=foot", 50, 132)]
        {
            let wanted = wanted(&["sh"], Wiring::Terminal { term, size });
            let made = enter_spec(spec(Root::Host), record(false), &wanted, None).unwrap();
            assert_eq!(made.command.env, ["PATH=/bin", variable]);
            assert_eq!(made.stdio, SessionStdio::Terminal { rows, columns });
            assert_eq!(made.command.terminal(), Some(0));
        }
    }

    #[test]
    fn without_the_rules_of_its_root_there_is_no_session_in_a_task() {
        let wanted = wanted(&["sh"], Wiring::Pipes);
        let private = spec(Root::Private { defaults: true });
        let error = enter_spec(private, record(false), &wanted, None).unwrap_err();
        assert!(matches!(error, ExecError::NotStored), "{error}");
        enter_spec(spec(Root::Host), record(false), &wanted, None).unwrap();
    }

    #[test]
    fn an_empty_command_is_refused() {
        let error = enter_spec(spec(Root::Host), record(false), &wanted(&[], Wiring::Merged), None);
        assert!(matches!(error, Err(ExecError::NoCommand)));
    }

    #[test]
    fn exit_codes_of_a_command_that_did_not_run_are_those_of_a_shell() {
        let failed = |step, errno| NotRun::Failed(Failure::new(step, "x", errno)).code();
        assert_eq!(failed(Step::Exec, Errno::ENOENT), NOT_FOUND);
        assert_eq!(failed(Step::Exec, Errno::EACCES), NOT_RUN);
        assert_eq!(failed(Step::WorkDir, Errno::ENOENT), NOT_RUN);
        assert_eq!((NotRun::TimedOut.code(), NotRun::Lost.code()), (NOT_RUN, NOT_RUN));
    }

    /// A session whose helper is this test, and the helper's end of the report socket and of the pipe.
    fn session() -> (Session, report::Reporter, std::io::PipeReader) {
        let (receiver, theirs) = report::pair().unwrap();
        let (watched, alive) = pipe().unwrap();
        let report = register(receiver.into_nonblocking().unwrap(), Interest::READABLE).unwrap();
        let session = Session {
            report,
            alive: Some(alive),
            ends: Ends::default(),
            terminal: None,
            failure: None,
            ran: false,
        };
        (session, report::Reporter::new(theirs), watched)
    }

    fn end(status: i32) -> SessionEnd {
        SessionEnd { status, oom_killed: false }
    }

    #[tokio::test]
    async fn a_command_runs_from_its_announcement_to_its_end() {
        let (mut session, helper, _watched) = session();
        helper.about_to_exec().unwrap();
        assert!(session.started().await.unwrap().is_none());
        let early = timeout(Duration::from_millis(20), session.ended()).await;
        assert!(early.is_err(), "{early:?}");
        helper.ended(end(7 << 8)).unwrap();
        assert_eq!(session.ended().await.unwrap(), end(7 << 8));
    }

    #[tokio::test]
    async fn a_failed_exec_overrides_its_announcement() {
        let (mut session, helper, _watched) = session();
        helper.about_to_exec().unwrap();
        helper.failed(Failure::new(Step::Exec, "/x", Errno::ENOENT));
        helper.ended(end(127 << 8)).unwrap();
        session.started().await.unwrap();
        assert!(matches!(session.ended().await, Err(NotRun::Failed(failure)) if failure.subject == "/x"));
    }

    #[tokio::test]
    async fn a_command_that_is_killed_before_it_runs_did_not_run() {
        let (mut session, helper, _watched) = session();
        helper.ended(end(9)).unwrap();
        assert!(matches!(session.started().await, Err(NotRun::Killed)));
        let (mut session, helper, _watched) = self::session();
        drop(helper);
        assert!(matches!(session.started().await, Err(NotRun::Lost)));
    }

    #[tokio::test]
    async fn the_helper_sees_that_a_session_is_cancelled_or_dropped() {
        use std::io::Read;
        let (session, helper, mut watched) = session();
        let waits = std::thread::spawn(move || {
            watched.read_exact(&mut [0]).unwrap_err();
            helper.ended(end(9)).unwrap();
        });
        session.cancel().await;
        waits.join().unwrap();
        let (session, _helper, mut watched) = self::session();
        drop(session);
        assert_eq!(watched.read(&mut [0]).unwrap(), 0);
    }
}
