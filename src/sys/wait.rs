//! The end of a child, by any signal: nix's `WaitStatus` has no real-time signals, so its wait fails after it has reaped the child.

use nix::Result;
use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::process::{WaitOptions, wait};

use super::nix_errno;

/// Waits for any child to end and reaps it: its PID, and its status as in wait(2).
pub(crate) fn any_child() -> Result<(Pid, i32)> {
    let ended = wait(WaitOptions::empty()).map_err(nix_errno)?;
    // None is for WNOHANG only.
    let (pid, status) = ended.ok_or(Errno::ECHILD)?;
    Ok((Pid::from_raw(pid.as_raw_nonzero().get()), status.as_raw()))
}
