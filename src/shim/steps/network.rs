//! The network namespace of the allocation, and its host name.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use super::Result;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::{PrivateRoot, ShimSpec};

/// Joins the namespace that Nomad created, if there is one.
pub(crate) fn join_network(spec: &ShimSpec) -> Result<()> {
    let Some(path) = &spec.plan.namespaces.network else { return Ok(()) };
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|namespace| setns(namespace, CloneFlags::CLONE_NEWNET))
        .map_err(|errno| Failure::new(Step::NetworkNamespace, path.display().to_string(), errno))
}

/// In the shim's own UTS namespace, which the task shares.
pub(crate) fn set_hostname(root: &PrivateRoot) -> Result<()> {
    let Some(name) = &root.hostname else { return Ok(()) };
    rustix::system::sethostname(name.as_bytes())
        .map_err(|errno| Failure::new(Step::Hostname, name, Errno::from_raw(errno.raw_os_error())))
}
