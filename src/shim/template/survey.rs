//! Which of the default unveils the host has, and where they really are.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::sandbox::defaults::{DEFAULTS, Default};
use crate::sandbox::names::{NAMES, NAMESPACE_RESOLV_CONF, OF_HOST, UPSTREAM, for_namespace};
use crate::sandbox::root::OWN;
use crate::sandbox::root::layout::{Layout, Link, Part, Tree};
use crate::sandbox::unveil::Access;
use crate::shim::steps::file_type;
use crate::shim::walk::{self, Found};
use crate::sys;

use nix::sys::stat::SFlag;

const RW: Access = Access::READ.union(Access::WRITE);

/// What a root takes as a whole. All three have many mount points, and jobs seldom unveil something inside them.
const TREES: [&str; 3] = ["/dev", ETC, "/usr"];
pub(crate) const ETC: &str = "/etc";
const RESOLV_CONF: &str = "/etc/resolv.conf";
pub(crate) const CGROUPS: &str = crate::cgroup::MOUNT_POINT;

/// Defaults that each root has of its own kind: the kernel's view of the task, and devices.
const OWN_KIND: [&str; 3] = ["/proc", "/sys/fs/cgroup", "/dev"];
/// The one file of /dev that is the host's: a socket, or a link to one.
const LOG: &str = "/dev/log";

/// Device nodes of a root's /dev: name, major and minor number (`Documentation/admin-guide/devices.txt`).
pub(crate) const DEVICES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
/// Directories on which each root mounts something of its own.
const DEVICE_DIRECTORIES: [&str; 3] = ["/dev/pts", "/dev/shm", "/dev/mqueue"];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Links of the host that something else may lead by: NixOS's /etc, mount(8), and the old name of /run.
const HOST_LINKS: [&str; 3] = ["/etc/static", "/etc/mtab", "/var/run"];

/// The layout, and the descriptors of its parts.
#[derive(Debug, std::default::Default)]
pub(crate) struct Survey {
    pub layout: Layout,
    pub places: BTreeMap<PathBuf, OwnedFd>,
    /// Where a name that appears, disappears or changes may change the survey or the content of a copy.
    pub directories: BTreeSet<PathBuf>,
    /// Contents of [`Tree::made`].
    pub made: BTreeMap<PathBuf, String>,
}

/// A default that exists.
struct Existing {
    asked: PathBuf,
    access: Access,
    kind: SFlag,
    found: Found,
}

/// Looks for each default but those in `skip`. Before each look, `at` is called: a file system that does not answer must be
/// named.
pub(crate) fn survey(skip: &[PathBuf], mut at: impl FnMut(&Path)) -> Survey {
    let mut survey = Survey::default();
    survey.layout.trees = TREES.map(|path| Tree { path: path.into(), ..Tree::default() }).into();
    let mut existing: Vec<_> = DEFAULTS.iter().flat_map(|default| look(default, skip, &mut at)).collect();
    survey.directories = DEFAULTS.iter().filter(|default| is_hosts(default)).map(directory_of).collect();
    // Directories first: what lies in one of them needs nothing of its own.
    existing.sort_by_key(|found| (found.kind != SFlag::S_IFDIR, found.found.path.clone()));
    for found in existing {
        survey.add(found);
    }
    survey.add_devices();
    survey.layout.trees.extend(cgroups());
    for path in HOST_LINKS.map(PathBuf::from) {
        if let Ok(target) = std::fs::read_link(&path) {
            survey.add_link(Link { path, target });
        }
    }
    survey.add_resolv_conf(skip, &mut at);
    for name in ["passwd", "group"].into_iter().chain(NAMES) {
        let target = Path::new(OWN).join(name);
        survey.add_link(Link { path: Path::new(ETC).join(name), target });
    }
    survey.layout.trees.retain(|tree| *tree != Tree { path: tree.path.clone(), ..Tree::default() });
    survey
}

/// The root of cgroup2, if that is where programs look for it. Of what is in it, a task needs the files; the directories are
/// shown empty.
fn cgroups() -> Option<Tree> {
    let path = Path::new(CGROUPS);
    let found = nix::sys::statfs::statfs(path).ok()?;
    if found.filesystem_type() != nix::sys::statfs::CGROUP2_SUPER_MAGIC {
        return None;
    }
    let entries = std::fs::read_dir(path).ok()?.flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut directories: Vec<_> = directories.map(|entry| entry.path()).collect();
    directories.sort_unstable();
    Some(Tree { path: path.to_owned(), directories, ..Tree::default() })
}

/// Whether the default is the host's, and not of each root's own kind.
fn is_hosts(default: &Default) -> bool {
    let path = Path::new(default.path);
    path == Path::new(LOG) || !OWN_KIND.iter().any(|own| path.starts_with(own))
}

/// The directory that has the default's name, or the first of those that a pattern stands for.
fn directory_of(default: &Default) -> PathBuf {
    let pattern = default.path.split('*').next().unwrap_or_default();
    pattern
        .rsplit_once('/')
        .map_or("/", |(directory, _)| if directory.is_empty() { "/" } else { directory })
        .into()
}

fn look(default: &Default, skip: &[PathBuf], at: &mut impl FnMut(&Path)) -> Vec<Existing> {
    if !is_hosts(default) {
        return Vec::new();
    }
    let path = Path::new(default.path);
    at(path);
    if skip.iter().any(|skipped| skipped == path) {
        return Vec::new();
    }
    let existing = |asked: PathBuf| {
        // As an absent one is passed over one that a task could have made.
        let found = walk::find(&asked, &[]).ok()?;
        let kind = file_type(&found.place).ok()?;
        let access = if kind == SFlag::S_IFSOCK { RW } else { default.mode };
        Some(Existing { asked, access, kind, found })
    };
    default.paths().into_iter().filter(|path| !skip.contains(path)).filter_map(existing).collect()
}

impl Survey {
    fn add(&mut self, existing: Existing) {
        let Existing { asked, access, kind, found: Found { place, path, links } } = existing;
        let names = links.iter().map(|link| &link.path).chain([&path]);
        self.directories.extend(names.filter_map(|name| name.parent()).map(Path::to_owned));
        let is_last = |link: &Link| link.path == asked;
        if let Some(name) = NAMES.iter().find(|name| asked == Path::new(ETC).join(name)) {
            self.add_copy(&Path::new(ETC).join(OF_HOST).join(name));
        } else if self.has(&path, access) {
            links.into_iter().for_each(|link| self.add_link(link));
        } else if kind == SFlag::S_IFREG && asked.starts_with(ETC) && links.iter().all(is_last) {
            self.add_copy(&asked);
        } else {
            links.into_iter().for_each(|link| self.add_link(link));
            if kind == SFlag::S_IFREG && path.starts_with(ETC) {
                self.add_copy(&path);
            } else {
                self.parts_of(&path).push(Part {
                    path: path.clone(),
                    access,
                    directory: kind == SFlag::S_IFDIR,
                });
                self.places.insert(path, place);
            }
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.layout.trees.iter().flat_map(|tree| &tree.parts).chain(&self.layout.parts)
    }

    /// Whether a part shows this path with this access.
    fn has(&self, path: &Path, access: Access) -> bool {
        self.parts().any(|part| path.starts_with(&part.path) && part.access.contains(access))
    }

    fn tree_of(&mut self, path: &Path) -> Option<&mut Tree> {
        self.layout.trees.iter_mut().find(|tree| path.starts_with(&tree.path))
    }

    fn parts_of(&mut self, path: &Path) -> &mut Vec<Part> {
        match self.layout.trees.iter().position(|tree| path.starts_with(&tree.path)) {
            Some(number) => &mut self.layout.trees[number].parts,
            None => &mut self.layout.parts,
        }
    }

    /// A link inside a part is there already.
    fn add_link(&mut self, link: Link) {
        if self.parts().any(|part| link.path.starts_with(&part.path)) {
            return;
        }
        let links = match self.layout.trees.iter().position(|tree| link.path.starts_with(&tree.path)) {
            Some(number) => &mut self.layout.trees[number].links,
            None => &mut self.layout.links,
        };
        if !links.iter().any(|known| known.path == link.path) {
            links.push(link);
        }
    }

    fn add_copy(&mut self, path: &Path) {
        if let Some(tree) = self.tree_of(path)
            && let Ok(name) = path.strip_prefix(&tree.path)
            && !tree.copies.iter().any(|copy| copy == name)
        {
            tree.copies.push(name.to_owned());
        }
    }

    /// The resolv.conf for tasks with a network namespace.
    fn add_resolv_conf(&mut self, skip: &[PathBuf], mut at: impl FnMut(&Path)) {
        // What does not answer is as what is not there.
        let mut read = |path: &str| {
            let path = Path::new(path);
            at(path);
            if skip.iter().any(|skipped| skipped == path) { String::new() } else { sys::read::text(path) }
        };
        let host = read(RESOLV_CONF);
        let upstream = UPSTREAM.map(|path| (path, read(path)));
        self.directories
            .extend(UPSTREAM.iter().filter_map(|path| Path::new(path).parent()).map(Path::to_owned));
        let (name_servers, content) = for_namespace(&host, &upstream);
        self.layout.name_servers = name_servers;
        if !content.is_empty()
            && let Some(tree) = self.tree_of(Path::new(ETC))
        {
            let name = Path::new(OF_HOST).join(NAMESPACE_RESOLV_CONF);
            tree.made.push(name.clone());
            self.made.insert(name, content);
        }
    }

    fn add_devices(&mut self) {
        let Some(tree) = self.tree_of(Path::new("/dev")) else { return };
        tree.parts.extend(DEVICES.map(|(name, ..)| Part {
            path: Path::new("/dev").join(name),
            access: RW,
            directory: false,
        }));
        tree.directories = DEVICE_DIRECTORIES.map(PathBuf::from).into();
        tree.links
            .extend(DEVICE_LINKS.map(|(path, target)| Link { path: path.into(), target: target.into() }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_host_has_is_found_once() {
        let mut looked = 0;
        let Survey { layout, places, .. } = survey(&[], |_| looked += 1);
        assert!(looked > 30);
        let parts: Vec<_> = layout.trees.iter().flat_map(|tree| &tree.parts).chain(&layout.parts).collect();
        for (number, part) in parts.iter().enumerate() {
            assert!(part.path.is_absolute());
            let others = parts.iter().enumerate().filter(|(other, _)| *other != number);
            assert!(
                others
                    .into_iter()
                    .all(|(_, other)| !part.path.starts_with(&other.path)
                        || !other.access.contains(part.access)),
                "{part:?}"
            );
            assert_eq!(
                places.contains_key(&part.path),
                !part.path.starts_with("/dev") || part.path == Path::new(LOG)
            );
        }
        assert!(parts.iter().any(|part| part.path.ends_with("bin") && part.access.execute()));
        assert!(parts.iter().all(|part| !part.path.starts_with("/proc")));
    }

    #[test]
    fn what_is_skipped_is_not_looked_at() {
        let skip = [PathBuf::from("/etc/hosts")];
        let Survey { layout, .. } = survey(&skip, |_| {});
        let etc = layout.trees.iter().find(|tree| tree.path == Path::new(ETC)).unwrap();
        assert!(!etc.copies.contains(&PathBuf::from("hosts")));
    }

    #[test]
    fn directories_are_those_of_defaults_and_of_what_leads_to_them() {
        let Survey { layout, directories, .. } = survey(&[], |_| {});
        for directory in ["/", "/etc", "/usr", "/run", "/etc/php"] {
            assert!(directories.contains(Path::new(directory)), "{directory}");
        }
        let links = layout.trees.iter().flat_map(|tree| &tree.links).chain(&layout.links);
        let own = |link: &&Link| {
            OWN_KIND.iter().any(|own| link.path.starts_with(own)) || link.target.starts_with(OWN)
        };
        for link in
            links.filter(|link| !own(link) && !HOST_LINKS.iter().any(|host| link.path == Path::new(host)))
        {
            assert!(directories.contains(link.path.parent().unwrap()), "{link:?}");
        }
        assert!(directories.iter().all(|path| path.is_absolute() && !path.starts_with("/proc")));
    }
}
