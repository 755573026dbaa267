//! The root of a task: which mounts, symbolic links and Landlock rules it is made of. Plain data, computed without a system
//! call from what the template offers ([`Layout`]) and from what the job's paths turned out to be ([`Opened`]); the shim
//! executes it.
//!
//! Everything appears at the path that it has on the host. What was not granted is not there.

pub(crate) mod layout;
mod rules;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use layout::{Layout, Link, Part, Tree};

use super::device::Device;
use super::names::{NAMES, NAMESPACE_RESOLV_CONF, OF_HOST, RESOLV_CONF};
use super::unveil::Access;
use super::volume::{Propagation, Volume};
use crate::sys::mount::Refuse;

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

/// What of /proc is about the whole host, and can be read or written by root without capabilities, or by somebody with some: as OCI runtimes mask it.
/// An ordinary user has no permission for these, so the mounts are made only for others.
const MASKED_FILES: [&str; 11] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/slabinfo",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/vmallocinfo",
];
const MASKED_DIRECTORIES: [&str; 2] = ["/proc/acpi", "/proc/scsi"];

/// Where systemd-resolved can be asked by unix sockets.
const RESOLVED: &str = "/run/systemd/resolve";

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
    /// An unveil, by its number, that cannot be held to its modes: see [`hold_to_modes`].
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
    /// Which of [`NAMES`] the task has of its own, in [`OWN`].
    pub names: &'a [&'a str],
    /// Whether it has a network namespace.
    pub in_namespace: bool,
    /// Whether the task's user may do more in /proc than other users.
    pub privileged: bool,
    /// Where the task starts. If nothing is unveiled there, it starts in an empty directory.
    pub work_dir: &'a Path,
}

/// Something that may become a mount.
#[derive(Debug, Clone)]
struct Candidate {
    path: PathBuf,
    source: Source,
    refuse: Refuse,
    /// What is granted on it; none: nothing.
    access: Option<Access>,
    kind: Kind,
    directory: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// What the host has at this path: needs no mount inside another such one.
    Host,
    /// The same, inside a tree that is mounted as a whole.
    InTree,
    /// A directory that has nothing but mount points and links.
    Skeleton,
    /// What only this task has at this path. An unveil of the very path takes its place.
    Own,
    /// What must not be seen, and may not be there.
    Cover,
    /// The task's directories: also where the host has something else at this path, or nothing.
    Task,
    /// A volume, whatever else is at this path.
    Volume,
    /// A device, likewise.
    Device,
}

impl Request<'_> {
    pub(crate) fn assemble(&self) -> Assembly {
        let mut assembly = Assembly::default();
        let mut candidates: Vec<_> = self.unveils.iter().enumerate().map(unveiled).collect();
        candidates.extend(self.own());
        candidates.extend(self.volumes.iter().enumerate().map(volume));
        candidates.extend(self.devices());
        candidates.extend(self.in_proc.iter().map(in_proc));
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
        assembly.unbounded = hold_to_modes(&mut candidates);
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

    /// What comes from the template: whole trees, and the parts of those in which this task has something of its own.
    fn add_template(&self, layout: &Layout, candidates: &mut Vec<Candidate>, assembly: &mut Assembly) {
        let parts = layout.parts.iter().filter(|found| !self.is_other_resolver(found));
        candidates.extend(parts.map(|found| part(found, Kind::Host)));
        assembly.links.extend(layout.links.iter().cloned());
        assembly.add_directory(Path::new(EMPTY));
        for tree in &layout.trees {
            let whole = Candidate {
                path: tree.path.clone(),
                source: Source::Tree(tree.path.clone()),
                refuse: Refuse::default(),
                access: None,
                kind: Kind::Skeleton,
                directory: true,
            };
            let opened_up = self.is_opened_up(tree);
            let own = Path::new(OWN).join(tree.path.strip_prefix("/").unwrap_or(&tree.path));
            if tree.path == Path::new("/etc") {
                self.add_host_names(if opened_up { &own } else { &tree.path }, assembly);
            }
            if !opened_up {
                candidates.push(whole);
                candidates.extend(tree.parts.iter().map(|found| part(found, Kind::InTree)));
                continue;
            }
            candidates.extend(tree.parts.iter().map(|found| part(found, Kind::Host)));
            assembly.links.extend(tree.links.iter().cloned());
            tree.directories.iter().for_each(|path| assembly.add_directory(path));
            if !tree.copies.is_empty() {
                // Reached by links, so that a copy that the host's change replaces stays reachable.
                let others = tree.copies.iter().filter(|name| !name.starts_with(OF_HOST));
                let link = |name: &PathBuf| Link { path: tree.path.join(name), target: own.join(name) };
                assembly.links.extend(others.map(link));
                let source = Source::Part(tree.path.clone());
                candidates.push(Candidate {
                    path: own,
                    source,
                    refuse: KERNEL_READ_ONLY,
                    access: Some(Access::READ),
                    kind: Kind::Own,
                    ..whole
                });
            }
        }
    }

    /// A mount that the host adds to a volume has the host's flags, so only the rules could keep a task from writing it.
    fn writable_later(&self, candidates: &[Candidate]) -> Option<(usize, PathBuf)> {
        let write = Access::WRITE | Access::CREATE;
        let later = |found: &&OpenedVolume<'_>| {
            found.volume.read_only && found.volume.propagation == Propagation::HostToTask
        };
        let writable = |path: &Path| {
            let around =
                candidates.iter().filter(|found| path.starts_with(&found.path) && path != found.path);
            let mut writable =
                around.filter(|found| found.access.is_some_and(|access| access.without(write) != access));
            writable.next_back().map(|found| found.path.clone())
        };
        self.volumes
            .iter()
            .enumerate()
            .filter(|(_, found)| later(found))
            .find_map(|(number, found)| Some((number, writable(&found.volume.path)?)))
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

    /// What hides parts of /proc, unless they were unveiled themselves.
    fn masks(&self, assembly: &mut Assembly) -> Vec<Candidate> {
        if !self.privileged {
            return Vec::new();
        }
        let files = MASKED_FILES.map(|path| (path, false));
        let all = files.into_iter().chain(MASKED_DIRECTORIES.map(|path| (path, true)));
        let asked = |path: &str| self.in_proc.iter().any(|found| found.path == Path::new(path));
        let masks: Vec<_> = all.filter(|(path, _)| !asked(path)).collect();
        assembly.add_directory(Path::new(EMPTY));
        assembly.files.insert(EMPTY_FILE.into());
        let mask = |(path, directory): (&str, bool)| Candidate {
            path: path.into(),
            source: if directory { Source::Empty } else { Source::EmptyFile },
            refuse: KERNEL_READ_ONLY,
            access: None,
            kind: Kind::Cover,
            directory,
        };
        masks.into_iter().map(mask).collect()
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

    /// [`NAMES`] of /etc lead to [`OWN`], and from there to the host's if the task has none of its own.
    fn add_host_names(&self, etc: &Path, assembly: &mut Assembly) {
        for name in NAMES.iter().filter(|name| !self.names.contains(name)) {
            let hosts = if *name == RESOLV_CONF && self.in_namespace { NAMESPACE_RESOLV_CONF } else { name };
            let target = etc.join(OF_HOST).join(hosts);
            assembly.links.insert(Link { path: Path::new(OWN).join(name), target });
        }
    }

    /// Whether a part of the template is left out: programs would ask the host's resolver by its socket there, instead of the task's name servers.
    fn is_other_resolver(&self, part: &Part) -> bool {
        self.names.contains(&RESOLV_CONF) && part.path.starts_with(RESOLVED)
    }

    /// Whether something is unveiled in the tree, or above it, for which the template has no mount point.
    fn is_opened_up(&self, tree: &Tree) -> bool {
        let lacks = |path: &Path| {
            let in_part = || tree.parts.iter().any(|part| path.starts_with(&part.path));
            tree.path.starts_with(path) || path.starts_with(&tree.path) && !in_part()
        };
        // A link that the template has as well needs nothing.
        let other_link = |link: &&Link| !tree.links.contains(link);
        self.unveils.iter().any(|unveil| lacks(&unveil.path))
            || self.volumes.iter().any(|found| lacks(&found.volume.path))
            || self.devices.iter().any(|device| lacks(&device.path))
            || self.links.iter().filter(other_link).any(|link| lacks(&link.path))
    }
}

fn unveiled((number, unveil): (usize, &Opened)) -> Candidate {
    let writable = unveil.access.write() || unveil.access.create();
    Candidate {
        path: unveil.path.clone(),
        source: Source::Unveil(number),
        // Programs map shared objects from what they may only read: exec is for Landlock to refuse.
        refuse: Refuse { write: !writable, exec: false, devices: !unveil.path.starts_with("/dev") },
        access: Some(unveil.access),
        kind: Kind::Host,
        directory: unveil.directory,
    }
}

fn volume((number, found): (usize, &OpenedVolume<'_>)) -> Candidate {
    let OpenedVolume { volume, directory } = *found;
    Candidate {
        path: volume.path.clone(),
        source: Source::Volume(number),
        refuse: Refuse { write: volume.read_only, exec: false, devices: true },
        access: Some(volume.access()),
        kind: Kind::Volume,
        directory,
    }
}

/// Rules add up: what is unveiled inside a directory of the task's own, such as /tmp, gets what is granted on that too. There, the flags of
/// the mount have to take away the rest. Returns the first unveil for which they cannot.
fn hold_to_modes(candidates: &mut [Candidate]) -> Option<Unbounded> {
    let own: Vec<(PathBuf, Access)> = candidates
        .iter()
        .filter(|found| matches!(found.kind, Kind::Own | Kind::Volume))
        .filter_map(|found| Some((found.path.clone(), found.access?)))
        .collect();
    let mut unbounded = None;
    for candidate in candidates {
        let (Source::Unveil(unveil), Some(wanted)) = (&candidate.source, candidate.access) else { continue };
        let around = own.iter().filter(|(path, _)| candidate.path.starts_with(path));
        // Parents come first.
        let Some((below, _)) = around.clone().next_back() else { continue };
        let granted = around.fold(Access::NONE, |all, (_, access)| all | *access);
        candidate.refuse.exec |= !wanted.execute();
        let mut refused = Access::NONE;
        if candidate.refuse.write {
            refused |= Access::WRITE | Access::CREATE;
        }
        if candidate.refuse.exec {
            refused |= Access::EXECUTE;
        }
        let gets = wanted | granted.without(refused);
        // On a file, `c` grants nothing.
        let harmless = if candidate.directory { Access::NONE } else { Access::CREATE };
        if !(wanted | harmless).contains(gets) && unbounded.is_none() {
            unbounded = Some(Unbounded { unveil: *unveil, below: below.clone(), gets });
        }
    }
    unbounded
}

fn in_proc(file: &Opened) -> Candidate {
    Candidate {
        path: file.path.clone(),
        source: Source::Proc,
        refuse: KERNEL,
        access: Some(file.access),
        kind: Kind::InTree,
        directory: file.directory,
    }
}

fn part(part: &Part, kind: Kind) -> Candidate {
    Candidate {
        path: part.path.clone(),
        source: Source::Part(part.path.clone()),
        refuse: part.refuse(),
        access: Some(part.access),
        kind,
        directory: part.directory,
    }
}

impl Candidate {
    /// Its mount, which lies in `cover`.
    fn mount(&self, cover: Option<&Self>) -> Mount {
        Mount {
            source: self.source.clone(),
            path: self.path.clone(),
            refuse: self.refuse,
            directory: self.directory,
            ground: cover.map_or(Ground::Own, |cover| self.ground_in(cover)),
            optional: self.kind == Kind::Cover
                || self.kind == Kind::Own && cover.is_some_and(|cover| cover.kind == Kind::Host),
        }
    }

    fn ground_in(&self, cover: &Self) -> Ground {
        let lasting = self.kind == Kind::Volume || cover.kind == Kind::Volume;
        match &cover.source {
            _ if cover.kind == Kind::Skeleton => Ground::Own,
            Source::Tmp => Ground::Task,
            // Where it may be there is decided before.
            Source::TaskDir | Source::Secrets if lasting => Ground::Task,
            _ if lasting => Ground::Lasting(cover.path.clone()),
            _ => Ground::Host,
        }
    }

    /// Whether it is there in any case, even in a volume.
    fn is_of_the_job(&self) -> bool {
        match self.source {
            Source::Unveil(_) | Source::Volume(_) => true,
            _ => matches!(self.kind, Kind::Task | Kind::Device),
        }
    }

    /// Whether what `cover` shows at this path is the same, and may be used as this one asks for.
    fn is_shown_by(&self, cover: &Self) -> bool {
        matches!(self.kind, Kind::Host | Kind::Skeleton)
            && matches!(cover.kind, Kind::Host | Kind::InTree | Kind::Task)
            && cover.refuse.is_within(self.refuse)
    }
}

impl Assembly {
    /// Decides what is mounted, and makes the rest of the root around it. Of `candidates`, parents come first.
    fn place(&mut self, candidates: &[Candidate]) {
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
    fn add_directory(&mut self, path: &Path) {
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

/// The order of [`Path`], in which all that is in a directory comes directly behind it. As [`is_within`], of paths without superfluous slashes.
fn by_components(a: &Path, b: &Path) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    let [a, b] = [a, b].map(|path| path.as_os_str().as_bytes().iter().map(key));
    a.cmp(b)
}

/// [`Path::starts_with`], which alone would take a large part of the time in which a root is assembled. All paths here are absolute and
/// without superfluous slashes, so most pairs differ in their bytes.
fn is_within(path: &Path, above: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(above.as_os_str().as_bytes()) && path.starts_with(above)
}

#[cfg(test)]
mod tests;
