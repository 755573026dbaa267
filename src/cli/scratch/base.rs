//! Chooses the parent of the directories of a `run`.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, fstat};

use super::ScratchError;
use crate::sys::IoError;

/// Used if TMPDIR is not set or not suitable: every user can traverse it, and the sticky bit protects what root creates in it.
/// /run is not suitable: it is small and often mounted noexec, which would forbid programs in `local`.
const DEFAULT: &str = "/tmp";
const ROOT: u32 = 0;
const OPEN: &str = "open the directory for temporary files";

/// A directory that every user can traverse and in which only root can replace what root created. The same is true for each of
/// its parents.
#[derive(Debug)]
pub(crate) struct Base {
    path: PathBuf,
    dir: OwnedFd,
}

impl Base {
    /// `tmpdir` is the caller's TMPDIR. [`DEFAULT`] is used instead if tasks cannot traverse it (pam_mktemp and libpam-tmpdir
    /// give root a private one) or another user controls it. Failing to open it is an error.
    pub(crate) fn find(tmpdir: Option<OsString>) -> Result<Self, ScratchError> {
        if let Some(tmpdir) = tmpdir.filter(|path| !path.is_empty()) {
            match Self::open(Path::new(&tmpdir)) {
                Err(ScratchError::Unsuitable { .. }) => {}
                opened => return opened,
            }
        }
        Self::open(Path::new(DEFAULT))
    }

    fn open(path: &Path) -> Result<Self, ScratchError> {
        let resolved = std::fs::canonicalize(path).map_err(IoError::on(OPEN, path))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut walked = PathBuf::from("/");
        let mut dir = open("/", flags, Mode::empty()).map_err(IoError::on(OPEN, &walked))?;
        let suits = |dir: &OwnedFd, walked: &Path| match fstat(dir).map(|found| fault(&found)) {
            Ok(None) => Ok(()),
            Ok(Some(why)) => {
                Err(ScratchError::Unsuitable { path: path.to_owned(), parent: walked.to_owned(), why })
            }
            Err(errno) => Err(IoError::new(OPEN, walked, errno).into()),
        };
        suits(&dir, &walked)?;
        for part in resolved.components() {
            let Component::Normal(name) = part else { continue };
            walked.push(name);
            dir = openat(&dir, name, flags, Mode::empty()).map_err(IoError::on(OPEN, &walked))?;
            suits(&dir, &walked)?;
        }
        Ok(Self { path: resolved, dir })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// For tests, which run in a directory of their own user.
    #[cfg(test)]
    pub(crate) fn unchecked(path: &Path) -> Self {
        let dir = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        Self { path: path.to_owned(), dir }
    }
}

/// Why a directory is not suitable as a base or as the parent of one.
fn fault(found: &FileStat) -> Option<&'static str> {
    let has = |bits: Mode| found.st_mode & bits.bits() != 0;
    if found.st_uid != ROOT {
        Some("does not belong to root")
    } else if has(Mode::S_IWGRP | Mode::S_IWOTH) && !has(Mode::S_ISVTX) {
        Some("is writable by others and not sticky")
    } else if !has(Mode::S_IXOTH) {
        Some("cannot be traversed by every user")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(uid: u32, mode: u32) -> FileStat {
        let mut found = nix::sys::stat::stat("/").unwrap();
        (found.st_uid, found.st_mode) = (uid, mode);
        found
    }

    #[test]
    fn a_base_is_writable_by_root_only_and_traversable_by_all() {
        for mode in [0o755, 0o711, 0o1777, 0o1775] {
            assert_eq!(fault(&found(0, mode)), None, "{mode:o}");
        }
        for (uid, mode) in [(0, 0o777), (0, 0o775), (0, 0o700), (0, 0o1770), (1000, 0o755), (1000, 0o1777)] {
            assert!(fault(&found(uid, mode)).is_some(), "{uid} {mode:o}");
        }
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = Base::find(Some("/nonexistent/tmp".into())).unwrap_err().to_string();
        assert_eq!(
            error,
            "failed to open the directory for temporary files \"/nonexistent/tmp\": No such file or directory"
        );
    }
}
