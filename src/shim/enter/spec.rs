//! What a session does, as its helper process receives it: MessagePack in a sealed memfd.

use serde::{Deserialize, Serialize};

use crate::sandbox::plan::Plan;
use crate::sandbox::root::RootRule;
use crate::shim::MAX_DEPTH;
use crate::shim::spec::{Command, ShimSpec};
use crate::users::User;

/// A command that is run in a task: by whom, what it may do, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EnterSpec {
    /// The task's own, as stored at its start.
    pub user: User,
    pub plan: Plan,
    /// The rules of the task's own root; none if the task sees the host's tree.
    pub rules: Option<Vec<RootRule>>,
    pub command: Command,
    pub stdio: SessionStdio,
    /// Name of the session's cgroup in the task's; none if the task has no cgroup.
    pub cgroup: Option<String>,
}

/// Where standard input, output and error of a session come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SessionStdio {
    /// The helper's own: pipes.
    Given,
    /// A new terminal in the task, of this size. Its master is sent to the process that asked for the session.
    Terminal { rows: u16, columns: u16 },
}

impl EnterSpec {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        rmp_serde::to_vec(self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        let mut reader = rmp_serde::Deserializer::new(bytes);
        reader.set_max_depth(MAX_DEPTH);
        Self::deserialize(&mut reader)
    }

    /// The part that the steps of a start take. The root is there already.
    pub(super) fn into_parts(self) -> (ShimSpec, Option<Vec<RootRule>>, SessionStdio, Option<String>) {
        let Self { user, plan, rules, command, stdio, cgroup } = self;
        (ShimSpec { user, plan, command, root: None }, rules, stdio, cgroup)
    }
}
