//! The identity of a task in Nomad.

use crate::record::key::{EmptyKey, Key};

/// A task as Nomad names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TaskId {
    task: String,
    alloc: String,
    name: String,
}

impl TaskId {
    /// `task` is `alloc/task/invocation` (`TaskConfig.id`) or `run-PID-START`, and not empty; `alloc` the allocation's id, empty
    /// for `run`; `name` the task's name in the job.
    pub fn new(
        task: impl Into<String>,
        alloc: impl Into<String>,
        name: impl Into<String>,
    ) -> Result<Self, EmptyKey> {
        let id = Self { task: task.into(), alloc: alloc.into(), name: name.into() };
        Key::new(&id.task)?;
        Ok(id)
    }

    /// The id in calls and in the run directory.
    pub(crate) fn key(&self) -> Key<'_> {
        // Not empty since `new`.
        Key::unchecked(&self.task)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.task
    }

    pub(crate) fn alloc(&self) -> &str {
        &self.alloc
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Display for TaskId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.task)
    }
}
