//! Devices: nodes of the host in the task's own /dev, as device plugins ask for. Judged here without a system call; the shim makes the nodes.

use std::ops::BitOrAssign;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::unveil::Access;
use super::volume::plain;
use crate::quote::quote;

const DEV: &str = "/dev";
/// Below /dev, each root has these of its own.
const RESERVED: [&str; 7] =
    ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr"];

/// A device as Nomad asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AskedDevice {
    pub source: String,
    pub destination: String,
    /// Letters out of `rwm`.
    pub permissions: String,
}

/// A device of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// On the host: a node, or a directory of nodes. A device plugin of the agent names it.
    #[serde(with = "crate::os_path")]
    pub source: PathBuf,
    /// Below /dev.
    #[serde(with = "crate::os_path")]
    pub path: PathBuf,
    #[serde(default)]
    pub permissions: Permissions,
}

/// What the task may do with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Permissions {
    pub read: bool,
    pub write: bool,
    /// Make further nodes of it. Landlock refuses that in any case.
    pub mknod: bool,
}

/// Why a task cannot have a device. Every message says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device {}: {problem}", quote(.destination))]
pub struct DeviceError {
    pub destination: String,
    pub problem: DeviceProblem,
}

/// The rule that a device breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceProblem {
    #[error(
        "with root = \"host\" a task has the host's /dev, in which no node can be made for one task alone; set root = \"private\" in the agent's plugin \
         \"nomad-driver-exec2\" block"
    )]
    HostRoot,
    #[error(
        "its path in the task must be below /dev, because device files elsewhere have no effect; write such a path in the configuration of the device \
         plugin (with run: --device)"
    )]
    Path,
    #[error("{0} is the task's own; configure the device plugin to use another path")]
    Reserved(&'static str),
    #[error("the path on the host, {}, must be absolute and without `..`", quote(.0))]
    Source(String),
    #[error(
        "the permissions {} are not letters out of rwm; write for example \"rw\" in the configuration of the device plugin (with run: --device)",
        quote(.0)
    )]
    Permissions(String),
    #[error(
        "the device {} has the same path in the task; configure the device plugin to use another one", quote(.0)
    )]
    Twice(String),
}

pub(super) fn judge(asked: &[AskedDevice], own_root: bool) -> Result<Vec<Device>, DeviceError> {
    let mut devices: Vec<Device> = Vec::new();
    for asked in asked {
        let refused = |problem| DeviceError { destination: asked.destination.clone(), problem };
        let device = device(asked, own_root).map_err(refused)?;
        match devices.iter_mut().find(|other| other.path == device.path) {
            None => devices.push(device),
            // Of two device blocks of the job, each may need the same one, as /dev/nvidiactl.
            Some(same) if same.source == device.source => same.permissions |= device.permissions,
            Some(other) => return Err(refused(DeviceProblem::Twice(other.source.display().to_string()))),
        }
    }
    Ok(devices)
}

fn device(asked: &AskedDevice, own_root: bool) -> Result<Device, DeviceProblem> {
    if !own_root {
        return Err(DeviceProblem::HostRoot);
    }
    let source = plain(&asked.source).ok_or_else(|| DeviceProblem::Source(asked.source.clone()))?;
    let below_dev = |path: &PathBuf| path.starts_with(DEV) && path != Path::new(DEV);
    let path = plain(&asked.destination).filter(below_dev).ok_or(DeviceProblem::Path)?;
    if let Some(reserved) = RESERVED.into_iter().find(|reserved| path.starts_with(reserved)) {
        return Err(DeviceProblem::Reserved(reserved));
    }
    let permissions = Permissions::parse(&asked.permissions)
        .ok_or_else(|| DeviceProblem::Permissions(asked.permissions.clone()))?;
    Ok(Device { source, path, permissions })
}

impl BitOrAssign for Permissions {
    fn bitor_assign(&mut self, other: Self) {
        self.read |= other.read;
        self.write |= other.write;
        self.mknod |= other.mknod;
    }
}

impl Permissions {
    pub(crate) const READ_WRITE: Self = Self { read: true, write: true, mknod: false };

    /// None at all is all: as Docker takes it, and so Nomad's device plugins.
    fn parse(letters: &str) -> Option<Self> {
        if letters.is_empty() {
            return Some(Self { mknod: true, ..Self::READ_WRITE });
        }
        letters.chars().try_fold(Self::default(), |found, letter| match letter {
            'r' => Some(Self { read: true, ..found }),
            'w' => Some(Self { write: true, ..found }),
            'm' => Some(Self { mknod: true, ..found }),
            _ => None,
        })
    }

    /// What Landlock grants on the node.
    pub(crate) fn access(self) -> Access {
        let mut access = Access::NONE;
        if self.read {
            access |= Access::READ;
        }
        if self.write {
            access |= Access::WRITE;
        }
        access
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(destination: &str, permissions: &str) -> AskedDevice {
        AskedDevice {
            source: "/dev/nvidia0".into(),
            destination: destination.into(),
            permissions: permissions.into(),
        }
    }

    fn judged(asked: &[AskedDevice]) -> Result<Vec<Device>, DeviceProblem> {
        judge(asked, true).map_err(|error| error.problem)
    }

    #[test]
    fn a_device_is_below_dev_with_its_permissions() {
        let of = |permissions| judged(&[asked("/dev/dri/card0", permissions)]).map(|all| all[0].permissions);
        let (read, write, mknod) = (true, true, true);
        assert_eq!(of("r"), Ok(Permissions { read, ..Permissions::default() }));
        assert_eq!(of("rw"), Ok(Permissions::READ_WRITE));
        assert_eq!(of("mrw"), Ok(Permissions { read, write, mknod }));
        assert_eq!(of(""), Ok(Permissions { read, write, mknod }));
        assert_eq!(of("rx"), Err(DeviceProblem::Permissions("rx".into())));
        assert_eq!(Permissions { mknod, ..Permissions::default() }.access(), Access::NONE);
        assert_eq!(Permissions::READ_WRITE.access(), Access::READ | Access::WRITE);
    }

    #[test]
    fn a_path_outside_dev_or_of_the_tasks_own_is_refused() {
        for path in ["/dev", "/nvidia0", "dev/x", "/dev/../etc/x", "/device/x", ""] {
            assert_eq!(judged(&[asked(path, "rw")]), Err(DeviceProblem::Path), "{path}");
        }
        for (path, reserved) in [("/dev/pts/0", "/dev/pts"), ("/dev/shm", "/dev/shm"), ("/dev/fd", "/dev/fd")]
        {
            assert_eq!(judged(&[asked(path, "rw")]), Err(DeviceProblem::Reserved(reserved)), "{path}");
        }
        assert!(judged(&[asked("/dev/null", "rw"), asked("/dev/ptsx", "r")]).is_ok());
    }

    #[test]
    fn the_same_device_twice_has_the_permissions_of_both() {
        let all = judged(&[asked("/dev/a", "r"), asked("/dev/b", "m"), asked("/dev/a/", "w")]).unwrap();
        let found: Vec<_> =
            all.iter().map(|device| (device.path.to_str().unwrap(), device.permissions)).collect();
        let mknod = Permissions { mknod: true, ..Permissions::default() };
        assert_eq!(found, [("/dev/a", Permissions::READ_WRITE), ("/dev/b", mknod)]);
        let other = AskedDevice { source: "/dev/other".into(), ..asked("/dev/a", "r") };
        assert_eq!(judged(&[asked("/dev/a", "r"), other]), Err(DeviceProblem::Twice("/dev/nvidia0".into())));
    }

    #[test]
    fn the_hosts_dev_takes_no_devices() {
        assert_eq!(judge(&[], false), Ok(Vec::new()));
        let error = judge(&[asked("/dev/a", "rw")], false).unwrap_err();
        assert_eq!(error.problem, DeviceProblem::HostRoot);
        assert!(error.to_string().starts_with("device \"/dev/a\": "), "{error}");
    }
}
