//! The two mount namespaces: an empty one, and one with the parts of a survey.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat, umask};
use nix::unistd::symlinkat;

use super::survey::{CGROUPS, DEVICES, ETC, Survey};
use super::{Result, UMASK, errno_of, failed};
use crate::sandbox::root::EMPTY;
use crate::sandbox::root::layout::{Layout, Part, Tree};
use crate::sys::mount::{self as mounts, Refuse};

/// Bytes that the template's own directories and files may take.
const SIZE: &str = "1m";
const PLAIN: Refuse = Refuse { write: false, exec: true, devices: true };

/// The mount namespace of this process.
pub(super) fn namespace() -> Result<OwnedFd> {
    let path = "/proc/self/ns/mnt";
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("open", path))
}

/// Enters a copy of the host's mount namespace, which `propagation` connects with it.
pub(super) fn copy_namespace(propagation: MsFlags) -> Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("copy", "the mount namespace"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | propagation, none)
        .map_err(failed("change the propagation of", "/"))?;
    namespace()
}

/// A new file system, mounted on the run directory of this namespace: a directory that is there, and of no use in it.
fn new_root(run_dir: &Path) -> Result<OwnedFd> {
    let root =
        mounts::new("tmpfs", &[("mode", "0755"), ("size", SIZE)], PLAIN).map_err(failed("mount", "/"))?;
    let host = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("open", "/"))?;
    let place = run_dir.canonicalize().map_err(|error| failed("find", run_dir)(errno_of(&error)))?;
    mounts::attach(&root, host, relative(&place)).map_err(failed("mount on", place))?;
    Ok(root)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// A namespace with nothing but an empty directory, which stays below the root of each task.
pub(super) fn build_empty(run_dir: &Path) -> Result<OwnedFd> {
    let namespace = copy_namespace(MsFlags::MS_PRIVATE)?;
    let root = new_root(run_dir)?;
    mounts::make_read_only(&root).map_err(failed("make read-only", "/"))?;
    mounts::pivot_root(&root).map_err(failed("enter", "/"))?;
    Ok(namespace)
}

/// Builds the template in this namespace, in which the survey was made. Also returns a part that could not be added.
pub(super) fn build(run_dir: &Path, etc: &Path, survey: Survey) -> Result<(Layout, Option<PathBuf>)> {
    let etc = open_directory(etc)?;
    let Survey { mut layout, mut places, .. } = survey;
    let root = new_root(run_dir)?;
    for tree in &layout.trees {
        make_tree(&root, tree, &etc)?;
    }
    let all = layout.trees.iter().flat_map(|tree| &tree.parts).chain(&layout.parts);
    let mut lost = Vec::new();
    for part in all {
        let Some(place) = places.remove(&part.path) else { continue };
        if add_part(&root, part, place).is_err() {
            lost.push(part.path.clone());
        }
    }
    layout.parts.retain(|part| !lost.contains(&part.path));
    for tree in &mut layout.trees {
        tree.parts.retain(|part| !lost.contains(&part.path));
    }
    mounts::make_read_only(&root).map_err(failed("make read-only", "/"))?;
    mounts::pivot_root(&root).map_err(failed("enter", "/"))?;
    Ok((layout, lost.into_iter().next()))
}

pub(super) fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(failed("open", path))
}

/// The directory of a tree, with what is no mount in it.
fn make_tree(root: &OwnedFd, tree: &Tree, etc: &OwnedFd) -> Result<()> {
    make_directory(root, &tree.path)?;
    if tree.path == Path::new(ETC) {
        let copy = mounts::copy(etc, Path::new(""), false).map_err(failed("copy", &tree.path))?;
        return attach(root, &copy, &tree.path, Refuse { write: true, ..PLAIN }, false);
    }
    if tree.path == Path::new(CGROUPS) {
        return make_cgroups(root, tree);
    }
    if tree.directories.is_empty() {
        return tree.links.iter().try_for_each(|link| make_link(root, &link.path, &link.target));
    }
    // Devices, which only a mount of their own permits.
    let devices = Refuse { devices: false, ..PLAIN };
    let dev = mounts::new("tmpfs", &[("mode", "0755"), ("size", SIZE)], devices)
        .map_err(failed("mount", &tree.path))?;
    attach(root, &dev, &tree.path, devices, false)?;
    umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        let mode = Mode::from_bits_truncate(0o666);
        mknodat(&dev, name, SFlag::S_IFCHR, mode, makedev(major, minor))
            .map_err(failed("make the device", tree.path.join(name)))?;
    }
    umask(UMASK);
    for path in &tree.directories {
        make_directory(root, path)?;
    }
    tree.links.iter().try_for_each(|link| make_link(root, &link.path, &link.target))?;
    for part in tree.parts.iter().filter(|part| !DEVICES.iter().any(|(name, ..)| part.path.ends_with(name))) {
        make_file(root, &part.path)?;
    }
    mounts::make_read_only(&dev).map_err(failed("make read-only", &tree.path))
}

/// The root of cgroup2, in which each directory is covered by an empty one.
fn make_cgroups(root: &OwnedFd, tree: &Tree) -> Result<()> {
    let refuse = Refuse { write: true, ..PLAIN };
    let copy = mounts::copy(open_directory(&tree.path)?, Path::new(""), false)
        .map_err(failed("copy", &tree.path))?;
    attach(root, &copy, &tree.path, refuse, false)?;
    make_directory(root, Path::new(EMPTY))?;
    for path in &tree.directories {
        let empty = mounts::copy(root, relative(Path::new(EMPTY)), false).map_err(failed("copy", EMPTY))?;
        mounts::restrict(&empty, refuse, false).map_err(failed("restrict", path))?;
        match mounts::attach(&empty, root, relative(path)) {
            // The cgroup has been removed meanwhile.
            Err(Errno::ENOENT) => {}
            attached => attached.map_err(failed("mount", path))?,
        }
    }
    Ok(())
}

fn attach(root: &OwnedFd, copy: &OwnedFd, path: &Path, refuse: Refuse, recursive: bool) -> Result<()> {
    mounts::restrict(copy, refuse, recursive).map_err(failed("restrict", path))?;
    mounts::attach(copy, root, relative(path)).map_err(failed("mount", path))
}

/// Mounts what the host has at the same path.
fn add_part(root: &OwnedFd, part: &Part, place: OwnedFd) -> Result<()> {
    let copy = mounts::copy(&place, Path::new(""), true).map_err(failed("copy", &part.path))?;
    let refuse = part.refuse().of(&place).map_err(failed("stat", &part.path))?;
    let in_etc = part.path.starts_with(ETC);
    if !in_etc && !part.path.starts_with("/dev") {
        match part.directory {
            true => make_directory(root, &part.path)?,
            false => make_file(root, &part.path)?,
        }
    }
    attach(root, &copy, &part.path, refuse, true)
}

/// With all above it.
fn make_directory(root: &OwnedFd, path: &Path) -> Result<()> {
    let mut made = PathBuf::new();
    for name in relative(path) {
        made.push(name);
        match mkdirat(root, &made, Mode::from_bits_truncate(0o755)) {
            // What is there may also be a mount of the host, inside another part.
            Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => {}
            Err(errno) => return Err(failed("make the directory", path)(errno)),
        }
    }
    Ok(())
}

fn make_file(root: &OwnedFd, path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |parent| make_directory(root, parent))?;
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match nix::fcntl::openat(root, relative(path), flags, Mode::from_bits_truncate(0o444)) {
        Ok(_) | Err(Errno::EROFS) => Ok(()),
        Err(errno) => Err(failed("make the file", path)(errno)),
    }
}

fn make_link(root: &OwnedFd, path: &Path, target: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |parent| make_directory(root, parent))?;
    symlinkat(target, root, relative(path)).map_err(failed("make the link", path))
}
