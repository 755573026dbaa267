//! User namespaces, as maps of the owners of files: user_namespaces(7), mount_setattr(2).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::clone::{Child, SingleThreaded, idle_in_user_namespace};

/// One id on disk, and the one that it is shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    pub on_disk: u32,
    pub seen: u32,
}

/// A user namespace that maps one uid and one gid. Needs the /proc of this process's PID namespace or of one above it.
///
/// # Errors
/// ENOSPC: user.max_user_namespaces is reached.
pub(crate) fn map(single: SingleThreaded, uid: Shown, gid: Shown) -> std::io::Result<OwnedFd> {
    let Child { pidfd, .. } = idle_in_user_namespace(single)?;
    let made = mapped(&pidfd, uid, gid);
    super::pidfd::signal(pidfd.as_fd(), libc::SIGKILL)?;
    super::open::retry(|| waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED))?;
    made
}

fn mapped(pidfd: &OwnedFd, uid: Shown, gid: Shown) -> std::io::Result<OwnedFd> {
    let child = format!("/proc/{}", number(pidfd)?);
    for (name, Shown { on_disk, seen }) in [("uid_map", uid), ("gid_map", gid)] {
        let mut file = File::options().write(true).open(format!("{child}/{name}"))?;
        file.write_all(format!("{on_disk} {seen} 1").as_bytes())?;
    }
    Ok(open(format!("{child}/ns/user").as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// The PID of a process in the PID namespace of /proc, which need not be this one's.
fn number(pidfd: &OwnedFd) -> std::io::Result<u32> {
    let mut info = String::new();
    File::open(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?.read_to_string(&mut info)?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    number.and_then(|number| number.trim().parse().ok()).ok_or_else(|| Errno::ESRCH.into())
}
