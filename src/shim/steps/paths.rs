//! Opening the paths of a spec, each with the rights of the party that named it.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setgroups};

use super::user::groups;
use crate::sandbox::place::{NamedBy, Place};
use crate::shim::spec::ShimSpec;
use crate::shim::walk::{self, DirId, WalkError};
use crate::sys;

/// The whole path, for messages.
pub(crate) fn path_of(place: &Place) -> String {
    place.display().display().to_string()
}

/// Opens a place `O_PATH`, with the rights of the party that named it; see [`Place`] for which symbolic links are followed.
pub(crate) fn open_place(
    spec: &ShimSpec,
    place: &Place,
    named_by: NamedBy,
    writable: &[DirId],
) -> Result<OwnedFd, WalkError> {
    let proven = match place {
        Place::Beneath { root, .. } if *root == spec.plan.task_dir => Some(open_task_dir(spec)?),
        _ => None,
    };
    let open = || match (place, &proven) {
        (Place::Host(path), _) => walk::open_path(path, writable),
        (Place::Beneath { path, .. }, Some(root)) => Ok(open_beneath(root, path, OFlag::O_PATH)?),
        (Place::Beneath { root, path }, None) => {
            Ok(open_beneath(&walk::open_path(root, writable)?, path, OFlag::O_PATH)?)
        }
    };
    match named_by {
        NamedBy::Driver => open(),
        NamedBy::Job => as_task(spec, open)?,
        // As root second: a file server that does not trust root admits only the task's user.
        NamedBy::Agent => as_task(spec, open)?.or_else(|_| open()),
    }
}

/// The plugin has verified that this is the task's own directory, so links on its path are the agent's.
pub(crate) fn open_task_dir(spec: &ShimSpec) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    crate::sys::open::retry(|| openat2(AT_FDCWD, &spec.plan.task_dir, how))
}

/// Opens `path` below `root`, without following a link or leaving it.
pub(crate) fn open_beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    crate::sys::open::beneath(root, path, flags, ResolveFlag::empty())
}

/// Calls `open` with the task's file system ids and capabilities, setfsuid(2).
fn as_task<T>(spec: &ShimSpec, open: impl FnOnce() -> T) -> nix::Result<T> {
    let own = sys::caps::get()?;
    let effective = spec.plan.capabilities.bits() & own.permitted;
    // What is opened as root does not depend on groups: capabilities decide.
    setgroups(&groups(&spec.user))?;
    set_fs_ids(spec.user.uid, spec.user.gid)?;
    sys::caps::set(sys::caps::Sets { effective, ..own })?;
    let opened = open();
    set_fs_ids(0, 0)?;
    sys::caps::set(own)?;
    Ok(opened)
}

/// setfsuid(2) and setfsgid(2) report no error, so the current ids are read back by setting an invalid id.
fn set_fs_ids(uid: u32, gid: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setfsgid(gid);
    setfsuid(uid);
    let set = setfsuid(Uid::from_raw(u32::MAX)) == uid && setfsgid(Gid::from_raw(u32::MAX)) == gid;
    if set { Ok(()) } else { Err(Errno::EPERM) }
}

/// The directories in which this task's rules let tasks create.
pub(crate) fn writable(spec: &ShimSpec) -> Vec<DirId> {
    let creating = spec.plan.landlock.rules.iter().filter(|rule| rule.access.create());
    // A path that cannot be opened is reported, or skipped, when its rule is added.
    let opened = creating.filter_map(|rule| open_place(spec, &rule.place, rule.named_by, &[]).ok());
    opened.filter_map(|dir| fstat(&dir).ok()).map(|stat| DirId::of(&stat)).collect()
}

/// Whether an open place is a directory.
pub(crate) fn is_directory(place: &OwnedFd) -> nix::Result<bool> {
    let kind = SFlag::from_bits_truncate(fstat(place)?.st_mode) & SFlag::S_IFMT;
    Ok(kind == SFlag::S_IFDIR)
}
