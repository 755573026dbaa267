//! /dev/null as a new process's standard input, output and error. None may have the plugin's own: the agent takes the plugin for
//! running as long as any process has its output open.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;

use crate::sys::fd::open_high;

/// Opened for one process. Tasks must not share an open file: each could change its status flags, locks and owner of signals
/// (fcntl(2), flock(2)) for the others.
#[derive(Debug)]
pub(super) struct Null {
    read: OwnedFd,
    write: OwnedFd,
}

impl Null {
    pub(super) fn open() -> nix::Result<Self> {
        let open = |flags| open_high("/dev/null", flags);
        Ok(Self { read: open(OFlag::O_RDONLY)?, write: open(OFlag::O_WRONLY)? })
    }

    pub(super) fn stdio(&self) -> [BorrowedFd<'_>; 3] {
        [self.read.as_fd(), self.write.as_fd(), self.write.as_fd()]
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, fcntl};

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
}
