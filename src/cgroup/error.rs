//! What can go wrong with a cgroup, in sentences for the operator.

use std::path::PathBuf;

use nix::errno::Errno;

use crate::sys::{self, IoError};

/// An operation on a cgroup failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// The path is no cgroup path: relative, outside the mount, the mount itself, or with `..`.
    #[error("cgroup path {path:?} must name a directory below {mount:?}, without \"..\"")]
    Path { path: PathBuf, mount: PathBuf },
    /// The mount point carries another file system.
    #[error(
        "{mount:?} is not a cgroup v2 file system: boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 there"
    )]
    NotCgroup2 { mount: PathBuf },
    /// The task's path is too short to have a place for the shims beside it.
    #[error("cgroup path {path:?} has no slice above it: expected PARENT/PARTITION/TASK below {mount:?}")]
    NoSlice { path: PathBuf, mount: PathBuf },
    /// A limit was asked for, but the kernel does not offer its file in this cgroup.
    #[error(
        "{path:?} does not exist, so {value:?} cannot be set: enable the {controller} controller in the parent's cgroup.subtree_control"
    )]
    NoController { path: PathBuf, value: String, controller: &'static str },
    /// No process can be started in it: clone(2) would say ENOSPC.
    #[error(
        "the cgroup has no CPU ({path:?} is empty): all of them are reserved, by tasks with cores or by other cgroups; \
         leave one to Nomad's share.slice, for example by client {{ reserved {{ cores }} }}"
    )]
    NoCpu { path: PathBuf },
    /// The kernel refused a value.
    #[error("failed to write {value:?} to {path:?}: {}", .errno.desc())]
    Write { path: PathBuf, value: String, errno: Errno },
    /// Any other system call on a path.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A file of the kernel has a form that is not the documented one.
    #[error("{path:?} has no usable {what}: found {found:?}")]
    Content { path: PathBuf, what: &'static str, found: String },
    /// There are more cgroups below this one than a removal is willing to walk.
    #[error("{path:?} has more than {limit} cgroups or levels below it: remove them manually")]
    TooMany { path: PathBuf, limit: usize },
}

impl CgroupError {
    /// Whether the cgroup itself has gone (removed by Nomad while we looked), as opposed to a refusal.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENOENT | Errno::ENODEV))
    }

    /// Whether this process or the host has no descriptor, memory or epoll watch (epoll_ctl(2): ENOSPC) left for the moment.
    pub(crate) fn is_transient(&self) -> bool {
        self.errno().is_some_and(|errno| sys::is_transient(errno) || errno == Errno::ENOSPC)
    }

    /// The errno of the failed system call, if there was one.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            CgroupError::Write { errno, .. } | CgroupError::Io(IoError { errno, .. }) => Some(*errno),
            _ => None,
        }
    }
}
