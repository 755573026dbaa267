//! TaskEvents: the notices about tasks, for any number of subscribers.

use std::collections::HashMap;

use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use crate::proto::driver::DriverTaskEvent;
use crate::task::notice::{Notice, Notices, What};

/// Stays open for as long as the plugin lives: Nomad would reconnect in a busy loop.
pub(super) fn stream(
    notices: &Notices,
) -> impl Stream<Item = Result<DriverTaskEvent, Status>> + Send + use<> {
    BroadcastStream::new(notices.subscribe()).filter_map(|notice| match notice {
        Ok(notice) => Some(Ok(event(notice))),
        Err(BroadcastStreamRecvError::Lagged(lost)) => {
            tracing::warn!(lost, "a subscriber of the task events is too slow and has lost the oldest");
            None
        }
    })
}

fn event(notice: Notice) -> DriverTaskEvent {
    DriverTaskEvent {
        task_id: notice.task_id,
        alloc_id: notice.alloc_id,
        task_name: notice.task_name,
        timestamp: Some(notice.at.into()),
        message: notice.what.to_string(),
        annotations: annotations(&notice.what),
    }
}

/// The same for programs.
fn annotations(what: &What) -> HashMap<String, String> {
    let pairs: Vec<(&str, String)> = match what {
        What::Started { uid, landlock_abi, unveiled, .. } => vec![
            ("uid", uid.to_string()),
            ("landlock_abi", landlock_abi.to_string()),
            ("unveil_defaults", unveiled.defaults.to_string()),
            // The rules themselves are in the message; Nomad's servers keep both.
            ("unveil_agent", unveiled.agent.to_string()),
            ("unveil_job", unveiled.of_job().to_string()),
        ],
        What::OomKill { kills, limit, peak } => {
            [("oom_kills", Some(*kills)), ("limit_bytes", *limit), ("peak_bytes", *peak)]
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?.to_string())))
                .collect()
        }
        What::Killed { signal, grace } => {
            vec![("signal", signal.to_string()), ("grace_ms", grace.as_millis().to_string())]
        }
        What::NotStarted(_) | What::BadKillSignal(_) | What::Destroyed | What::Recovered { .. } => Vec::new(),
    };
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
