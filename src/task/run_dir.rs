//! `/run/nomad-driver-exec2/<task>/`: what the driver keeps of a task where only root can reach it.
//!
//! * `exit`: how the task ended, written by its shim.
//! * `shim`: who the shim is, written by the plugin as soon as there is one.
//! * `starting`: which plugin is at work on the start. Where it outlives its plugin, Nomad never learned of the task, and
//!   nobody will ever ask for it.
//! * `answered`: the same file under another name, once the answer is on its way to Nomad. Removed when Nomad asks for
//!   the task, which it does at once: only then is it certain that the answer has arrived.
//! * `outlived`: how many OOM kills of its processes the task has gone on after; not there while it is none.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::identity::{Identity, boot_id};
use crate::shim::exit::{BLANK, Exit, MAX_LINE, Malformed};
use crate::sys;

/// On a tmpfs, so gone after a reboot, as the tasks are; where it is not, the records tell of which boot they are.
pub const RUN_DIR: &str = "/run/nomad-driver-exec2";
/// The file that the shim writes when the task has ended.
const EXIT_FILE: &str = "exit";
const SHIM_FILE: &str = "shim";
const STARTING_FILE: &str = "starting";
const ANSWERED_FILE: &str = "answered";
const OUTLIVED_FILE: &str = "outlived";
/// Longest record of the plugin's own, bytes: a [`Record`] has some 100.
const MAX_RECORD: u64 = 1024;
/// Digits of the greatest number; always as many are written, so that one write replaces the last number.
const NUMBER: u64 = 20;
/// NAME_MAX is 255 (limits.h); a longer name is cut and told apart by a hash.
const MAX_NAME: usize = 200;

/// What failed, with the path.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("{step} {path:?}: {error}")]
    Io { step: &'static str, path: PathBuf, error: io::Error },
    #[error("{0:?} is not a directory of root's that only root can enter; remove it")]
    Unsafe(PathBuf),
    #[error("{path:?}: {error}")]
    Malformed { path: PathBuf, error: Malformed },
}

impl RunDirError {
    /// Whether it is this plugin that lacks something for the moment, and the file is as good as before.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Io { error, .. } if sys::is_passing(error))
    }
}

/// A process as it is noted in a file: as JSON, for whoever debugs.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    boot_id: String,
    #[serde(flatten)]
    process: Identity,
}

/// The directory of one task.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// The directory that a task has, whether or not it is there.
    pub fn of(base: &Path, task_id: &str) -> Self {
        Self { path: base.join(name(task_id)) }
    }

    /// A directory that is there, by its path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Whether the task is one of this allocation's.
    pub fn belongs_to(&self, alloc: &str) -> bool {
        let found = self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        found.strip_prefix(&name(alloc)).is_some_and(|rest| rest.starts_with('.'))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory, marks the start as begun, and returns the exit-status file opened for writing.
    pub fn create(&self) -> Result<File, RunDirError> {
        if let Some(base) = self.path.parent() {
            make_private(base)?;
        }
        // What an earlier life of the same task left behind is not this one's.
        self.remove()?;
        make_private(&self.path)?;
        self.fill().inspect_err(|_| {
            // On a full file system, too, a start that failed leaves nothing.
            if let Err(error) = self.remove() {
                tracing::warn!(%error, "remove the directory of a task that did not start");
            }
        })
    }

    fn fill(&self) -> Result<File, RunDirError> {
        let own = Identity::of(std::process::id() as i32).map_err(|error| RunDirError::Io {
            step: "identify this plugin for",
            path: self.path.clone(),
            error,
        })?;
        self.write(STARTING_FILE, own)?;
        let file = self.new_file(EXIT_FILE)?;
        // The space is taken now: at the task's end a full file system must not cost its exit status.
        file.write_all_at(&BLANK, 0).map_err(|error| self.failed("write", EXIT_FILE)(error))?;
        Ok(file)
    }

    /// Notes who the shim is.
    pub fn record_shim(&self, shim: &Identity) -> Result<(), RunDirError> {
        self.write(SHIM_FILE, *shim)
    }

    /// Notes that Nomad is about to learn that the task runs.
    pub fn started(&self) -> Result<(), RunDirError> {
        std::fs::rename(self.path.join(STARTING_FILE), self.path.join(ANSWERED_FILE))
            .map_err(self.failed("rename", STARTING_FILE))
    }

    /// Notes that Nomad knows of the task.
    pub fn confirmed(&self) -> Result<(), RunDirError> {
        match std::fs::remove_file(self.path.join(ANSWERED_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed("remove", ANSWERED_FILE)(error))
            }
            _ => Ok(()),
        }
    }

    /// Notes how many OOM kills of processes of it the task has outlived.
    pub fn outlives(&self, oom_kills: u64) -> Result<(), RunDirError> {
        let number = format!("{oom_kills:0width$}", width = NUMBER as usize);
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.path.join(OUTLIVED_FILE))
            .and_then(|file| file.write_all_at(number.as_bytes(), 0))
            .map_err(self.failed("write", OUTLIVED_FILE))
    }

    /// How many OOM kills the task has outlived, as far as it is noted.
    pub fn outlived(&self) -> u64 {
        let mut text = String::new();
        let read = self.open(OUTLIVED_FILE).and_then(|file| file.take(NUMBER).read_to_string(&mut text));
        read.ok().and_then(|_| text.parse().ok()).unwrap_or(0)
    }

    /// Who the shim is or was; none if the start did not come so far, or that was before a reboot.
    pub fn shim(&self) -> Option<Identity> {
        self.of_this_boot(SHIM_FILE)
    }

    /// The plugin that began the start and did not finish it; none if that was before a reboot.
    pub fn starting(&self) -> Option<Identity> {
        self.of_this_boot(STARTING_FILE)
    }

    /// The plugin that finished the start, while it is not certain that Nomad knows of it.
    pub fn answered(&self) -> Option<Identity> {
        self.of_this_boot(ANSWERED_FILE)
    }

    /// Whether the host has been rebooted since: then nothing of the task is left, and the same numbers may mean other
    /// processes.
    pub fn is_of_former_boot(&self) -> bool {
        let boot = boot_id().ok();
        let mut records =
            [SHIM_FILE, STARTING_FILE, ANSWERED_FILE].into_iter().filter_map(|name| self.read(name));
        records.any(|record| boot.as_ref().is_some_and(|boot| *boot != record.boot_id))
    }

    fn of_this_boot(&self, name: &str) -> Option<Identity> {
        let record = self.read(name)?;
        (record.boot_id == boot_id().ok()?).then_some(record.process)
    }

    /// How the task ended; none while nothing has been written.
    pub fn exit(&self) -> Result<Option<Exit>, RunDirError> {
        let mut bytes = Vec::new();
        self.open(EXIT_FILE)
            .and_then(|file| file.take(MAX_LINE as u64 + 1).read_to_end(&mut bytes))
            .map_err(self.failed("read", EXIT_FILE))?;
        Exit::read(&bytes).map_err(|error| RunDirError::Malformed { path: self.path.join(EXIT_FILE), error })
    }

    /// When the task ended, or nearly: for telling old entries. One that was made or removed by half counts, too.
    pub fn modified(&self) -> io::Result<std::time::SystemTime> {
        std::fs::symlink_metadata(self.path.join(EXIT_FILE))
            .or_else(|_| std::fs::symlink_metadata(&self.path))?
            .modified()
    }

    /// Removes the directory and what is in it; it may be gone already.
    pub fn remove(&self) -> Result<(), RunDirError> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RunDirError::Io { step: "remove", path: self.path.clone(), error })
            }
            _ => Ok(()),
        }
    }

    fn failed(&self, step: &'static str, file: &str) -> impl Fn(io::Error) -> RunDirError + use<> {
        let path = self.path.join(file);
        move |error| RunDirError::Io { step, path: path.clone(), error }
    }

    fn new_file(&self, name: &str) -> Result<File, RunDirError> {
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path.join(name))
            .map_err(self.failed("create", name))
    }

    /// Nothing but a plain file is read, and nothing but its beginning.
    fn open(&self, name: &str) -> io::Result<File> {
        File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.path.join(name))
    }

    fn write(&self, name: &str, process: Identity) -> Result<(), RunDirError> {
        let boot_id = boot_id().map_err(self.failed("read the boot id for", name))?;
        let bytes = serde_json::to_vec(&Record { boot_id, process })
            .map_err(|error| self.failed("encode", name)(error.into()))?;
        self.new_file(name)?.write_all_at(&bytes, 0).map_err(self.failed("write", name))
    }

    fn read(&self, name: &str) -> Option<Record> {
        let mut bytes = Vec::new();
        self.open(name).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }
}

/// The entries of other invocations of the same task: the ids are `alloc/task/invocation`, and only the last part differs.
/// A name that had to be cut is not found.
pub fn siblings(base: &Path, task_id: &str) -> Result<Vec<RunDir>, RunDirError> {
    let Some(prefix) = task_prefix(task_id).map(name) else { return Ok(Vec::new()) };
    let own = name(task_id);
    let is_sibling = |entry: &RunDir| {
        let found = entry.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        found != own && found.strip_prefix(&prefix).is_some_and(|rest| !rest.contains('.'))
    };
    Ok(entries(base)?.into_iter().filter(is_sibling).collect())
}

/// `alloc/task/` of `alloc/task/invocation`; none for an id of another form.
pub fn task_prefix(task_id: &str) -> Option<&str> {
    let prefix = &task_id[..=task_id.rfind('/')?];
    (prefix.matches('/').count() == 2).then_some(prefix)
}

/// The entries below `base`; none if it is not there.
pub fn entries(base: &Path) -> Result<Vec<RunDir>, RunDirError> {
    let failed = |error| RunDirError::Io { step: "list", path: base.to_owned(), error };
    match std::fs::read_dir(base) {
        Ok(found) => found.map(|entry| entry.map(|entry| RunDir::at(entry.path())).map_err(failed)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Makes a directory that only its owner can enter, or checks that what is there is one.
fn make_private(path: &Path) -> Result<(), RunDirError> {
    let io = |step, error| RunDirError::Io { step, path: path.to_owned(), error };
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io("create", error)),
    }
    let found = std::fs::symlink_metadata(path).map_err(|error| io("stat", error))?;
    let ours = found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o077 == 0;
    if ours { Ok(()) } else { Err(RunDirError::Unsafe(path.to_owned())) }
}

/// A file name for a task id (`alloc/task/invocation`): readable, and different for different ids.
fn name(task_id: &str) -> String {
    let mut name = String::new();
    for byte in task_id.bytes() {
        match byte {
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
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn dir(base: &tempfile::TempDir) -> RunDir {
        RunDir::of(&base.path().join("run"), "1111/web/ab12")
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
        assert_eq!(std::fs::metadata(&dir.path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        dir.create().unwrap();
        assert!(dir.exit().unwrap().is_none(), "a new start forgets the old end");
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(matches!(dir.exit(), Err(RunDirError::Io { step: "read", .. })));
    }

    #[test]
    fn what_a_shim_did_not_write_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        dir.create().unwrap();
        let path = dir.path.join(EXIT_FILE);
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
        assert!(matches!(dir.exit(), Err(RunDirError::Malformed { .. })), "huge");
        std::fs::remove_file(&path).unwrap();
        symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(dir.exit(), Err(RunDirError::Io { .. })), "a symbolic link");
    }

    #[test]
    fn a_start_leaves_its_mark_until_it_is_done() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        assert_eq!(entries(&base.path().join("run")).unwrap().len(), 0);
        dir.create().unwrap();
        let own = Identity::of(std::process::id() as i32).unwrap();
        assert_eq!((dir.starting(), dir.shim()), (Some(own), None));
        dir.record_shim(&own).unwrap();
        dir.started().unwrap();
        assert_eq!((dir.starting(), dir.answered(), dir.shim()), (None, Some(own), Some(own)));
        dir.confirmed().unwrap();
        dir.confirmed().unwrap();
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
            std::fs::write(dir.path.join(OUTLIVED_FILE), bytes).unwrap();
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
        let own = Identity::of(std::process::id() as i32).unwrap();
        dir.record_shim(&own).unwrap();
        assert!(!dir.is_of_former_boot());
        let record = Record { boot_id: "0000".into(), process: own };
        std::fs::write(dir.path.join(SHIM_FILE), serde_json::to_vec(&record).unwrap()).unwrap();
        assert_eq!(dir.shim(), None);
        assert!(dir.is_of_former_boot());
    }

    #[test]
    fn records_that_no_plugin_wrote_name_nobody() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        dir.create().unwrap();
        let path = dir.path.join(SHIM_FILE);
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
        assert!(!dir.path.exists());
    }

    #[test]
    fn other_invocations_of_the_same_task_are_found_and_no_others() {
        let base = tempfile::tempdir().unwrap();
        let run = base.path().join("run");
        let of = |id: &str| RunDir::of(&run, id);
        for id in ["a/web/1", "a/web/2", "a/web2/1", "b/web/1", "a/web.x/1", "a/web/1/2", "run-7"] {
            of(id).create().unwrap();
        }
        let found = |id| {
            let mut paths: Vec<_> = siblings(&run, id).unwrap().iter().map(|e| e.path.clone()).collect();
            paths.sort();
            paths
        };
        assert_eq!(found("a/web/3"), [of("a/web/1").path, of("a/web/2").path]);
        assert_eq!(found("a/web/1"), [of("a/web/2").path]);
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
    fn names_stay_inside_and_differ() {
        assert_eq!(name("1111/web/ab12"), "1111.web.ab12");
        assert_eq!(name("../x"), "%2e%2e.x");
        let long = |end: &str| name(&format!("{}{end}", "a".repeat(300)));
        assert_ne!(long("b"), long("c"));
        assert!(long("b").len() < 255);
        assert_ne!(name("a/b"), name("a.b"));
    }
}
