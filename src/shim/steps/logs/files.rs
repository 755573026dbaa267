//! Log files of a task, named as Nomad's log collector names its own, so that `nomad alloc logs` finds them.
//!
//! Tasks can write their log directory. So a file is only ever created, never opened if it is there, and what it is called is not
//! relied on afterwards.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Bytes and number of the files of one stream: the defaults of Nomad's `logs` block.
const FILE_MAX: u64 = 10 << 20;
const FILES_MAX: u32 = 10;
/// Names in use that are tried for a new file.
const TRIES: u32 = 100;
/// Higher numbers are not of this driver: at 10 MiB a file, that is 10 PiB.
const NUMBER_MAX: u32 = 1 << 30;
const FILE_MODE: Mode = Mode::from_bits_truncate(0o644);

/// What a task wrote to one of its streams, in files of which the oldest are removed.
#[derive(Debug)]
pub(crate) struct LogFiles {
    directory: OwnedFd,
    /// `<task>.stdout`, for example.
    name: String,
    number: u32,
    file: File,
    written: u64,
    file_max: u64,
}

impl LogFiles {
    /// A new file behind those that are there. If a task has taken the names, its output is dropped until the next file: a task cannot
    /// keep another one from starting.
    pub(crate) fn create(directory: OwnedFd, name: String) -> nix::Result<Self> {
        let first = last_number(&directory, &name)?.map_or(Ok(0), next)?;
        let (number, file) = match create(&directory, &name, first) {
            Err(Errno::EEXIST) => {
                (first, File::from(open("/dev/null", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?))
            }
            created => created?,
        };
        let files = Self { directory, name, number, file, written: 0, file_max: FILE_MAX };
        files.remove_oldest();
        Ok(files)
    }

    /// Moves the name to other memory.
    pub(crate) fn copy_name(&mut self) {
        self.name = self.name.as_str().to_owned();
    }

    /// Appends; what cannot be written is dropped, because the task must not wait for it.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.written >= self.file_max {
                self.rotate();
            }
            let room = usize::try_from(self.file_max - self.written).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            // Counted if it failed, too, so that this ends.
            self.written += now.len() as u64;
            let _ = self.file.write_all(now);
            bytes = rest;
        }
    }

    /// Begins the next file. If it cannot be made, the present one is truncated: the bound holds in any case.
    fn rotate(&mut self) {
        self.written = 0;
        match next(self.number).and_then(|number| create(&self.directory, &self.name, number)) {
            Ok((number, file)) => {
                (self.number, self.file) = (number, file);
                self.remove_oldest();
            }
            Err(_) => {
                let _ = self.file.set_len(0);
                let _ = std::io::Seek::rewind(&mut self.file);
            }
        }
    }

    /// The names that are lower by the number of files: one after a rotation, more after a start behind the files of others.
    fn remove_oldest(&self) {
        let lowest = self.number.saturating_sub(FILES_MAX);
        for number in lowest.saturating_sub(TRIES)..=lowest {
            if number + FILES_MAX <= self.number {
                let name = format!("{}.{number}", self.name);
                let _ = unlinkat(&self.directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
            }
        }
    }
}

fn next(number: u32) -> nix::Result<u32> {
    number.checked_add(1).ok_or(Errno::EOVERFLOW)
}

/// The highest number of a file with this name. One that no task reaches by writing is not counted: a task could leave no number for
/// the next start.
fn last_number(directory: &OwnedFd, name: &str) -> nix::Result<Option<u32>> {
    let mut entries =
        Dir::openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let number = |entry: &nix::dir::Entry| -> Option<u32> {
        entry.file_name().to_str().ok()?.strip_prefix(name)?.strip_prefix('.')?.parse().ok()
    };
    let reachable = |number: &u32| *number < NUMBER_MAX;
    let mut last = None;
    for entry in entries.iter() {
        last = last.max(number(&entry?).filter(reachable));
    }
    Ok(last)
}

/// Creates the file with this number, or with one of the next.
fn create(directory: impl AsFd, name: &str, number: u32) -> nix::Result<(u32, File)> {
    for number in number..number.saturating_add(TRIES) {
        let path = format!("{name}.{number}");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&directory, path.as_str(), flags, FILE_MODE) {
            Err(Errno::EEXIST) => {}
            opened => {
                let file = opened?;
                fchmod(&file, FILE_MODE)?;
                return Ok((number, file.into()));
            }
        }
    }
    Err(Errno::EEXIST)
}

/// Leaves a text where `nomad alloc logs` finds it, unless there is a file already.
pub(super) fn leave_note(directory: &OwnedFd, name: &str, text: &str) -> nix::Result<()> {
    if last_number(directory, name)?.is_none() {
        let (_, mut file) = create(directory, name, 0)?;
        file.write_all(text.as_bytes()).map_err(|error| crate::sys::errno_of(&error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn files(dir: &Path, file_max: u64) -> LogFiles {
        LogFiles {
            file_max,
            ..LogFiles::create(File::open(dir).unwrap().into(), "web.stdout".into()).unwrap()
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_by_key(|name| name.rsplit('.').next().and_then(|number| number.parse::<u32>().ok()));
        names
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = files(dir.path(), 10);
        for byte in 0..255_u8 {
            log.append(&[byte]);
        }
        let expected: Vec<_> = (16..26).map(|number| format!("web.stdout.{number}")).collect();
        assert_eq!(names(dir.path()), expected);
        let content: Vec<u8> =
            expected.iter().flat_map(|name| std::fs::read(dir.path().join(name)).unwrap()).collect();
        assert_eq!(content, (160..255).collect::<Vec<u8>>());
        log.append(&[b'x'; 25]);
        assert_eq!(std::fs::read(dir.path().join("web.stdout.27")).unwrap(), [b'x'; 10]);
        assert_eq!(names(dir.path()).len(), FILES_MAX as usize);
    }

    #[test]
    fn a_restarted_task_begins_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        files(dir.path(), 10).append(b"first");
        files(dir.path(), 10).append(b"second");
        assert_eq!(std::fs::read(dir.path().join("web.stdout.0")).unwrap(), b"first");
        assert_eq!(std::fs::read(dir.path().join("web.stdout.1")).unwrap(), b"second");
        for _ in 0..30 {
            files(dir.path(), 10).append(b"again");
        }
        assert_eq!(names(dir.path()).len(), FILES_MAX as usize);
    }

    #[test]
    fn what_a_task_has_put_there_is_neither_opened_nor_followed() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let target = elsewhere.path().join("secret");
        std::fs::write(&target, "s").unwrap();
        symlink(&target, dir.path().join("web.stdout.0")).unwrap();
        std::fs::hard_link(&target, dir.path().join("web.stdout.1")).unwrap();
        std::fs::create_dir(dir.path().join("web.stdout.12")).unwrap();
        std::fs::write(dir.path().join("web.stdout.99999999999"), "").unwrap();
        std::fs::write(dir.path().join("web.stdout.x"), "").unwrap();
        std::fs::write(dir.path().join(format!("web.stdout.{}", u32::MAX)), "").unwrap();
        files(dir.path(), 10).append(b"mine");
        assert_eq!(std::fs::read(dir.path().join("web.stdout.13")).unwrap(), b"mine");
        assert_eq!(std::fs::read(&target).unwrap(), b"s");
    }

    #[test]
    fn names_that_are_all_taken_stop_no_start() {
        let dir = tempfile::tempdir().unwrap();
        let taken = NUMBER_MAX - 1..NUMBER_MAX + TRIES;
        for number in taken.clone() {
            std::fs::write(dir.path().join(format!("web.stdout.{number}")), "").unwrap();
        }
        let mut log = files(dir.path(), 10);
        log.append(b"dropped...");
        assert_eq!(names(dir.path()).len(), taken.len());
        log.append(b"kept");
        let next = format!("web.stdout.{}", NUMBER_MAX + TRIES);
        assert_eq!(std::fs::read(dir.path().join(next)).unwrap(), b"kept", "the next file");
    }

    #[test]
    fn a_directory_that_is_gone_ends_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = files(dir.path(), 4);
        log.append(b"1234");
        std::fs::remove_dir_all(dir.path()).unwrap();
        log.append(b"567890");
        assert_eq!(log.file.metadata().unwrap().len(), 2, "truncated, and again");
    }

    #[test]
    fn a_note_is_left_once() {
        let dir = tempfile::tempdir().unwrap();
        let fd: OwnedFd = File::open(dir.path()).unwrap().into();
        leave_note(&fd, "web.stdout", "see the journal").unwrap();
        leave_note(&fd, "web.stdout", "another").unwrap();
        assert_eq!(names(dir.path()), ["web.stdout.0"]);
        assert_eq!(std::fs::read(dir.path().join("web.stdout.0")).unwrap(), b"see the journal");
    }
}
