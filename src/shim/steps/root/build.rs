//! The root itself, out of its detached mounts.

use std::fs::Permissions;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, mkdirat, umask};
use nix::unistd::{Gid, Uid, fchown, symlinkat};

use super::failed;
use super::sources::{Sources, lacking, new_file_system};
use crate::sandbox::root::{Assembly, DEVICE_NODES, EMPTY, EMPTY_FILE, Ground, Mount, OWN, Source};
use crate::shim::report::{Failure, Step};
use crate::shim::spec::{PrivateRoot, ShimSpec, TaskDirs};
use crate::shim::steps::Result;
use crate::shim::steps::devices::Devices;
use crate::sys::mount::{self, Refuse};

/// Bytes that a root's own directories and links may take: far more than they do, and not all of the host's memory.
const ROOT_SIZE: usize = 4 << 20;
const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o755);
/// Below [`OWN`]: what leads to the task's cgroup.
const CGROUP_NAMES: &str = "cgroup";
/// The directories of a task of `run`; `alloc/logs` is there because Nomad has it.
const SCRATCH: [(&str, u32); 5] =
    [("local", 0o755), ("alloc", 0o755), ("alloc/logs", 0o755), ("secrets", 0o700), ("tmp", 0o700)];

/// Puts the root together and enters it. Returns where an optional mount was left out.
pub(super) fn build(
    spec: &ShimSpec,
    root: &PrivateRoot,
    assembly: &Assembly,
    sources: Sources,
    devices: &Devices,
) -> Result<Vec<PathBuf>> {
    let mounts: Vec<_> = assembly.mounts.iter().zip(sources.into_mounts()).collect();
    let plain = Refuse { write: false, exec: true, devices: true };
    // A host's list of names may have some MiB.
    let files: usize = root.files.iter().map(|(_, content)| content.len()).sum();
    let size = (ROOT_SIZE + files).to_string();
    let directory = mount::new("tmpfs", &[("mode", "0755"), ("size", &size)], plain).map_err(failed("/"))?;
    mount::cover_root(&directory).map_err(failed("/"))?;
    // So that modes are what is written here.
    umask(Mode::empty());
    make_skeleton(root, assembly, directory.as_fd())?;
    let mut left_out = Vec::new();
    for (mount, source) in mounts {
        let source = match mount.source {
            Source::Device(number) => Some(make_device(spec, mount, number, devices, directory.as_fd())?),
            _ => source,
        };
        if !attach(spec, root, mount, source, directory.as_fd())? {
            left_out.push(mount.path.clone());
        }
    }
    close_device_nodes(devices, directory.as_fd())?;
    mount::make_read_only(&directory).map_err(failed("/"))?;
    Ok(left_out)
}

/// A node of the task's own, as a mount of it.
fn make_device(
    spec: &ShimSpec,
    mount: &Mount,
    number: usize,
    devices: &Devices,
    directory: BorrowedFd<'_>,
) -> Result<OwnedFd> {
    let (device, node) = (&devices.devices[number], devices.nodes[number]);
    let name = Path::new(DEVICE_NODES).join(number.to_string());
    let failed = |errno| {
        let failure = Failure::new(Step::Device, device.source.display().to_string(), errno);
        match errno {
            Errno::EPERM => failure.with_note("no node can be made: the agent needs CAP_MKNOD"),
            _ => failure,
        }
    };
    node.make(spec, device.permissions, directory, relative(&name)).map_err(failed)?;
    let copy = mount::copy(directory, relative(&name), false).map_err(failed)?;
    mount::restrict(&copy, mount.refuse, false).map_err(failed)?;
    Ok(copy)
}

/// The nodes have no effect where they were made, only where they are mounted.
fn close_device_nodes(devices: &Devices, directory: BorrowedFd<'_>) -> Result<()> {
    if devices.nodes.is_empty() {
        return Ok(());
    }
    let path = Path::new(DEVICE_NODES);
    let refuse = Refuse { write: true, exec: true, devices: true };
    mount::open_below(directory, relative(path), OFlag::O_PATH)
        .and_then(|opened| mount::restrict(&opened, refuse, false))
        .map_err(failed(path))
}

/// Directories, links, mount points and files of the root's own. Nobody else can see it yet, so names are what they say.
fn make_skeleton(root: &PrivateRoot, assembly: &Assembly, directory: BorrowedFd<'_>) -> Result<()> {
    for path in &assembly.directories {
        make_directory(directory, path)?;
    }
    for path in &assembly.files {
        let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        openat(directory, relative(path), flags, Mode::from_bits_truncate(0o444)).map_err(failed(path))?;
    }
    for link in &assembly.links {
        match symlinkat(&link.target, directory, relative(&link.path)) {
            // Two unveils by the same link.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed(&link.path)(errno)),
        }
    }
    for (name, content) in &root.files {
        write_file(directory, &Path::new(OWN).join(name), content)?;
    }
    Ok(())
}

fn make_directory(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    match mkdirat(root, relative(path), DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(failed(path)(errno)),
    }
}

fn write_file(root: BorrowedFd<'_>, path: &Path, content: &str) -> Result<()> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(root, relative(path), flags, Mode::from_bits_truncate(0o444)).map_err(failed(path))?;
    std::fs::File::from(file)
        .write_all(content.as_bytes())
        .map_err(|error| Failure::io(Step::Root, path.display().to_string(), &error))
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Whether it is there, which an optional mount need not be.
fn attach(
    spec: &ShimSpec,
    root: &PrivateRoot,
    mount: &Mount,
    source: Option<OwnedFd>,
    directory: BorrowedFd<'_>,
) -> Result<bool> {
    if source.is_none()
        && matches!(root.dirs, TaskDirs::Scratch)
        && matches!(mount.source, Source::AllocDir | Source::Secrets)
    {
        // In the task's directory already.
        return Ok(true);
    }
    match &mount.ground {
        Ground::Own => return attach_on_own_ground(spec, root, mount, source, directory),
        Ground::Task => make_in_task(spec, directory, mount)?,
        Ground::Host => {}
        Ground::Lasting(from) => must_last(directory, mount, from)?,
    }
    // Before the copy: to drop one that was not attached takes an RCU grace period.
    let point = match mount::open_below(directory, relative(&mount.path), OFlag::O_PATH) {
        // Nothing there on the host, or a link, which is unveiled as it is.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if mount.optional => return Ok(false),
        opened => opened.map_err(|errno| not_attached(mount, errno))?,
    };
    let source = source.map_or_else(|| make_source(spec, mount, directory), Ok)?;
    mount::attach_to(&source, point).map_err(|errno| not_attached(mount, errno))?;
    fill(spec, root, mount, &source)?;
    Ok(true)
}

/// The same where no path can mislead: with fewer calls.
fn attach_on_own_ground(
    spec: &ShimSpec,
    root: &PrivateRoot,
    mount: &Mount,
    source: Option<OwnedFd>,
    directory: BorrowedFd<'_>,
) -> Result<bool> {
    if source.is_none()
        && let Some((name, options)) = new_file_system(spec, root, &mount.source)
    {
        let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
        mount::new_at(name, &options, mount.refuse, relative(&mount.path)).map_err(failed(&mount.path))?;
        return Ok(true);
    }
    let source = source.map_or_else(|| make_source(spec, mount, directory), Ok)?;
    mount::attach_plainly(&source, directory, relative(&mount.path))
        .map_err(|errno| not_attached(mount, errno))?;
    fill(spec, root, mount, &source)?;
    Ok(true)
}

fn fill(spec: &ShimSpec, root: &PrivateRoot, mount: &Mount, source: &OwnedFd) -> Result<()> {
    match (&mount.source, &root.dirs) {
        (Source::TaskDir, TaskDirs::Scratch) => fill_scratch(spec, source),
        _ => Ok(()),
    }
}

/// What is made of the root's own directories.
fn make_source(spec: &ShimSpec, mount: &Mount, directory: BorrowedFd<'_>) -> Result<OwnedFd> {
    let copy = |path: &Path| mount::copy(directory, relative(path), false).map_err(failed(&mount.path));
    match mount.source {
        Source::Tmp => copy(&spec.plan.task_dir.join("tmp")),
        Source::CgroupNames => make_cgroup_names(spec, mount, directory),
        Source::Empty | Source::EmptyFile | Source::PartOfProc => {
            let copy = copy(match mount.source {
                Source::Empty => Path::new(EMPTY),
                Source::EmptyFile => Path::new(EMPTY_FILE),
                _ => &mount.path,
            })?;
            mount::restrict(&copy, mount.refuse, false).map_err(failed(&mount.path))?;
            Ok(copy)
        }
        _ => Err(lacking(mount)),
    }
}

fn is_device(mount: &Mount) -> bool {
    matches!(mount.source, Source::Device(_))
}

fn is_volume(mount: &Mount) -> bool {
    matches!(mount.source, Source::Volume(_))
}

fn not_attached(mount: &Mount, errno: Errno) -> Failure {
    if is_device(mount) {
        let note = "a directory above it is unveiled, and no mount point can be made in that; unveil less";
        return Failure::new(Step::Device, mount.path.display().to_string(), errno).with_note(note);
    }
    if !is_volume(mount) {
        return failed(&mount.path)(errno);
    }
    let failure = Failure::new(Step::Volume, mount.path.display().to_string(), errno);
    match errno {
        Errno::ENOENT => failure.with_note(
            "what is mounted above the destination has no such file or directory; create it there, or write another destination",
        ),
        Errno::ELOOP => {
            failure.with_note("the destination is a symbolic link, or below one; remove it, or write another destination")
        }
        // The second is move_mount(2)'s.
        Errno::ENOTDIR | Errno::EINVAL => failure.with_note(
            "there is a file where a directory is needed, or a directory for a volume that is a file; remove it, or write another destination",
        ),
        _ => failure,
    }
}

/// Whether only root can rename or remove the mount point: who else does so, in a mount namespace of its own, detaches what is mounted on it, and the
/// task writes elsewhere.
fn must_last(root: BorrowedFd<'_>, mount: &Mount, from: &Path) -> Result<()> {
    let above = mount.path.ancestors().skip(1).take_while(|path| path.starts_with(from));
    for path in above {
        let opened = mount::open_below(root, relative(path), OFlag::O_PATH);
        let stat = opened.and_then(|opened| fstat(&opened)).map_err(|errno| not_attached(mount, errno))?;
        if stat.st_uid != 0 || stat.st_mode & (Mode::S_IWGRP | Mode::S_IWOTH).bits() != 0 {
            let why = format!(
                "{} is not only root's to write: who removes the mount point there removes the volume; write a destination outside {}",
                path.display(),
                from.display()
            );
            return Err(Failure::text(Step::Volume, mount.path.display().to_string(), why));
        }
    }
    Ok(())
}

/// A mount point in a directory that only root and the task can change, and the task does not run yet. That of a volume is the task's.
fn make_in_task(spec: &ShimSpec, root: BorrowedFd<'_>, mount: &Mount) -> Result<()> {
    let mut path = PathBuf::new();
    for name in relative(&mount.path) {
        let parent = mount::open_below(root, or_dot(&path), OFlag::O_PATH)
            .map_err(|errno| not_attached(mount, errno))?;
        path.push(name);
        let made = if mount.directory || path != relative(&mount.path) {
            mkdirat(&parent, name, DIRECTORY_MODE)
        } else {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            openat(&parent, name, flags, Mode::from_bits_truncate(0o444)).map(drop)
        };
        match made {
            Ok(()) if is_volume(mount) => {
                let (uid, gid) = (Uid::from_raw(spec.user.uid), Gid::from_raw(spec.user.gid));
                mount::open_below(&parent, Path::new(name), OFlag::O_RDONLY)
                    .and_then(|made| fchown(&made, Some(uid), Some(gid)))
                    .map_err(|errno| not_attached(mount, errno))?;
            }
            Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => {}
            Err(errno) => return Err(not_attached(mount, errno)),
        }
    }
    Ok(())
}

fn or_dot(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// The directories of a task that Nomad has made none for.
fn fill_scratch(spec: &ShimSpec, task_dir: &OwnedFd) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(spec.user.uid), Gid::from_raw(spec.user.gid));
    for (name, mode) in SCRATCH {
        let io = |error: std::io::Error| Failure::io(Step::Root, name, &error);
        mkdirat(task_dir, name, Mode::from_bits_truncate(mode)).map_err(failed(name))?;
        let made = mount::open_below(task_dir, Path::new(name), OFlag::O_DIRECTORY).map_err(failed(name))?;
        fchown(&made, Some(uid), Some(gid)).map_err(failed(name))?;
        // The umask does not count.
        std::fs::File::from(made).set_permissions(Permissions::from_mode(mode)).map_err(io)?;
    }
    Ok(())
}

/// The directories between a mount and the task's cgroup.
fn make_cgroup_names(spec: &ShimSpec, mount: &Mount, directory: BorrowedFd<'_>) -> Result<OwnedFd> {
    let Some(cgroup) = &spec.plan.resources.cgroup else { return Err(failed(&mount.path)(Errno::ENOENT)) };
    let below = cgroup.strip_prefix(&mount.path).map_err(|_| failed(cgroup)(Errno::EXDEV))?;
    let mut path = Path::new(OWN).join(CGROUP_NAMES);
    make_directory(directory, &path)?;
    let copy = mount::copy(directory, relative(&path), false).map_err(failed(&path))?;
    for name in below {
        path.push(name);
        make_directory(directory, &path)?;
    }
    mount::restrict(&copy, mount.refuse, false).map_err(failed(&path))?;
    Ok(copy)
}
