//! Volumes in which a dynamic user will not find all files to be its own. Looked at beside the start, which does not wait for it.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

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
    pub uid: u32,
    /// The owner of the volume.
    pub owner: u32,
}

/// The volumes that are mapped.
pub(crate) fn mapped(plan: &Plan) -> Vec<Volume> {
    plan.volumes.iter().filter(|volume| volume.mapped).cloned().collect()
}

/// The first such entry of each volume.
pub(crate) fn foreign(volumes: &[Volume], user: u32) -> Vec<Foreign> {
    volumes.iter().filter_map(|volume| in_volume(volume, user)).collect()
}

/// What cannot be read is no reason for an event: the shim has opened it.
fn in_volume(volume: &Volume, user: u32) -> Option<Foreign> {
    let owner = std::fs::symlink_metadata(&volume.source).ok()?.uid();
    if owner == 0 || owner == user {
        return None;
    }
    let entries = std::fs::read_dir(&volume.source).ok()?.take(LOOKED_AT);
    entries.flatten().find_map(|entry| {
        let uid = entry.metadata().ok()?.uid();
        // ext4 makes it.
        let other = uid != owner && entry.file_name() != "lost+found";
        other.then(|| Foreign { path: volume.path.join(entry.file_name()), uid, owner })
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
        chown(dir.path(), Some(4321), None).unwrap();
        for (name, uid) in [("own", 4321), ("lost+found", 0)] {
            std::fs::write(dir.path().join(name), "").unwrap();
            chown(dir.path().join(name), Some(uid), None).unwrap();
        }
        let volumes = [volume];
        assert_eq!(foreign(&volumes, 80_000), []);
        std::fs::write(dir.path().join("other"), "").unwrap();
        let found = Foreign { path: "/data/other".into(), uid: 0, owner: 4321 };
        assert_eq!(foreign(&volumes, 80_000), [found]);
        assert_eq!(foreign(&volumes, 4321), [], "it is not mapped");
    }
}
