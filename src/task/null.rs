//! /dev/null as a new process's standard input, output and error. None may have the plugin's own: the agent takes the plugin for
//! running as long as any process has its output open.
//!
//! The host has one /dev/null, and its owner may change its mode by any descriptor (fchmod(2)): a task of root would take it away from
//! everyone. So tasks have it by a mount that is read-only. That stops changes of mode, owner and times, but no writes to a device.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};

use crate::sys::fd::open_high;
use crate::sys::mount;

const PATH: &str = "/dev/null";

/// The read-only mount of the device, attached nowhere. None for a process that may not mount: it cannot start a task either.
fn read_only() -> nix::Result<Option<&'static OwnedFd>> {
    static MOUNT: OnceLock<Option<OwnedFd>> = OnceLock::new();
    if let Some(known) = MOUNT.get() {
        return Ok(known.as_ref());
    }
    let made = match mount::copy(AT_FDCWD, Path::new(PATH), false) {
        Ok(copy) => {
            mount::make_read_only(&copy)?;
            Some(copy)
        }
        Err(Errno::EPERM) => None,
        Err(errno) => return Err(errno),
    };
    Ok(MOUNT.get_or_init(|| made).as_ref())
}

/// Opens the device for a process of a task, with a number that is none of the standard streams'.
pub(crate) fn open(flags: OFlag) -> nix::Result<OwnedFd> {
    match read_only()? {
        Some(mount) => open_high(&format!("/proc/self/fd/{}", mount.as_raw_fd()), flags),
        None => open_high(PATH, flags),
    }
}

/// Opened for one process. Tasks must not share an open file: each could change its status flags, locks and owner of signals
/// (fcntl(2), flock(2)) for the others.
#[derive(Debug)]
pub(super) struct Null {
    read: OwnedFd,
    write: OwnedFd,
}

impl Null {
    pub(super) fn open() -> nix::Result<Self> {
        Ok(Self { read: open(OFlag::O_RDONLY)?, write: open(OFlag::O_WRONLY)? })
    }

    pub(super) fn stdio(&self) -> [BorrowedFd<'_>; 3] {
        [self.read.as_fd(), self.write.as_fd(), self.write.as_fd()]
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::stat::{Mode, fchmod, fstat};
    use nix::unistd::{Uid, fchown};

    use super::*;

    #[test]
    fn each_start_has_an_open_null_device_of_its_own() {
        let (one, other) = (Null::open().unwrap(), Null::open().unwrap());
        let flags = |fd: BorrowedFd<'_>| OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap());
        let [input, output, error] = one.stdio();
        assert_eq!(flags(input) & OFlag::O_ACCMODE, OFlag::O_RDONLY);
        for fd in [output, error] {
            assert_eq!(flags(fd) & OFlag::O_ACCMODE, OFlag::O_WRONLY);
        }
        fcntl(output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        assert!(flags(output).contains(OFlag::O_NONBLOCK));
        assert!(!flags(input).contains(OFlag::O_NONBLOCK));
        assert!(
            other.stdio().into_iter().all(|fd| !flags(fd).contains(OFlag::O_NONBLOCK)),
            "another start's"
        );
    }

    #[test]
    fn a_task_of_root_cannot_change_the_device_of_the_host() {
        if read_only().unwrap().is_none() {
            return;
        }
        let null = Null::open().unwrap();
        for fd in [&null.read, &null.write] {
            // The mode that it has.
            let mode = Mode::from_bits_truncate(fstat(fd).unwrap().st_mode);
            assert_eq!(fchmod(fd, mode), Err(Errno::EROFS));
            assert_eq!(fchown(fd, Some(Uid::from_raw(0)), None), Err(Errno::EROFS));
        }
        assert_eq!(nix::unistd::write(&null.write, b"text"), Ok(4));
        assert_eq!(nix::unistd::read(&null.read, &mut [0; 1]), Ok(0));
        // What the test would do without the mount.
        let host = std::fs::File::open(PATH).unwrap();
        assert_eq!(fchmod(&host, Mode::from_bits_truncate(fstat(&host).unwrap().st_mode)), Ok(()));
    }
}
