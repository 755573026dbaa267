//! What is mounted in a task's root, as detached mounts.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::fstat;

use super::failed;
use super::volumes::Volumes;
use crate::sandbox::plan::HidePid;
use crate::sandbox::root::{Assembly, Ground, Mount, Source};
use crate::shim::report::Failure;
use crate::shim::spec::{PrivateRoot, ShimSpec, TaskDirs};
use crate::shim::steps::Result;
use crate::shim::steps::paths::{open_alloc_dir, open_beneath, open_trusted};
use crate::shim::walk::DirId;
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
        let dirs = OwnDirs::open(&root.dirs, &spec.plan.task_dir).transpose();
        self.fill(assembly, |found| {
            let (place, recursive) = match (&found.source, dirs.as_ref().map_err(|errno| *errno)?) {
                (Source::Unveil(number), _) => {
                    let place = &unveils[*number];
                    return own_copy(place, found.refuse.of(place)?, true).map(Some);
                }
                (Source::TaskDir, Some(own)) => return own_copy(&own.task, found.refuse, false).map(Some),
                (Source::AllocDir, Some(own)) => (own.shared()?, false),
                (Source::Secrets, Some(own)) => (below(&own.named, "secrets")?, false),
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

    /// In the host's namespace as well.
    pub(super) fn copy_volumes(&mut self, assembly: &Assembly, volumes: &mut Volumes<'_>) -> Result<()> {
        for (found, slot) in assembly.mounts.iter().zip(&mut self.0) {
            if let Source::Volume(number) = found.source {
                *slot = Some(volumes.copy(number, found.refuse)?);
            }
        }
        Ok(())
    }

    /// In the template's namespace. What its mounts refuse is decided there.
    pub(super) fn copy_from_template(&mut self, assembly: &Assembly) -> Result<()> {
        self.fill(assembly, |found| match &found.source {
            Source::Tree(path) => mount::copy(AT_FDCWD, path, true).map(Some),
            Source::Part(path) => mount::copy(AT_FDCWD, path, path != Path::new("/etc")).map(Some),
            _ => Ok(None),
        })
    }

    /// In the namespace that becomes the task's: new instances of file systems, unless they are mounted at once where they belong.
    pub(super) fn make_own(
        &mut self,
        spec: &ShimSpec,
        root: &PrivateRoot,
        assembly: &Assembly,
    ) -> Result<()> {
        self.fill(assembly, |found| match (&found.source, new_file_system(spec, root, &found.source)) {
            (_, Some(_)) if found.ground == Ground::Own => Ok(None),
            (_, Some((name, options))) => {
                let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
                mount::new(name, &options, found.refuse).map(Some)
            }
            (Source::TaskDir, None) => mount::new("tmpfs", &[("mode", "0755")], found.refuse).map(Some),
            // Made of the task's directory, when that is there, or in it.
            (
                Source::AllocDir
                | Source::Secrets
                | Source::Tmp
                | Source::Empty
                | Source::EmptyFile
                | Source::PartOfProc
                | Source::CgroupNames
                | Source::Device(_),
                None,
            ) => Ok(None),
            _ => Err(Errno::ENOENT),
        })
    }
}

/// The file system of the kernel's that a mount shows, with its options.
pub(super) fn new_file_system(
    spec: &ShimSpec,
    root: &PrivateRoot,
    source: &Source,
) -> Option<(&'static str, Vec<(&'static str, String)>)> {
    let shm_size = || root.shm_size.map_or_else(|| "50%".to_owned(), |bytes| bytes.to_string());
    match source {
        Source::Proc if spec.plan.proc_hidepid == HidePid::Off => Some(("proc", Vec::new())),
        Source::Proc => Some(("proc", vec![("hidepid", spec.plan.proc_hidepid.name().into())])),
        Source::Pts => Some(("devpts", vec![("ptmxmode", "0666".into()), ("mode", "0620".into())])),
        Source::Shm => Some(("tmpfs", vec![("mode", "1777".into()), ("size", shm_size())])),
        Source::MessageQueues => Some(("mqueue", Vec::new())),
        // Nodes take no space.
        Source::DeviceNodes => Some(("tmpfs", vec![("mode", "0700".into()), ("size", "4k".into())])),
        _ => None,
    }
}

/// The directories that Nomad has made for the task, each opened once.
///
/// To copy a mount, the kernel compares the directory with each mount point that this mount has. Nomad keeps all allocations on one mount,
/// with five mount points for each task, but also mounts the task's directory for the task: that mount has few. So a directory is copied from there
/// if it is the same one. After a reboot it may be missing.
struct OwnDirs {
    alloc: OwnedFd,
    /// `<alloc_dir>/<task>`.
    named: OwnedFd,
    /// The same directory, by Nomad's mount of it if there is one.
    task: OwnedFd,
}

impl OwnDirs {
    fn open(dirs: &TaskDirs, task_dir: &Path) -> Option<nix::Result<Self>> {
        let TaskDirs::Nomad { alloc_dir, task } = dirs else { return None };
        let open = || {
            let alloc = open_alloc_dir(alloc_dir)?;
            let named = open_beneath(&alloc, Path::new(task), O_DIRECTORY)?;
            let task = same_directory(&named, open_trusted(task_dir))?;
            Ok(Self { alloc, named, task })
        };
        Some(open())
    }

    /// The directory that the tasks of the allocation share.
    fn shared(&self) -> nix::Result<OwnedFd> {
        same_directory(&below(&self.alloc, "alloc")?, below(&self.task, "alloc"))
    }
}

/// `other` if that is the same directory by another mount, otherwise `directory` itself.
fn same_directory(directory: &OwnedFd, other: nix::Result<OwnedFd>) -> nix::Result<OwnedFd> {
    let identity = |fd: &OwnedFd| fstat(fd).map(|found| DirId::of(&found));
    if let Ok(other) = other
        && identity(&other)? == identity(directory)?
    {
        return Ok(other);
    }
    directory.try_clone().map_err(|error| error.raw_os_error().map_or(Errno::EBADF, Errno::from_raw))
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
