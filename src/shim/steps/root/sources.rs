//! What is mounted in a task's root, as detached mounts.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};

use super::failed;
use crate::sandbox::root::{Assembly, Mount, Source};
use crate::shim::report::Failure;
use crate::shim::spec::{PrivateRoot, ShimSpec, TaskDirs};
use crate::shim::steps::Result;
use crate::shim::steps::paths::{open_alloc_dir, open_beneath};
use crate::sys::mount::{self, Refuse};

/// One detached mount for each of [`Assembly::mounts`], once all three steps are done.
#[derive(Debug)]
pub(super) struct Sources(Vec<Option<OwnedFd>>);

impl Sources {
    pub(super) fn new(count: usize) -> Self {
        Self((0..count).map(|_| None).collect())
    }

    /// The mounts in their order.
    pub(super) fn into_mounts(self) -> impl Iterator<Item = Option<OwnedFd>> {
        self.0.into_iter()
    }

    fn fill(
        &mut self,
        assembly: &Assembly,
        mut make: impl FnMut(&Mount) -> nix::Result<Option<OwnedFd>>,
    ) -> Result<()> {
        for (mount, slot) in assembly.mounts.iter().zip(&mut self.0).filter(|(_, slot)| slot.is_none()) {
            *slot = make(mount).map_err(failed(&mount.path))?;
        }
        Ok(())
    }

    /// In the host's namespace: the task's directories and cgroup, and what was unveiled.
    pub(super) fn copy_from_host(
        &mut self,
        spec: &ShimSpec,
        root: &PrivateRoot,
        assembly: &Assembly,
        unveils: &[OwnedFd],
    ) -> Result<()> {
        let dirs = OwnDirs::open(&root.dirs).transpose();
        self.fill(assembly, |found| {
            let (place, recursive) = match (&found.source, dirs.as_ref().map_err(|errno| *errno)?) {
                (Source::Unveil(number), _) => {
                    return own_copy(&unveils[*number], found.refuse, true).map(Some);
                }
                // Without what is mounted below: the kernel would compare it with each mount of the host.
                (Source::TaskDir, Some(own)) => return own_copy(&own.task, found.refuse, false).map(Some),
                (Source::AllocDir, Some(own)) => (below(&own.alloc, "alloc")?, false),
                (Source::Secrets, Some(own)) => (below(&own.task, "secrets")?, false),
                (Source::Tmp, Some(own)) => (below(&own.task, "tmp")?, false),
                (Source::Cgroup, _) => {
                    let Some(path) = &spec.plan.resources.cgroup else { return Err(Errno::ENOENT) };
                    (nix::fcntl::open(path, O_DIRECTORY, nix::sys::stat::Mode::empty())?, false)
                }
                _ => return Ok(None),
            };
            own_copy(&place, found.refuse, recursive).map(Some)
        })
    }

    /// In the template's namespace. What its mounts refuse is decided there.
    pub(super) fn copy_from_template(&mut self, assembly: &Assembly) -> Result<()> {
        self.fill(assembly, |found| match &found.source {
            Source::Tree(path) => mount::copy(AT_FDCWD, path, true).map(Some),
            Source::Part(path) => mount::copy(AT_FDCWD, path, path != Path::new("/etc")).map(Some),
            _ => Ok(None),
        })
    }

    /// In the namespace that becomes the task's: new instances of file systems.
    pub(super) fn make_own(&mut self, root: &PrivateRoot, assembly: &Assembly) -> Result<()> {
        let shm_size = root.shm_size.map_or_else(|| "50%".to_owned(), |bytes| bytes.to_string());
        self.fill(assembly, |found| {
            let new = |filesystem, options: &[(&str, &str)]| {
                mount::new(filesystem, options, found.refuse).map(Some)
            };
            match found.source {
                Source::Proc => new("proc", &[]),
                Source::Pts => new("devpts", &[("ptmxmode", "0666"), ("mode", "0620")]),
                Source::Shm => new("tmpfs", &[("mode", "1777"), ("size", &shm_size)]),
                Source::MessageQueues => new("mqueue", &[]),
                Source::TaskDir => new("tmpfs", &[("mode", "0755")]),
                // Made of the task's directory, when that is there, or in it.
                Source::AllocDir | Source::Secrets | Source::Tmp | Source::Empty | Source::CgroupNames => {
                    Ok(None)
                }
                _ => Err(Errno::ENOENT),
            }
        })
    }
}

/// The directories that Nomad has made for the task, each opened once.
struct OwnDirs {
    alloc: OwnedFd,
    task: OwnedFd,
}

impl OwnDirs {
    fn open(dirs: &TaskDirs) -> Option<nix::Result<Self>> {
        let TaskDirs::Nomad { alloc_dir, task } = dirs else { return None };
        let open = || {
            let alloc = open_alloc_dir(alloc_dir)?;
            Ok(Self { task: open_beneath(&alloc, Path::new(task), O_DIRECTORY)?, alloc })
        };
        Some(open())
    }
}

fn below(directory: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    mount::open_below(directory, Path::new(name), OFlag::O_PATH)
}

const O_DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// A copy that refuses what was not granted, and receives what the host mounts in it later.
fn own_copy(place: impl AsFd, refuse: Refuse, recursive: bool) -> nix::Result<OwnedFd> {
    let copy = mount::copy(place, Path::new(""), recursive)?;
    mount::restrict(&copy, refuse, recursive)?;
    Ok(copy)
}

/// The mount is not there though the plan has it: the layout and the template differ.
pub(super) fn lacking(found: &Mount) -> Failure {
    failed(&found.path)(Errno::ENODATA)
}
