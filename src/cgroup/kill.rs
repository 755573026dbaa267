//! Killing all processes of a cgroup, and removing it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Cgroup, CgroupError, Mount};
use crate::sys::{IoError, errno_of};

/// How many cgroups below one a removal takes away, and how deep it looks. Only a task that runs as root and was
/// unveiled its cgroup for writing can make any.
const CHILDREN_MAX: usize = 4096;
const DEPTH_MAX: usize = 16;

/// rmdir(2) of an empty cgroup says EBUSY for a moment while the kernel still lets go of the last process: since Linux 6.19
/// that is some time after its end could be waited for, and longer where all CPUs are busy. So this is tried for a second.
const REMOVE_TRIES: u32 = 200;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

impl Cgroup {
    /// SIGKILL to every process in the cgroup and below it, those included that are being forked (`cgroup.kill`, Linux
    /// 5.14). For a removed cgroup there is nothing to do. Returns before they are dead: see [`Cgroup::wait_empty`].
    pub(crate) fn kill(&self) -> Result<(), CgroupError> {
        match self.write("cgroup.kill", "1") {
            Err(e) if e.is_gone() && !self.exists() => Ok(()),
            other => other,
        }
    }

    /// Whether the directory still exists.
    fn exists(&self) -> bool {
        // cgroup.procs is in every cgroup of every kernel; the other one serves temporary directories.
        self.open_file("cgroup.procs").is_ok() || self.open_file("cgroup.events").is_ok()
    }

    /// Removes the cgroup and the empty ones below it; success when it has gone already. Processes inside are EBUSY.
    /// Nomad removes its own: this is for those that [`Cgroup::create`] made. May block for a second.
    pub fn remove(self) -> Result<(), CgroupError> {
        let root = self.mount.root();
        let below = children(&self.mount, &self.relative)?;
        for relative in below.iter().rev().chain(std::iter::once(&self.relative)) {
            let mut tries = 0;
            loop {
                tries += 1;
                match unlinkat(self.mount.dir(), relative, UnlinkatFlags::RemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => break,
                    Err(Errno::EBUSY) if tries < REMOVE_TRIES => std::thread::sleep(REMOVE_PAUSE),
                    Err(errno) => return Err(IoError::new("remove", root.join(relative), errno).into()),
                }
            }
        }
        Ok(())
    }
}

/// All cgroups below, parents before their children. Each is opened below the mount without following a symlink, and
/// `file_type` does not follow any either.
fn children(mount: &Mount, top: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let root = mount.root();
    let too_many = |limit| CgroupError::TooMany { path: root.join(top), limit };
    let mut found: Vec<PathBuf> = Vec::new();
    let mut level = vec![top.to_owned()];
    for _ in 0..DEPTH_MAX {
        let mut next = Vec::new();
        for dir in level {
            let path = root.join(&dir);
            let failed = |error: std::io::Error| IoError::new("list", &path, error);
            let opened = mount.open_dir(&dir).map_err(std::io::Error::from);
            let through = |opened: &OwnedFd| format!("/proc/self/fd/{}", opened.as_raw_fd());
            let entries = match opened.and_then(|opened| std::fs::read_dir(through(&opened))) {
                Ok(entries) => entries,
                Err(e) if matches!(errno_of(&e), Errno::ENOENT | Errno::ENODEV) => continue,
                Err(e) => return Err(failed(e).into()),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() {
                    next.push(dir.join(entry.file_name()));
                }
            }
        }
        if next.is_empty() {
            return Ok(found);
        }
        found.extend_from_slice(&next);
        if found.len() > CHILDREN_MAX {
            return Err(too_many(CHILDREN_MAX));
        }
        level = next;
    }
    Err(too_many(DEPTH_MAX))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TempTree, task_cgroup};
    use super::*;

    #[test]
    fn kill_writes_one() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        cgroup.kill().unwrap();
        assert_eq!(tree.read("a.scope/cgroup.kill"), "1");
    }

    #[test]
    fn kill_of_a_cgroup_that_has_gone_is_done() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        std::fs::remove_dir_all(tree.root().join("a.scope")).unwrap();
        cgroup.kill().unwrap();
    }

    #[test]
    fn a_kernel_without_cgroup_kill_is_an_error() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        tree.remove("a.scope/cgroup.kill");
        let e = cgroup.kill().unwrap_err().to_string();
        assert!(e.contains("a.scope/cgroup.kill"), "{e}");
    }

    #[test]
    fn remove_takes_children_first() {
        let tree = TempTree::new();
        tree.dir("a.scope/b/c");
        tree.dir("a.scope/d");
        let path = tree.root().join("a.scope");
        Cgroup::open_in(tree.mount(), &path).unwrap().remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn remove_of_one_that_has_gone_is_done() {
        let tree = TempTree::new();
        tree.dir("a.scope");
        let path = tree.root().join("a.scope");
        let cgroup = Cgroup::open_in(tree.mount(), &path).unwrap();
        std::fs::remove_dir(&path).unwrap();
        cgroup.remove().unwrap();
    }

    #[test]
    fn remove_is_bounded() {
        let tree = TempTree::new();
        tree.dir(&format!("a.scope{}", "/x".repeat(DEPTH_MAX + 1)));
        let path = tree.root().join("a.scope");
        let e = Cgroup::open_in(tree.mount(), &path).unwrap().remove().unwrap_err();
        assert!(matches!(e, CgroupError::TooMany { limit: DEPTH_MAX, .. }), "{e}");
        assert!(path.is_dir());
    }

    #[test]
    fn remove_leaves_what_a_symlink_points_at() {
        let tree = TempTree::new();
        tree.dir("other/inner");
        tree.dir("a.scope");
        std::os::unix::fs::symlink(tree.root().join("other"), tree.root().join("a.scope/link")).unwrap();
        let e = Cgroup::open_in(tree.mount(), &tree.root().join("a.scope")).unwrap().remove().unwrap_err();
        assert_eq!(e.errno(), Some(Errno::ENOTEMPTY), "{e}");
        assert!(tree.root().join("other/inner").is_dir());
    }
}
