//! Removes a tree that a task has written: by descriptors, without following symbolic links, and with a bounded number of open
//! directories and a bounded stack for any depth of nesting.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::renameat;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::open_directory;
use crate::sys::errno_of;

/// Directories that are open at once. Deeper ones are moved to the top first.
const DEPTH_MAX: usize = 32;
/// Limit for the moves: enough for a tree with three million levels.
const MOVES_MAX: u64 = 100_000;
/// How often a directory is read again because new entries have appeared in it.
const PASSES_MAX: usize = 16;

/// Removes the directory `name` in `parent` and everything in it. No other user may be able to write to the directory itself,
/// which is used for moving.
pub(super) fn tree(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<()> {
    let top = open_directory(parent, name)?;
    let mut moves = 0;
    loop {
        let before = moves;
        empty(&top, &top, 1, &mut moves)?;
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTEMPTY) if moves > before && moves < MOVES_MAX => {}
            removed => return removed,
        }
    }
}

fn empty(dir: &OwnedFd, top: &OwnedFd, depth: usize, moves: &mut u64) -> nix::Result<()> {
    let errno = |error| errno_of(&error);
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())).map_err(errno)? {
        let name = entry.map_err(errno)?.file_name();
        match unlinkat(dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EISDIR) if depth < DEPTH_MAX => child(dir, &name, top, depth, moves)?,
            Err(Errno::EISDIR) => move_up(dir, &name, top, moves)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn child(dir: &OwnedFd, name: &OsString, top: &OwnedFd, depth: usize, moves: &mut u64) -> nix::Result<()> {
    for _ in 0..PASSES_MAX {
        match unlinkat(dir, name.as_os_str(), UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTEMPTY) => {}
            // Another process has replaced it; a later pass finds the new entry.
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        match open_directory(dir.as_fd(), name) {
            Ok(opened) => empty(&opened, top, depth + 1, moves)?,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::ENOTEMPTY)
}

/// An interrupted removal may have left such names at the top, and some file systems do not support `RENAME_NOREPLACE`: an
/// existing directory is skipped, and an empty one may be replaced.
fn move_up(dir: &OwnedFd, name: &OsString, top: &OwnedFd, moves: &mut u64) -> nix::Result<()> {
    loop {
        *moves += 1;
        match renameat(dir, name.as_os_str(), top, format!("deeper-{moves}").as_str()) {
            Err(Errno::ENOENT) => return Ok(()),
            // ENOTDIR: the task has created a file with that name.
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) if *moves < MOVES_MAX => {}
            moved => return moved,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::{Mode, mkdirat};

    use super::*;

    fn parent() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(dir.path(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn a_tree_much_deeper_than_what_is_open_at_once_is_removed() {
        let (dir, parent) = parent();
        mkdirat(&parent, "top", Mode::S_IRWXU).unwrap();
        let mut at = open_directory(parent.as_fd(), "top".as_ref()).unwrap();
        for _ in 0..20 * DEPTH_MAX {
            mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = open_directory(at.as_fd(), "d".as_ref()).unwrap();
        }
        tree(parent.as_fd(), "top".as_ref()).unwrap();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn an_interrupted_removal_is_finished() {
        let (dir, parent) = parent();
        let chain =
            |from: &str| std::fs::create_dir_all(dir.path().join(from).join("d/".repeat(60))).unwrap();
        (1..=7).for_each(|number| chain(&format!("top/deeper-{number}")));
        chain("top/local");
        std::fs::write(dir.path().join("top/deeper-8"), "x").unwrap();
        tree(parent.as_fd(), "top".as_ref()).unwrap();
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_wide_tree_is_removed_and_what_links_point_to_is_not() {
        let (dir, parent) = parent();
        let kept = dir.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        for n in 0..300 {
            let below = dir.path().join(format!("top/{}/{n}", n % 7));
            std::fs::create_dir_all(&below).unwrap();
            std::fs::write(below.join("file"), "x").unwrap();
            std::os::unix::fs::symlink(&kept, below.join("link")).unwrap();
        }
        tree(parent.as_fd(), "top".as_ref()).unwrap();
        assert!(kept.join("file").exists());
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
        assert_eq!(tree(parent.as_fd(), "top".as_ref()), Err(Errno::ENOENT));
    }
}
