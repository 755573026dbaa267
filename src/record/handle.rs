//! The task handle's `driver_state`, which Nomad stores and returns in RecoverTask.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::identity::Identity;

/// `TaskHandle.version` of our handles. The Go driver uses 1 and 2; the gap leaves room for it.
pub const HANDLE_VERSION: i32 = 100;

/// Serialized as JSON: opaque to Nomad, readable for debugging. Fields that an earlier version did not write have a default, and
/// unknown ones are ignored; only the boot and the shim are required to find a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverState {
    /// The boot that the processes belong to.
    pub boot_id: String,
    pub shim: Identity,
    /// None: it ended before it could be identified.
    pub task: Option<Identity>,
    pub cgroup: Option<PathBuf>,
    /// µs since the epoch.
    #[serde(default)]
    pub started_at_us: u64,
    /// The cgroup's OOM kills before the task started.
    #[serde(default)]
    pub oom_kills_before: u64,
    /// The task's user; older versions did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// The handle is not usable.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(
        "the task handle has version {0}, this driver writes version {HANDLE_VERSION}: it belongs to a task that another \
         exec2 driver started; stop that task before switching drivers"
    )]
    Version(i32),
    #[error("failed to decode the driver state of the task handle: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl DriverState {
    pub(crate) fn started_at(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.started_at_us)
    }

    pub fn encode(&self) -> Result<Vec<u8>, StateError> {
        Ok(serde_json::to_vec(self)?)
    }

    pub fn decode(version: i32, state: &[u8]) -> Result<Self, StateError> {
        match version {
            HANDLE_VERSION => Ok(serde_json::from_slice(state)?),
            other => Err(StateError::Version(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> DriverState {
        DriverState {
            boot_id: "b".into(),
            shim: Identity { pid: 1, start_time: 2 },
            task: Some(Identity { pid: 3, start_time: 4 }),
            cgroup: Some("/sys/fs/cgroup/x".into()),
            started_at_us: 5,
            oom_kills_before: 0,
            uid: Some(80_001),
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let bytes = state().encode().unwrap();
        assert_eq!(DriverState::decode(HANDLE_VERSION, &bytes).unwrap(), state());
    }

    #[test]
    fn a_handle_of_the_go_driver_is_refused_in_words() {
        for version in [0, 1, 2, HANDLE_VERSION + 1] {
            let error = DriverState::decode(version, &state().encode().unwrap()).unwrap_err().to_string();
            assert!(error.contains("another exec2 driver"), "{error}");
        }
    }

    #[test]
    fn a_handle_of_version_0_1_0_is_read() {
        let written = br#"{"boot_id":"b","shim":{"pid":1,"start_time":2},"task":{"pid":3,"start_time":4},"cgroup":"/sys/fs/cgroup/x","started_at_us":5,"oom_kills_before":0}"#;
        let read = DriverState::decode(HANDLE_VERSION, written).unwrap();
        assert_eq!(read, DriverState { uid: None, ..state() });
        assert_eq!(read.encode().unwrap(), written);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = DriverState::decode(HANDLE_VERSION, &bytes);
        }
    }
}
