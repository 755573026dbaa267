//! TaskEvents: one broadcast, any number of subscribers.

use std::time::SystemTime;

use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use crate::proto::driver::DriverTaskEvent;
use crate::task::running::Task;

/// Events that a slow subscriber may be behind before it loses the oldest; memory for it is bounded by this.
const BACKLOG: usize = 256;

/// Where events go.
#[derive(Debug)]
pub struct Events(broadcast::Sender<DriverTaskEvent>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }
}

impl Events {
    /// Tells every subscriber something about a task; Nomad shows it in `nomad alloc status`.
    pub fn emit(&self, task: &Task, message: String, annotations: &[(&str, String)]) {
        tracing::info!(task = task.id, message);
        // No subscriber: between two agents nobody listens, and the log line above remains.
        let _ = self.0.send(DriverTaskEvent {
            task_id: task.id.clone(),
            alloc_id: task.alloc_id.clone(),
            task_name: task.name.clone(),
            timestamp: Some(SystemTime::now().into()),
            message,
            annotations: annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect(),
        });
    }

    /// Stays open for as long as the plugin lives: Nomad would reconnect in a busy loop.
    pub fn subscribe(&self) -> impl Stream<Item = Result<DriverTaskEvent, Status>> + Send + use<> {
        BroadcastStream::new(self.0.subscribe()).filter_map(|event| match event {
            Ok(event) => Some(Ok(event)),
            Err(BroadcastStreamRecvError::Lagged(lost)) => {
                tracing::warn!(lost, "a subscriber of the task events is too slow and has lost some");
                None
            }
        })
    }
}
