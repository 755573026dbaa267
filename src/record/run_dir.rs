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

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use serde::{Deserialize, Serialize};

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
/// NAME_MAX is 255 (limits.h); a longer name is cut and told apart by a hash.
const MAX_NAME: usize = 200;

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

/// How a name below the run directory begins that belongs to no task: [`name`] makes none like it.
pub(crate) const NO_TASK: &str = "@";

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

/// Creates a directory that only its owner can enter, or checks an existing one, and opens it. `path` is for messages.
fn make_private(at: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<OwnedFd, RunDirError> {
    match mkdirat(at, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => open_private(at, name, path),
        Err(errno) => Err(IoError::new("create", path, errno).into()),
    }
}

/// Opens a directory that only its owner, this process, can enter; the last component is not followed.
fn open_private(at: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<OwnedFd, RunDirError> {
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

fn file_at(dir: &OwnedFd, name: &str, flags: OFlag) -> io::Result<File> {
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    Ok(File::from(openat(dir, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, private)?))
}

/// An open directory's path for interfaces that take only paths.
fn through(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

fn borrow(dir: &OwnedFd) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(dir)
}

/// A file name for a task id (`alloc/task/invocation`): readable, different for different ids, and never `.` or `..`.
fn name(task_id: &str) -> String {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn id(text: &str) -> Key<'_> {
        Key::new(text).unwrap()
    }

    fn dir(base: &tempfile::TempDir) -> RunDir {
        RunDir::of(&base.path().join("run"), id("1111/web/ab12"))
    }

    #[test]
    fn an_exit_is_read_back_once_written() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        let file = dir.create().unwrap();
        assert!(dir.exit().unwrap().is_none());
        let exit = Exit::exited(7);
        exit.write(&file).unwrap();
        assert_eq!(dir.exit().unwrap(), Some(exit));
        assert_eq!(std::fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        dir.create().unwrap();
        assert!(dir.exit().unwrap().is_none(), "a new start forgets the old end");
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(matches!(dir.exit(), Err(RunDirError::Io(IoError { op: "read", .. }))));
    }

    #[test]
    fn what_a_shim_did_not_write_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        dir.create().unwrap();
        let path = dir.path().join(EXIT_FILE);
        for (what, text) in [
            ("empty", String::new()),
            ("truncated", "v1 code=0 signal=0 oom=0 at=1".into()),
            ("short", "v1 code=0 signal=0 oom=0 at=1\n".to_owned() + " "),
            ("forged tail", format!("{:<127}x", "v1 code=0 signal=0 oom=0 at=1\n")),
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(dir.exit(), Err(RunDirError::Malformed { .. })), "{what}");
        }
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        let Err(RunDirError::Io(error)) = dir.exit() else { panic!("huge") };
        assert_eq!(error.errno, Errno::EFBIG);
        std::fs::remove_file(&path).unwrap();
        symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(dir.exit(), Err(RunDirError::Io(_))), "a symbolic link");
    }

    #[test]
    fn a_start_leaves_its_mark_until_it_is_done() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        assert_eq!(entries(&base.path().join("run")).unwrap().len(), 0);
        dir.create().unwrap();
        let own = Identity::of(std::process::id().cast_signed()).unwrap();
        assert_eq!((dir.starting(), dir.shim()), (Some(own), None));
        dir.record_shim(&own).unwrap();
        dir.started().unwrap();
        assert_eq!((dir.starting(), dir.answered(), dir.shim()), (None, Some(own), Some(own)));
        dir.acknowledged().unwrap();
        dir.acknowledged().unwrap();
        assert_eq!((dir.answered(), dir.shim()), (None, Some(own)));
        let found = entries(&base.path().join("run")).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path(), dir.path());
    }

    #[test]
    fn the_oom_kills_that_a_task_outlived_are_a_number() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        dir.create().unwrap();
        assert_eq!(dir.outlived(), 0);
        for kills in [u64::MAX, 3] {
            dir.outlives(kills).unwrap();
            assert_eq!(dir.outlived(), kills);
        }
        for bytes in [&b""[..], b"x", b"-1", b"\xff", &[b'9'; 100]] {
            std::fs::write(dir.path().join(OUTLIVED_FILE), bytes).unwrap();
            assert_eq!(dir.outlived(), 0, "{}", bytes.escape_ascii());
        }
        dir.create().unwrap();
        assert_eq!(dir.outlived(), 0, "a new start");
    }

    #[test]
    fn a_record_of_a_former_boot_names_nobody() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        dir.create().unwrap();
        let own = Identity::of(std::process::id().cast_signed()).unwrap();
        dir.record_shim(&own).unwrap();
        assert!(!dir.is_of_former_boot());
        let record = Record { boot_id: "0000".into(), process: own };
        std::fs::write(dir.path().join(SHIM_FILE), serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(dir.shim(), None);
        assert!(dir.is_of_former_boot());
    }

    #[test]
    fn records_that_no_plugin_wrote_name_nobody() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        dir.create().unwrap();
        let path = dir.path().join(SHIM_FILE);
        for bytes in [&b""[..], b"{", b"{\"pid\":1}", b"\xff\xfe", &[b' '; 4096]] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(dir.shim(), None, "{bytes:?}");
            assert!(!dir.is_of_former_boot());
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(dir.shim(), None, "a directory");
        std::fs::remove_dir(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(dir.shim(), None, "a FIFO without a writer");
        dir.remove().unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn other_invocations_of_the_same_task_are_found_and_no_others() {
        let base = tempfile::tempdir().unwrap();
        let run = base.path().join("run");
        let of = |text: &str| RunDir::of(&run, id(text));
        for task in ["a/web/1", "a/web/2", "a/web2/1", "b/web/1", "a/web.x/1", "a/web/1/2", "run-7"] {
            of(task).create().unwrap();
        }
        let found = |task| {
            let mut paths: Vec<_> = siblings(&run, id(task)).unwrap().iter().map(|e| e.path()).collect();
            paths.sort();
            paths
        };
        assert_eq!(found("a/web/3"), [of("a/web/1").path(), of("a/web/2").path()]);
        assert_eq!(found("a/web/1"), [of("a/web/2").path()]);
        assert_eq!(found("run-7"), [] as [PathBuf; 0]);
        assert_eq!(found("a/1"), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_base_that_others_can_enter_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let run = base.path().join("run");
        std::fs::create_dir(&run).unwrap();
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(dir(&base).create(), Err(RunDirError::Unsafe(_))));
        std::fs::remove_dir(&run).unwrap();
        symlink("/tmp", &run).unwrap();
        assert!(matches!(dir(&base).create(), Err(RunDirError::Unsafe(_))));
    }

    #[test]
    fn no_id_removes_the_base_or_what_is_above_it() {
        let base = tempfile::tempdir().unwrap();
        let run = base.path().join("run");
        let other = RunDir::of(&run, id("1111/web/ab12"));
        other.create().unwrap();
        for text in ["/", "//", "///", ".", "..", "../..", "\0"] {
            let dir = RunDir::of(&run, id(text));
            dir.remove().unwrap();
            dir.create().unwrap();
            assert_eq!(dir.path().parent(), Some(&*run), "{text:?}");
            dir.remove().unwrap();
            assert!(other.path().join(EXIT_FILE).exists(), "{text:?}");
        }
    }

    #[test]
    fn a_base_that_was_replaced_by_a_link_is_not_touched() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        dir.create().unwrap();
        let (run, moved) = (base.path().join("run"), base.path().join("moved"));
        std::fs::rename(&run, &moved).unwrap();
        symlink(&moved, &run).unwrap();
        assert!(matches!(dir.remove(), Err(RunDirError::Unsafe(_))));
        assert!(matches!(dir.started(), Err(RunDirError::Unsafe(_))));
        assert!(matches!(entries(&run), Err(RunDirError::Unsafe(_))));
        assert_eq!(dir.starting(), None);
        assert!(moved.join("1111.web.ab12").join(STARTING_FILE).exists());
    }

    #[test]
    fn names_stay_inside_and_differ() {
        assert_eq!(name("1111/web/ab12"), "1111.web.ab12");
        assert_eq!(name("../x"), "%2e%2e.x");
        let long = |end: &str| name(&format!("{}{end}", "a".repeat(300)));
        assert_ne!(long("b"), long("c"));
        assert!(long("b").len() < 255);
        assert_ne!(name("a/b"), name("a.b"));
        assert_eq!(name("/"), "%2f");
        assert_eq!(name("//"), "%2f.");
    }

    #[test]
    fn what_belongs_to_no_task_is_no_entry() {
        let base = tempfile::tempdir().unwrap();
        let run = base.path().join("run");
        make_base(&run).unwrap();
        std::fs::create_dir(run.join(format!("{NO_TASK}etc"))).unwrap();
        assert_eq!(entries(&run).unwrap().len(), 0);
        // Nor can a task have such a name.
        dir(&base).create().unwrap();
        let like_it = RunDir::of(&run, id(&format!("{NO_TASK}etc")));
        like_it.create().unwrap();
        assert!(!like_it.path().ends_with(format!("{NO_TASK}etc")));
        assert_eq!(entries(&run).unwrap().len(), 2);
    }
}
