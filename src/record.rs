//! What outlives the plugin: the directory of each task in /run, the identity of its processes, Nomad's handle, and what a new
//! plugin does about what it finds.

pub mod handle;
pub mod identity;
pub mod key;
pub(crate) mod reconcile;
pub mod run_dir;
pub mod spec;
#[cfg(test)]
mod tests;
