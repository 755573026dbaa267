//! A shim that has been started and waits for its task.
//!
//! It is started before everything else, so that it executes its program while the plugin prepares the rest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::{LaunchError, START_LIMIT};
use crate::cgroup::Cgroup;
use crate::record::identity::Identity;
use crate::record::reconcile;
use crate::sandbox::plan::{Namespace, Plan};
use crate::shim::fds;
use crate::shim::report::{self, Receiver};
use crate::shim::spec::Stdio;
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
}

impl NewShim {
    /// It waits until it receives what it needs from [`Self::start`].
    pub(super) fn spawn(
        program: BorrowedFd<'_>,
        spec: &TaskSpec,
        cgroup: Option<&Cgroup>,
    ) -> Result<Self, LaunchError> {
        let (receiver, report) = report::pair().map_err(CallError::on("make the report socket"))?;
        let report = sys::fd::duplicate_from(report.as_fd(), sys::clone::FIRST_FREE_FD)
            .map_err(CallError::on("duplicate a descriptor for the shim"))?;
        let null = match spec.command.stdio {
            Stdio::Fifos { .. } | Stdio::Null => Some(Null::open().map_err(CallError::on("open /dev/null"))?),
            Stdio::Inherited => None,
        };
        let shims = cgroup.and_then(shims_cgroup);
        let child = sys::clone::spawn(&sys::clone::Spawn {
            program,
            argv: &[c"nomad-driver-exec2", c"shim"],
            namespaces: clone_flags(&spec.plan),
            cgroup: shims.as_ref().map(Cgroup::dir_fd),
            fds: &[report.as_fd()],
            first_fd: fds::FIRST,
            stdio: null.as_ref().map(Null::stdio),
            report: report.as_fd(),
        })
        .map_err(CallError::on("clone the shim"))?;
        Ok(Self { pid: child.pid, pidfd: child.pidfd.into(), receiver })
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
    let flag = |namespace: &Namespace| match namespace {
        Namespace::Pid => libc::CLONE_NEWPID,
        Namespace::Mount => libc::CLONE_NEWNS,
        Namespace::Ipc => libc::CLONE_NEWIPC,
        Namespace::Uts => libc::CLONE_NEWUTS,
    };
    plan.namespaces.own.iter().fold(0, |flags, namespace| flags | u64::from(flag(namespace).unsigned_abs()))
}

/// The cgroup of the shims, a sibling of the tasks' cgroups. Without it they stay in the plugin's, where stopping
/// nomad.service would kill them: so it is a warning.
pub(crate) fn shims_cgroup(task: &Cgroup) -> Option<Cgroup> {
    Cgroup::shims_for(task.path())
        .inspect_err(|error| tracing::warn!(%error, "failed to open the cgroup of the shims; the shim stays in the plugin's cgroup"))
        .ok()
}
