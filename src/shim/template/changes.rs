//! Notices of changes to what a survey looked at: one inotify(7) instance, which the plugin gets and only polls. Each check makes
//! a new one, so that nothing has to be matched with the names of an earlier survey.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::Result;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Not `IN_MODIFY`: a file that is being rewritten is read when its writer closes it.
const EVENTS: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_ATTRIB)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// An instance and what it watches.
pub(super) struct Changes {
    inotify: Inotify,
    /// Directories that are watched, or were not there.
    tried: BTreeSet<PathBuf>,
}

impl Changes {
    pub(super) fn new() -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, tried: BTreeSet::new() })
    }

    /// Watches these directories but those in `skip`, or for one that does not exist the nearest above it. Returns whether one
    /// is new: what was surveyed before it was watched may have changed since. Before each, `at` is called.
    pub(super) fn add(
        &mut self,
        directories: &BTreeSet<PathBuf>,
        skip: &[PathBuf],
        mut at: impl FnMut(&Path),
    ) -> Result<bool> {
        let mut is_new = false;
        for directory in directories {
            for path in directory.ancestors() {
                if skip.iter().any(|skipped| skipped == path) || !self.tried.insert(path.to_owned()) {
                    break;
                }
                at(path);
                match self.inotify.add_watch(path, EVENTS) {
                    Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                    Err(errno @ (Errno::ENOSPC | Errno::ENOMEM)) => return Err(errno),
                    // One that root may not read is seen by the next regular check.
                    added => {
                        is_new |= added.is_ok();
                        break;
                    }
                }
            }
        }
        Ok(is_new)
    }

    pub(super) fn into_fd(self) -> OwnedFd {
        self.inotify.into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn has_event(fd: &OwnedFd) -> bool {
        crate::sys::poll::readable(fd, Instant::now()).unwrap()
    }

    /// Whether a change is noticed below a directory that is watched.
    fn notices(change: impl FnOnce(&Path)) -> bool {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "1").unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        let mut changes = Changes::new().unwrap();
        let mut add = || changes.add(&[dir.path().to_owned()].into(), &[], |_| {}).unwrap();
        assert!(add());
        assert!(!add(), "it is watched already");
        let fd = changes.into_fd();
        assert!(!has_event(&fd));
        change(dir.path());
        has_event(&fd)
    }

    #[test]
    fn every_way_to_change_a_name_is_noticed() {
        assert!(notices(|dir| std::fs::write(dir.join("file"), "2").unwrap()));
        assert!(notices(|dir| std::fs::rename(dir.join("file"), dir.join("other")).unwrap()));
        assert!(notices(|dir| std::fs::remove_file(dir.join("file")).unwrap()));
        assert!(notices(|dir| std::os::unix::fs::symlink("file", dir.join("link")).unwrap()));
        assert!(notices(|dir| std::fs::set_permissions(
            dir.join("file"),
            std::os::unix::fs::PermissionsExt::from_mode(0o600)
        )
        .unwrap()));
        assert!(notices(|dir| std::fs::remove_dir_all(dir).unwrap()));
    }

    #[test]
    fn what_only_reads_or_lies_deeper_is_not_noticed() {
        assert!(!notices(|dir| drop(std::fs::read(dir.join("file")).unwrap())));
        assert!(!notices(|dir| std::fs::write(dir.join("below/file"), "").unwrap()));
    }

    #[test]
    fn for_a_directory_that_does_not_exist_the_one_above_it_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = Changes::new().unwrap();
        let mut looked = Vec::new();
        changes.add(&[dir.path().join("a/b/c")].into(), &[], |path| looked.push(path.to_owned())).unwrap();
        assert_eq!(looked, ["a/b/c", "a/b", "a", ""].map(|name| dir.path().join(name)));
        let fd = changes.into_fd();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        assert!(has_event(&fd));
    }

    #[test]
    fn what_is_skipped_is_not_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let mut changes = Changes::new().unwrap();
        let skip = [dir.path().to_owned()];
        let added = changes.add(&[dir.path().to_owned()].into(), &skip, |path| panic!("looked at {path:?}"));
        assert!(!added.unwrap());
    }
}
