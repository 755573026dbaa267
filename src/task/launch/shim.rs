//! A shim that has been started and waits for its task.
//!
//! It is started before everything else, so that it executes its program while the plugin prepares the rest.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::utsname::{UtsName, uname};
use nix::unistd::Pid;

use super::{LaunchError, START_LIMIT};
use crate::cgroup::{Cgroup, CgroupError};
use crate::record::identity::Identity;
use crate::record::reconcile::{self, EndError};
use crate::sandbox::plan::{Namespace, Plan};
use crate::shim::report::{self, Receiver};
use crate::shim::spec::Stdio;
use crate::shim::{self, fds};
use crate::sys::{self, CallError};
use crate::task::null::Null;
use crate::task::spec::TaskSpec;

/// Dropped, it is killed and reaped, and its task with it.
#[derive(Debug)]
pub(super) struct NewShim {
    pid: Pid,
    /// None once it is the task's.
    pidfd: Option<OwnedFd>,
    receiver: Receiver,
    spare: bool,
}

/// What a shim has from its first moment on, so that it fits some tasks only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kind {
    /// `CLONE_NEW*` of clone(2).
    namespaces: u64,
    /// The path of its cgroup; none: that of this process.
    cgroup: Option<PathBuf>,
    /// Whether it has /dev/null as standard input, output and error, and not those of this process.
    null: bool,
    /// What its UTS namespace is a copy of: the names of the host.
    names: UtsName,
}

impl Kind {
    /// As a task with this cgroup needs it.
    pub(super) fn of(spec: &TaskSpec, cgroup: Option<&Cgroup>) -> Result<Self, LaunchError> {
        Ok(Self {
            namespaces: clone_flags(&spec.plan),
            cgroup: cgroup.and_then(Cgroup::path_of_shims),
            null: matches!(spec.command.stdio, Stdio::Fifos { .. } | Stdio::Own(_) | Stdio::Null),
            names: uname().map_err(CallError::on("read the host's name"))?,
        })
    }

    /// Whether such a shim may be started before there is a task for it. Not with a copy of the host's mounts, which lacks those that
    /// Nomad makes for the task, and not with the standard input of a caller.
    pub(super) fn may_wait(&self) -> bool {
        self.null && self.namespaces & clone_flag(Namespace::Mount) == 0
    }
}

impl NewShim {
    /// For a task that is about to start. It waits until it receives what it needs from [`Self::start`].
    pub(super) fn spawn(program: BorrowedFd<'_>, kind: &Kind) -> Result<Self, LaunchError> {
        let open = |path: &PathBuf| Cgroup::shims_at(path).inspect_err(warn_of_shims_cgroup).ok();
        let shims = kind.cgroup.as_ref().and_then(open);
        Self::spawn_as(shim::SHIM, program, kind, shims.as_ref())
    }

    /// For a task that nothing is known of yet.
    pub(super) fn spawn_spare(program: BorrowedFd<'_>, kind: &Kind) -> Result<Self, LaunchError> {
        let shims = kind.cgroup.as_deref().map(Cgroup::shims_at).transpose()?;
        Self::spawn_as(shim::IDLE, program, kind, shims.as_ref())
    }

    fn spawn_as(
        verb: &CStr,
        program: BorrowedFd<'_>,
        kind: &Kind,
        shims: Option<&Cgroup>,
    ) -> Result<Self, LaunchError> {
        let (receiver, report) = report::pair().map_err(CallError::on("make the report socket"))?;
        let report = sys::fd::duplicate_from(report.as_fd(), sys::clone::FIRST_FREE_FD)
            .map_err(CallError::on("duplicate a descriptor for the shim"))?;
        let null = kind.null.then(Null::open).transpose().map_err(CallError::on("open /dev/null"))?;
        let child = sys::clone::spawn(&sys::clone::Spawn {
            program,
            argv: &[c"nomad-driver-exec2", verb],
            namespaces: kind.namespaces,
            cgroup: shims.map(Cgroup::dir_fd),
            fds: &[report.as_fd()],
            first_fd: fds::FIRST,
            stdio: null.as_ref().map(Null::stdio),
            report: report.as_fd(),
        })
        .map_err(CallError::on("clone the shim"))?;
        Ok(Self { pid: child.pid, pidfd: child.pidfd.into(), receiver, spare: verb == shim::IDLE })
    }

    /// Whether it was started ahead of its task.
    pub(super) fn is_spare(&self) -> bool {
        self.spare
    }

    /// Whether it is still there.
    pub(super) fn runs(&self) -> bool {
        let ended = |pidfd: &OwnedFd| sys::poll::now(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)]);
        self.pidfd.as_ref().is_some_and(|pidfd| ended(pidfd) == Ok(false))
    }

    /// Ends it, and its task with it.
    pub(super) fn end(mut self) -> Result<(), EndError> {
        self.pidfd.take().map_or(Ok(()), reconcile::end)
    }

    pub(super) fn identity(&self) -> Result<Identity, LaunchError> {
        // Nobody else reaps it, so its PID is not reused.
        Ok(Identity::of(self.pid.as_raw()).map_err(CallError::on("identify the shim"))?)
    }

    /// Lets it start its task with these descriptors, see [`fds`], and waits until the task runs. Returns the task's pidfd and identity.
    pub(super) fn start(&self, given: &[BorrowedFd<'_>]) -> Result<(OwnedFd, Option<Identity>), LaunchError> {
        self.receiver.go_on(given).map_err(CallError::on("send the task specification to the shim"))?;
        let task = self.receiver.wait(START_LIMIT)?;
        let identity = match Identity::behind(&task) {
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => None,
            found => Some(found.map_err(CallError::on("identify the task"))?),
        };
        Ok((task, identity))
    }

    /// Its task runs: it is no longer ended when this is dropped.
    pub(super) fn into_pidfd(mut self) -> Option<OwnedFd> {
        self.pidfd.take()
    }
}

impl Drop for NewShim {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.pidfd.take().map(reconcile::end) {
            tracing::error!(%error, "failed to end a task that did not start");
        }
    }
}

/// The namespaces of the shim and its task as flags of clone(2).
fn clone_flags(plan: &Plan) -> u64 {
    plan.namespaces.own.iter().fold(0, |flags, namespace| flags | clone_flag(*namespace))
}

fn clone_flag(namespace: Namespace) -> u64 {
    let flag = match namespace {
        Namespace::Pid => libc::CLONE_NEWPID,
        Namespace::Mount => libc::CLONE_NEWNS,
        Namespace::Ipc => libc::CLONE_NEWIPC,
        Namespace::Uts => libc::CLONE_NEWUTS,
    };
    flag.unsigned_abs().into()
}

/// The cgroup of the shims, a sibling of the tasks' cgroups. Without it they stay in the plugin's, where stopping
/// nomad.service would kill them: so it is a warning.
pub(crate) fn shims_cgroup(task: &Cgroup) -> Option<Cgroup> {
    Cgroup::shims_for(task.path()).inspect_err(warn_of_shims_cgroup).ok()
}

fn warn_of_shims_cgroup(error: &CgroupError) {
    tracing::warn!(%error, "failed to open the cgroup of the shims; the shim stays in the plugin's cgroup");
}
