//! RecoverTask: finding a task again after the plugin, or the agent, was started anew.

use super::identity::boot_id;
use super::launch::Launched;
use super::run_dir::RunDir;
use super::running::{Ended, ending};
use super::state::{DriverState, StateError};
use crate::cgroup::{Cgroup, OomCounts};

/// What became of the task meanwhile.
#[derive(Debug)]
pub(crate) enum Recovered {
    /// It runs.
    Running(Box<Launched>),
    /// It ended, and left word.
    Ended { state: Box<DriverState>, run_dir: RunDir, cgroup: Option<Cgroup>, ended: Ended },
}

/// Why a task is not to be found again. Nomad then destroys it and starts it anew.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the host has been rebooted since the task was started; it is gone")]
    Rebooted,
    #[error("the task is gone and left no exit status: {0}")]
    NoTrace(String),
    #[error("recover the task: {0}")]
    System(#[from] std::io::Error),
}

/// Finds the task of a handle. `run_dir` is where its shim writes its end.
pub(crate) fn recover(version: i32, state: &[u8], run_dir: RunDir) -> Result<Recovered, RecoverError> {
    let state = DriverState::decode(version, state)?;
    if state.boot_id != boot_id()? {
        return Err(RecoverError::Rebooted);
    }
    let cgroup = state.cgroup.as_deref().map(Cgroup::open).transpose();
    let cgroup = cgroup.unwrap_or_else(|error| {
        tracing::warn!(%error, "recovering a task without its cgroup");
        None
    });
    let oom_before = OomCounts { oom_kill: state.oom_kills_before, ..OomCounts::default() };
    let Some(shim) = state.shim.open()? else {
        return match run_dir.exit() {
            Ok(Some(_)) => {
                let mut ended = ending(&run_dir, None, cgroup.as_ref(), oom_before);
                ended.oom_killed = ended.exit.is_out_of_memory(run_dir.outlived());
                Ok(Recovered::Ended { state: Box::new(state), run_dir, cgroup, ended })
            }
            Ok(None) => Err(RecoverError::NoTrace(
                "its shim was killed while no plugin watched, or the process ids of its handle are another's"
                    .into(),
            )),
            Err(error) => Err(RecoverError::NoTrace(error.to_string())),
        };
    };
    let task = state.task.map(|task| task.open()).transpose()?.flatten();
    let started_at = state.started_at();
    Ok(Recovered::Running(Box::new(Launched {
        shim,
        task,
        shim_id: state.shim,
        task_id: state.task,
        cgroup,
        run_dir,
        started_at,
        oom_before,
    })))
}
