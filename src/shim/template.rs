//! The template: a mount namespace with what every task's root has in common, built by a short-lived process of this program
//! (`nomad-driver-exec2 template`).
//!
//! It is gone when it has handed two namespaces to the plugin: the template's, and an empty one of which the shim makes each
//! task's. Nothing is left on the host but the copies in [`etc_directory`].

pub(crate) mod etc;
pub(crate) mod survey;

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use nix::sys::stat::{Mode, SFlag, makedev, mkdirat, mknodat, umask};
use nix::unistd::symlinkat;
use serde::{Deserialize, Serialize};

use self::survey::{DEVICES, ETC, Survey, survey};
use super::fds;
use super::steps::MOUNT_POINT;
use crate::sandbox::root::layout::{Layout, Part, Tree};
use crate::sys;
use crate::sys::mount::{self as mounts, Refuse};

/// The longest message between plugin and template process, bytes. A layout has some 10 KiB.
pub(crate) const MAX_MESSAGE: usize = 128 * 1024;
/// Bytes that the template's own directories and files may take.
const SIZE: &str = "1m";
/// Nobody but root writes.
const UMASK: Mode = Mode::from_bits_truncate(0o022);
const PLAIN: Refuse = Refuse { write: false, exec: true, devices: true };

/// Where the copies of /etc are, below the run directory.
pub(crate) fn etc_directory(run_dir: &Path) -> PathBuf {
    run_dir.join("etc")
}

/// What the plugin asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub run_dir: PathBuf,
    /// Default unveils that did not answer.
    pub skip: Vec<PathBuf>,
}

/// What the template process says, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It is about to look at this default unveil.
    Looking(PathBuf),
    /// With the descriptor of the empty namespace.
    Empty,
    /// With the descriptor of the template's. What could not be copied is not among the copies.
    Template { layout: Layout, warning: Option<String> },
    /// Nothing follows.
    Failed(String),
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to {step} {path:?}: {}", .errno.desc())]
struct TemplateError {
    step: &'static str,
    path: PathBuf,
    errno: Errno,
}

type Result<T> = std::result::Result<T, TemplateError>;

fn failed(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> TemplateError {
    let path = path.into();
    move |errno| TemplateError { step, path, errno }
}

/// The entry point of `nomad-driver-exec2 template`.
pub fn main() -> ExitCode {
    let Ok([Some(socket)]) = sys::fd::inherited::<1>(fds::SPEC) else { return ExitCode::FAILURE };
    match serve(socket.as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(socket.as_fd(), &Report::Failed(error.to_string()), None);
            ExitCode::FAILURE
        }
    }
}

fn serve(socket: BorrowedFd<'_>) -> Result<()> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let length = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()).map_err(failed("read", "the request"))?;
    let request: Request =
        rmp_serde::from_slice(&bytes[..length]).map_err(|_| failed("read", "the request")(Errno::EPROTO))?;
    umask(UMASK);
    let host = namespace()?;
    let empty = build_empty(&request.run_dir)?;
    setns(host, CloneFlags::CLONE_NEWNS).map_err(failed("enter", "the host's mount namespace"))?;
    say(socket, &Report::Empty, Some(empty.as_fd()));
    let (template, layout, warning) = build(&request, socket)?;
    say(socket, &Report::Template { layout, warning }, Some(template.as_fd()));
    Ok(())
}

/// If nobody listens any more, nobody needs this process; it ends soon.
fn say(socket: BorrowedFd<'_>, report: &Report, fd: Option<BorrowedFd<'_>>) {
    let Ok(message) = rmp_serde::to_vec(report) else { return };
    let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &control[..0] } else { &control[..] };
    let _ = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&message)], control, MsgFlags::MSG_NOSIGNAL, None);
}

/// The mount namespace of this process.
fn namespace() -> Result<OwnedFd> {
    let path = "/proc/self/ns/mnt";
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("open", path))
}

/// Enters a copy of the host's mount namespace, which `propagation` connects with it.
fn copy_namespace(propagation: MsFlags) -> Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("copy", "the mount namespace"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | propagation, none)
        .map_err(failed("change the propagation of", "/"))?;
    namespace()
}

/// A new file system, mounted on the run directory of this namespace: a directory that is there, and of no use in it.
fn new_root(run_dir: &Path) -> Result<OwnedFd> {
    let root = mounts::new("tmpfs", &[("mode", "0755"), ("size", SIZE)], PLAIN).map_err(failed("mount", "/"))?;
    let host = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("open", "/"))?;
    let place = run_dir.canonicalize().map_err(|error| failed("find", run_dir)(errno_of(&error)))?;
    mounts::attach(&root, host, relative(&place)).map_err(failed("mount on", place))?;
    Ok(root)
}

fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// A namespace with one empty directory.
fn build_empty(run_dir: &Path) -> Result<OwnedFd> {
    let namespace = copy_namespace(MsFlags::MS_PRIVATE)?;
    let root = new_root(run_dir)?;
    make_directory(&root, Path::new(MOUNT_POINT))?;
    mounts::pivot_root(&root).map_err(failed("enter", "/"))?;
    Ok(namespace)
}

fn build(request: &Request, socket: BorrowedFd<'_>) -> Result<(OwnedFd, Layout, Option<String>)> {
    let namespace = copy_namespace(MsFlags::MS_SLAVE)?;
    let Survey { mut layout, mut places } =
        survey(&request.skip, |path| say(socket, &Report::Looking(path.to_owned()), None));
    let etc = etc_directory(&request.run_dir);
    let warning = match layout.trees.iter().find(|tree| tree.path == Path::new(ETC)) {
        Some(tree) => update_etc(&etc, tree)?,
        None => None,
    };
    let etc = open(&etc, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed("open", &etc))?;
    let root = new_root(&request.run_dir)?;
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
    let warning = warning.or_else(|| lost.first().map(|path| format!("failed to unveil the default {path:?}")));
    mounts::make_read_only(&root).map_err(failed("make read-only", "/"))?;
    mounts::pivot_root(&root).map_err(failed("enter", "/"))?;
    Ok((namespace, layout, warning))
}

/// Returns what went wrong with single files: a root without them is better than none.
fn update_etc(directory: &Path, tree: &Tree) -> Result<Option<String>> {
    etc::make_directory(directory).map_err(|error| failed("make", directory)(errno_of(&error)))?;
    Ok(etc::update(directory, tree).err().map(|error| error.to_string()))
}

/// The directory of a tree, with what is no mount in it.
fn make_tree(root: &OwnedFd, tree: &Tree, etc: &OwnedFd) -> Result<()> {
    make_directory(root, &tree.path)?;
    if tree.path == Path::new(ETC) {
        let copy = mounts::copy(etc, Path::new(""), false).map_err(failed("copy", &tree.path))?;
        return attach(root, &copy, &tree.path, Refuse { write: true, ..PLAIN }, false);
    }
    if tree.directories.is_empty() {
        return tree.links.iter().try_for_each(|link| make_link(root, &link.path, &link.target));
    }
    // Devices, which only a mount of their own permits.
    let devices = Refuse { devices: false, ..PLAIN };
    let dev = mounts::new("tmpfs", &[("mode", "0755"), ("size", SIZE)], devices).map_err(failed("mount", &tree.path))?;
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

fn attach(root: &OwnedFd, copy: &OwnedFd, path: &Path, refuse: Refuse, recursive: bool) -> Result<()> {
    mounts::restrict(copy, refuse, recursive).map_err(failed("restrict", path))?;
    mounts::attach(copy, root, relative(path)).map_err(failed("mount", path))
}

/// Mounts what the host has at the same path.
fn add_part(root: &OwnedFd, part: &Part, place: OwnedFd) -> Result<()> {
    let copy = mounts::copy(place, Path::new(""), true).map_err(failed("copy", &part.path))?;
    let in_etc = part.path.starts_with(ETC);
    if !in_etc && !part.path.starts_with("/dev") {
        match part.directory {
            true => make_directory(root, &part.path)?,
            false => make_file(root, &part.path)?,
        }
    }
    attach(root, &copy, &part.path, part.refuse(), true)
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
