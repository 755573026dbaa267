//! Standard streams that are /dev/null.

use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::sys::fd::is_null;
use crate::sys::terminal;

/// This standard stream if it is /dev/null.
pub(super) fn null_device(number: RawFd) -> Option<BorrowedFd<'static>> {
    terminal::standard(number).ok().filter(|stream| is_null(stream))
}

/// Opens such streams again in the task's own root, if it has the device. The mount there is as read-only as that of the plugin's
/// descriptor, but has a place: the link in /proc/self/fd is the path /dev/null, which programs take for what it says.
pub(crate) fn name_null_streams(numbers: RangeInclusive<RawFd>) {
    for number in numbers {
        let Some(flags) = null_device(number).and_then(|stream| fcntl(stream, FcntlArg::F_GETFL).ok()) else {
            continue;
        };
        let mode = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
        let named = open("/dev/null", mode | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty());
        let Some(named) = named.ok().filter(|named| is_null(named)) else { continue };
        // On an error the stream stays what it was.
        let _ = match number {
            0 => dup2_stdin(named),
            1 => dup2_stdout(named),
            _ => dup2_stderr(named),
        };
    }
}
