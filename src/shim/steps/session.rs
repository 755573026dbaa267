//! Session, process group and terminal; when the shim dies.

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, setpgid, setsid};

use super::Result;
use crate::shim::report::{Failure, Reporter, Step};
use crate::shim::spec::ShimSpec;
use crate::sys;

/// With a terminal the shim leads the session, and the task is a process group in it: only a task whose
/// parent is in the same session can be stopped by the terminal (setpgid(2), orphaned process groups).
pub(crate) fn lead_session(spec: &ShimSpec) -> Result<()> {
    let Some(terminal) = spec.command.terminal() else { return Ok(()) };
    let failed = |errno| Failure::new(Step::Session, "the terminal", errno);
    setsid().map_err(failed)?;
    sys::terminal::take_control(terminal).map_err(failed)
}

/// In the task, while every signal is blocked.
pub(crate) fn join_session(spec: &ShimSpec) -> Result<()> {
    let failed = |errno| Failure::new(Step::Session, "the task", errno);
    let Some(terminal) = spec.command.terminal() else { return setsid().map(drop).map_err(failed) };
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(failed)?;
    sys::terminal::come_to_foreground(terminal).map_err(failed)
}

/// In the shim, when its task must not outlive the process that started it. After the last change of credentials: each
/// clears the setting (PR_SET_PDEATHSIG(2const)).
pub(crate) fn die_with_parent(reporter: &Reporter) -> Result<()> {
    let failed = |errno| Failure::new(Step::Session, "the shim", errno);
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed)?;
    // The parent may be dead already.
    if reporter.is_abandoned() { Err(failed(Errno::ESRCH)) } else { Ok(()) }
}
