//! Reads the state of the host; decides nothing.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, FsType, TMPFS_MAGIC, statfs};

use crate::cgroup::MOUNT_POINT;
use crate::sys::mount::features::{self, Feature};
use crate::sys::{self, landlock};

/// Limit in bytes for each file, which has a few lines.
const FILE_MAX: u64 = 64 * 1024;

/// Where systemd's hybrid layout mounts cgroup v2, below [`MOUNT_POINT`].
const HYBRID: &str = "unified";

/// What is mounted at [`MOUNT_POINT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CgroupMount {
    V2,
    V1,
    /// v1 for the controllers, and v2 beside it for systemd only.
    Hybrid,
    None,
}

/// One kind of namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespace {
    /// For readers: `pid namespaces`.
    pub name: &'static str,
    /// Its name in /proc/self/ns and in the sysctl.
    pub kind: &'static str,
    pub present: bool,
    /// `user.max_KIND_namespaces`, if it can be read.
    pub max: Option<u64>,
}

impl Namespace {
    /// The limit's name in sysctl(8).
    pub(crate) fn sysctl(&self) -> String {
        format!("user.max_{}_namespaces", self.kind)
    }
}

/// What was read. Plain data, so that the judgement can be tested on any host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observations {
    pub euid: u32,
    /// Effective set of this process (`CapEff`).
    pub capabilities: Option<u64>,
    /// `uname -r`.
    pub kernel: String,
    pub cgroup: CgroupMount,
    /// `cgroup.controllers` of the root cgroup; empty unless [`CgroupMount::V2`].
    pub controllers: Vec<String>,
    /// Whether a cgroup has `cgroup.kill`; `None` if there is no cgroup to check.
    pub cgroup_kill: Option<bool>,
    pub landlock: Result<u32, Errno>,
    /// Which errata are fixed, if the kernel says.
    pub landlock_errata: Option<u32>,
    /// Active security modules (/sys/kernel/security/lsm).
    pub lsm: Option<String>,
    /// Whether system calls can be filtered.
    pub seccomp: Result<(), Errno>,
    pub namespaces: Vec<Namespace>,
    /// What a root of the task's own needs.
    pub root_features: Vec<(Feature, Result<(), Errno>)>,
}

impl Observations {
    /// # Errors
    /// See [`seen`].
    pub(crate) fn read() -> io::Result<Observations> {
        let root = Path::new(MOUNT_POINT);
        let cgroup = mount(root)?;
        let v2 = cgroup == CgroupMount::V2;
        let controllers = if v2 { text(&root.join("cgroup.controllers"))? } else { None };
        Ok(Observations {
            euid: nix::unistd::geteuid().as_raw(),
            capabilities: text(Path::new("/proc/self/status"))?.as_deref().and_then(effective),
            kernel: text(Path::new("/proc/sys/kernel/osrelease"))?.unwrap_or_default().trim().to_owned(),
            cgroup,
            controllers: controllers.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
            cgroup_kill: if v2 {
                some_cgroup(root)?.map(|dir| exists(&dir.join("cgroup.kill"))).transpose()?
            } else {
                None
            },
            landlock: landlock::abi(),
            landlock_errata: landlock::errata().ok(),
            lsm: text(Path::new("/sys/kernel/security/lsm"))?.map(|list| list.trim().to_owned()),
            seccomp: sys::seccomp::probe(),
            namespaces: vec![
                namespace("pid namespaces", "pid")?,
                namespace("mount namespaces", "mnt")?,
                namespace("ipc namespaces", "ipc")?,
            ],
            root_features: features::probe(),
        })
    }
}

/// A file that cannot be read counts as absent, unless this process is out of descriptors or memory, which says nothing about
/// the host. The error names the path.
fn seen<T>(path: &Path, look: io::Result<T>) -> io::Result<Option<T>> {
    match look {
        Ok(found) => Ok(Some(found)),
        Err(error) if sys::is_transient(sys::errno_of(&error)) => {
            Err(io::Error::other(sys::IoError::new("look at", path, error)))
        }
        Err(_) => Ok(None),
    }
}

fn exists(path: &Path) -> io::Result<bool> {
    Ok(seen(path, path.symlink_metadata())?.is_some())
}

fn text(path: &Path) -> io::Result<Option<String>> {
    let read = File::open(path).and_then(|file| sys::read::bounded(file, FILE_MAX));
    Ok(seen(path, read)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Checks the type of the file system: /proc/self/mountinfo grows with every task of the host.
fn mount(root: &Path) -> io::Result<CgroupMount> {
    let kind = |path: &Path| -> io::Result<Option<FsType>> {
        Ok(seen(path, statfs(path).map_err(io::Error::from))?.map(|found| found.filesystem_type()))
    };
    Ok(match kind(root)? {
        Some(CGROUP2_SUPER_MAGIC) => CgroupMount::V2,
        Some(TMPFS_MAGIC) if kind(&root.join(HYBRID))? == Some(CGROUP2_SUPER_MAGIC) => CgroupMount::Hybrid,
        Some(TMPFS_MAGIC) => CgroupMount::V1,
        _ => CgroupMount::None,
    })
}

/// A cgroup other than the root: this process's own, or any child of the root.
fn some_cgroup(root: &Path) -> io::Result<Option<PathBuf>> {
    let own = text(Path::new("/proc/self/cgroup"))?.as_deref().and_then(own_cgroup);
    if let Some(own) = own.map(|relative| root.join(relative))
        && exists(&own.join("cgroup.events"))?
    {
        return Ok(Some(own));
    }
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let entries = seen(root, fs::read_dir(root))?;
    Ok(entries.and_then(|entries| entries.flatten().find(is_dir)).map(|entry| entry.path()))
}

/// The path of the line `0::/PATH` of /proc/self/cgroup, below the mount. A path with `..` belongs to a process outside of its
/// cgroup namespace and cannot be used.
fn own_cgroup(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    if path.is_empty() || path.split('/').any(|part| part == "..") { None } else { Some(PathBuf::from(path)) }
}

/// `CapEff` of /proc/self/status.
fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn namespace(name: &'static str, kind: &'static str) -> io::Result<Namespace> {
    Ok(Namespace {
        name,
        kind,
        present: exists(&Path::new("/proc/self/ns").join(kind))?,
        max: text(Path::new(&format!("/proc/sys/user/max_{kind}_namespaces")))?
            .and_then(|n| n.trim().parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn own_cgroup_of_proc() {
        assert_eq!(own_cgroup("0::/system.slice/nomad.service\n"), Some("system.slice/nomad.service".into()));
        assert_eq!(own_cgroup("1:cpu:/x\n0::/a\n"), Some("a".into()));
        for none in ["", "0::/\n", "0::/../a\n", "1:cpu:/x\n"] {
            assert_eq!(own_cgroup(none), None, "{none}");
        }
    }

    #[test]
    fn effective_set_of_proc() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert_eq!(effective("CapEff:\tzz\n"), None);
        assert_eq!(effective("CapPrm:\t1\n"), None);
    }

    #[test]
    fn a_directory_is_not_a_cgroup_mount() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(HYBRID)).unwrap();
        assert!(matches!(mount(dir.path()).unwrap(), CgroupMount::None | CgroupMount::V1));
        assert_eq!(mount(&dir.path().join("missing")).unwrap(), CgroupMount::None);
        assert_eq!(mount(Path::new("/proc")).unwrap(), CgroupMount::None);
    }

    #[test]
    fn running_out_of_descriptors_says_nothing_about_the_host() {
        for transient in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
            let error = seen::<()>(Path::new("/x"), Err(transient.into())).unwrap_err();
            assert!(error.to_string().starts_with("failed to look at \"/x\": "), "{error}");
        }
        for absent in [Errno::ENOENT, Errno::EACCES, Errno::EOPNOTSUPP] {
            assert_eq!(seen::<()>(Path::new("/x"), Err(absent.into())).unwrap(), None);
        }
    }

    #[test]
    fn this_host() {
        let seen = Observations::read().unwrap();
        assert_eq!(seen.euid, nix::unistd::geteuid().as_raw());
        assert!(seen.capabilities.is_some());
        assert_eq!(seen.kernel, nix::sys::utsname::uname().unwrap().release().to_str().unwrap());
        assert!(seen.namespaces.iter().all(|n| n.present));
    }

    /// A fingerprint runs it every half minute. The limit is generous, for emulated machines.
    #[test]
    fn cheap() {
        let begin = Instant::now();
        for _ in 0..20 {
            Observations::read().unwrap();
        }
        let each = begin.elapsed() / 20;
        assert!(each.as_millis() < 20, "{each:?}");
    }
}
