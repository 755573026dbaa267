//! RecoverTask: finds a task again after a restart of the plugin or the agent.

use super::exec;
use super::processes::{Launched, Processes};
use crate::cgroup::{Cgroup, OomCounts};
use crate::record::handle::{DriverState, StateError};
use crate::record::identity::boot_id;
use crate::record::run_dir::RunDir;

/// The state of the recovered task.
#[derive(Debug)]
pub(crate) enum Recovered {
    /// It is running.
    Running(Box<Launched>),
    /// It ended, and its exit record is there.
    Ended { state: Box<DriverState>, run_dir: RunDir, cgroup: Option<Cgroup> },
}

/// Why a task cannot be recovered. Nomad then destroys and restarts it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the host has been rebooted since the task was started; it is gone")]
    Rebooted,
    #[error("the task is gone and left no exit status: {0}")]
    NoTrace(String),
    #[error("failed to recover the task: {0}")]
    System(#[from] std::io::Error),
}

/// Finds the task of a handle. Its shim writes the exit record to `run_dir`.
pub(crate) fn recover(version: i32, state: &[u8], run_dir: RunDir) -> Result<Recovered, RecoverError> {
    let state = DriverState::decode(version, state)?;
    if state.boot_id != boot_id()? {
        return Err(RecoverError::Rebooted);
    }
    let cgroup = state.cgroup.as_deref().map(Cgroup::open).transpose();
    let cgroup = cgroup.unwrap_or_else(|error| {
        tracing::warn!(%error, "failed to open the cgroup of a recovered task; recovering it without");
        None
    });
    let Some(shim) = state.shim.open()? else {
        return match run_dir.exit() {
            Ok(Some(_)) => Ok(Recovered::Ended { state: Box::new(state), run_dir, cgroup }),
            Ok(None) => Err(RecoverError::NoTrace(
                "its shim was killed while no plugin was running, or its PIDs have been reused".into(),
            )),
            Err(error) => Err(RecoverError::NoTrace(error.to_string())),
        };
    };
    check_stored(&run_dir);
    if let Some(cgroup) = &cgroup {
        exec::end_former(cgroup);
    }
    let leader = state.task.map(|leader| leader.open()).transpose()?.flatten();
    let processes = Processes { shim, shim_id: state.shim, leader, leader_id: state.task };
    let started_at = state.started_at();
    let oom_before = OomCounts { oom_kill: state.oom_kills_before, ..OomCounts::default() };
    Ok(Recovered::Running(Box::new(Launched { processes, cgroup, run_dir, started_at, oom_before })))
}

/// A task without a readable specification keeps running: only alloc exec needs it.
fn check_stored(run_dir: &RunDir) {
    match run_dir.spec().and_then(|spec| Ok(spec.zip(run_dir.session()?))) {
        Ok(Some(_)) => {}
        Ok(None) => tracing::debug!(
            entry = %run_dir.path().display(),
            "the task was started by a version that stored no specification; alloc exec into it will not be available"
        ),
        Err(error) => {
            tracing::warn!(%error, "failed to read the task specification; alloc exec into the task will not be available");
        }
    }
}
