//! The end of a child, by whatever signal: nix's `WaitStatus` has no place for a real-time one, and then loses the child.

use nix::Result;
use nix::errno::Errno;
use nix::unistd::Pid;

/// Waits for any child to end and reaps it: its pid, and its status as wait(2) gives it.
pub(crate) fn any_child() -> Result<(Pid, i32)> {
    let mut status = 0;
    // SAFETY: `status` lives over the call.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, 0) })?;
    Ok((Pid::from_raw(pid), status))
}
