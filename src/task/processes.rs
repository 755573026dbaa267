//! The processes of a running task.

use std::os::fd::OwnedFd;
use std::time::SystemTime;

use crate::cgroup::{Cgroup, OomCounts};
use crate::record::identity::Identity;
use crate::record::reconcile;
use crate::record::run_dir::RunDir;

/// Shim and leader (the task's first process) of a task: pidfds, and identities that survive a restart of the plugin.
#[derive(Debug)]
pub struct Processes {
    pub shim: OwnedFd,
    pub shim_id: Identity,
    /// None: it has ended already.
    pub leader: Option<OwnedFd>,
    /// None: it ended before it could be identified, and its shim has reaped it.
    pub leader_id: Option<Identity>,
}

/// A task whose command runs: just started, or recovered.
#[derive(Debug)]
pub struct Launched {
    pub processes: Processes,
    pub cgroup: Option<Cgroup>,
    pub run_dir: RunDir,
    pub started_at: SystemTime,
    /// The cgroup's OOM counters at the start: it may be that of an earlier run of the task.
    pub oom_before: OomCounts,
}

impl Launched {
    /// Ends a task that cannot be watched.
    pub(crate) fn abandon(self) {
        if let Err(error) = reconcile::end(self.processes.shim) {
            tracing::error!(%error, "failed to end an abandoned task");
            return;
        }
        if let Err(error) = self.run_dir.remove() {
            tracing::error!(%error, "failed to remove the run directory of an abandoned task");
        }
    }
}
