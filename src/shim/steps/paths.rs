//! Opening the paths of a spec, each with the rights of the party that named it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::sandbox::place::{NamedBy, Place};
use crate::shim::spec::{PrivateRoot, ShimSpec, TaskDirs};
use crate::shim::walk::{self, DirId, Found, WalkError};
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
    find_place(spec, place, named_by, writable).map(|found| found.place)
}

/// The same, with the way to it.
pub(crate) fn find_place(
    spec: &ShimSpec,
    place: &Place,
    named_by: NamedBy,
    writable: &[DirId],
) -> Result<Found, WalkError> {
    let proven = match place {
        Place::Beneath { root, path } if *root == spec.plan.task_dir => Some(own_directory(spec, path)?),
        _ => None,
    };
    let beneath = |root: &OwnedFd, path: &Path, whole: PathBuf, links| {
        Ok(Found { place: open_beneath(root, path, OFlag::O_PATH)?, path: whole, links })
    };
    let find = || match (place, &proven) {
        (Place::Host(path), _) => walk::find(path, writable),
        (Place::Beneath { path, .. }, Some(root)) => beneath(root, path, place.display(), Vec::new()),
        (Place::Beneath { root, path }, None) => {
            let Found { place, path: found, links } = walk::find(root, writable)?;
            beneath(&place, path, found.join(path), links)
        }
    };
    match named_by {
        NamedBy::Driver => find(),
        NamedBy::Job => as_task(spec, find)?,
        // As root second: a file server that does not trust root admits only the task's user.
        NamedBy::Agent => as_task(spec, find)?.or_else(|_| find()),
    }
}

/// The directory from which `path`, relative to the task's directory, is opened. Nomad keeps the task's directory and the
/// shared one beside each other.
pub(crate) fn own_directory(spec: &ShimSpec, path: &Path) -> nix::Result<OwnedFd> {
    match &spec.root {
        Some(PrivateRoot { dirs: TaskDirs::Nomad { alloc_dir, .. }, .. }) if path.starts_with("alloc") => {
            open_alloc_dir(alloc_dir)
        }
        _ => open_task_dir(spec),
    }
}

/// The task's directory. The plugin has verified it, so links on its path are the agent's.
pub(crate) fn open_task_dir(spec: &ShimSpec) -> nix::Result<OwnedFd> {
    match &spec.root {
        Some(PrivateRoot { dirs: TaskDirs::Nomad { alloc_dir, task }, .. }) => {
            open_beneath(&open_alloc_dir(alloc_dir)?, Path::new(task), DIRECTORY)
        }
        // A task of `run` has its directories in its root only.
        Some(PrivateRoot { dirs: TaskDirs::Scratch, .. }) => Err(Errno::ENOENT),
        None => open_trusted(&spec.plan.task_dir),
    }
}

/// Nomad's directory of the allocation, which no job can name.
pub(crate) fn open_alloc_dir(path: &Path) -> nix::Result<OwnedFd> {
    open_trusted(path)
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY);

/// Opens a directory whose path the agent names.
pub(crate) fn open_trusted(path: &Path) -> nix::Result<OwnedFd> {
    let flags = DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    crate::sys::open::retry(|| openat2(AT_FDCWD, path, how))
}

/// Opens `path` below `root`, without following a link or leaving it.
pub(crate) fn open_beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    crate::sys::open::beneath(root, path, flags, ResolveFlag::empty())
}

/// Calls `open` with the task's file system ids and capabilities, setfsuid(2).
pub(super) fn as_task<T>(spec: &ShimSpec, open: impl FnOnce() -> T) -> nix::Result<T> {
    let own = sys::caps::get()?;
    let effective = spec.plan.capabilities.bits() & own.permitted;
    // What is opened as root does not depend on groups: capabilities decide.
    sys::ids::set_groups(&spec.user.groups)?;
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

/// Whether the task's user may list a directory and reach what is in it.
pub(super) fn may_list(spec: &ShimSpec, place: &OwnedFd) -> nix::Result<bool> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    match as_task(spec, || openat(place, ".", flags, Mode::empty()))? {
        Ok(_) => Ok(true),
        Err(Errno::EACCES | Errno::EPERM) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The directories in which this task's rules and volumes let tasks create.
pub(crate) fn writable(spec: &ShimSpec) -> Vec<DirId> {
    let rules = spec.plan.landlock.rules.iter().filter(|rule| rule.access.create());
    let rules = rules.map(|rule| (rule.place.clone(), rule.named_by));
    let volumes = spec.plan.volumes.iter().filter(|volume| !volume.read_only);
    let volumes = volumes.map(|volume| (Place::host(&volume.source), NamedBy::Agent));
    // A path that cannot be opened is reported, or skipped, when its rule is added.
    let opened =
        rules.chain(volumes).filter_map(|(place, named_by)| open_place(spec, &place, named_by, &[]).ok());
    opened.filter_map(|dir| fstat(&dir).ok()).map(|stat| DirId::of(&stat)).collect()
}

/// Whether an open place is a directory.
pub(crate) fn is_directory(place: &OwnedFd) -> nix::Result<bool> {
    Ok(file_type(place)? == SFlag::S_IFDIR)
}

/// What an open place is.
pub(crate) fn file_type(place: &OwnedFd) -> nix::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(place)?.st_mode) & SFlag::S_IFMT)
}
