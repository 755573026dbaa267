//! Standard streams that are /dev/null.

use std::os::fd::{AsFd, BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::sys;

/// This standard stream if it is /dev/null.
pub(super) fn null_device(number: RawFd) -> Option<BorrowedFd<'static>> {
    sys::terminal::standard(number).ok().filter(is_null)
}

/// Opens such streams again in the task's own root, if it has the device. The mount there is as read-only as that of the plugin's
/// descriptor, but has a place: the link in /proc/self/fd is the path /dev/null, which programs take for what it says.
pub(crate) fn name_null_streams() {
    for number in 0..=2 {
        let Some(flags) = null_device(number).and_then(|stream| fcntl(stream, FcntlArg::F_GETFL).ok()) else {
            continue;
        };
        let mode = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
        let named = open("/dev/null", mode | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let Some(named) = named.ok().filter(is_null) else { continue };
        // On an error the stream stays what it was.
        let _ = match number {
            0 => dup2_stdin(named),
            1 => dup2_stdout(named),
            _ => dup2_stderr(named),
        };
    }
}

fn is_null(stream: &impl AsFd) -> bool {
    fstat(stream).is_ok_and(|found| {
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        kind == SFlag::S_IFCHR && found.st_rdev == makedev(1, 3)
    })
}
