//! `/run/nomad-driver-exec2/<task>/`: the driver's records of a task, accessible only to root.
//!
//! * `exit`: how the task ended, written by its shim.
//! * `shim`: the identity of the shim, written by the plugin before the task starts.
//! * `starting`: the plugin that is starting the task. If that plugin is gone, the task is orphaned: Nomad never learned of it.
//! * `answered`: the same file under another name, once the answer is on its way to Nomad. Removed when Nomad first asks for
//!   the task, which acknowledges the start.
//! * `spec`: what the task may do, written before it runs.
//! * `session`: the environment and the rules of the task, for sessions in it; written by its shim.
//! * `outlived`: the number of OOM kills that the task survived; absent if there were none.

mod place;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, renameat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

pub(crate) use self::place::{NO_TASK, fnv1a};

use self::place::{borrow, file_at, make_private, name, open_private, through};
use super::identity::{Identity, boot_id};
use super::key::Key;
use super::session::SessionRecord;
use super::spec::StoredSpec;
use crate::shim::exit::{BLANK, Exit, MAX_LINE, Malformed};
use crate::sys::read::bounded;
use crate::sys::{self, IoError};

/// Usually on a tmpfs, so it is empty after a reboot; the records name their boot in case it is not.
pub(crate) const RUN_DIR: &str = "/run/nomad-driver-exec2";
/// The file that the shim writes when the task has ended.
const EXIT_FILE: &str = "exit";
const SHIM_FILE: &str = "shim";
const STARTING_FILE: &str = "starting";
const ANSWERED_FILE: &str = "answered";
const OUTLIVED_FILE: &str = "outlived";
const SPEC_FILE: &str = "spec";
const SESSION_FILE: &str = "session";
/// Limit for a [`Record`], bytes; it has about 100.
const MAX_RECORD: u64 = 1024;
/// Limit for a specification, bytes: a job may have hundreds of thousands of rules.
const MAX_SPEC: u64 = 256 << 20;
/// Digits of the largest number. All are always written, so that one write replaces the previous number.
const NUMBER: usize = 20;

/// What failed, with the path.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error(transparent)]
    Io(#[from] IoError),
    #[error("{0:?} is not a directory that only root can enter; remove it")]
    Unsafe(PathBuf),
    #[error("{path:?}: {error}")]
    Malformed { path: PathBuf, error: Malformed },
    #[error("failed to decode {path:?}: {error}")]
    Spec { path: PathBuf, error: serde_json::Error },
}

impl RunDirError {
    /// Whether the error is temporary, such as too many open files.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Io(error) if sys::is_transient(error.errno))
    }

    /// Whether there is no such directory.
    fn is_absent(&self) -> bool {
        matches!(self, Self::Io(IoError { errno: Errno::ENOENT, .. }))
    }
}

/// A process in a file, as JSON for debugging.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    boot_id: String,
    #[serde(flatten)]
    process: Identity,
}

/// The directory of one task: a name below the base, which is never the base itself.
///
/// All access uses descriptors, from a base that was opened without following links and checked to be private.
#[derive(Debug, Clone)]
pub struct RunDir {
    base: PathBuf,
    /// One component.
    name: OsString,
}

impl RunDir {
    /// The directory of a task; it may not exist.
    pub fn of(base: &Path, task_id: Key<'_>) -> Self {
        Self { base: base.to_owned(), name: name(task_id.as_str()).into() }
    }

    /// Whether the task is one of this allocation's.
    pub(crate) fn belongs_to(&self, alloc: &str) -> bool {
        let found = self.name.to_str().unwrap_or_default();
        found.strip_prefix(&name(alloc)).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The whole path, for messages and tests.
    pub fn path(&self) -> PathBuf {
        self.base.join(&self.name)
    }

    /// Makes the directory, marks the start as pending, and returns the exit-status file opened for writing.
    pub fn create(&self) -> Result<File, RunDirError> {
        let base = make_private(AT_FDCWD, self.base.as_os_str(), &self.base)?;
        // An earlier start of the same task may have left records.
        self.remove()?;
        let dir = make_private(borrow(&base), &self.name, &self.path())?;
        self.fill(&dir).inspect_err(|_| {
            // A failed start leaves nothing, even on a full file system.
            if let Err(error) = self.remove() {
                tracing::warn!(%error, "failed to remove the directory of a task that did not start");
            }
        })
    }

    fn fill(&self, dir: &OwnedFd) -> Result<File, RunDirError> {
        let own = Identity::of(std::process::id().cast_signed())
            .map_err(IoError::on("identify this plugin for", self.path()))?;
        self.write(dir, STARTING_FILE, own)?;
        let file = self.new_file(dir, EXIT_FILE)?;
        // Reserves the space: a full file system must not lose the exit status later.
        file.write_all_at(&BLANK, 0).map_err(self.failed("write", EXIT_FILE))?;
        Ok(file)
    }

    /// Stores what the task may do. Without fsync: it is useless after a reboot.
    pub(crate) fn record_spec(&self, spec: &StoredSpec<'_>) -> Result<(), RunDirError> {
        let bytes = spec.encode().map_err(self.failed("encode", SPEC_FILE))?;
        let file = self.new_file(&self.dir()?, SPEC_FILE)?;
        Ok(file.write_all_at(&bytes, 0).map_err(self.failed("write", SPEC_FILE))?)
    }

    /// What the task may do; none if the version that started it did not store it.
    pub fn spec(&self) -> Result<Option<StoredSpec<'static>>, RunDirError> {
        let bytes = match self.read(SPEC_FILE, MAX_SPEC) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(self.failed("read", SPEC_FILE))?,
        };
        let decoded = StoredSpec::decode(&bytes);
        decoded.map(Some).map_err(|error| RunDirError::Spec { path: self.path().join(SPEC_FILE), error })
    }

    /// The file that the shim fills for sessions.
    pub(crate) fn new_session_file(&self) -> Result<File, RunDirError> {
        self.new_file(&self.dir()?, SESSION_FILE)
    }

    /// What a session needs beside the specification; none if the version that started the task did not store it.
    pub(crate) fn session(&self) -> Result<Option<SessionRecord<'static>>, RunDirError> {
        let bytes = match self.read(SESSION_FILE, MAX_SPEC) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(self.failed("read", SESSION_FILE))?,
        };
        let decoded = SessionRecord::decode(&bytes);
        decoded.map(Some).map_err(|error| RunDirError::Spec { path: self.path().join(SESSION_FILE), error })
    }

    /// Records the identity of the shim.
    pub(crate) fn record_shim(&self, shim: &Identity) -> Result<(), RunDirError> {
        self.write(&self.dir()?, SHIM_FILE, *shim)
    }

    /// The shim has ended before its task began, and another one is recorded next.
    pub(crate) fn forget_shim(&self) -> Result<(), RunDirError> {
        let removed = unlinkat(&self.dir()?, SHIM_FILE, UnlinkatFlags::NoRemoveDir);
        Ok(removed.map_err(self.failed("remove", SHIM_FILE))?)
    }

    /// Records that the answer to Nomad is on its way.
    pub(crate) fn started(&self) -> Result<(), RunDirError> {
        let dir = self.dir()?;
        let renamed = renameat(&dir, STARTING_FILE, &dir, ANSWERED_FILE);
        Ok(renamed.map_err(self.failed("rename", STARTING_FILE))?)
    }

    /// Records that Nomad has acknowledged the task.
    pub(crate) fn acknowledged(&self) -> Result<(), RunDirError> {
        let removed = match self.dir() {
            Ok(dir) => unlinkat(&dir, ANSWERED_FILE, UnlinkatFlags::NoRemoveDir),
            Err(error) if error.is_absent() => Ok(()),
            Err(error) => return Err(error),
        };
        match removed {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove", ANSWERED_FILE)(errno).into()),
        }
    }

    /// Records how many OOM kills the task has survived.
    pub(crate) fn outlives(&self, oom_kills: u64) -> Result<(), RunDirError> {
        let number = format!("{oom_kills:0width$}", width = NUMBER);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NONBLOCK;
        let written = file_at(&self.dir()?, OUTLIVED_FILE, flags)
            .and_then(|file| file.write_all_at(number.as_bytes(), 0));
        Ok(written.map_err(self.failed("write", OUTLIVED_FILE))?)
    }

    /// How many OOM kills the task has survived, according to the record.
    pub(crate) fn outlived(&self) -> u64 {
        let bytes = self.read(OUTLIVED_FILE, NUMBER as u64).ok();
        bytes.and_then(|bytes| str::from_utf8(&bytes).ok()?.parse().ok()).unwrap_or(0)
    }

    /// The shim, running or not; none if the start did not get that far, or was before a reboot.
    pub fn shim(&self) -> Option<Identity> {
        self.of_this_boot(SHIM_FILE)
    }

    /// The plugin that began the start and did not finish it; none if that was before a reboot.
    pub fn starting(&self) -> Option<Identity> {
        self.of_this_boot(STARTING_FILE)
    }

    /// The plugin that finished the start, while it is unacknowledged.
    pub fn answered(&self) -> Option<Identity> {
        self.of_this_boot(ANSWERED_FILE)
    }

    /// Whether the host has been rebooted since: then the task is gone, and its PIDs may be reused.
    pub fn is_of_former_boot(&self) -> bool {
        let boot = boot_id().ok();
        let mut records =
            [SHIM_FILE, STARTING_FILE, ANSWERED_FILE].into_iter().filter_map(|name| self.process(name));
        records.any(|record| boot.as_ref().is_some_and(|boot| *boot != record.boot_id))
    }

    fn of_this_boot(&self, name: &str) -> Option<Identity> {
        let record = self.process(name)?;
        (record.boot_id == boot_id().ok()?).then_some(record.process)
    }

    /// How the task ended; none before that.
    pub fn exit(&self) -> Result<Option<Exit>, RunDirError> {
        let bytes = self.read(EXIT_FILE, MAX_LINE as u64).map_err(self.failed("read", EXIT_FILE))?;
        Exit::read(&bytes)
            .map_err(|error| RunDirError::Malformed { path: self.path().join(EXIT_FILE), error })
    }

    /// Approximately when the task ended. Also works for an entry that was only partly created or removed.
    pub(crate) fn modified(&self) -> io::Result<std::time::SystemTime> {
        let dir = self.dir().map_err(io::Error::other)?;
        let found = file_at(&dir, EXIT_FILE, OFlag::O_PATH).unwrap_or_else(|_| File::from(dir));
        found.metadata()?.modified()
    }

    /// Removes the directory and what is in it; it may be gone already.
    pub fn remove(&self) -> Result<(), RunDirError> {
        let base = match open_private(AT_FDCWD, self.base.as_os_str(), &self.base) {
            Err(error) if error.is_absent() => return Ok(()),
            opened => opened?,
        };
        // remove_dir_all follows no symbolic link below this path.
        match std::fs::remove_dir_all(through(&base).join(&self.name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(IoError::new("remove", self.path(), error).into())
            }
            _ => Ok(()),
        }
    }

    /// The directory itself.
    fn dir(&self) -> Result<OwnedFd, RunDirError> {
        let base = open_private(AT_FDCWD, self.base.as_os_str(), &self.base)?;
        open_private(borrow(&base), &self.name, &self.path())
    }

    fn failed<E: Into<io::Error>>(&self, op: &'static str, file: &str) -> impl FnOnce(E) -> IoError + use<E> {
        IoError::on(op, self.path().join(file))
    }

    fn new_file(&self, dir: &OwnedFd, name: &str) -> Result<File, RunDirError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        Ok(file_at(dir, name, flags).map_err(self.failed("create", name))?)
    }

    /// Reads a file of at most `max` bytes, without following a link.
    fn read(&self, name: &str, max: u64) -> io::Result<Vec<u8>> {
        let dir = self.dir().map_err(|error| match error {
            RunDirError::Io(error) => error.errno.into(),
            other => io::Error::other(other),
        })?;
        bounded(file_at(&dir, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?, max)
    }

    fn write(&self, dir: &OwnedFd, name: &str, process: Identity) -> Result<(), RunDirError> {
        let boot_id = boot_id().map_err(self.failed("read the boot id for", name))?;
        let bytes = serde_json::to_vec(&Record { boot_id, process }).map_err(self.failed("encode", name))?;
        Ok(self.new_file(dir, name)?.write_all_at(&bytes, 0).map_err(self.failed("write", name))?)
    }

    fn process(&self, name: &str) -> Option<Record> {
        serde_json::from_slice(&self.read(name, MAX_RECORD).ok()?).ok()
    }
}

/// The entries of other invocations of the same task: the ids are `alloc/task/invocation`, and only the last part differs.
/// A name that was truncated is not found.
pub(crate) fn siblings(base: &Path, task_id: Key<'_>) -> Result<Vec<RunDir>, RunDirError> {
    let Some(prefix) = task_id.task_prefix().map(name) else { return Ok(Vec::new()) };
    let own = name(task_id.as_str());
    let is_sibling = |entry: &RunDir| {
        let found = entry.name.to_str().unwrap_or_default();
        found != own && found.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('.'))
    };
    Ok(entries(base)?.into_iter().filter(is_sibling).collect())
}

/// Makes the directory for all tasks, or checks that it is private.
pub(crate) fn make_base(base: &Path) -> Result<(), RunDirError> {
    make_private(AT_FDCWD, base.as_os_str(), base).map(drop)
}

/// The entries of tasks below `base`; none if it is not there.
pub fn entries(base: &Path) -> Result<Vec<RunDir>, RunDirError> {
    let opened = match open_private(AT_FDCWD, base.as_os_str(), base) {
        Err(error) if error.is_absent() => return Ok(Vec::new()),
        opened => opened?,
    };
    let found = std::fs::read_dir(through(&opened)).map_err(IoError::on("list", base))?;
    let is_task = |name: &OsString| !name.as_encoded_bytes().starts_with(NO_TASK.as_bytes());
    let entry = |name| RunDir { base: base.to_owned(), name };
    let names: io::Result<Vec<_>> = found.map(|found| Ok(found?.file_name())).collect();
    let names = names.map_err(IoError::on("list", base))?;
    Ok(names.into_iter().filter(is_task).map(entry).collect())
}

#[cfg(test)]
mod tests;
