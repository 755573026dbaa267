//! Where the records of a task are: names that stay below the run directory, and directories that only root can enter.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::geteuid;

use super::RunDirError;
use crate::sys::IoError;

/// NAME_MAX is 255 (limits.h); a longer name is cut and told apart by a hash.
const MAX_NAME: usize = 200;
/// How a name below the run directory begins that belongs to no task: [`name`] makes none like it.
pub(crate) const NO_TASK: &str = "@";

/// Creates a directory that only its owner can enter, or checks an existing one, and opens it. `path` is for messages.
pub(super) fn make_private(at: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<OwnedFd, RunDirError> {
    match mkdirat(at, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => open_private(at, name, path),
        Err(errno) => Err(IoError::new("create", path, errno).into()),
    }
}

/// Opens a directory that only its owner, this process, can enter; the last component is not followed.
pub(super) fn open_private(at: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<OwnedFd, RunDirError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let dir = match openat(at, name, flags, Mode::empty()) {
        Ok(dir) => dir,
        // ENOTDIR: also a symbolic link.
        Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(RunDirError::Unsafe(path.to_owned())),
        Err(errno) => return Err(IoError::new("open", path, errno).into()),
    };
    let found = fstat(&dir).map_err(IoError::on("stat", path))?;
    let others = (Mode::S_IRWXG | Mode::S_IRWXO).bits();
    let is_dir = found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
    let ours = is_dir && found.st_uid == geteuid().as_raw() && found.st_mode & others == 0;
    if ours { Ok(dir) } else { Err(RunDirError::Unsafe(path.to_owned())) }
}

pub(super) fn file_at(dir: &OwnedFd, name: &str, flags: OFlag) -> io::Result<File> {
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    Ok(File::from(openat(dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, private)?))
}

/// An open directory's path for interfaces that take only paths.
pub(super) fn through(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

pub(super) fn borrow(dir: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(dir)
}

/// A file name for a task id (`alloc/task/invocation`): readable, different for different ids, and never `.` or `..`.
pub(super) fn name(task_id: &str) -> String {
    let mut name = String::new();
    for byte in task_id.bytes() {
        match byte {
            b'/' if name.is_empty() => name.push_str("%2f"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(byte.into()),
            b'/' => name.push('.'),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    if name.len() > MAX_NAME {
        name.truncate(MAX_NAME);
        name.push_str(&format!("%{:016x}", fnv1a(task_id.as_bytes())));
    }
    name
}

/// FNV-1a, 64 bits: stable over builds, unlike the hasher of std.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
