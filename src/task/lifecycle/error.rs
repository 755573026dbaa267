//! Why a call for a task failed.

use crate::record::handle::StateError;
use crate::record::key::EmptyKey;
use crate::record::run_dir::RunDirError;
use crate::sandbox::policy::Denied;
use crate::task::blocking::WorkerError;
use crate::task::exec::ExecError;
use crate::task::launch::LaunchError;
use crate::task::recover::RecoverError;
use crate::task::running::TaskError;
use crate::task::signal::SignalError;
use crate::task::store::Taken;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LifecycleError {
    #[error(transparent)]
    Id(#[from] EmptyKey),
    #[error("unknown task")]
    Unknown,
    #[error("the caller hung up before the start began")]
    HungUp,
    #[error("the task still runs; stop it first, or destroy it with force")]
    StillRuns,
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("failed to start task: {0}")]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error(transparent)]
    Taken(#[from] Taken),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error("failed to destroy the task: {0}")]
    Destroy(LaunchError),
    #[error("failed to run the command in the task: {0}")]
    Exec(#[from] ExecError),
}

impl LifecycleError {
    /// Whether the same call may succeed on this host later.
    pub(crate) fn is_recoverable(&self) -> bool {
        match self {
            Self::Launch(error) => !error.is_jobs_fault(),
            Self::Denied(denied) => denied.may_change(),
            Self::Task(_) | Self::RunDir(_) | Self::Worker(_) | Self::Destroy(_) => true,
            Self::Id(_)
            | Self::Unknown
            | Self::HungUp
            | Self::StillRuns
            | Self::Recover(_)
            | Self::Taken(_)
            | Self::State(_)
            | Self::Signal(_)
            | Self::Exec(_) => false,
        }
    }
}
