//! The task's devices: nodes of its own, and the program of its cgroup that allows these and the usual ones.
//!
//! A node of its own, and not a mount of the host's: that belongs to a group such as `video`, which a task's user is not in, and its mode is the
//! host's to decide. The task's node belongs to root, so that no chmod of the task's gives it more.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, SFlag, fstat, mknodat};
use nix::unistd::{Gid, Uid, fchownat};

use super::Result;
use super::paths::find_place;
use crate::sandbox::device::{Device, Permissions};
use crate::sandbox::place::{NamedBy, Place};
use crate::sandbox::root::Opened;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;
use crate::shim::walk::{DirId, WalkError};
use crate::sys::bpf::{self, Allowed};

/// Numbers of the character devices that every task may use: null, zero, full, random, urandom; tty, ptmx.
const USUAL: [(u32, u32); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
/// Of terminals: `UNIX98_PTY_SLAVE_MAJOR`, and as many as there are.
const TERMINALS: std::ops::Range<u32> = 136..144;

/// A device on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    block: bool,
    number: libc::dev_t,
}

impl Node {
    /// None: it is something else.
    pub(crate) fn of(place: &OwnedFd) -> nix::Result<Option<Self>> {
        let stat = fstat(place)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let block = kind == SFlag::S_IFBLK;
        Ok((block || kind == SFlag::S_IFCHR).then_some(Self { block, number: stat.st_rdev }))
    }

    fn allowed(self, permissions: Permissions) -> Allowed {
        let mut access = if permissions.read { bpf::READ } else { 0 };
        access |= if permissions.write { bpf::WRITE } else { 0 };
        access |= if permissions.mknod { bpf::MKNOD } else { 0 };
        Allowed {
            block: self.block,
            major: libc::major(self.number),
            minor: Some(libc::minor(self.number)),
            access,
        }
    }

    /// Makes it in a directory of the root's own, for the task's group.
    pub(crate) fn make(
        self,
        spec: &ShimSpec,
        permissions: Permissions,
        directory: impl AsFd + Copy,
        name: &Path,
    ) -> nix::Result<()> {
        let mut mode = Mode::empty();
        mode.set(Mode::S_IRUSR | Mode::S_IRGRP, permissions.read);
        mode.set(Mode::S_IWUSR | Mode::S_IWGRP, permissions.write);
        let kind = if self.block { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
        mknodat(directory, name, kind, mode, self.number)?;
        let group = Some(Gid::from_raw(spec.user.gid));
        fchownat(directory, name, Some(Uid::from_raw(0)), group, AtFlags::AT_SYMLINK_NOFOLLOW)
    }
}

fn failed(device: &Device, errno: Errno) -> Failure {
    Failure::new(Step::Device, device.source.display().to_string(), errno)
}

/// Finds the task's devices on the host.
pub(crate) fn find_devices(spec: &ShimSpec, writable: &[DirId]) -> Result<Vec<Node>> {
    let find = |device: &Device| {
        let place = Place::host(&device.source);
        let found = find_place(spec, &place, NamedBy::Agent, writable).map_err(|error| match error {
            WalkError::Errno(errno) => failed(device, errno),
            other => Failure::text(Step::Device, device.source.display().to_string(), other.to_string()),
        })?;
        Node::of(&found.place).map_err(|errno| failed(device, errno))?.ok_or_else(|| {
            let why = "it is no device file; the device plugin has to name a block or character device";
            Failure::text(Step::Device, device.source.display().to_string(), why.into())
        })
    };
    spec.plan.devices.iter().map(find).collect()
}

/// Has the kernel deny the task all devices but these, the usual ones, and those that are unveiled. Not if a directory of devices is unveiled: what is
/// in it later is not known.
pub(crate) fn limit_devices(
    spec: &ShimSpec,
    cgroup: BorrowedFd<'_>,
    nodes: &[Node],
    unveiled: &[(Opened, Option<Node>)],
) -> Result<()> {
    let dev = Path::new("/dev");
    if unveiled
        .iter()
        .any(|(found, _)| found.directory && (found.path.starts_with(dev) || dev.starts_with(&found.path)))
    {
        return Ok(());
    }
    let usual = |major, minor| Allowed { block: false, major, minor, access: bpf::READ | bpf::WRITE };
    let mut allowed: Vec<_> = USUAL.iter().map(|(major, minor)| usual(*major, Some(*minor))).collect();
    allowed.extend(TERMINALS.map(|major| usual(major, None)));
    allowed.extend(
        unveiled.iter().filter_map(|(_, node)| Some(node.as_ref()?.allowed(Permissions::READ_WRITE))),
    );
    allowed
        .extend(spec.plan.devices.iter().zip(nodes).map(|(device, node)| node.allowed(device.permissions)));
    bpf::allow_devices(cgroup, &allowed).map_err(|errno| {
        Failure::new(Step::Device, "the task's cgroup", errno)
            .with_note("a BPF program that denies all other devices; the agent needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN")
    })
}
