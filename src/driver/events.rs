//! TaskEvents: the event bus as a stream, for any number of subscribers.

use std::collections::HashMap;

use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use crate::proto::driver::DriverTaskEvent;
use crate::task::events::{Event, EventBus, TaskEvent};

/// Stays open while the plugin runs: otherwise Nomad reconnects in a busy loop.
pub(super) fn stream(bus: &EventBus) -> impl Stream<Item = Result<DriverTaskEvent, Status>> + Send + use<> {
    BroadcastStream::new(bus.subscribe()).filter_map(|received| match received {
        Ok(event) => Some(Ok(to_proto(event))),
        Err(BroadcastStreamRecvError::Lagged(lost)) => {
            tracing::warn!(lost, "a subscriber of task events is too slow; its oldest events were dropped");
            None
        }
    })
}

fn to_proto(TaskEvent { task, at, event }: TaskEvent) -> DriverTaskEvent {
    DriverTaskEvent {
        task_id: task.as_str().to_owned(),
        alloc_id: task.alloc().to_owned(),
        task_name: task.name().to_owned(),
        timestamp: Some(at.into()),
        message: event.to_string(),
        annotations: annotations(&event),
    }
}

/// The same for programs.
fn annotations(event: &Event) -> HashMap<String, String> {
    let pairs: Vec<(&str, String)> = match event {
        Event::Started { uid, landlock_abi, unveiled, .. } => vec![
            ("uid", uid.to_string()),
            ("landlock_abi", landlock_abi.to_string()),
            ("unveil_defaults", unveiled.defaults.to_string()),
            // The message has the rules themselves; Nomad's servers keep both.
            ("unveil_agent", unveiled.agent.to_string()),
            ("unveil_job", unveiled.of_job().to_string()),
        ],
        Event::OomKill { kills, limit, peak } => {
            [("oom_kills", Some(*kills)), ("limit_bytes", *limit), ("peak_bytes", *peak)]
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?.to_string())))
                .collect()
        }
        Event::Killed { signal, grace } => {
            vec![("signal", signal.to_string()), ("grace_ms", grace.as_millis().to_string())]
        }
        Event::PortsNotLimited(rights) => {
            let rights: Vec<_> = rights.iter().map(|right| right.option()).collect();
            vec![("not_enforced", rights.join(","))]
        }
        Event::NotStarted(_)
        | Event::ForeignFile(_)
        | Event::NoNameServer
        | Event::BadKillSignal(_)
        | Event::Destroyed
        | Event::Recovered { .. } => Vec::new(),
    };
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
