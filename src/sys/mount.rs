//! Mounts that are held by a descriptor and attached where they belong: open_tree(2), mount_setattr(2), move_mount(2),
//! fsopen(2). Linux 5.12 has all of them, so every kernel from 5.15 does.

pub(crate) mod features;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::Result;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, fstat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

/// What a mount refuses, whatever the file system behind it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Refuse {
    pub write: bool,
    pub exec: bool,
    pub devices: bool,
}

impl Refuse {
    /// Whether `other` refuses all that this one does.
    pub(crate) fn is_within(self, other: Self) -> bool {
        (!self.write || other.write) && (!self.exec || other.exec) && (!self.devices || other.devices)
    }

    /// For a mount of this file, which nobody may chmod(2) or chown(2) by it if it is a socket, a device or a pipe: these can be written, and connected
    /// to, on a read-only mount as well.
    pub(crate) fn of(self, file: impl AsFd) -> Result<Self> {
        let kind = SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT;
        Ok(Self { write: self.write || !matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR), ..self })
    }

    /// Set-id bits never take effect.
    fn flags(self) -> MountAttrFlags {
        let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.write);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.exec);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, self.devices);
        flags
    }
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// A detached copy of the mount at `path` below `dir`, or of `dir` itself if the path is empty; with what is mounted below it
/// if `recursive`.
///
/// # Errors
/// EINVAL: `dir` belongs to another mount namespace than the caller.
pub(crate) fn copy(dir: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    rustix::mount::open_tree(dir, path, flags).map_err(errno)
}

/// A new instance of a file system, detached. An option without a value is a flag.
pub(crate) fn new(filesystem: &str, options: &[(&str, &str)], refuse: Refuse) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC).map_err(errno)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value).map_err(errno)?;
    }
    rustix::mount::fsconfig_create(&context).map_err(errno)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, refuse.flags()).map_err(errno)
}

/// Mounts a new instance of a file system on `path`, relative to the working directory: by one call instead of the many of [`new`], but
/// it follows symbolic links.
pub(crate) fn new_at(filesystem: &str, options: &[(&str, &str)], refuse: Refuse, path: &Path) -> Result<()> {
    let options: Vec<_> = options.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut flags = MsFlags::MS_NOSUID;
    flags.set(MsFlags::MS_RDONLY, refuse.write);
    flags.set(MsFlags::MS_NOEXEC, refuse.exec);
    flags.set(MsFlags::MS_NODEV, refuse.devices);
    nix::mount::mount(Some("none"), path, Some(filesystem), flags, Some(options.join(",").as_str()))
}

/// Sets what a mount refuses, and makes it receive what the host mounts below it without giving anything back.
pub(crate) fn restrict(mount: impl AsFd, refuse: Refuse, recursive: bool) -> Result<()> {
    set_attributes(mount.as_fd(), refuse.flags(), libc::MS_SLAVE, recursive)
}

/// The same for a mount and all below it, which receive nothing either.
pub(crate) fn restrict_private(mount: impl AsFd, refuse: Refuse) -> Result<()> {
    set_attributes(mount.as_fd(), refuse.flags(), libc::MS_PRIVATE, true)
}

/// Shows the owners of files of a detached mount, and of all below it, as the user namespace maps them.
///
/// # Errors
/// EINVAL: a file system among them cannot be mapped. EPERM: one is mapped already.
pub(crate) fn map_owners(mount: impl AsFd, user_namespace: impl AsFd) -> Result<()> {
    let userns = user_namespace.as_fd().as_raw_fd().cast_unsigned().into();
    set(
        mount.as_fd(),
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: userns },
        true,
    )
}

/// Lets nobody write by this mount; those below it stay as they are.
pub(crate) fn make_read_only(mount: impl AsFd) -> Result<()> {
    set_attributes(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, 0, false)
}

/// Undoes [`make_read_only`].
pub(crate) fn make_writable(mount: impl AsFd) -> Result<()> {
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
        propagation: 0,
        userns_fd: 0,
    };
    set(mount.as_fd(), attributes, false)
}

fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: MountAttrFlags,
    propagation: libc::c_ulong,
    recursive: bool,
) -> Result<()> {
    let attributes =
        libc::mount_attr { attr_set: attributes.bits().into(), attr_clr: 0, propagation, userns_fd: 0 };
    set(mount, attributes, recursive)
}

fn set(mount: BorrowedFd<'_>, attributes: libc::mount_attr, recursive: bool) -> Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a constant string, and the kernel reads the structure, whose size is passed, during the call only.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    Errno::result(done).map(drop)
}

/// Attaches a detached mount to `path` below `root`. No symbolic link is followed: below what a task can write, it would lead
/// wherever the task likes.
pub(crate) fn attach(mount: impl AsFd, root: impl AsFd, path: &Path) -> Result<()> {
    attach_to(mount, open_below(root, path, OFlag::O_PATH)?)
}

/// Attaches a detached mount to `path` below `root`, where no symbolic link of anybody else can be.
pub(crate) fn attach_plainly(mount: impl AsFd, root: impl AsFd, path: &Path) -> Result<()> {
    rustix::mount::move_mount(mount, "", root, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(errno)
}

/// Attaches a detached mount to an open file or directory.
pub(crate) fn attach_to(mount: impl AsFd, point: OwnedFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", point, "", flags).map_err(errno)
}

/// Opens `path`, relative to `root`, without following a symbolic link.
pub(crate) fn open_below(root: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd> {
    super::open::beneath(root, path, flags, ResolveFlag::empty())
}

/// Makes `root`, a mount of this namespace, the root and the working directory of this process, and detaches the former root
/// with all its mounts: pivot_root(2), "pivot_root(".", ".")".
pub(crate) fn pivot_root(root: impl AsFd) -> Result<()> {
    nix::unistd::fchdir(root.as_fd())?;
    nix::unistd::pivot_root(".", ".")?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

/// Attaches `root`, a detached mount, on the root directory of this namespace, and makes it the root and the working directory of this
/// process.
///
/// The former root stays below it, where only a process that may unmount can uncover it, and must be empty. To detach it would take an
/// RCU grace period: some 50 µs, and milliseconds on a busy host.
pub(crate) fn cover_root(root: impl AsFd) -> Result<()> {
    let former = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    attach_to(root.as_fd(), former)?;
    // The path "/" still means the former one.
    nix::unistd::fchdir(root.as_fd())?;
    nix::unistd::chroot(".")
}
