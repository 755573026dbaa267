//! The task's own directories, and the proof that they belong to it.
//!
//! In Nomad's unveil mode a task sees its directories at `alloc_mounts/<alloc>-<task>`, where Nomad bind-mounts them.
//! The plugin learns that path from the environment alone, and a job's `env` block can set the same variables: so it is
//! used only after comparing it, by device and inode, with the directories that Nomad names outside the environment.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use rustix::fs::XattrFlags;

use crate::sys::IoError;

/// Why the task's directories could not be trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirsError {
    #[error(
        "{0} is not in the task's environment; Nomad sets it for a driver with unveil file system isolation"
    )]
    Unset(&'static str),
    #[error(
        "{name}={value:?} is not the {what} of this task; Nomad sets it, so remove {name} from the env block of the job"
    )]
    Foreign { name: &'static str, value: PathBuf, what: &'static str },
    #[error(
        "{0:?} is empty: the task's directories are not mounted there. Nomad mounts them once, and not again after a reboot; \
         a new allocation gets its own (nomad alloc stop, or the job's reschedule block)"
    )]
    NotMounted(PathBuf),
    #[error(
        "the directory {0:?} leads through /proc, where a path means something else to each process; use the path of the \
         directory itself"
    )]
    Proc(PathBuf),
    #[error(transparent)]
    Io(#[from] IoError),
}

impl DirsError {
    /// Whether the job is at fault, or the allocation is unusable: a retry cannot help.
    pub(crate) fn is_jobs_fault(&self) -> bool {
        matches!(self, Self::Unset(_) | Self::Foreign { .. } | Self::NotMounted(_) | Self::Proc(_))
    }
}

const TASK_DIR: &str = "NOMAD_TASK_DIR";
const ALLOC_DIR: &str = "NOMAD_ALLOC_DIR";
const SECRETS_DIR: &str = "NOMAD_SECRETS_DIR";

/// The extended attribute of the task's directory that holds the uid of its dynamic user, in decimal digits. The name space "trusted" is for
/// processes with CAP_SYS_ADMIN alone, xattr(7), and the record is gone with the directory.
const USER_RECORD: &str = "trusted.nomad-driver-exec2.uid";

/// As many digits as a uid can have.
const UID_DIGITS: usize = 10;

/// The directory that holds the task's `alloc`, `local`, `secrets` and `tmp`.
#[derive(Debug)]
pub(crate) struct Root {
    pub path: PathBuf,
    owner: Owner,
    directory: OwnedFd,
}

/// To whom Nomad gave the task's directory when it created it; only CAP_CHOWN can change that.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Root {
    /// The dynamic user of an earlier start, which [`Root::record_user`] recorded. None if there was none, or if the file system has no such
    /// attributes.
    pub(crate) fn recorded_user(&self) -> Option<u32> {
        let mut value = [0; UID_DIGITS];
        let length = rustix::fs::getxattr(self.by_number(), USER_RECORD, &mut value).ok()?;
        str::from_utf8(value.get(..length)?).ok()?.parse().ok()
    }

    /// Records the task's dynamic user. Only a start of the task whose user Nomad has forgotten needs it, so that an error is none of this
    /// start.
    pub(crate) fn record_user(&self, uid: u32) {
        if self.recorded_user() == Some(uid) {
            return;
        }
        let value = uid.to_string();
        let done = rustix::fs::setxattr(self.by_number(), USER_RECORD, value.as_bytes(), XattrFlags::empty());
        if let Err(error) = done {
            let error = Errno::from_raw(error.raw_os_error());
            tracing::debug!("failed to record the user at {:?}: {error}", self.path);
        }
    }

    /// A path of the verified directory: these system calls take no descriptor with O_PATH.
    fn by_number(&self) -> String {
        format!("/proc/self/fd/{}", self.directory.as_raw_fd())
    }

    /// The dynamic user to whom Nomad gave the directory, as Nomad names such users; none if it belongs to root, or to
    /// different ids, which a dynamic user never has.
    ///
    /// Nomad 2.0 forgets a task's dynamic user when the agent is restarted, and then asks for a start of the task with an
    /// empty user.
    pub(crate) fn dynamic_user(&self) -> Option<String> {
        self.owner.dynamic_user()
    }
}

impl Owner {
    fn dynamic_user(self) -> Option<String> {
        (self.uid != 0 && self.uid == self.gid).then(|| format!("nomad-{}", self.uid))
    }
}

/// Finds the root directory in the environment, and proves that it is the task's.
///
/// `alloc_dir` is Nomad's `TaskConfig.alloc_dir` (`<data_dir>/alloc/<alloc>`), which no job can set; `task` the task's name. If
/// the task gets an `own_root`, its directories need not be mounted at the path that the environment names: it is only where the
/// task will see them.
pub(crate) fn root(
    env: &HashMap<String, String>,
    alloc_dir: &Path,
    task: &str,
    own_root: bool,
) -> Result<Root, DirsError> {
    let value = |name: &'static str| env.get(name).map(Path::new).ok_or(DirsError::Unset(name));
    let (local, alloc, secrets) = (value(TASK_DIR)?, value(ALLOC_DIR)?, value(SECRETS_DIR)?);
    let foreign = |name, value: &Path, what| DirsError::Foreign { name, value: value.into(), what };

    let plain = local.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    let root = match local.parent() {
        Some(root) if plain && root.is_absolute() && local.ends_with("local") => root,
        _ => return Err(foreign(TASK_DIR, local, "task directory")),
    };
    if alloc != root.join("alloc") {
        return Err(foreign(ALLOC_DIR, alloc, "alloc directory"));
    }
    if secrets != root.join("secrets") {
        return Err(foreign(SECRETS_DIR, secrets, "secrets directory"));
    }

    let theirs = directory("open the alloc directory", alloc_dir)?;
    let ours = directory("open the task directory", root)?;
    let kept = beneath(&theirs, alloc_dir, Path::new(task))?;
    if !same(&ours, &kept) {
        let local_there = beneath(&ours, root, Path::new("local"));
        return match local_there {
            Err(DirsError::Io(IoError { errno: Errno::ENOENT, .. })) if own_root => owned(root, kept),
            Err(DirsError::Io(IoError { errno: Errno::ENOENT, .. })) => {
                Err(DirsError::NotMounted(root.to_owned()))
            }
            _ => Err(foreign(TASK_DIR, local, "task directory")),
        };
    }
    let (mounted, shared) =
        (beneath(&ours, root, Path::new("alloc"))?, beneath(&theirs, alloc_dir, Path::new("alloc"))?);
    if !same(&mounted, &shared) {
        return Err(foreign(ALLOC_DIR, alloc, "alloc directory"));
    }
    owned(root, ours)
}

/// The root at `path`, with the owner of the task's directory.
fn owned(path: &Path, directory: OwnedFd) -> Result<Root, DirsError> {
    let found = fstat(&directory).map_err(IoError::on("look at the task directory", path))?;
    Ok(Root { path: path.to_owned(), owner: Owner { uid: found.st_uid, gid: found.st_gid }, directory })
}

/// Opens a directory that the shim, a process of another PID namespace, opens again by the same path: so the path must mean
/// the same to both.
fn directory(op: &'static str, path: &Path) -> Result<OwnedFd, DirsError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let proc = || DirsError::Proc(path.into());
    let opened = match crate::sys::open::retry(|| openat2(AT_FDCWD, path, how)) {
        // A loop of ordinary links is ELOOP even without the flag.
        Err(Errno::ELOOP) if open(path, flags, Mode::empty()).is_ok() => return Err(proc()),
        opened => opened.map_err(IoError::on(op, path))?,
    };
    match fstatfs(&opened).map_err(IoError::on(op, path))?.filesystem_type() {
        PROC_SUPER_MAGIC => Err(proc()),
        _ => Ok(opened),
    }
}

fn beneath(root: &OwnedFd, root_path: &Path, path: &Path) -> Result<OwnedFd, DirsError> {
    let opened =
        crate::sys::open::beneath(root, path, OFlag::O_PATH | OFlag::O_DIRECTORY, ResolveFlag::empty());
    Ok(opened.map_err(IoError::on("open a directory of the task", root_path.join(path)))?)
}

fn same(a: &impl AsFd, b: &impl AsFd) -> bool {
    match (fstat(a), fstat(b)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An alloc as Nomad lays it out; the bind mounts are symbolic links here, which only the tests can follow.
    struct Alloc {
        dir: tempfile::TempDir,
        env: HashMap<String, String>,
    }

    impl Alloc {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let task = dir.path().join("alloc/1/web");
            for name in ["local", "secrets", "tmp", "alloc"] {
                std::fs::create_dir_all(task.join(name)).unwrap();
            }
            // Without root there is no bind mount: the shared directory is the task's own `alloc` itself.
            std::os::unix::fs::symlink(&task, dir.path().join("mounts")).unwrap();
            let root = dir.path().join("mounts");
            let var = |name: &str, sub: &str| (name.to_owned(), root.join(sub).display().to_string());
            let env =
                HashMap::from([var(TASK_DIR, "local"), var(ALLOC_DIR, "alloc"), var(SECRETS_DIR, "secrets")]);
            Self { dir, env }
        }

        fn root(&self) -> Result<Root, DirsError> {
            root(&self.env, &self.dir.path().join("alloc/1"), "web", false)
        }

        fn set(mut self, name: &str, value: impl AsRef<Path>) -> Self {
            self.env.insert(name.into(), value.as_ref().display().to_string());
            self
        }
    }

    #[test]
    fn only_a_dynamic_user_is_known_by_its_directory() {
        let of = |uid, gid| Owner { uid, gid }.dynamic_user();
        assert_eq!(of(80_123, 80_123).as_deref(), Some("nomad-80123"));
        assert_eq!(of(0, 0), None);
        assert_eq!(of(80_123, 0), None);
        assert_eq!(of(1000, 100), None);
    }

    #[test]
    fn the_recorded_user_is_that_of_the_last_start() {
        let dir = tempfile::tempdir().unwrap();
        let root = || owned(dir.path(), directory("open", dir.path()).unwrap()).unwrap();
        assert_eq!(root().recorded_user(), None);
        let write =
            |value: &[u8]| rustix::fs::setxattr(root().by_number(), USER_RECORD, value, XattrFlags::empty());
        // EPERM: an ordinary user can neither write nor read it. EOPNOTSUPP: the file system has no such attributes.
        if let Err(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP) = write(b"") {
            root().record_user(80_123);
            assert_eq!(root().recorded_user(), None);
            return;
        }
        for malformed in [&b""[..], b"-1", b"80123 ", b"4294967296", b"80123801238", b"\xff"] {
            write(malformed).unwrap();
            assert_eq!(root().recorded_user(), None, "{malformed:?}");
        }
        for uid in [80_123, 80_123, 80_124, u32::MAX] {
            root().record_user(uid);
            assert_eq!(root().recorded_user(), Some(uid));
        }
    }

    #[test]
    fn a_job_cannot_point_its_directories_elsewhere() {
        for (name, value) in [
            (TASK_DIR, "/"),
            (TASK_DIR, "/etc"),
            (TASK_DIR, "local"),
            (TASK_DIR, ""),
            (TASK_DIR, "/tmp/../local"),
            (ALLOC_DIR, "/"),
            (ALLOC_DIR, "/etc"),
            (SECRETS_DIR, "/root"),
        ] {
            let error = Alloc::new().set(name, value).root().unwrap_err();
            assert!(error.is_jobs_fault(), "{name}={value}: {error}");
            assert!(error.to_string().contains("remove"), "{error}");
        }
    }

    #[test]
    fn another_directory_of_the_right_shape_is_refused() {
        let alloc = Alloc::new();
        let other = alloc.dir.path().join("other");
        for name in ["local", "alloc", "secrets"] {
            std::fs::create_dir_all(other.join(name)).unwrap();
        }
        let alloc = alloc
            .set(TASK_DIR, other.join("local"))
            .set(ALLOC_DIR, other.join("alloc"))
            .set(SECRETS_DIR, other.join("secrets"));
        assert!(matches!(alloc.root(), Err(DirsError::Foreign { name: TASK_DIR, .. })));
    }

    #[test]
    fn an_empty_mount_point_is_not_called_the_jobs_choice() {
        let alloc = Alloc::new();
        let mounts = alloc.dir.path().join("mounts");
        std::fs::remove_file(&mounts).unwrap();
        std::fs::create_dir(&mounts).unwrap();
        let error = alloc.root().unwrap_err();
        assert!(matches!(error, DirsError::NotMounted(_)), "{error}");
        assert!(error.is_jobs_fault());
    }

    #[test]
    fn the_alloc_directory_must_be_the_allocs() {
        // The task directory is right, but its `alloc` is not what Nomad shares between the tasks of the alloc.
        let alloc = Alloc::new();
        std::fs::create_dir_all(alloc.dir.path().join("alloc/1/alloc")).unwrap();
        assert!(matches!(alloc.root(), Err(DirsError::Foreign { name: ALLOC_DIR, .. })));
    }

    #[test]
    fn a_path_through_proc_is_refused_though_it_leads_to_the_right_place() {
        let held = Alloc::new();
        let root = held.dir.path().join("mounts");
        let fd = open(&root, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let through = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd)));
        for prefix in [through, PathBuf::from(format!("/proc/self/root{}", root.display()))] {
            assert!(prefix.join("local").is_dir(), "it leads there: {prefix:?}");
            let env = [(TASK_DIR, "local"), (ALLOC_DIR, "alloc"), (SECRETS_DIR, "secrets")]
                .map(|(name, sub)| (name.to_owned(), prefix.join(sub).display().to_string()));
            let error = super::root(&env.into(), &held.dir.path().join("alloc/1"), "web", false).unwrap_err();
            assert!(matches!(error, DirsError::Proc(_)) && error.is_jobs_fault(), "{error}");
        }
        let error = directory("open the task directory", Path::new("/proc/self/task")).unwrap_err();
        assert!(matches!(error, DirsError::Proc(_)), "{error}");
        // By its own path it gets further: only a bind mount, which needs root, could make the fixture whole.
        let error = held.root().unwrap_err();
        assert!(
            matches!(error, DirsError::Io(IoError { op: "open a directory of the task", .. })),
            "{error}"
        );
    }

    #[test]
    fn a_missing_variable_and_a_missing_directory_are_named() {
        let mut alloc = Alloc::new();
        alloc.env.remove(SECRETS_DIR);
        assert!(matches!(alloc.root(), Err(DirsError::Unset(SECRETS_DIR))));
        let alloc = Alloc::new();
        let error = root(&alloc.env, &alloc.dir.path().join("alloc/2"), "web", false).unwrap_err();
        assert!(!error.is_jobs_fault());
        assert!(error.to_string().contains("alloc/2"), "{error}");
    }
}
