//! The filter of system calls: seccomp(2).

use super::Result;
use crate::sandbox::seccomp::Program;
use crate::shim::report::{Failure, Step};
use crate::sys;

/// Filters the system calls of the calling process and its descendants.
pub(crate) fn filter(program: Option<&Program>) -> Result<()> {
    let Some(program) = program else { return Ok(()) };
    sys::seccomp::filter(program.instructions()).map_err(|errno| {
        Failure::new(Step::Seccomp, "the task", errno).with_note(
            "the kernel needs CONFIG_SECCOMP_FILTER; without it, set seccomp = \"unconfined\" in the agent's plugin \"nomad-driver-exec2\" block",
        )
    })
}
