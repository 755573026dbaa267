//! Tasks that no agent knows: those of earlier plugins, and those whose agent died before it stored the answer.

use std::sync::Arc;
use std::time::Duration;

use super::{Lifecycle, LifecycleError};
use crate::record::key::Key;
use crate::record::reconcile::{ACKNOWLEDGE_LIMIT, end_unacknowledged};
use crate::record::run_dir::RunDir;
use crate::task::blocking::blocking;
use crate::task::running::Task;

impl Lifecycle {
    /// Reconciles the records of earlier plugins: ends orphaned tasks, records which uids are in use, and later ends tasks that
    /// Nomad has not acknowledged.
    pub(crate) async fn reconcile(&self) -> Result<(), LifecycleError> {
        let this = self.clone();
        let look = move || {
            let doubtful = this.0.launcher.sweep();
            this.0.uids.note_running(this.0.launcher.entries());
            doubtful
        };
        self.acknowledge_within(ACKNOWLEDGE_LIMIT, Doubtful::Entries(blocking(look).await?));
        Ok(())
    }

    /// The agent that was informed of tasks may have died. The next one has until `limit` to ask for the tasks it knows, which it
    /// does when it has restored their allocations.
    pub(crate) fn expect_acknowledgements(&self, limit: Duration) {
        let tasks = self.0.store.tasks().into_iter().filter(|task| task.is_unacknowledged()).collect();
        self.acknowledge_within(limit, Doubtful::Tasks(tasks));
    }

    /// Ends unacknowledged tasks after `limit`, if Nomad has still not asked for them. Nothing else does.
    fn acknowledge_within(&self, limit: Duration, doubtful: Doubtful) {
        if doubtful.is_empty() {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            match doubtful {
                Doubtful::Entries(entries) => {
                    if let Err(error) = blocking(move || end_unacknowledged(&entries)).await {
                        tracing::error!(%error, "failed to end unacknowledged tasks");
                    }
                }
                Doubtful::Tasks(tasks) => {
                    for task in tasks.iter().filter(|task| task.is_unacknowledged()) {
                        this.give_up(task, "Nomad has not acknowledged it").await;
                    }
                }
            }
        });
    }

    /// Ends an orphaned task. If that fails, it stays known to the plugin.
    pub(super) async fn give_up(&self, task: &Task, why: &str) {
        tracing::warn!(task = %task.id, why, "ending an orphaned task");
        if end(task).await {
            self.0.store.remove(task.id.as_str());
        }
    }

    /// Nomad destroys every invocation of a task that it knows before it starts the next: any other is orphaned, because its agent
    /// died before it stored the answer.
    pub(super) async fn end_earlier_invocations(&self, id: Key<'_>) {
        let Some(prefix) = id.task_prefix() else { return };
        for task in self.0.store.with_prefix(prefix) {
            self.give_up(&task, "it is an earlier invocation of a task that is about to start").await;
        }
    }
}

/// Unacknowledged tasks.
#[derive(Debug)]
enum Doubtful {
    /// By an earlier plugin.
    Entries(Vec<RunDir>),
    /// By this one.
    Tasks(Vec<Arc<Task>>),
}

impl Doubtful {
    fn is_empty(&self) -> bool {
        match self {
            Self::Entries(entries) => entries.is_empty(),
            Self::Tasks(tasks) => tasks.is_empty(),
        }
    }
}

/// Ends an orphaned task; false if it is still there, and on record.
pub(super) async fn end(task: &Task) -> bool {
    if let Err(error) = task.kill().await {
        tracing::error!(task = %task.id, %error, "failed to end an orphaned task");
        return false;
    }
    if let Err(error) = task.forget() {
        tracing::warn!(task = %task.id, %error, "failed to forget an orphaned task");
    }
    true
}
