//! What a root is made of: directories, mount points, links and mounts, each mount after those that it lies in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::candidate::{Candidate, Kind};
use super::layout::Link;
use super::order::is_within;
use super::rules::RootRule;
use crate::sandbox::unveil::Access;
use crate::sys::mount::Refuse;

/// What a mount of a root shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A tree of the template, with what is mounted in it.
    Tree(PathBuf),
    /// One file or directory of the template.
    Part(PathBuf),
    /// The unveil with this number.
    Unveil(usize),
    /// The volume with this number.
    Volume(usize),
    /// The device with this number.
    Device(usize),
    /// The directory in which the nodes of the devices are made.
    DeviceNodes,
    /// The task's directory, `<alloc_dir>/<task>`.
    TaskDir,
    /// The directory that the tasks of the allocation share, `<alloc_dir>/alloc`.
    AllocDir,
    /// The task's `secrets`, which Nomad mounts.
    Secrets,
    /// The task's `tmp`.
    Tmp,
    /// A directory in which there is nothing but the way to the task's cgroup.
    CgroupNames,
    /// The task's cgroup.
    Cgroup,
    Proc,
    /// A directory of the task's own /proc.
    PartOfProc,
    Pts,
    Shm,
    MessageQueues,
    /// An empty directory.
    Empty,
    /// An empty file.
    EmptyFile,
}

/// A mount, attached after all that are listed before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub source: Source,
    pub path: PathBuf,
    pub refuse: Refuse,
    /// Whether the mount point is a directory.
    pub directory: bool,
    pub ground: Ground,
    /// Whether it is left out if the host has no such directory, because the host's directory above it is unveiled.
    pub optional: bool,
}

/// Where a mount point lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ground {
    /// In directories of the driver's own only: nobody else can have put a link there.
    Own,
    /// In a directory that only root and the task can change: it may be missing.
    Task,
    /// In something of the host's.
    Host,
    /// In something of the host's that begins here, and a mount must stay for as long as the task runs: who can rename or remove the mount point
    /// detaches what is mounted on it.
    Lasting(PathBuf),
}

/// All that a root is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Assembly {
    /// Directories, a parent before its children.
    pub directories: BTreeSet<PathBuf>,
    /// Mount points of single files.
    pub files: BTreeSet<PathBuf>,
    pub links: BTreeSet<Link>,
    pub mounts: Vec<Mount>,
    pub rules: Vec<RootRule>,
    /// An unveil, by its number, that cannot be held to its modes: see [`super::bounds`].
    pub unbounded: Option<Unbounded>,
    /// The number of a read-only volume in which the task could write what the host mounts there later, and the directory by which.
    pub writable_later: Option<(usize, PathBuf)>,
}

/// An unveil that would get more than its modes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unbounded {
    pub unveil: usize,
    /// The directory of the task's own that it lies in.
    pub below: PathBuf,
    /// What it would get.
    pub gets: Access,
}

impl Assembly {
    /// Decides what is mounted, and makes the rest of the root around it. Of `candidates`, parents come first.
    pub(super) fn place(&mut self, candidates: &[Candidate]) {
        let mut covers: Vec<&Candidate> = Vec::new();
        // Those of them in which the last candidate lies.
        let mut above: Vec<&Candidate> = Vec::new();
        for candidate in candidates {
            while above.pop_if(|cover| !is_within(&candidate.path, &cover.path)).is_some() {}
            let cover = above.last().copied();
            if candidate.kind != Kind::InTree {
                if cover.is_some_and(|cover| candidate.is_shown_by(cover)) {
                    continue;
                }
                if cover.is_none() {
                    self.add_mount_point(candidate);
                }
                self.mounts.push(candidate.mount(cover));
            }
            covers.push(candidate);
            above.push(candidate);
        }
        self.links.retain(|link| deepest(&covers, &link.path).is_none());
        let inside =
            |path: &Path| covers.iter().any(|cover| is_within(path, &cover.path) && path != cover.path);
        self.directories.retain(|path| !inside(path));
        let parents: Vec<_> =
            self.links.iter().filter_map(|link| link.path.parent()).map(Path::to_owned).collect();
        parents.iter().for_each(|path| self.add_directory(path));
    }

    fn add_mount_point(&mut self, candidate: &Candidate) {
        if candidate.directory {
            self.add_directory(&candidate.path);
        } else {
            self.files.insert(candidate.path.clone());
            candidate.path.parent().into_iter().for_each(|path| self.add_directory(path));
        }
    }

    /// With all above it but the root directory, which is there.
    pub(super) fn add_directory(&mut self, path: &Path) {
        for path in path.ancestors().take_while(|path| path.parent().is_some()) {
            if !self.directories.insert(path.to_owned()) {
                break;
            }
        }
    }
}

/// The mount in which `path` lies. Of `covers`, parents come first.
fn deepest<'a>(covers: &[&'a Candidate], path: &Path) -> Option<&'a Candidate> {
    covers.iter().rev().copied().find(|cover| is_within(path, &cover.path))
}
