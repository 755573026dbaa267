//! What a task may do, as plain data: made and tested without root, executed by the shim.

pub(crate) mod capabilities;
pub(crate) mod defaults;
pub(crate) mod device;
pub(crate) mod landlock;
pub mod names;
pub mod network;
pub(crate) mod place;
pub(crate) mod plan;
pub mod policy;
pub mod rlimits;
pub(crate) mod root;
pub mod seccomp;
pub mod unveil;
pub mod volume;
