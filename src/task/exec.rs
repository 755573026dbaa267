//! Sessions: commands that are run in a running task (alloc exec, script checks, the `exec` command).
//!
//! Each has a helper process, `nomad-driver-exec2 enter`, which outlives its command by a moment and this plugin by none: when the
//! [`Session`] is dropped, or this process dies, the helper kills all that the command has started.

mod error;
mod session;
pub(crate) mod streams;
mod wiring;

use std::io::pipe;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::wait::{Id, WaitPidFlag, waitid};
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::OwnedSemaphorePermit;

use wiring::register;

use super::blocking::blocking;
use super::launch::{Launcher, sealed, shims_cgroup};
use crate::cgroup::{Cgroup, Owner, SessionCgroup};
use crate::record::run_dir::RunDir;
use crate::record::session::SessionRecord;
use crate::record::spec::StoredSpec;
use crate::sandbox::plan::Root;
use crate::shim::enter::spec::{EnterSpec, SessionStdio};
use crate::shim::fds;
use crate::shim::report;
use crate::shim::spec::{Command, Foreground, Stdio};
use crate::sys::{self, CallError};

pub(crate) use error::{ExecError, NotRun};
pub(crate) use session::Session;
pub(crate) use wiring::{Ends, Wiring};

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
        Ok((helper, Session::new(report, alive, ends)))
    }
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
}
