//! Volumes in which a dynamic user will not find all files to be its own. Looked at beside the start, which does not wait for it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::dir::Dir;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{fstat, fstatat};

use crate::sandbox::plan::Plan;
use crate::sandbox::volume::Volume;

/// Entries of a volume's directory that are looked at: enough to notice that a volume was filled by another user, at the cost of a
/// fraction of a millisecond.
const LOOKED_AT: usize = 256;

/// An entry of a volume that belongs to somebody else than the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// As the task sees it.
    pub path: PathBuf,
    pub owner: Owner,
    pub of_volume: Owner,
}

/// User and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.uid, self.gid)
    }
}

/// The volumes that are mapped.
pub(crate) fn mapped(plan: &Plan) -> Vec<Volume> {
    plan.volumes.iter().filter(|volume| volume.mapped).cloned().collect()
}

/// The first such entry of each volume.
pub(crate) fn foreign(volumes: &[Volume], user: u32) -> Vec<Foreign> {
    volumes.iter().filter_map(|volume| in_volume(volume, user)).collect()
}

/// What cannot be read is no reason for an event: the shim has opened it. No link is followed: its owner may change the path meanwhile.
fn in_volume(volume: &Volume, user: u32) -> Option<Foreign> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let mut directory = Dir::from_fd(openat2(AT_FDCWD, &volume.source, how).ok()?).ok()?;
    let found = fstat(&directory).ok()?;
    let of_volume = Owner { uid: found.st_uid, gid: found.st_gid };
    if of_volume.uid == 0 || of_volume.gid == 0 || of_volume.uid == user {
        return None;
    }
    let names: Vec<_> =
        directory.iter().flatten().take(LOOKED_AT).map(|entry| entry.file_name().to_owned()).collect();
    names.iter().filter(|name| ![c".", c"..", c"lost+found"].contains(&name.as_c_str())).find_map(|name| {
        let found = fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
        let owner = Owner { uid: found.st_uid, gid: found.st_gid };
        let path = volume.path.join(OsStr::from_bytes(name.to_bytes()));
        (owner != of_volume).then_some(Foreign { path, owner, of_volume })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;
    use crate::sandbox::volume::Propagation;

    #[test]
    #[ignore = "needs root, to make files of several owners"]
    fn the_first_entry_of_another_owner_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume {
            source: dir.path().to_owned(),
            path: "/data".into(),
            read_only: false,
            propagation: Propagation::Private,
            mapped: true,
        };
        chown(dir.path(), Some(4321), Some(4322)).unwrap();
        for (name, uid) in [("own", 4321), ("lost+found", 0)] {
            std::fs::write(dir.path().join(name), "").unwrap();
            chown(dir.path().join(name), Some(uid), Some(4322)).unwrap();
        }
        let volumes = [volume];
        assert_eq!(foreign(&volumes, 80_000), []);
        std::fs::write(dir.path().join("other"), "").unwrap();
        for (uid, gid) in [(0, 0), (0, 4322), (4321, 0)] {
            chown(dir.path().join("other"), Some(uid), Some(gid)).unwrap();
            let of_volume = Owner { uid: 4321, gid: 4322 };
            let found = Foreign { path: "/data/other".into(), owner: Owner { uid, gid }, of_volume };
            assert_eq!(foreign(&volumes, 80_000), [found]);
        }
        assert_eq!(foreign(&volumes, 4321), [], "it is not mapped");
    }
}
