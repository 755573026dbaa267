//! `cgroup.events` and `memory.events`: live processes and OOM kills.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::{Cgroup, CgroupError};
use crate::sys::{IoError, async_fd};

const CGROUP_EVENTS: &str = "cgroup.events";
const MEMORY_EVENTS: &str = "memory.events";

/// `cgroup.events` has two short lines; more than this is not read (bytes).
const CGROUP_EVENTS_MAX: usize = 1024;

/// Counters of `memory.events`, since the cgroup was created: compare with the values at the task's start, because a
/// task that restarts may find the cgroup of its last run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OomCounts {
    /// Processes of this cgroup (or below it) that any OOM killer killed.
    pub oom_kill: u64,
    /// Times that the cgroup's own limit was hit and reclaim failed.
    pub oom: u64,
}

impl Cgroup {
    /// Whether a process lives in the cgroup or below it. A cgroup that has gone is empty.
    pub(crate) fn populated(&self) -> Result<bool, CgroupError> {
        let path = self.path().join(CGROUP_EVENTS);
        match self.open_file(CGROUP_EVENTS) {
            Ok(file) => read_populated(&file, &path),
            Err(e) if e.is_gone() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Waits until no process is left (`true`) or until the deadline (`false`; `None` waits without a limit). Needs a tokio
    /// runtime with IO.
    ///
    /// No interval and no lost wake-up: the kernel raises POLLPRI on `cgroup.events` when the content differs from what
    /// *this* open file last read, so a change between the read and the wait ends the wait at once. (inotify would work, too, but a user has only 128 instances by default.) The kernel may hold a notification back for 10 ms.
    pub(crate) async fn wait_empty(&self, deadline: Option<Instant>) -> Result<bool, CgroupError> {
        let path = self.path().join(CGROUP_EVENTS);
        let file = match self.open_file(CGROUP_EVENTS) {
            Ok(file) => file,
            Err(e) if e.is_gone() => return Ok(true),
            Err(e) => return Err(e),
        };
        let failed = |error: std::io::Error| IoError::new("wait for a change of", &path, error);
        let events =
            async_fd::register(file.into(), Interest::PRIORITY).map_err(|(_, error)| failed(error))?;
        loop {
            if !read_populated(events.get_ref(), &path)? {
                return Ok(true);
            }
            let changed = events.ready(Interest::PRIORITY);
            let ready = match deadline {
                None => changed.await,
                Some(deadline) => match timeout_at(deadline, changed).await {
                    Ok(ready) => ready,
                    Err(_) => return Ok(!read_populated(events.get_ref(), &path)?),
                },
            };
            // Cleared before the next read: a change after that read makes the descriptor ready again.
            ready.map_err(failed)?.clear_ready();
        }
    }

    /// The OOM counters; `None` where the cgroup has no memory controller.
    pub(crate) fn oom(&self) -> Result<Option<OomCounts>, CgroupError> {
        Ok(self.read_if_there(MEMORY_EVENTS)?.map(|text| OomCounts::parse(&text)))
    }

    /// Follows the OOM counters; `None` where the cgroup has no memory controller. Needs a tokio runtime with IO.
    pub(crate) fn watch_oom(&self) -> Result<Option<OomWatch>, CgroupError> {
        let path = self.path().join(MEMORY_EVENTS);
        let file = match self.open_file(MEMORY_EVENTS) {
            Ok(file) => file,
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        OomWatch::new(file.into(), path).map(Some)
    }
}

impl OomCounts {
    fn parse(text: &str) -> Self {
        let count = |key| flat_keyed(text, key).unwrap_or(0);
        Self { oom_kill: count("oom_kill"), oom: count("oom") }
    }
}

/// `memory.events` as the shim holds it, which has no path to the cgroup and no right but its open files.
#[derive(Debug)]
pub(crate) struct OomCounter {
    file: OwnedFd,
    before: u64,
}

impl OomCounter {
    /// Counts from now on. None where the cgroup has no memory controller.
    pub(crate) fn of(cgroup: BorrowedFd<'_>) -> Option<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = openat(cgroup, MEMORY_EVENTS, flags, Mode::empty()).ok()?;
        let before = read_oom(&file).ok()?.oom_kill;
        Some(Self { file, before })
    }

    /// Processes that were killed since; 0 when the cgroup is gone.
    pub(crate) fn kills(&self) -> u64 {
        read_oom(&self.file).map_or(0, |now| now.oom_kill.saturating_sub(self.before))
    }
}

impl AsFd for OomCounter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn read_oom(file: impl AsFd) -> nix::Result<OomCounts> {
    let mut bytes = [0; CGROUP_EVENTS_MAX];
    let length = pread(file, &mut bytes, 0)?;
    Ok(OomCounts::parse(&String::from_utf8_lossy(&bytes[..length])))
}

/// An open `memory.events`.
#[derive(Debug)]
pub(crate) struct OomWatch {
    path: PathBuf,
    /// One of both is there: watched by the runtime, or not while [`OomWatch::rest`] lasts.
    watched: Option<AsyncFd<OwnedFd>>,
    resting: Option<OwnedFd>,
}

impl OomWatch {
    fn new(file: OwnedFd, path: PathBuf) -> Result<Self, CgroupError> {
        let mut this = Self { path, watched: None, resting: Some(file) };
        this.watched()?;
        Ok(this)
    }

    fn watched(&mut self) -> Result<&AsyncFd<OwnedFd>, CgroupError> {
        if let Some(file) = self.resting.take() {
            match async_fd::register(file, Interest::PRIORITY) {
                Ok(watched) => self.watched = Some(watched),
                Err((file, error)) => {
                    self.resting = Some(file);
                    return Err(IoError::new("watch", &self.path, error).into());
                }
            }
        }
        let unwatched = || IoError::new("watch", &self.path, Errno::EBADF).into();
        self.watched.as_ref().ok_or_else(unwatched)
    }

    /// Waits until the file differs from what was last read here, and reads it. The first call returns at once.
    /// [`CgroupError::is_gone`]: the cgroup was removed. May be dropped and called again: nothing is lost.
    pub(crate) async fn changed(&mut self) -> Result<OomCounts, CgroupError> {
        let path = self.path.clone();
        let file = self.watched()?;
        match file.ready(Interest::PRIORITY).await {
            // Cleared before the read: a change after the read makes the descriptor ready again.
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => return Err(IoError::new("wait for a change of", path, error).into()),
        }
        Ok(read_oom(file.get_ref()).map_err(IoError::on("read", path))?)
    }

    /// Takes the file out of the runtime's poll until the next [`OomWatch::changed`], which sees what changed meanwhile: as long
    /// as it is in there, each change wakes a thread, whether or not anyone waits for it.
    pub(crate) fn rest(&mut self) {
        if let Some(watched) = self.watched.take() {
            self.resting = Some(watched.into_inner());
        }
    }
}

/// `populated` of an open `cgroup.events`, read from its start.
fn read_populated(file: impl AsFd, path: &Path) -> Result<bool, CgroupError> {
    let mut bytes = [0; CGROUP_EVENTS_MAX];
    let text = match pread(file, &mut bytes, 0) {
        Ok(n) => String::from_utf8_lossy(&bytes[..n]),
        // The cgroup was removed, and only an empty one can be.
        Err(Errno::ENODEV) => return Ok(false),
        Err(errno) => return Err(IoError::new("read", path, errno).into()),
    };
    match flat_keyed(&text, "populated") {
        Some(n) => Ok(n != 0),
        None => Err(CgroupError::Content {
            path: path.to_owned(),
            what: "line \"populated N\"",
            found: text.into_owned(),
        }),
    }
}

/// The value of a key in a flat keyed file (`KEY VALUE` lines).
pub(crate) fn flat_keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (k, v) = line.split_once(' ')?;
        if k == key { v.trim().parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TempTree, task_cgroup};
    use super::*;

    #[test]
    fn populated_follows_the_file() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        assert!(cgroup.populated().unwrap());
        tree.file("a.scope/cgroup.events", "populated 0\nfrozen 0\n");
        assert!(!cgroup.populated().unwrap());
    }

    #[test]
    fn a_cgroup_that_has_gone_is_empty() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        std::fs::remove_dir_all(tree.root().join("a.scope")).unwrap();
        assert!(!cgroup.populated().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(cgroup.wait_empty(None)).unwrap());
    }

    #[test]
    fn strange_content_is_an_error() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        for text in ["", "frozen 0\n", "populated\n", "populated yes\n"] {
            tree.file("a.scope/cgroup.events", text);
            let e = cgroup.populated().unwrap_err().to_string();
            assert!(e.contains("populated N"), "{e}");
        }
    }

    #[test]
    fn oom_counts() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        assert_eq!(cgroup.oom().unwrap(), Some(OomCounts { oom_kill: 1, oom: 2 }));
        tree.remove("a.scope/memory.events");
        assert_eq!(cgroup.oom().unwrap(), None);
    }

    #[test]
    fn a_counter_counts_from_its_opening() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        let counter = OomCounter::of(cgroup.dir_fd()).unwrap();
        assert_eq!(counter.kills(), 0, "the one before is not this task's");
        tree.file("a.scope/memory.events", "oom 4\noom_kill 3\n");
        assert_eq!(counter.kills(), 2);
        tree.remove("a.scope/memory.events");
        assert!(OomCounter::of(cgroup.dir_fd()).is_none());
    }

    #[test]
    fn keys_match_whole() {
        assert_eq!(flat_keyed("oom_kill 3\noom 2\n", "oom"), Some(2));
        assert_eq!(flat_keyed("oom 18446744073709551616\n", "oom"), None);
        assert_eq!(flat_keyed("oom -1\nx\n\n", "oom"), None);
    }
}
