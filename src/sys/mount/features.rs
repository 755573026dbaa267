//! Which calls and file systems for a root of its own the kernel has: tried without changing anything.

use std::os::fd::AsFd;

use nix::Result;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, ResolveFlag, open};
use nix::sys::stat::Mode;
use rustix::fs::CWD;
use rustix::mount::{FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::{errno, set_attributes};

/// A system call or a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feature {
    /// With the first release that has it.
    Call(&'static str, &'static str),
    /// With the kernel's build option for it.
    FileSystem(&'static str, &'static str),
}

/// `ENOSYS`: the kernel has no such call. `ENODEV`: it has no such file system. `EPERM`: this process lacks
/// `CAP_SYS_ADMIN`, or a seccomp filter refuses the call.
pub(crate) fn probe() -> Vec<(Feature, Result<()>)> {
    let call = |name, since, tried| (Feature::Call(name, since), tried);
    let mut found = vec![
        call("openat2", "5.6", openat2()),
        call("open_tree", "5.2", open_tree()),
        call("move_mount", "5.2", move_mount()),
        call("mount_setattr", "5.12", mount_setattr()),
    ];
    for (name, option) in [
        ("tmpfs", "CONFIG_TMPFS"),
        ("proc", "CONFIG_PROC_FS"),
        ("devpts", "CONFIG_UNIX98_PTYS"),
        ("mqueue", "CONFIG_POSIX_MQUEUE"),
    ] {
        match fsopen(name) {
            Err(Errno::ENOSYS) => {
                found.push(call("fsopen", "5.2", Err(Errno::ENOSYS)));
                break;
            }
            tried => found.push((Feature::FileSystem(name, option), tried)),
        }
    }
    found
}

fn openat2() -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let how = nix::fcntl::OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    crate::sys::open::retry(|| nix::fcntl::openat2(AT_FDCWD, "/", how)).map(drop)
}

/// Without `OPEN_TREE_CLONE` it only opens.
fn open_tree() -> Result<()> {
    rustix::mount::open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLOEXEC).map(drop).map_err(errno)
}

/// An empty path names nothing, so nothing is moved.
fn move_mount() -> Result<()> {
    match rustix::mount::move_mount(CWD, "", CWD, "", MoveMountFlags::empty()).map_err(errno) {
        Err(Errno::ENOENT) => Ok(()),
        tried => tried,
    }
}

/// It changes no attribute.
fn mount_setattr() -> Result<()> {
    let root = open("/", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    set_attributes(root.as_fd(), MountAttrFlags::empty(), 0, false)
}

/// The context of a file system that is never created.
fn fsopen(name: &str) -> Result<()> {
    rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).map(drop).map_err(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_no_kernel_has() {
        // Without the privilege the kernel does not say.
        assert_eq!(fsopen("exec2-none"), fsopen("tmpfs").and(Err(Errno::ENODEV)));
    }

    #[test]
    fn this_kernel_has_each_or_refuses_to_say() {
        let found = probe();
        assert_eq!(found.len(), 8, "{found:?}");
        for (feature, tried) in found {
            assert!(matches!(tried, Ok(()) | Err(Errno::EPERM)), "{feature:?}: {tried:?}");
        }
    }

    #[test]
    fn probing_leaves_no_descriptor_and_no_mount() {
        let descriptors = || std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
        let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let (before, mounted) = (descriptors(), mounts());
        for _ in 0..100 {
            probe();
        }
        // Other tests run at the same time, and open a few.
        assert!(descriptors() < before + 100);
        assert_eq!(mounts(), mounted);
    }
}
