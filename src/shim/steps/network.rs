//! The network namespace of the allocation.

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use super::Result;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;

/// Joins the namespace that Nomad created, if there is one.
pub(crate) fn join_network(spec: &ShimSpec) -> Result<()> {
    let Some(path) = &spec.plan.namespaces.network else { return Ok(()) };
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|namespace| setns(namespace, CloneFlags::CLONE_NEWNET))
        .map_err(|errno| Failure::new(Step::NetworkNamespace, path.display().to_string(), errno))
}
