//! PID 1 of a task's pid namespace: prepares everything, clones the task into its cgroup, reports how it ended.
//!
//! The plugin executes its own program as `nomad-driver-exec2 shim` with the descriptors of [`fds`] and nothing else:
//! no environment, no argument. It has one thread and no runtime.

pub mod enter;
pub mod exit;
mod relay;
pub mod report;
mod setup;
pub mod spec;
mod steps;
pub mod template;
mod walk;

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::Pid;

use crate::cgroup::OomCounter;
use crate::sandbox::seccomp;
use crate::sys;
use crate::sys::clone::SingleThreaded;
use crate::sys::title::LastArgument;
use exit::Exit;
use relay::Relay;
use report::{Failure, Reporter, Step};
use spec::ShimSpec;
use steps::RootNamespaces;

/// Descriptors that the plugin places for the shim.
pub(crate) mod fds {
    use std::os::fd::RawFd;

    /// The report socket (`SOCK_SEQPACKET`), by which the others come: the spec, a sealed memfd; the exit-status file and the
    /// session record, both opened for writing; then, as far as the spec has them: the task's cgroup directory, the empty mount
    /// namespace, and the template's.
    pub(crate) const FIRST: RawFd = 3;
}

/// Nesting limit of a message between plugin and shim. They need 8 levels; rmp-serde's default of 1024 could overflow a small
/// stack.
const MAX_DEPTH: usize = 16;

/// Exit status of a shim that could not start its task; the reason has gone through the report socket.
const NOT_STARTED: u8 = 1;
/// Exit status of a shim that was not started by the plugin.
const MISUSED: u8 = 2;

/// Last argument of a shim that has a task, and of one that was started before there is a task for it. Of the same length, since the
/// second becomes the first.
pub(crate) const SHIM: &CStr = c"shim";
pub(crate) const IDLE: &CStr = c"idle";

/// The entry point of `nomad-driver-exec2 shim`.
pub fn main() -> ExitCode {
    run(|_| None)
}

/// The entry point of `nomad-driver-exec2 idle`. In `ps` it becomes a shim with its task.
pub fn idle() -> ExitCode {
    run(|single| LastArgument::find(single, IDLE))
}

fn run(title: impl FnOnce(SingleThreaded) -> Option<LastArgument>) -> ExitCode {
    let Ok([Some(report)]) = sys::fd::inherited(fds::FIRST) else {
        // Not started by the plugin: there is no socket for a report.
        return ExitCode::from(MISUSED);
    };
    let reporter = Reporter::new(report);
    match start(&reporter, title) {
        Ok((mut started, oom, exit)) => {
            if let Some(relay) = &mut started.relay {
                relay.leave_arena();
            }
            // End of file on the report socket means that exec succeeded: no copy of it may stay open here.
            drop(reporter);
            // A kernel without filters has tasks only if their operator does without as well.
            let _ = sys::seccomp::filter(seccomp::shim::filter(started.relay.is_some()).instructions());
            reap_until_end(&mut started, oom.as_ref(), exit)
        }
        Err(failure) => {
            reporter.failed(failure);
            ExitCode::from(NOT_STARTED)
        }
    }
}

/// The running task.
struct Started {
    task: Pid,
    /// The controlling terminal of the session that the shim leads.
    terminal: Option<RawFd>,
    /// Copies its output, if nobody else reads that.
    relay: Option<Relay>,
}

/// Starts the task. All memory for the spec is freed before this returns, so that the shim stays small.
fn start(
    reporter: &Reporter,
    title: impl FnOnce(SingleThreaded) -> Option<LastArgument>,
) -> Result<(Started, Option<OomCounter>, File), Failure> {
    let single =
        SingleThreaded::check().map_err(|error| Failure::io(Step::Spec, "the number of threads", &error))?;
    let _arena = sys::arena::Arena::open(single);
    // Here, while the plugin is still at work. The task inherits it; this process has every signal blocked.
    sys::signals::reset_dispositions();
    // No process may read what this one gets from its memory.
    prctl::set_dumpable(false).map_err(|errno| Failure::new(Step::Spec, "PR_SET_DUMPABLE", errno))?;
    let title = title(single);
    let given = reporter
        .wait_for_go()
        .map_err(|errno| Failure::new(Step::Spec, "the plugin's permission to start", errno))?;
    if let Some(title) = title {
        title.replace(SHIM);
    }
    let mut given = given.into_iter().map(File::from);
    let (Some(mut file), Some(exit), Some(session)) = (given.next(), given.next(), given.next()) else {
        return Err(Failure::new(Step::Spec, "the descriptors of the spec and the records", Errno::EBADF));
    };
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .map_err(|error| Failure::io(Step::Spec, "the spec", &error))?;
    let spec =
        ShimSpec::decode(&bytes).map_err(|error| Failure::text(Step::Spec, "the spec", error.to_string()))?;
    let (cgroup, namespaces) = given_for(&spec, given.map(OwnedFd::from))?;
    let oom = cgroup.as_ref().and_then(|cgroup| OomCounter::of(cgroup.as_fd()));
    let mut prepared = setup::prepare(&spec, namespaces, single, cgroup.as_ref().map(AsFd::as_fd))?;
    let rules = prepared.take_rules();
    let relay = prepared.take_relay()?;
    let task = setup::launch(&spec, prepared, cgroup, reporter, single)?;
    // The task waits, but prepares itself meanwhile.
    steps::record_session(&spec, rules.as_deref(), &session)?;
    drop(session);
    steps::drop_privileges()?;
    if spec.command.foreground.is_some() {
        steps::die_with_parent(reporter)?;
    }
    let pid = task.pid;
    task.may_exec()?;
    Ok((Started { task: pid, terminal: spec.command.terminal(), relay }, oom, exit))
}

/// The task's cgroup directory and the namespaces for its root, of which the spec says whether they are there.
fn given_for(
    spec: &ShimSpec,
    mut rest: impl Iterator<Item = OwnedFd>,
) -> Result<(Option<OwnedFd>, Option<RootNamespaces>), Failure> {
    let mut next = |wanted: bool, what: &str| {
        let found = if wanted { rest.next() } else { None };
        let lacking = || Failure::new(Step::Spec, format!("the descriptor of {what}"), Errno::EBADF);
        if found.is_some() == wanted { Ok(found) } else { Err(lacking()) }
    };
    let cgroup = next(spec.plan.resources.cgroup.is_some(), "the cgroup")?;
    let empty = next(spec.root.is_some(), "an empty mount namespace")?;
    let layout = spec.root.as_ref().is_some_and(|root| root.layout.is_some());
    let template = next(layout, "the template")?;
    Ok((cgroup, empty.map(|empty| RootNamespaces { empty, template })))
}

/// Reaps children until the task ends, then writes its exit status. The PID namespace ends with the shim.
fn reap_until_end(started: &mut Started, oom: Option<&OomCounter>, exit: File) -> ExitCode {
    loop {
        let child = match &mut started.relay {
            Some(relay) => relay.any_child(),
            None => sys::wait::any_child(),
        };
        let (pid, status) = match child {
            Ok(ended) => ended,
            Err(nix::errno::Errno::EINTR) => continue,
            // No child is left, but the end of the task was not seen: its exit status is unknown.
            Err(_) => return ExitCode::from(NOT_STARTED),
        };
        if pid != started.task {
            continue;
        }
        if let Some(relay) = &mut started.relay {
            relay.finish();
        }
        if let Some(terminal) = started.terminal {
            // If it is not possible, the last output may be lost; the exit status is not.
            let _ = sys::terminal::give_up_control(terminal);
        }
        let ended = Exit { oom_kills: oom.map_or(0, OomCounter::kills), ..Exit::from_wait_status(status) };
        return match ended.write(&exit) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(NOT_STARTED),
        };
    }
}
