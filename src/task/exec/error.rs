//! Why a session did not start, or its command did not run.

use nix::errno::Errno;

use super::{SESSIONS_PER_TASK, START_LIMIT};
use crate::cgroup::CgroupError;
use crate::record::run_dir::RunDirError;
use crate::shim::report::{Failure, StartError};
use crate::sys::CallError;

/// Exit codes of a command that could not be run, as in shells.
const NOT_FOUND: i32 = 127;
const NOT_RUN: i32 = 126;

/// Why a session could not begin. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("the task has ended; a command can only be run in a running task")]
    Ended,
    #[error("the task has {SESSIONS_PER_TASK} sessions, which is the limit; end one of them first")]
    TooMany,
    #[error("the command is empty; write the name or the path of a program")]
    NoCommand,
    #[error(
        "the task was started by a version of this driver that stored too little for sessions; restart the task"
    )]
    NotStored,
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    System(#[from] CallError),
    #[error("failed to encode the session: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
}

/// Why the command of a session did not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotRun {
    #[error("failed to start the command: {0}")]
    Failed(Failure),
    #[error(
        "failed to start the command: it was not running after {START_LIMIT:?}; a path to unveil does not respond, or a process \
         of the task has stopped it"
    )]
    TimedOut,
    #[error(
        "failed to start the command: it was killed before it ran; the task has ended, or its memory limit is too low"
    )]
    Killed,
    #[error("failed to start the session's helper process: {0}")]
    Helper(StartError),
    #[error("the exit status is unknown: the session's helper process was killed")]
    Lost,
}

impl NotRun {
    /// The exit code that stands for it.
    pub(crate) fn code(&self) -> i32 {
        match self {
            Self::Failed(failure) if failure.exec_errno() == Some(Errno::ENOENT) => NOT_FOUND,
            _ => NOT_RUN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::report::Step;

    #[test]
    fn exit_codes_of_a_command_that_did_not_run_are_those_of_a_shell() {
        let failed = |step, errno| NotRun::Failed(Failure::new(step, "x", errno)).code();
        assert_eq!(failed(Step::Exec, Errno::ENOENT), NOT_FOUND);
        assert_eq!(failed(Step::Exec, Errno::EACCES), NOT_RUN);
        assert_eq!(failed(Step::WorkDir, Errno::ENOENT), NOT_RUN);
        assert_eq!((NotRun::TimedOut.code(), NotRun::Lost.code()), (NOT_RUN, NOT_RUN));
    }
}
