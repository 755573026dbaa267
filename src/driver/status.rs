//! The only place that converts an error to a gRPC status.
//!
//! Nomad treats UNAVAILABLE and CANCELLED as a dead plugin, FAILED_PRECONDITION with a `RecoverableError` detail as something
//! that its restart policy may retry, and everything else as final.

use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};

use crate::config::ConfigError;
use crate::proto::{RECOVERABLE_ERROR_TYPE_URL, structs::RecoverableError};
use crate::quote::shorten;
use crate::record::key::EmptyKey;
use crate::sandbox::policy::Denied;
use crate::task::dirs::DirsError;
use crate::task::lifecycle::LifecycleError;
use crate::task::spec::SpecError;
use crate::users::UserError;

/// Longest message of a status, in bytes. It travels twice, as a header and in the details, and some clients accept 8 KiB of
/// headers; Nomad shows it in an event of the allocation, which its servers keep.
const MESSAGE_MAX: usize = 2048;

/// Every error of an RPC.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RpcError {
    /// Nomad's client compares this text with its `ErrTaskNotFound`.
    #[error("task not found for given id")]
    UnknownTask,
    #[error("the request has no {0}")]
    Absent(&'static str),
    #[error(transparent)]
    Id(#[from] EmptyKey),
    #[error("{0} is not supported by this driver")]
    Unsupported(&'static str),
    #[error("the command was killed: it did not end within {0:?}, the time-out of the call")]
    ExecTimeout(Duration),
    #[error("the client of the session is gone: its heartbeats have stopped")]
    ClientGone,
    #[error("Nomad sent an invalid value: {0}")]
    BadValue(String),
    #[error("failed to start task: {0}")]
    Spec(#[from] SpecError),
    #[error("failed to start task: {0}")]
    Dirs(#[from] DirsError),
    #[error("failed to start task: {0}")]
    User(#[from] UserError),
    /// Trying again on this host would not help: the agent remembers nothing.
    #[error(
        "failed to start task: Nomad forgot its devices and their mounts when the agent was restarted, which the last start had; stop the allocation \
         (nomad alloc stop), so that Nomad replaces it by one that has them"
    )]
    DevicesForgotten,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Tasks(LifecycleError),
}

impl RpcError {
    /// Whether the same job may start on this host a moment later.
    fn is_recoverable(&self) -> bool {
        match self {
            Self::Dirs(error) => !error.is_jobs_fault(),
            Self::User(error) => !error.is_job_fault(),
            Self::Tasks(error) => error.is_recoverable(),
            Self::Spec(SpecError::Denied(denied)) => denied.may_change(),
            Self::UnknownTask
            | Self::Id(_)
            | Self::Absent(_)
            | Self::Unsupported(_)
            | Self::ExecTimeout(_)
            | Self::ClientGone
            | Self::BadValue(_)
            | Self::Spec(_)
            | Self::DevicesForgotten
            | Self::Config(_) => false,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Unsupported(_) | Self::Spec(SpecError::Denied(Denied::NetworkOfTask)) => {
                Code::Unimplemented
            }
            Self::Spec(SpecError::Denied(Denied::NoNetworkPath | Denied::RelativeNetworkPath(_))) => {
                Code::InvalidArgument
            }
            Self::ExecTimeout(_) => Code::DeadlineExceeded,
            Self::ClientGone => Code::Aborted,
            Self::Absent(_)
            | Self::Id(_)
            | Self::Config(_)
            | Self::BadValue(_)
            | Self::Tasks(LifecycleError::Id(_) | LifecycleError::Signal(_)) => Code::InvalidArgument,
            _ => Code::Unknown,
        }
    }
}

impl From<LifecycleError> for RpcError {
    fn from(error: LifecycleError) -> Self {
        match error {
            LifecycleError::Unknown => Self::UnknownTask,
            LifecycleError::Denied(denied) => Self::Spec(denied.into()),
            other => Self::Tasks(other),
        }
    }
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Self {
        let message = shorten(&error.to_string(), MESSAGE_MAX);
        if error.is_recoverable() {
            return recoverable(message);
        }
        Self::new(error.code(), message)
    }
}

/// `google.rpc.Status`, which travels in `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

fn recoverable(message: String) -> Status {
    let code = Code::FailedPrecondition;
    let detail = prost_types::Any {
        type_url: RECOVERABLE_ERROR_TYPE_URL.into(),
        value: RecoverableError { recoverable: true }.encode_to_vec(),
    };
    let status = RpcStatus { code: code as i32, message: message.clone(), details: vec![detail] };
    Status::with_details(code, message, status.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::report::{Failure, StartError, Step};
    use crate::task::launch::LaunchError;
    use crate::task::recover::RecoverError;
    use nix::errno::Errno;

    fn start(failure: Failure) -> Status {
        RpcError::from(LifecycleError::from(LaunchError::from(StartError::from(failure)))).into()
    }

    #[test]
    fn a_missing_file_is_recoverable() {
        let status = start(Failure::new(Step::Unveil, "r:/srv/x", Errno::ENOENT));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "failed to start task: unveil \"r:/srv/x\": No such file or directory");
        let details = RpcStatus::decode(status.details()).unwrap();
        assert_eq!((details.code, details.message.as_str()), (9, status.message()));
        assert_eq!(details.details[0].type_url, RECOVERABLE_ERROR_TYPE_URL);
        assert!(RecoverableError::decode(&details.details[0].value[..]).unwrap().recoverable);
    }

    #[test]
    fn a_refusal_of_the_policy_is_final() {
        for status in [
            start(Failure::new(Step::Exec, "/opt/x", Errno::EACCES)),
            RpcError::from(SpecError::from(Denied::UnveilByTask)).into(),
        ] {
            assert_eq!(status.code(), Code::Unknown, "{status}");
            assert!(status.details().is_empty());
        }
    }

    #[test]
    fn no_error_looks_like_a_dead_plugin() {
        let errors = [
            RpcError::UnknownTask,
            LifecycleError::StillRuns.into(),
            RpcError::Unsupported("ExecTask"),
            LifecycleError::Recover(RecoverError::Rebooted).into(),
            LifecycleError::HungUp.into(),
            RpcError::Id(EmptyKey),
            LifecycleError::Launch(StartError::TimedOut(std::time::Duration::from_secs(1)).into()).into(),
        ];
        for error in errors {
            let status = Status::from(error);
            assert!(!matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Ok), "{status}");
        }
    }

    #[test]
    fn a_long_failure_is_cut_and_keeps_its_cause() {
        let path = format!("r:/srv/{}", "x".repeat(100_000));
        for status in [
            start(Failure::new(Step::Unveil, &path, Errno::ENOENT)),
            start(Failure::new(Step::Exec, "nosuch", Errno::ENOENT).with_note(path.clone())),
            RpcError::BadValue(path.clone()).into(),
        ] {
            assert!(status.message().len() < MESSAGE_MAX + 100, "{}", status.message().len());
            assert!(status.details().len() < 2 * MESSAGE_MAX, "{}", status.details().len());
        }
    }
}
