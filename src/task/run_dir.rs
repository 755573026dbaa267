//! `/run/nomad-driver-exec2/<task>/`: what the driver keeps of a task where only root can reach it.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::shim::exit::{Exit, MAX_LINE, Malformed};

/// Gone after a reboot, as the tasks are.
pub const RUN_DIR: &str = "/run/nomad-driver-exec2";
/// The file that the shim writes when the task has ended.
const EXIT_FILE: &str = "exit";
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

    /// Makes the directory and an empty exit-status file, and returns the file opened for writing.
    pub fn create(&self) -> Result<File, RunDirError> {
        if let Some(base) = self.path.parent() {
            make_private(base)?;
        }
        // What an earlier life of the same task left behind is not this one's.
        self.remove()?;
        make_private(&self.path)?;
        let path = self.exit_file();
        File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| RunDirError::Io { step: "create", path, error })
    }

    /// How the task ended; none while nothing has been written.
    pub fn exit(&self) -> Result<Option<Exit>, RunDirError> {
        let path = self.exit_file();
        let io = |step| move |path, error| RunDirError::Io { step, path, error };
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(|error| io("open")(path.clone(), error))?;
        let mut line = String::new();
        file.take(MAX_LINE as u64 + 1)
            .read_to_string(&mut line)
            .map_err(|error| io("read")(path.clone(), error))?;
        if line.is_empty() {
            return Ok(None);
        }
        line.parse().map(Some).map_err(|error| RunDirError::Malformed { path, error })
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

    fn exit_file(&self) -> PathBuf {
        self.path.join(EXIT_FILE)
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
        assert!(matches!(dir.exit(), Err(RunDirError::Io { step: "open", .. })));
    }

    #[test]
    fn what_a_shim_did_not_write_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let dir = dir(&base);
        dir.create().unwrap();
        let path = dir.exit_file();
        std::fs::write(&path, "v1 code=0 signal=0 at=1").unwrap();
        assert!(matches!(dir.exit(), Err(RunDirError::Malformed { .. })), "truncated");
        std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
        assert!(matches!(dir.exit(), Err(RunDirError::Malformed { .. })), "huge");
        std::fs::remove_file(&path).unwrap();
        symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(dir.exit(), Err(RunDirError::Io { .. })), "a symbolic link");
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
