//! The task's devices: nodes of its own, and the program of its cgroup that allows these and the usual ones.
//!
//! A node of its own, and not a mount of the host's: that belongs to a group such as `video`, which a task's user is not in, and its mode is the
//! host's to decide. The task's node belongs to root, so that no chmod of the task's gives it more.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat, mknodat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{Gid, Uid, fchownat};

use super::Result;
use super::paths::{find_place, is_directory};
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
/// Directories below /dev that have no devices of the host.
const NO_DEVICES: [&str; 4] = ["/dev/shm", "/dev/mqueue", "/dev/pts", "/dev/hugepages"];
/// Of one task. The program of the cgroup has a few instructions for each.
const NODES_MAX: usize = 256;
/// Directories in each other: /dev/bus/usb has one level.
const DEPTH_MAX: usize = 8;

/// A device on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Node {
    block: bool,
    number: libc::dev_t,
}

impl Node {
    /// None: it is something else, or has no effect on the host either. A file system that a user of the host has mounted (FUSE) may show any number.
    pub(crate) fn of(place: &OwnedFd) -> nix::Result<Option<Self>> {
        let stat = fstat(place)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let block = kind == SFlag::S_IFBLK;
        if !block && kind != SFlag::S_IFCHR || fstatvfs(place)?.flags().contains(FsFlags::ST_NODEV) {
            return Ok(None);
        }
        Ok(Some(Self { block, number: stat.st_rdev }))
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

/// The devices that a task is given, each with its node on the host. A directory has been replaced by the devices in it.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    pub devices: Vec<Device>,
    pub nodes: Vec<Node>,
}

fn failed(device: &Device, errno: Errno) -> Failure {
    Failure::new(Step::Device, device.source.display().to_string(), errno)
}

fn refused(device: &Device, why: impl Into<String>) -> Failure {
    Failure::text(Step::Device, device.source.display().to_string(), why.into())
}

/// Finds the task's devices on the host.
pub(crate) fn find_devices(spec: &ShimSpec, writable: &[DirId]) -> Result<Devices> {
    let mut found = Devices::default();
    for device in &spec.plan.devices {
        let place = Place::host(&device.source);
        let place = find_place(spec, &place, NamedBy::Agent, writable).map_err(|error| match error {
            WalkError::Errno(errno) => failed(device, errno),
            other => refused(device, other.to_string()),
        })?;
        let place = place.place;
        if let Some(node) = Node::of(&place).map_err(|errno| failed(device, errno))? {
            found.add(device.clone(), node)?;
            continue;
        }
        let before = found.nodes.len();
        if is_directory(&place).map_err(|errno| failed(device, errno))? {
            found.add_all_in(device, &place, DEPTH_MAX)?;
        }
        if found.nodes.len() == before {
            let why = "it is no device file, and no directory with device files, or it is mounted with nodev; configure the device plugin to name a block \
                       or character device";
            return Err(refused(device, why));
        }
    }
    Ok(found)
}

impl Devices {
    fn add(&mut self, device: Device, node: Node) -> Result<()> {
        if self.nodes.len() == NODES_MAX {
            return Err(refused(&device, format!("the task would have more than {NODES_MAX} devices")));
        }
        let clashes =
            |other: &Device| other.path.starts_with(&device.path) || device.path.starts_with(&other.path);
        match self.devices.iter().position(clashes) {
            None => {
                self.devices.push(device);
                self.nodes.push(node);
            }
            Some(other) if self.devices[other].path == device.path && self.nodes[other] == node => {
                self.devices[other].permissions |= device.permissions;
            }
            Some(other) => {
                let other = self.devices[other].path.display();
                return Err(refused(&device, format!("the task has another device at {other} already")));
            }
        }
        Ok(())
    }

    /// Also in the directories in it. Links of udev's are left out.
    fn add_all_in(&mut self, device: &Device, directory: &OwnedFd, depth: usize) -> Result<()> {
        let failed = |errno| failed(device, errno);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut entries = Dir::openat(directory, ".", flags, Mode::empty()).map_err(failed)?;
        for entry in entries.iter() {
            let name = OsStr::from_bytes(entry.map_err(failed)?.file_name().to_bytes()).to_owned();
            if name == "." || name == ".." {
                continue;
            }
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let place = match openat(directory, name.as_os_str(), flags, Mode::empty()) {
                // Unplugged since.
                Err(Errno::ENOENT) => continue,
                opened => opened.map_err(failed)?,
            };
            let below = |path: &PathBuf| path.join(&name);
            let device =
                Device { source: below(&device.source), path: below(&device.path), ..device.clone() };
            if let Some(node) = Node::of(&place).map_err(failed)? {
                self.add(device, node)?;
            } else if depth > 0 && is_directory(&place).map_err(failed)? {
                self.add_all_in(&device, &place, depth - 1)?;
            }
        }
        Ok(())
    }
}

/// Has the kernel deny the task all devices but these, the usual ones, and those that are unveiled. Not if a directory of devices is unveiled: what is
/// in it later is not known.
pub(crate) fn limit_devices(
    spec: &ShimSpec,
    cgroup: BorrowedFd<'_>,
    found: &Devices,
    unveiled: &[(&Opened, Option<Node>)],
) -> Result<()> {
    if found.nodes.is_empty() {
        return Ok(());
    }
    let limited = if unveiled.iter().any(|(unveil, _)| has_devices(unveil)) {
        // An earlier start in this cgroup may have been with other unveils of the agent.
        bpf::allow_all_devices(cgroup)
    } else {
        bpf::allow_devices(cgroup, &allowed(found, unveiled))
    };
    limited.map_err(|errno| {
        let cgroup = spec.plan.resources.cgroup.as_deref().unwrap_or(Path::new("")).display();
        let failure = Failure::new(Step::DeviceProgram, cgroup.to_string(), errno);
        match errno {
            Errno::EPERM => failure.with_note(
                "the agent needs CAP_SYS_ADMIN and CAP_NET_ADMIN, and bpf(2) must be allowed to it",
            ),
            Errno::EINVAL | Errno::ENOSYS => {
                failure.with_note("the kernel needs CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF")
            }
            _ => failure,
        }
    })
}

/// Whether an unveil shows a directory of the host's devices.
fn has_devices(Opened { path, directory, .. }: &Opened) -> bool {
    let dev = Path::new("/dev");
    *directory
        && (path.starts_with(dev) || dev.starts_with(path))
        && !NO_DEVICES.iter().any(|other| path.starts_with(other))
}

fn allowed(found: &Devices, unveiled: &[(&Opened, Option<Node>)]) -> Vec<Allowed> {
    let usual = |major, minor| Allowed { block: false, major, minor, access: bpf::READ | bpf::WRITE };
    let mut all: Vec<_> = USUAL.iter().map(|(major, minor)| usual(*major, Some(*minor))).collect();
    all.extend(TERMINALS.map(|major| usual(major, None)));
    all.extend(unveiled.iter().filter_map(|(_, node)| Some(node.as_ref()?.allowed(Permissions::READ_WRITE))));
    let given = found.devices.iter().zip(&found.nodes);
    all.extend(given.map(|(device, node)| node.allowed(device.permissions)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::unveil::Access;

    fn device(path: &str, permissions: Permissions) -> Device {
        Device { source: path.into(), path: path.into(), permissions }
    }

    const READ: Permissions = Permissions { read: true, write: false, mknod: false };
    const WRITE: Permissions = Permissions { read: false, write: true, mknod: false };
    const CARD: Node = Node { block: false, number: libc::makedev(226, 0) };
    const DISK: Node = Node { block: true, number: libc::makedev(226, 0) };

    #[test]
    fn a_device_by_two_ways_is_one_and_two_at_one_path_are_refused() {
        let mut found = Devices::default();
        found.add(device("/dev/a", READ), CARD).unwrap();
        found.add(device("/dev/a", WRITE), CARD).unwrap();
        assert_eq!(
            (found.devices.as_slice(), found.nodes.as_slice()),
            (&[device("/dev/a", Permissions::READ_WRITE)][..], &[CARD][..])
        );
        found.add(device("/dev/a", READ), DISK).unwrap_err();
        found.add(device("/dev/a/b", READ), DISK).unwrap_err();
        found.add(device("/dev/ab", READ), DISK).unwrap();
        assert_eq!(found.nodes, [CARD, DISK]);
    }

    #[test]
    fn a_directory_stands_for_the_devices_in_it() {
        let dev = nix::fcntl::open("/dev", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let mut found = Devices::default();
        let all = Device { source: "/dev".into(), ..device("/dev/host", READ) };
        found.add_all_in(&all, &dev, 0).unwrap();
        let null = found.devices.iter().position(|found| found.source == Path::new("/dev/null")).unwrap();
        assert_eq!(found.devices[null].path, Path::new("/dev/host/null"));
        assert_eq!(found.nodes[null], Node { block: false, number: libc::makedev(1, 3) });
        assert!(found.devices.iter().all(|device| !device.source.ends_with("stdin")), "a link");
    }

    #[test]
    fn only_directories_of_devices_lift_the_limit() {
        let unveil = |path: &str, directory| Opened { path: path.into(), access: Access::READ, directory };
        for (path, directory, lifted) in [
            ("/dev", true, true),
            ("/", true, true),
            ("/dev/snd", true, true),
            ("/dev/null", false, false),
            ("/dev/shm", true, false),
            ("/dev/hugepages/x", true, false),
            ("/srv", true, false),
        ] {
            assert_eq!(has_devices(&unveil(path, directory)), lifted, "{path}");
        }
    }

    #[test]
    fn the_program_allows_the_usual_devices_the_unveiled_and_the_given() {
        let unveil = Opened { path: "/dev/sda".into(), access: Access::READ, directory: false };
        let found = Devices { devices: vec![device("/dev/card", READ)], nodes: vec![CARD] };
        let all = allowed(&found, &[(&unveil, Some(DISK))]);
        assert_eq!(all.len(), USUAL.len() + TERMINALS.len() + 2);
        assert!(all.contains(&DISK.allowed(Permissions::READ_WRITE)) && all.contains(&CARD.allowed(READ)));
        assert!(all.contains(&Allowed {
            block: false,
            major: 1,
            minor: Some(3),
            access: bpf::READ | bpf::WRITE
        }));
    }
}
