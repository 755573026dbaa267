//! The directories of a task outside Nomad: created for one `run` and removed after it.
//!
//! `run` is root, and other processes of the task's user may try to exploit that. So the directories are created and given away
//! by descriptor only, below a base in which only root can replace what root created, and nothing is done below a directory
//! once it belongs to the user.

mod base;
mod remove;

use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, fchown};

use super::say;
use crate::sys::IoError;
use crate::users::User;
pub(super) use base::Base;

/// Prefix of the directories' names; [`NAME_DIGITS`] hexadecimal digits follow.
const PREFIX: &str = "exec2-run-";
/// 64 random bits, so that other users cannot guess and occupy the name. Names of another length were used by earlier versions,
/// which held no lock; they are left alone.
const NAME_DIGITS: usize = 16;
/// Attempts to create a directory with an unused name and to lock it before a sweep removes it.
const TRIES: u32 = 16;

/// Only the owner can enter: for directories that are not ready yet.
const PRIVATE: Mode = Mode::S_IRWXU;
/// Others may traverse it to reach their own directories, as in Nomad's alloc_mounts.
const PASSABLE: Mode = Mode::from_bits_truncate(0o711);
const SHARED: Mode = Mode::from_bits_truncate(0o755);

/// Failed to prepare a directory.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScratchError {
    #[error(transparent)]
    Io(#[from] IoError),
    #[error(
        "{path:?} cannot hold the task's directories because {parent:?} {why}; set TMPDIR to a directory \
         that belongs to root and that every user can traverse"
    )]
    Unsuitable { path: PathBuf, parent: PathBuf, why: &'static str },
    #[error("failed to find an unused name in {0:?} in {TRIES} tries")]
    NoName(PathBuf),
}

/// `alloc`, `local`, `secrets` and `tmp` below a new directory, in Nomad's layout.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    /// The [`Base`] that it is in.
    parent: OwnedFd,
    /// The directory, locked while this process lives: [`sweep`] removes only unlocked ones.
    dir: Flock<OwnedFd>,
}

impl Scratch {
    /// Creates the directories in `base` and gives them to `user`.
    pub(super) fn new(base: &Base, user: &User) -> Result<Self, ScratchError> {
        let scratch = Self::locked(base)?;
        scratch.fill(user)?;
        Ok(scratch)
    }

    /// Creates a directory that only its owner can enter, and locks it.
    fn locked(base: &Base) -> Result<Self, ScratchError> {
        for _ in 0..TRIES {
            let name = format!("{PREFIX}{:0NAME_DIGITS$x}", RandomState::new().build_hasher().finish());
            let path = base.path().join(&name);
            match mkdirat(base.dir(), name.as_str(), PRIVATE) {
                Err(Errno::EEXIST) => continue,
                made => made.map_err(IoError::on("create", &path))?,
            }
            let dir = match open_directory(base.dir(), name.as_ref()) {
                // The sweep of another `run` removed it before it was locked.
                Err(Errno::ENOENT) => continue,
                opened => opened.map_err(IoError::on("open", &path))?,
            };
            let Ok(dir) = Flock::lock(dir, FlockArg::LockExclusiveNonblock) else { continue };
            let own = fstat(&*dir).map_err(IoError::on("stat", &path))?;
            let found = fstatat(base.dir(), name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
            if found.is_ok_and(|found| is_same(&found, &own)) {
                let parent = base.dir().try_clone_to_owned().map_err(IoError::on("open", &path))?;
                return Ok(Self { path, parent, dir });
            }
        }
        Err(ScratchError::NoName(base.path().to_owned()))
    }

    /// Creates everything as root and then changes the owners, inner directories first: no call uses a path of which another
    /// user could have replaced a part.
    fn fill(&self, user: &User) -> Result<(), ScratchError> {
        let root = &*self.dir;
        let alloc = self.directory(root, "alloc", "alloc", SHARED)?;
        let logs = self.directory(&alloc, "logs", "alloc/logs", SHARED)?;
        let local = self.directory(root, "local", "local", SHARED)?;
        let secrets = self.directory(root, "secrets", "secrets", PRIVATE)?;
        let tmp = self.directory(root, "tmp", "tmp", PRIVATE)?;
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        for (dir, name) in [
            (&logs, "alloc/logs"),
            (&alloc, "alloc"),
            (&local, "local"),
            (&secrets, "secrets"),
            (&tmp, "tmp"),
        ] {
            fchown(dir, Some(uid), Some(gid)).map_err(self.failed("change the owner of", name))?;
        }
        // Last, so that no other user can enter earlier.
        Ok(fchmod(root, PASSABLE).map_err(IoError::on("change the mode of", &self.path))?)
    }

    /// Creates a directory with exactly this mode, independent of the umask.
    fn directory(
        &self,
        parent: &OwnedFd,
        name: &str,
        path: &str,
        mode: Mode,
    ) -> Result<OwnedFd, ScratchError> {
        mkdirat(parent, name, PRIVATE).map_err(self.failed("create", path))?;
        let dir = open_directory(parent, name.as_ref()).map_err(self.failed("open", path))?;
        fchmod(&dir, mode).map_err(self.failed("change the mode of", path))?;
        Ok(dir)
    }

    fn failed(&self, op: &'static str, name: &str) -> impl FnOnce(Errno) -> IoError + use<> {
        IoError::on(op, self.path.join(name))
    }

    pub(super) fn root(&self) -> &Path {
        &self.path
    }
}

/// The variables that name a task's directories, which are in `task_dir`.
pub(super) fn variables(task_dir: &Path) -> [(String, String); 3] {
    [("NOMAD_ALLOC_DIR", "alloc"), ("NOMAD_TASK_DIR", "local"), ("NOMAD_SECRETS_DIR", "secrets")]
        .map(|(name, dir)| (name.to_owned(), task_dir.join(dir).display().to_string()))
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(self.parent.as_fd(), &self.path);
    }
}

/// Removes the directories that killed `run`s left in `base`. A live `run` holds a lock on its directory.
pub(super) fn sweep(base: &Base) {
    let Ok(entries) = std::fs::read_dir(base.path()) else { return };
    for name in entries.flatten().map(|entry| entry.file_name()).filter(|name| is_ours(name)) {
        let Ok(dir) = open_directory(base.dir(), &name) else { continue };
        if !fstat(&dir).is_ok_and(|found| found.st_uid == Uid::effective().as_raw()) {
            continue;
        }
        // Held until the directory is removed.
        if let Ok(_lock) = Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            remove(base.dir(), &base.path().join(&name));
        }
    }
}

/// Removes the directory with this path in `parent`.
fn remove(parent: BorrowedFd<'_>, path: &Path) {
    let removed = path.file_name().map_or(Err(Errno::EINVAL), |name| remove::tree(parent, name));
    if let Err(errno) = removed {
        say(&format!("nomad-driver-exec2: failed to remove {path:?}: {}\n", errno.desc()));
    }
}

fn is_ours(name: &OsStr) -> bool {
    let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
    digits.is_some_and(|digits| {
        digits.len() == NAME_DIGITS
            && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn open_directory(parent: impl AsFd, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn is_same(a: &FileStat, b: &FileStat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn base() -> (tempfile::TempDir, Base) {
        let dir = tempfile::tempdir().unwrap();
        let base = Base::unchecked(dir.path());
        (dir, base)
    }

    fn own_user() -> User {
        let (uid, gid) = (Uid::effective().as_raw(), nix::unistd::getegid().as_raw());
        User::unknown("u", uid, gid)
    }

    #[test]
    fn directories_have_their_modes_and_vanish_with_the_run() {
        let (dir, base) = base();
        let scratch = Scratch::new(&base, &own_user()).unwrap();
        let mode = |name: &str| scratch.root().join(name).metadata().unwrap().mode() & 0o7777;
        assert_eq!(mode(""), 0o711);
        for name in ["alloc", "alloc/logs", "local"] {
            assert_eq!(mode(name), 0o755, "{name}");
        }
        for name in ["secrets", "tmp"] {
            assert_eq!(mode(name), 0o700, "{name}");
        }
        drop(scratch);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_the_scratch_is_removed_and_its_target_kept() {
        let (dir, base) = base();
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("file"), "x").unwrap();
        let scratch = Scratch::new(&base, &own_user()).unwrap();
        symlink(&target, scratch.root().join("local/link")).unwrap();
        std::fs::remove_dir(scratch.root().join("tmp")).unwrap();
        symlink(&target, scratch.root().join("tmp")).unwrap();
        drop(scratch);
        assert!(target.join("file").exists());
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_sweep_removes_only_unlocked_directories() {
        let (dir, base) = base();
        let living = Scratch::new(&base, &own_user()).unwrap();
        let dead = dir.path().join(format!("{PREFIX}0123456789abcdef"));
        std::fs::create_dir_all(dead.join("local/x")).unwrap();
        let others = ["exec2-run-a1B2c3", "exec2-run-0123456789abcdeg", "exec2-abcdef", "x"]
            .map(|name| dir.path().join(name));
        others.iter().for_each(|other| std::fs::create_dir(other).unwrap());
        let link = dir.path().join(format!("{PREFIX}00000000deadbeef"));
        symlink(&others[0], &link).unwrap();
        sweep(&base);
        assert!(!dead.exists());
        assert!(living.root().join("alloc/logs").exists());
        assert!(others.iter().all(|other| other.exists()));
        assert!(link.is_symlink());
    }
}
