//! The tasks that the plugin knows, by task id.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Notify;

use super::running::Task;
use crate::record::key::Key;

/// Shared by all RPCs. No lock is held over an await or a system call.
#[derive(Debug, Default)]
pub(crate) struct Store {
    entries: RwLock<HashMap<String, Entry>>,
    /// Wakes callers that wait for an id that is being started.
    decided: Notify,
}

#[derive(Debug)]
enum Entry {
    /// StartTask or RecoverTask is in progress.
    Starting,
    Known(Arc<Task>),
}

/// The id is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a task with this id has already been started")]
pub(crate) struct Taken;

impl Store {
    pub(crate) fn get(&self, id: &str) -> Option<Arc<Task>> {
        match self.read().get(id)? {
            Entry::Known(task) => Some(Arc::clone(task)),
            Entry::Starting => None,
        }
    }

    /// Takes the id, so that no second start of it can begin. Give it a task, or drop it to free the id again.
    pub(crate) fn reserve(self: &Arc<Self>, id: Key<'_>) -> Result<Reservation, Taken> {
        let id = id.as_str();
        let mut map = self.write();
        if map.contains_key(id) {
            return Err(Taken);
        }
        map.insert(id.into(), Entry::Starting);
        Ok(Reservation { store: Arc::clone(self), id: id.into(), kept: false })
    }

    /// The task; waits while it is being started. None: there is none.
    pub(crate) async fn get_started(&self, id: &str) -> Option<Arc<Task>> {
        loop {
            let mut decided = std::pin::pin!(self.decided.notified());
            // Enabled before the check below, so that no change after it is missed.
            decided.as_mut().enable();
            match self.read().get(id) {
                None => return None,
                Some(Entry::Known(task)) => return Some(Arc::clone(task)),
                Some(Entry::Starting) => {}
            }
            decided.await;
        }
    }

    pub(crate) fn remove(&self, id: &str) {
        self.write().remove(id);
        self.decided.notify_waiters();
    }

    /// The tasks whose id begins like this.
    pub(crate) fn with_prefix(&self, prefix: &str) -> Vec<Arc<Task>> {
        self.tasks().into_iter().filter(|task| task.id.as_str().starts_with(prefix)).collect()
    }

    pub(crate) fn tasks(&self) -> Vec<Arc<Task>> {
        let known = |entry: &Entry| match entry {
            Entry::Known(task) => Some(Arc::clone(task)),
            Entry::Starting => None,
        };
        self.read().values().filter_map(known).collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<String, Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id that is being started.
#[derive(Debug)]
pub(crate) struct Reservation {
    store: Arc<Store>,
    id: String,
    kept: bool,
}

impl Reservation {
    pub(crate) fn keep(mut self, task: Arc<Task>) {
        self.kept = true;
        self.store.write().insert(std::mem::take(&mut self.id), Entry::Known(task));
        self.store.decided.notify_waiters();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.store.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Key<'_> {
        Key::new(text).unwrap()
    }

    #[test]
    fn an_id_is_taken_once_and_freed_when_the_start_fails() {
        let store = Arc::new(Store::default());
        let first = store.reserve(id("a")).unwrap();
        assert_eq!(store.reserve(id("a")).unwrap_err(), Taken);
        assert!(store.get("a").is_none(), "it does not run yet");
        drop(first);
        assert!(store.reserve(id("a")).is_ok());
    }

    #[tokio::test]
    async fn who_asks_for_a_task_that_is_being_started_waits() {
        let store = Arc::new(Store::default());
        assert!(store.get_started("a").await.is_none());
        let first = store.reserve(id("a")).unwrap();
        let asking = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.get_started("a").await.is_none() }
        });
        tokio::task::yield_now().await;
        assert!(!asking.is_finished());
        drop(first);
        assert!(asking.await.unwrap());
    }
}
