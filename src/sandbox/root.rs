//! The root of a task: which mounts, symbolic links and Landlock rules it is made of. Plain data, computed without a system
//! call from what the template offers ([`Layout`]) and from what the job's paths turned out to be ([`Opened`]); the shim
//! executes it.
//!
//! Everything appears at the path that it has on the host. What was not granted is not there.

mod assembly;
mod bounds;
mod candidate;
pub(crate) mod layout;
mod order;
mod proc;
mod rules;
mod template;

use std::path::{Path, PathBuf};

use candidate::{Candidate, Kind, unveiled, volume};
use layout::{Layout, Link};
use order::{by_components, is_within};

use super::device::Device;
use super::unveil::Access;
use super::volume::Volume;
use crate::sys::mount::Refuse;

pub(crate) use assembly::{Assembly, Ground, Mount, Source, Unbounded};
pub(crate) use rules::RootRule;

/// Where a root keeps what is made for this one task: its user database, its host name, and the copies of files of /etc when
/// /etc is put together for it. It is in the root directory because an unveil of another one would hide it.
pub(crate) const OWN: &str = "/.task";

/// The nodes of the task's devices, by their number.
pub(crate) const DEVICE_NODES: &str = "/.task/devices";

/// An empty directory.
pub(crate) const EMPTY: &str = "/.task/empty";

/// An empty file.
pub(crate) const EMPTY_FILE: &str = "/.task/nothing";

const RW: Access = Access::READ.union(Access::WRITE);
const RWC: Access = RW.union(Access::CREATE);
const RWXC: Access = RWC.union(Access::EXECUTE);

/// A writable directory of the task.
const FILES: Refuse = Refuse { write: false, exec: false, devices: true };
/// A file system of the kernel's.
const KERNEL: Refuse = Refuse { write: false, exec: true, devices: true };
const KERNEL_READ_ONLY: Refuse = Refuse { write: true, ..KERNEL };

/// What the shim has opened for an unveil.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Absolute, without symbolic links, and not `/`: that is unveiled entry by entry.
    pub path: PathBuf,
    pub access: Access,
    pub directory: bool,
}

/// A volume that the shim has opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenedVolume<'a> {
    pub volume: &'a Volume,
    pub directory: bool,
}

/// What a root is made from.
#[derive(Debug, Clone)]
pub(crate) struct Request<'a> {
    /// What the template has; none without `unveil_defaults`.
    pub layout: Option<&'a Layout>,
    /// Where the task sees its directories.
    pub task_dir: &'a Path,
    /// Where cgroup2 is mounted on the host, and the task's cgroup in it.
    pub cgroup: Option<(&'a Path, &'a Path)>,
    pub unveils: &'a [Opened],
    pub volumes: &'a [OpenedVolume<'a>],
    pub devices: &'a [Device],
    /// The symbolic links that led to the unveils.
    pub links: &'a [Link],
    /// What is granted on files of the task's own /proc, beside the default.
    pub in_proc: &'a [Opened],
    /// Which of [`super::names::NAMES`] the task has of its own, in [`OWN`].
    pub names: &'a [&'a str],
    /// Whether it has a network namespace.
    pub in_namespace: bool,
    /// Whether the task's user may do more in /proc than other users.
    pub privileged: bool,
    /// Where the task starts. If nothing is unveiled there, it starts in an empty directory.
    pub work_dir: &'a Path,
}

impl Request<'_> {
    pub(crate) fn assemble(&self) -> Assembly {
        let mut assembly = Assembly::default();
        let mut candidates: Vec<_> = self.unveils.iter().enumerate().map(unveiled).collect();
        candidates.extend(self.own());
        candidates.extend(self.volumes.iter().enumerate().map(volume));
        candidates.extend(self.devices());
        candidates.extend(self.in_proc.iter().map(proc::in_proc));
        candidates.extend(self.masks(&mut assembly));
        assembly.add_directory(self.work_dir);
        if let Some(layout) = self.layout {
            self.add_template(layout, &mut candidates, &mut assembly);
        }
        assembly.links.extend(self.links.iter().cloned());
        // Parents first; of the same path, an unveil first: the sort is stable.
        candidates.sort_by(|a, b| by_components(&a.path, &b.path));
        let unveiled = |path: &Path| self.unveils.iter().any(|unveil| unveil.path == path);
        candidates.retain(|found| found.kind != Kind::Own || !unveiled(&found.path));
        candidates.retain(|found| found.is_of_the_job() || !self.is_in_volume(&found.path));
        let device = |path: &Path| self.devices.iter().any(|device| device.path == path);
        candidates.retain(|found| found.kind == Kind::Device || !device(&found.path));
        assembly.unbounded = bounds::hold_to_modes(&mut candidates);
        assembly.writable_later = self.writable_later(&candidates);
        assembly.rules = rules::rules(&candidates);
        self.add_own_names(&mut assembly);
        assembly.place(&candidates);
        assembly
    }

    /// The task's directories and the kernel's view of the task.
    fn own(&self) -> Vec<Candidate> {
        let defaults = self.layout.is_some();
        let own = |path: &Path, source, kind, access, refuse| Candidate {
            path: path.to_owned(),
            source,
            refuse,
            access: defaults.then_some(access),
            kind,
            directory: true,
        };
        let mut all = vec![
            own(self.task_dir, Source::TaskDir, Kind::Task, Access::READ, FILES),
            own(&self.task_dir.join("alloc"), Source::AllocDir, Kind::Task, RWXC, FILES),
            own(&self.task_dir.join("secrets"), Source::Secrets, Kind::Task, RWXC, FILES),
            own(Path::new("/proc"), Source::Proc, Kind::Own, Access::READ, KERNEL),
        ];
        if !defaults {
            return all;
        }
        // Nomad keeps there what is not for the task: its Vault token, if that is not to be a file.
        let private = self.task_dir.join("private");
        all.push(own(&private, Source::Empty, Kind::Cover, Access::NONE, KERNEL_READ_ONLY));
        for name in ["local", "tmp"] {
            all.push(own(&self.task_dir.join(name), Source::TaskDir, Kind::InTree, RWXC, FILES));
        }
        for (path, source, access, refuse) in [
            ("/tmp", Source::Tmp, RWXC, FILES),
            ("/var/tmp", Source::Tmp, RWXC, FILES),
            ("/dev/pts", Source::Pts, RW, Refuse { devices: false, ..KERNEL }),
            ("/dev/shm", Source::Shm, RWC, KERNEL),
            ("/dev/mqueue", Source::MessageQueues, RWC, KERNEL),
        ] {
            all.push(own(Path::new(path), source, Kind::Own, access, refuse));
        }
        if let Some((root, cgroup)) = self.cgroup {
            // The names of other cgroups are not the task's business.
            if let Some(first) = cgroup.strip_prefix(root).ok().and_then(|below| below.iter().next()) {
                let names = root.join(first);
                all.push(own(&names, Source::CgroupNames, Kind::Skeleton, Access::READ, KERNEL_READ_ONLY));
            }
            all.push(own(cgroup, Source::Cgroup, Kind::Host, Access::READ, KERNEL_READ_ONLY));
        }
        all
    }

    /// Nodes of the task's own, and where they are made: the root itself has no devices.
    fn devices(&self) -> Vec<Candidate> {
        if self.devices.is_empty() {
            return Vec::new();
        }
        // Programs map the memory of some devices to execute it, such as an enclave of SGX.
        let refuse = Refuse { write: false, exec: false, devices: false };
        let nodes = Candidate {
            path: PathBuf::from(DEVICE_NODES),
            source: Source::DeviceNodes,
            refuse,
            access: None,
            kind: Kind::Skeleton,
            directory: true,
        };
        let node = |(number, device): (usize, &Device)| Candidate {
            path: device.path.clone(),
            source: Source::Device(number),
            refuse,
            access: Some(device.permissions.access()),
            kind: Kind::Device,
            directory: false,
        };
        let mut all: Vec<_> = self.devices.iter().enumerate().map(node).collect();
        all.push(nodes);
        all
    }

    fn is_in_volume(&self, path: &Path) -> bool {
        self.volumes.iter().any(|found| is_within(path, &found.volume.path))
    }

    /// The files of the task's own.
    fn add_own_names(&self, assembly: &mut Assembly) {
        if self.layout.is_none() && self.names.is_empty() {
            return;
        }
        let own = Path::new(OWN);
        assembly.add_directory(own);
        if self.layout.is_none() {
            let link = |name: &&str| Link { path: Path::new("/etc").join(name), target: own.join(name) };
            assembly.links.extend(self.names.iter().map(link));
        }
        let granted = |rule: &RootRule| own.starts_with(&rule.path) && rule.access.contains(Access::READ);
        if !assembly.rules.iter().any(granted) {
            assembly.rules.push(RootRule { path: own.to_owned(), access: Access::READ, directory: true });
        }
    }
}

#[cfg(test)]
mod tests;
