//! A session: one command that is run in a task while that runs (alloc exec, script checks).
//!
//! The plugin executes its own program as `nomad-driver-exec2 enter`, with the descriptors of [`fds`]. This process joins the namespaces
//! of the task's shim, clones the command into a child of the task's cgroup, and waits for it. The command takes the same steps as the
//! task did at its start. When it has ended, or when the process that asked for it is gone, all that is left of it is killed.
//!
//! A task that is hostile has the user of the command, and runs already. So this process is never one of the task's namespace, keeps
//! nothing of the host open that the command could reach, and reaps at once: the end of the task waits for its children.

pub(crate) mod spec;

use std::convert::Infallible;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use landlock::RulesetCreated;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setsid};

use rustix::termios::Winsize;

use super::report::{Failure, Reporter, SessionEnd, Step};
use super::spec::ShimSpec;
use super::steps::{self, Result};
use super::{MISUSED, NOT_STARTED, setup};
use crate::cgroup::{OomCounter, SessionCgroup};
use crate::sandbox::place::{Missing, NamedBy, Place, Rule};
use crate::sandbox::plan::Root;
use crate::sandbox::root::RootRule;
use crate::sandbox::seccomp::Program;
use crate::sandbox::unveil::Access;
use crate::sys;
use crate::sys::clone::{Child, SingleThreaded};
use spec::{EnterSpec, SessionStdio};

/// Descriptors that the plugin places for this process.
pub(crate) mod fds {
    /// The spec, the report socket, the pidfd of the task's shim, and the end of a pipe that closes with the process that asked for
    /// the session. The first one has the same number as the shim's. If the task has a cgroup, its directory and that of the session follow.
    pub(crate) const COUNT: usize = 6;
    pub(crate) const ALWAYS: usize = 4;
}

/// How long to wait until what the command left behind is gone after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// Only for this process and the command's user: a terminal that the task could open would let it read what is typed.
const TERMINAL_MODE: Mode = Mode::from_bits_truncate(0o600);
/// Exit status of a command that could not start; it is not read, since the failure is reported.
const NOT_A_COMMAND: i32 = 127;

/// The entry point of `nomad-driver-exec2 enter`.
pub fn main() -> ExitCode {
    let Ok([Some(spec), Some(report), Some(shim), Some(alive), rest @ ..]) =
        sys::fd::inherited::<{ fds::COUNT }>(super::fds::FIRST)
    else {
        return ExitCode::from(MISUSED);
    };
    let reporter = Reporter::new(report);
    let changes = match changes() {
        Ok(changes) => changes,
        Err(failure) => {
            reporter.failed(failure);
            return ExitCode::from(NOT_STARTED);
        }
    };
    let mut session = Session { alive, changes, cgroup: None };
    let child = match session.start(File::from(spec), shim, rest, &reporter) {
        Ok(child) => child,
        Err(failure) => {
            reporter.failed(failure);
            session.clean_up();
            return ExitCode::from(NOT_STARTED);
        }
    };
    let ended = session.attend(&child);
    // Nobody reads it if the session was cancelled.
    match reporter.ended(ended) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(NOT_STARTED),
    }
}

/// What this process holds while the command runs.
struct Session {
    alive: OwnedFd,
    /// Of children.
    changes: SignalFd,
    cgroup: Option<(SessionCgroup, Option<OomCounter>)>,
}

impl Session {
    fn start(
        &mut self,
        mut file: File,
        shim: OwnedFd,
        rest: [Option<OwnedFd>; fds::COUNT - fds::ALWAYS],
        reporter: &Reporter,
    ) -> Result<Child> {
        let failed = |what: &'static str| move |errno| Failure::new(Step::Spec, what, errno);
        prctl::set_dumpable(false).map_err(failed("PR_SET_DUMPABLE"))?;
        // A SIGKILL to the process group of the caller must not hit the process that ends the command.
        setsid().map_err(|errno| Failure::new(Step::Session, "the helper", errno))?;
        reporter.never_wait().map_err(failed("the report socket"))?;
        let mut bytes = Vec::new();
        file.rewind()
            .and_then(|()| file.read_to_end(&mut bytes))
            .map_err(|error| Failure::io(Step::Spec, "the spec", &error))?;
        drop(file);
        let spec = EnterSpec::decode(&bytes)
            .map_err(|error| Failure::text(Step::Spec, "the spec", error.to_string()))?;
        drop(bytes);
        let (mut spec, rules, stdio, cgroup) = spec.into_parts();
        self.cgroup = given(cgroup, rest)?.map(|cgroup| {
            let oom = OomCounter::of(cgroup.parent());
            (cgroup, oom)
        });
        // What needs the host's /proc and /dev; below, there is only the task's, which does not show this process.
        let single = SingleThreaded::check().map_err(|error| Failure::io(Step::Enter, "the task", &error))?;
        let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(failed("/dev/null"))?;
        let host_terminals = matches!(stdio, SessionStdio::Terminal { .. }).then(devpts).flatten();
        join(&shim)?;
        drop(shim);
        match stdio {
            SessionStdio::Terminal { rows, columns } => {
                let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                open_terminal(host_terminals, size, reporter)?;
            }
            SessionStdio::Given => own_pipes(&spec)?,
        }
        if spec.plan.root != Root::Host {
            steps::name_null_streams(0..=2);
        }
        let prepared = prepare(&mut spec, rules.as_deref())?;
        let child = self.launch(single, &spec, prepared, &null, reporter)?;
        // The pipes and the terminal are the command's alone: their other ends must see its end.
        for redirect in [dup2_stdin, dup2_stdout, dup2_stderr] {
            redirect(&null).map_err(failed("/dev/null"))?;
        }
        Ok(child)
    }

    fn launch(
        &self,
        single: SingleThreaded,
        spec: &ShimSpec,
        prepared: Prepared,
        null: &OwnedFd,
        reporter: &Reporter,
    ) -> Result<Child> {
        let (mut own, mut cgroup) = (vec![null.as_fd(), self.alive.as_fd(), self.changes.as_fd()], None);
        if let Some((session, oom)) = &self.cgroup {
            own.extend([session.dir(), session.parent()]);
            own.extend(oom.as_ref().map(AsFd::as_fd));
            cgroup = Some(session.dir());
        }
        sys::clone::fork(single, cgroup, || {
            sys::fd::close_in_child(&own);
            let failure = match become_command(spec, prepared, reporter) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            reporter.failed(failure);
            NOT_A_COMMAND
        })
        .map_err(|errno| {
            let failure = Failure::new(Step::CloneCommand, "the task", errno);
            match errno {
                // pid_namespaces(7): its first process is gone. Or its cgroup is.
                Errno::ENOMEM | Errno::ENODEV => failure.with_note("the task has ended"),
                Errno::EAGAIN => {
                    failure.with_note("a limit of processes is reached, pids.max or RLIMIT_NPROC")
                }
                _ => failure,
            }
        })
    }

    /// Waits for the command, and then ends what it has left behind. In a task without a cgroup that is its process group.
    fn attend(&self, child: &Child) -> SessionEnd {
        let mut killed = false;
        // ECHILD and the like: there is nothing to wait for.
        while !sys::wait::reap_others(child.pid).unwrap_or(true) {
            let mut wanted = vec![PollFd::new(self.changes.as_fd(), PollFlags::POLLIN)];
            if !killed {
                wanted.push(PollFd::new(self.alive.as_fd(), PollFlags::POLLIN));
            }
            if sys::poll::any(&mut wanted, None).is_err() {
                break;
            }
            if wanted.get(1).is_some_and(|alive| alive.any() != Some(false)) {
                // The session was cancelled, or the process that asked for it is gone.
                killed = true;
                self.kill(child);
            }
            while let Ok(Some(_)) = self.changes.read_signal() {}
        }
        if self.cgroup.is_none() {
            // The most that can be found of it without a cgroup. The number is the command's until it is reaped below.
            let _ = sys::pidfd::signal_group_by_number(child.pid.as_raw(), libc::SIGKILL);
        }
        let status = loop {
            match sys::wait::any_child() {
                Ok((pid, status)) if pid == child.pid => break status,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break libc::SIGKILL,
            }
        };
        let oom = self.cgroup.as_ref().and_then(|(_, oom)| oom.as_ref()).is_some_and(|oom| oom.kills() > 0);
        self.clean_up();
        SessionEnd { status, oom_killed: oom && !killed && status & 0x7f == libc::SIGKILL }
    }

    fn kill(&self, child: &Child) {
        // If one of them fails, the other is the better attempt.
        let _ = self.cgroup.as_ref().map(|(cgroup, _)| cgroup.kill());
        let _ = sys::pidfd::signal(child.pidfd.as_fd(), libc::SIGKILL);
    }

    /// Kills what is left, and removes the session's cgroup. What hangs in the kernel is left to the end of the task.
    fn clean_up(&self) {
        if let Some((cgroup, _)) = &self.cgroup {
            let _ = cgroup.kill();
            let _ = cgroup.remove(Instant::now() + KILL_LIMIT);
        }
    }
}

/// SIGCHLD, which is blocked in this process as every signal is.
fn changes() -> Result<SignalFd> {
    SignalFd::with_flags(&SigSet::from(Signal::SIGCHLD), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(|errno| Failure::new(Step::Session, "the helper", errno))
}

/// The session's cgroup, if the spec names one.
fn given(
    name: Option<String>,
    rest: [Option<OwnedFd>; fds::COUNT - fds::ALWAYS],
) -> Result<Option<SessionCgroup>> {
    match (name, rest) {
        (None, _) => Ok(None),
        (Some(name), [Some(parent), Some(dir)]) => Ok(Some(SessionCgroup::given(parent, dir, name))),
        _ => Err(Failure::new(Step::Spec, "the descriptors of the cgroup", Errno::EBADF)),
    }
}

/// Enters the namespaces of the task's shim: root and working directory follow. Only children of this process are in its pid
/// namespace.
fn join(shim: &OwnedFd) -> Result<()> {
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    setns(shim, namespaces).map_err(|errno| {
        let failure = Failure::new(Step::Enter, "the task", errno);
        match errno {
            Errno::ESRCH => failure.with_note("the task has ended"),
            Errno::EPERM => {
                failure.with_note("the agent needs CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE")
            }
            _ => failure,
        }
    })
}

/// /dev/pts, if terminals are there.
fn devpts() -> Option<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = open("/dev/pts", flags, Mode::empty()).ok()?;
    let is_devpts = fstatfs(&dir).is_ok_and(|found| found.filesystem_type() == DEVPTS_SUPER_MAGIC);
    is_devpts.then_some(dir)
}

/// Of `linux/magic.h`.
const DEVPTS_SUPER_MAGIC: FsType = FsType(0x1cd1);

/// Makes a terminal among the task's own, so that programs find it by its name; a task without any gets one of the host's. It stays
/// root's: the command has it open, and no other process of the task's user can open it.
fn open_terminal(host: Option<OwnedFd>, size: Winsize, reporter: &Reporter) -> Result<()> {
    let failed = |errno| Failure::new(Step::Session, "the terminal", errno);
    let dir = devpts().or(host).ok_or_else(|| {
        failed(Errno::ENOENT).with_note("neither the task nor the host has terminals in /dev/pts")
    })?;
    let (master, slave) = sys::terminal::open_pair_in(&dir).map_err(failed)?;
    fchown(&slave, Some(Uid::from_raw(0)), Some(Gid::from_raw(0)))
        .and_then(|()| fchmod(&slave, TERMINAL_MODE))
        .and_then(|()| sys::terminal::set_size(&slave, size))
        .and_then(|()| dup2_stdin(&slave))
        .and_then(|()| dup2_stdout(&slave))
        .and_then(|()| dup2_stderr(&slave))
        .map_err(failed)?;
    reporter.terminal(master.as_fd()).map_err(failed)
}

/// Gives the pipes to the task's user, so that the command can open /dev/stdout and /dev/stderr again.
fn own_pipes(spec: &ShimSpec) -> Result<()> {
    let failed = |errno| Failure::new(Step::Stdio, "pipes", errno);
    for number in 0..=2 {
        let pipe = sys::terminal::standard(number).map_err(failed)?;
        let kind = SFlag::from_bits_truncate(fstat(pipe).map_err(failed)?.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFIFO {
            fchown(pipe, Some(Uid::from_raw(spec.user.uid)), Some(Gid::from_raw(spec.user.gid)))
                .map_err(failed)?;
        }
    }
    Ok(())
}

/// What the command needs, made before it exists.
struct Prepared {
    ruleset: RulesetCreated,
    /// None: it is entered by its path, in the task's own root.
    work_dir: Option<OwnedFd>,
    filter: Option<Program>,
}

/// In the task's root: the Landlock rules and the working directory. A path that is gone is one that the task has lost as well.
fn prepare(spec: &mut ShimSpec, rules: Option<&[RootRule]>) -> Result<Prepared> {
    let filter = spec.plan.seccomp.program();
    if let Some(rules) = rules {
        return Ok(Prepared { ruleset: steps::build_entered_ruleset(spec, rules)?, work_dir: None, filter });
    }
    if spec.command.terminal().is_some() {
        spec.plan.landlock.rules.push(Rule {
            access: Access::READ | Access::WRITE,
            place: Place::host("/dev/tty"),
            named_by: NamedBy::Driver,
            missing: Missing::Skip,
        });
    }
    for rule in &mut spec.plan.landlock.rules {
        rule.missing = Missing::Skip;
    }
    let writable = steps::writable(spec);
    let work_dir = steps::open_work_dir(spec, &writable)?;
    Ok(Prepared { ruleset: steps::build_ruleset(spec, None, &writable)?, work_dir: Some(work_dir), filter })
}

/// In the command, from clone to exec: as a task, see [`setup`].
fn become_command(spec: &ShimSpec, prepared: Prepared, reporter: &Reporter) -> Result<Infallible> {
    let Prepared { ruleset, work_dir, filter } = prepared;
    let session = |errno| Failure::new(Step::Session, "the command", errno);
    sys::signals::reset_dispositions();
    setsid().map_err(session)?;
    if let Some(terminal) = spec.command.terminal() {
        sys::terminal::take_control(terminal).map_err(session)?;
    }
    sys::signals::unblock_all().map_err(session)?;
    setup::confine(spec, false, None, work_dir, ruleset, filter.as_ref())?;
    setup::run(spec, reporter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_of_a_cgroup_come_with_its_name() {
        let fd = || Some(open("/dev/null", OFlag::O_RDONLY, Mode::empty()).unwrap());
        assert!(given(None, [None, None]).unwrap().is_none());
        assert_eq!(given(Some("exec-3".into()), [fd(), fd()]).unwrap().unwrap().name(), "exec-3");
        for lacking in [[None, None], [fd(), None]] {
            assert_eq!(given(Some("exec-3".into()), lacking).unwrap_err().errno, Errno::EBADF as i32);
        }
    }

    #[test]
    fn the_hosts_terminals_are_found() {
        assert!(devpts().is_some());
    }
}
