//! Opening and creating cgroups below the mount.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::error::CgroupError;
use crate::sys::{IoError, errno_of};

/// Where Nomad and systemd mount the unified hierarchy. Nomad has this path built in, too.
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// The controllers that the limits of a task need.
pub const LIMIT_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// No file that is read here comes near this; it bounds the memory that a strange file system can take (bytes).
const FILE_MAX: u64 = 256 * 1024;

/// A cgroup v2 mount.
#[derive(Debug)]
pub struct Mount {
    root: PathBuf,
    dir: OwnedFd,
}

impl Mount {
    /// The system's mount at [`MOUNT_POINT`].
    pub(crate) fn system() -> Result<Mount, CgroupError> {
        Mount::at(Path::new(MOUNT_POINT))
    }

    /// The system's mount, opened once for all cgroups: a descriptor less for each task.
    pub(super) fn shared() -> Result<Arc<Mount>, CgroupError> {
        static SHARED: OnceLock<Arc<Mount>> = OnceLock::new();
        if let Some(mount) = SHARED.get() {
            return Ok(Arc::clone(mount));
        }
        let mount = Arc::new(Mount::system()?);
        Ok(Arc::clone(SHARED.get_or_init(|| mount)))
    }

    /// A mount elsewhere. Fails unless `root` is on a cgroup v2 file system.
    pub(crate) fn at(root: &Path) -> Result<Mount, CgroupError> {
        let mount = Mount::unchecked(root)?;
        let kind = fstatfs(&mount.dir).map_err(IoError::on("read the file system type of", root))?;
        if kind.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(CgroupError::NotCgroup2 { mount: root.to_owned() });
        }
        Ok(mount)
    }

    /// Without the check of the file system: unit tests use a temporary directory.
    pub(crate) fn unchecked(root: &Path) -> Result<Mount, CgroupError> {
        let dir = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(IoError::on("open the cgroup mount", root))?;
        Ok(Mount { root: root.to_owned(), dir })
    }

    /// The mount point.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The path below the mount, as plain components only.
    pub(super) fn relative(&self, path: &Path) -> Result<PathBuf, CgroupError> {
        let bad = || CgroupError::Path { path: path.to_owned(), mount: self.root.clone() };
        let below = path.strip_prefix(&self.root).map_err(|_| bad())?;
        let plain = below.components().all(|c| matches!(c, Component::Normal(_)));
        if !plain || below.as_os_str().is_empty() { Err(bad()) } else { Ok(below.components().collect()) }
    }

    /// Opens a directory below the mount. Symlinks, other mounts and leaving the tree are errors of the kernel.
    pub(super) fn open_dir(&self, relative: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        crate::sys::open::beneath(&self.dir, relative, flags, ResolveFlag::RESOLVE_NO_XDEV)
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// A cgroup, by descriptor.
#[derive(Debug)]
pub struct Cgroup {
    pub(super) mount: Arc<Mount>,
    /// Below the mount, plain components.
    pub(super) relative: PathBuf,
    path: PathBuf,
    dir: OwnedFd,
}

/// A controller that [`Cgroup::create`] could not get for the new cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingController {
    pub name: &'static str,
    /// Which write was refused, with path and errno, or that the kernel does not offer it.
    pub why: String,
}

/// What [`Cgroup::create`] made.
#[derive(Debug)]
pub struct Created {
    pub cgroup: Cgroup,
    /// Empty when every requested controller is there.
    pub missing: Vec<MissingController>,
}

impl Cgroup {
    /// Opens an existing cgroup below [`MOUNT_POINT`]. `path` is absolute, without `..`; a symlink on the way or a
    /// directory on another mount is refused.
    pub(crate) fn open(path: &Path) -> Result<Cgroup, CgroupError> {
        Cgroup::open_in(&Mount::shared()?, path)
    }

    /// As [`Cgroup::open`], below the given mount.
    pub(crate) fn open_in(mount: &Arc<Mount>, path: &Path) -> Result<Cgroup, CgroupError> {
        let relative = mount.relative(path)?;
        let dir = mount.open_dir(&relative).map_err(IoError::on("open the cgroup", path))?;
        Ok(Cgroup { mount: Arc::clone(mount), path: mount.root.join(&relative), relative, dir })
    }

    /// Creates the cgroup and the ones above it, as far as they are missing, and turns on [`LIMIT_CONTROLLERS`] for
    /// it where the parents allow. A controller that is not available is reported and not an error: a limit that needs it fails in [`Cgroup::apply`].
    pub fn create(path: &Path) -> Result<Created, CgroupError> {
        Cgroup::create_in(&Mount::shared()?, path, &LIMIT_CONTROLLERS)
    }

    /// As [`Cgroup::create`], below the given mount and with the given controllers (none: an empty slice).
    pub(crate) fn create_in(
        mount: &Arc<Mount>,
        path: &Path,
        controllers: &[&'static str],
    ) -> Result<Created, CgroupError> {
        let relative = mount.relative(path)?;
        let mut refusals: Vec<(&'static str, String)> = Vec::new();
        let mut above = PathBuf::new();
        for part in relative.components() {
            let at = if above.as_os_str().is_empty() { Path::new(".") } else { above.as_path() };
            let here = mount.root.join(&above);
            let parent = mount.open_dir(at).map_err(IoError::on("open the cgroup", &here))?;
            refusals.extend(enable(&parent, &here, controllers));
            above.push(part);
            match mkdirat(&parent, Path::new(part.as_os_str()), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => {
                    return Err(IoError::new("create the cgroup", mount.root.join(&above), errno).into());
                }
            }
        }
        let cgroup = Cgroup::open_in(mount, path)?;
        let missing =
            if controllers.is_empty() { Vec::new() } else { cgroup.missing(controllers, &refusals)? };
        Ok(Created { cgroup, missing })
    }

    fn missing(
        &self,
        controllers: &[&'static str],
        refusals: &[(&'static str, String)],
    ) -> Result<Vec<MissingController>, CgroupError> {
        let have = self.read("cgroup.controllers")?;
        let absent = controllers.iter().filter(|c| !have.split_whitespace().any(|h| h == **c));
        Ok(absent
            .map(|name| MissingController {
                name,
                why: refusals.iter().find(|(n, _)| n == name).map_or_else(
                    || format!("the kernel does not offer it in {:?}", self.path),
                    |(_, why)| why.clone(),
                ),
            })
            .collect())
    }

    /// The absolute path, for messages and for the task's own unveil rule.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory (`O_PATH | O_DIRECTORY | O_CLOEXEC`): what clone3(2) with `CLONE_INTO_CGROUP` takes.
    pub(crate) fn dir_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The directory's path through this process's own descriptor, for interfaces that take only paths.
    pub(super) fn fd_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd()))
    }

    pub(super) fn open_file(&self, name: &str) -> Result<File, CgroupError> {
        open_at(&self.dir, &self.path, name, OFlag::O_RDONLY).map(File::from)
    }

    /// A whole interface file. An absent one is [`CgroupError::Io`] with `ENOENT`.
    pub(super) fn read(&self, name: &str) -> Result<String, CgroupError> {
        read_at(&self.dir, &self.path, name)
    }

    /// `None` where this kernel, or this cgroup, does not have the file.
    pub(super) fn read_if_there(&self, name: &str) -> Result<Option<String>, CgroupError> {
        match self.read(name) {
            Ok(text) => Ok(Some(text)),
            // EOPNOTSUPP: a file that exists but is switched off (memory.swap.* without swap accounting).
            Err(CgroupError::Io(IoError { errno: Errno::ENOENT | Errno::EOPNOTSUPP, .. })) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        write_at(&self.dir, &self.path, name, value)
    }
}

fn open_at(dir: &OwnedFd, at: &Path, name: &str, mode: OFlag) -> Result<OwnedFd, CgroupError> {
    let opened = openat(dir, name, mode | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty());
    Ok(opened.map_err(IoError::on("open", at.join(name)))?)
}

fn read_at(dir: &OwnedFd, at: &Path, name: &str) -> Result<String, CgroupError> {
    let file = File::from(open_at(dir, at, name, OFlag::O_RDONLY)?);
    let bytes = crate::sys::read::bounded(file, FILE_MAX).map_err(IoError::on("read", at.join(name)))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn write_at(dir: &OwnedFd, at: &Path, name: &str, value: &str) -> Result<(), CgroupError> {
    let mut file = File::from(open_at(dir, at, name, OFlag::O_WRONLY)?);
    // One write(2): the kernel parses each write on its own.
    let written = file.write(value.as_bytes()).map_err(|e| errno_of(&e));
    let errno = match written {
        Ok(n) if n == value.len() => return Ok(()),
        Ok(_) => Errno::EIO,
        Err(errno) => errno,
    };
    Err(CgroupError::Write { path: at.join(name), value: value.to_owned(), errno })
}

/// Turns controllers on for the children of `dir`, each by its own write, so that one refusal does not affect the others.
fn enable(dir: &OwnedFd, at: &Path, controllers: &[&'static str]) -> Vec<(&'static str, String)> {
    if controllers.is_empty() {
        return Vec::new();
    }
    let on = read_at(dir, at, "cgroup.subtree_control").unwrap_or_default();
    let off = controllers.iter().filter(|c| !on.split_whitespace().any(|h| h == **c));
    // Only in the root of the hierarchy, which has no type, may processes be beside cgroups with controllers. Elsewhere
    // (the root of a container) the kernel refuses some, and accepts others, but then no child can have processes.
    let inhabited = read_at(dir, at, "cgroup.type").is_ok()
        && read_at(dir, at, "cgroup.procs").is_ok_and(|procs| !procs.is_empty());
    if inhabited {
        let why = format!("there are processes in {at:?}, so the cgroups below it can have no controllers");
        return off.map(|c| (*c, why.clone())).collect();
    }
    off.filter_map(|c| {
        let refused = write_at(dir, at, "cgroup.subtree_control", &format!("+{c}")).err()?;
        Some((*c, refused.to_string()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::testing::{TempTree, task_cgroup};
    use super::*;

    #[test]
    fn opens_only_plain_paths_below_the_mount() {
        let tree = TempTree::new();
        tree.dir("nomad.slice/share.slice/a.scope");
        let root = tree.root();
        let good = root.join("nomad.slice/share.slice/a.scope");
        assert_eq!(Cgroup::open_in(tree.mount(), &good).unwrap().path(), good);
        let doubled = PathBuf::from(format!("{}//nomad.slice/./share.slice/a.scope/", root.display()));
        assert_eq!(Cgroup::open_in(tree.mount(), &doubled).unwrap().path(), good);

        for bad in [
            root.clone(),
            root.join("nomad.slice/../nomad.slice"),
            root.join(".."),
            PathBuf::from("nomad.slice"),
            PathBuf::from("/etc"),
            PathBuf::from(""),
        ] {
            let e = Cgroup::open_in(tree.mount(), &bad).unwrap_err();
            assert!(matches!(e, CgroupError::Path { .. }), "{bad:?}: {e}");
        }
        let e = Cgroup::open_in(tree.mount(), &root.join("missing.scope")).unwrap_err();
        assert!(e.is_gone(), "{e}");
        let e = Cgroup::open_in(tree.mount(), &root.join("nul\0byte")).unwrap_err();
        assert_eq!(e.errno(), Some(Errno::EINVAL), "{e}");
    }

    #[test]
    fn refuses_symlinks_anywhere_on_the_way() {
        let tree = TempTree::new();
        tree.dir("real/a.scope");
        symlink(tree.root().join("real"), tree.root().join("link")).unwrap();
        symlink("a.scope", tree.root().join("real/b.scope")).unwrap();
        for path in ["link/a.scope", "real/b.scope"] {
            let e = Cgroup::open_in(tree.mount(), &tree.root().join(path)).unwrap_err();
            assert_eq!(e.errno(), Some(Errno::ELOOP), "{path}: {e}");
        }
    }

    #[test]
    fn refuses_a_mount_that_is_not_cgroup_v2() {
        let tree = TempTree::new();
        let e = Mount::at(&tree.root()).unwrap_err();
        assert!(e.to_string().contains("is not a cgroup v2 file system"), "{e}");
    }

    #[test]
    fn creates_the_whole_path_and_reports_missing_controllers() {
        let tree = TempTree::new();
        // A parent whose subtree_control already has everything, a leaf that offers only two of three.
        tree.file("cgroup.subtree_control", "cpu memory pids\n");
        tree.dir("run/leaf");
        tree.file("run/cgroup.subtree_control", "cpu memory\n");
        tree.file("run/leaf/cgroup.controllers", "cpu memory\n");
        let made =
            Cgroup::create_in(tree.mount(), &tree.root().join("run/leaf"), &LIMIT_CONTROLLERS).unwrap();
        assert_eq!(made.missing.len(), 1);
        assert_eq!(made.missing[0].name, "pids");
        // What was missing was asked for, what was there was left alone.
        assert_eq!(tree.read("run/cgroup.subtree_control"), "+pidsemory\n");
        assert_eq!(tree.read("cgroup.subtree_control"), "cpu memory pids\n");

        let deep = tree.root().join("x/y/z.scope");
        let made = Cgroup::create_in(tree.mount(), &deep, &[]).unwrap();
        assert!(deep.is_dir() && made.missing.is_empty());
    }

    #[test]
    fn create_names_the_write_that_was_refused() {
        let tree = TempTree::new();
        tree.dir("leaf");
        tree.file("leaf/cgroup.controllers", "cpu\n");
        let made = Cgroup::create_in(tree.mount(), &tree.root().join("leaf"), &["memory"]).unwrap();
        assert!(made.missing[0].why.contains("cgroup.subtree_control"), "{}", made.missing[0].why);
        assert!(made.missing[0].why.contains("No such file"), "{}", made.missing[0].why);
    }

    #[test]
    fn create_asks_for_no_controllers_beside_processes() {
        let tree = TempTree::new();
        tree.dir("leaf");
        tree.file("leaf/cgroup.controllers", "cpu\n");
        tree.file("cgroup.subtree_control", "cpu\n");
        tree.file("cgroup.type", "domain\n");
        let create = || {
            let leaf = tree.root().join("leaf");
            Cgroup::create_in(tree.mount(), &leaf, &["cpu", "memory"]).unwrap().missing
        };
        tree.file("cgroup.procs", "1\n");
        let missing = create();
        assert_eq!(missing.len(), 1);
        assert!(
            missing[0].name == "memory" && missing[0].why.contains("there are processes in"),
            "{missing:?}"
        );
        assert_eq!(tree.read("cgroup.subtree_control"), "cpu\n");
        // The root of the hierarchy has no type, and may have both.
        tree.remove("cgroup.type");
        create();
        assert_eq!(tree.read("cgroup.subtree_control"), "+memory");
        tree.file("cgroup.type", "domain\n");
        tree.file("cgroup.procs", "");
        tree.file("cgroup.subtree_control", "cpu\n");
        create();
        assert_eq!(tree.read("cgroup.subtree_control"), "+memory");
    }

    #[test]
    fn create_does_not_walk_through_a_symlink() {
        let tree = TempTree::new();
        tree.dir("real");
        symlink(tree.root().join("real"), tree.root().join("link")).unwrap();
        assert!(Cgroup::create_in(tree.mount(), &tree.root().join("link/x"), &[]).is_err());
        assert!(!tree.root().join("real/x").exists());
    }

    #[test]
    fn the_descriptor_outlives_the_name() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        std::fs::rename(tree.root().join("a.scope"), tree.root().join("old")).unwrap();
        tree.dir("a.scope");
        tree.file("a.scope/cgroup.type", "other\n");
        assert_eq!(cgroup.read("cgroup.type").unwrap(), "domain\n");
    }
}
