//! Processes by pidfd: pidfd_open(2), pidfd_send_signal(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::Result;
use nix::errno::Errno;

/// `PIDFD_SIGNAL_PROCESS_GROUP` of `linux/pidfd.h`, Linux 6.9: the signal goes to the process group led by the process.
const SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// Opens the process `pid`. The descriptor is close-on-exec. ESRCH: there is no such process.
pub fn open(pid: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes integers only.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends `signal` (0 only asks) to the process. ESRCH: it is gone.
pub fn signal(process: BorrowedFd<'_>, signal: i32) -> Result<()> {
    send(process, signal, 0)
}

/// Sends `signal` to the process group that the process leads. EINVAL: the kernel is older than 6.9.
pub fn signal_group(leader: BorrowedFd<'_>, signal: i32) -> Result<()> {
    send(leader, signal, SIGNAL_PROCESS_GROUP)
}

/// Sends `signal` to the process group with this number, kill(2). For kernels before 6.9 only: make sure that the leader
/// is still there, so that the number means what it meant.
pub fn signal_group_by_number(leader: i32, signal: i32) -> Result<()> {
    // SAFETY: kill takes integers only.
    Errno::result(unsafe { libc::kill(-leader, signal) }).map(drop)
}

fn send(process: BorrowedFd<'_>, signal: i32, flags: libc::c_uint) -> Result<()> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed and means what kill(2) would fill in; the rest are integers.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_info, flags)
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_living_process_can_be_asked_and_a_dead_one_not() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let fd = open(child.id() as i32).unwrap();
        assert_eq!(signal(fd.as_fd(), 0), Ok(()));
        assert_eq!(signal(fd.as_fd(), libc::SIGKILL), Ok(()));
        assert!(!child.wait().unwrap().success());
        assert_eq!(signal(fd.as_fd(), 0), Err(Errno::ESRCH));
    }
}
