//! The task's cgroup (v2): limits in, statistics and events out.
//!
//! Nomad creates a task's cgroup and removes it; this module works inside it. A [`Cgroup`] holds a descriptor of its
//! directory, opened once below the mount and without symlinks: afterwards the descriptor is used, never the path
//! again, so a new cgroup of the same name is never mistaken for one that was removed.
//!
//! cgroups-rs writes the limits. Reading is done here: its v2 readers unwrap (a cgroup often vanishes while it is read) and turn missing files into zeros, and it has neither `memory.events` nor a wait
//! for `cgroup.events`. No type of that crate leaves this module.
//!
//! Source of the file formats: the kernel's Documentation/admin-guide/cgroup-v2.rst.

mod error;
mod events;
mod io_max;
mod kill;
mod limits;
mod session;
mod shims;
mod stats;
mod topology;
mod tree;
mod used;

pub(crate) use error::CgroupError;
#[cfg(any(test, fuzzing))]
pub(crate) use events::flat_keyed;
pub(crate) use events::{OomCounter, OomCounts, OomWatch};
pub use io_max::{IoLimits, IoMax};
pub(crate) use limits::{CPU_WEIGHT_DEFAULT, mib_to_bytes};
pub use limits::{CpuMax, CpuSet, CpuSetError, Limits, MemoryMax, ResourceRequest};
pub(crate) use session::{Owner, SessionCgroup};
pub(crate) use stats::{CpuSampler, CpuUsage, Stats};
#[cfg(test)]
pub(crate) use stats::{CpuStats, MemoryStats};
pub(crate) use topology::{CoreMhz, Topology, mhz_per_core};
pub use tree::{Cgroup, Created, LIMIT_CONTROLLERS, MOUNT_POINT, MissingController, Mount};
pub(crate) use used::{enter, was_used};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
