//! State that outlives the plugin: the run directory of each task, the identity of its processes, Nomad's handle, and how a new
//! plugin reconciles them.

pub mod handle;
pub mod identity;
pub mod key;
pub(crate) mod reconcile;
pub mod run_dir;
pub(crate) mod session;
pub mod spec;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
