//! Processes by pidfd: pidfd_open(2), pidfd_send_signal(2).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::Result;
use nix::errno::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::nix_errno;

/// `PIDFD_SIGNAL_PROCESS_GROUP` of `linux/pidfd.h`, Linux 6.9: the signal goes to the process group led by the process.
const SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// Opens the process `pid`. The descriptor is close-on-exec. ESRCH: there is no such process.
pub(crate) fn open(pid: i32) -> Result<OwnedFd> {
    let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or(Errno::EINVAL)?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(nix_errno)
}

/// Sends `signal` to the process; 0 only checks that it exists. ESRCH: it has ended.
pub fn signal(process: BorrowedFd<'_>, signal: i32) -> Result<()> {
    send(process, signal, 0)
}

/// Sends `signal` to the process group that the process leads. EINVAL: the kernel is older than 6.9.
pub(crate) fn signal_group(leader: BorrowedFd<'_>, signal: i32) -> Result<()> {
    send(leader, signal, SIGNAL_PROCESS_GROUP)
}

/// Sends `signal` to the process group with this number, kill(2). For kernels before 6.9 only: make sure that the leader
/// still exists, so that the number is not a reused one.
pub(crate) fn signal_group_by_number(leader: i32, signal: i32) -> Result<()> {
    // For kill(2), -1 is every process, and 0 the caller's own group.
    if leader <= 1 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: kill takes integers only.
    Errno::result(unsafe { libc::kill(-leader, signal) }).map(drop)
}

/// `struct pidfd_info` of `linux/pidfd.h` as of Linux 6.15.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `PIDFD_INFO_EXIT`: requests an exit status, and marks that there is one.
const INFO_EXIT: u64 = 1 << 3;
/// `PIDFD_GET_INFO` of `linux/pidfd.h`; the kernel takes the struct's size in it as the version.
const GET_INFO: libc::Ioctl = libc::_IOWR::<PidfdInfo>(0xff, 11);

/// The wait(2) status of a process that has ended and been reaped, by whatever process; none before. ENOTTY, EINVAL: the kernel is older
/// than 6.15 and does not keep it.
pub(crate) fn exit_status(process: BorrowedFd<'_>) -> Result<Option<i32>> {
    let mut info = PidfdInfo { mask: INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel writes no more than the size that is part of the request, into a struct of that size.
    Errno::result(unsafe { libc::ioctl(process.as_raw_fd(), GET_INFO, &raw mut info) })?;
    Ok((info.mask & INFO_EXIT != 0).then_some(info.exit_code))
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
    fn a_running_process_can_be_signalled_and_a_dead_one_not() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let fd = open(child.id() as i32).unwrap();
        assert_eq!(signal(fd.as_fd(), 0), Ok(()));
        assert_eq!(signal(fd.as_fd(), libc::SIGKILL), Ok(()));
        assert!(!child.wait().unwrap().success());
        assert_eq!(signal(fd.as_fd(), 0), Err(Errno::ESRCH));
    }

    #[test]
    fn the_exit_status_of_a_reaped_process_is_kept_by_newer_kernels() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read x; exit 7"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let fd = open(child.id() as i32).unwrap();
        let running = exit_status(fd.as_fd());
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().code(), Some(7));
        match running {
            Ok(status) => {
                assert_eq!(status, None);
                assert_eq!(exit_status(fd.as_fd()), Ok(Some(7 << 8)));
            }
            Err(errno) => {
                assert!(matches!(errno, Errno::ENOTTY | Errno::EINVAL), "before Linux 6.15: {errno}")
            }
        }
    }
}
