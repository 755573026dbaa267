//! The `exec2` task driver for HashiCorp Nomad.
//!
//! `docs/architecture.md` shows how the modules fit together.

pub mod cgroup;
pub mod cli;
pub mod config;
pub mod driver;
pub mod goplugin;
mod host;
pub mod proto;
mod quote;
pub mod sandbox;
pub mod shim;
pub mod sys;
pub mod task;
pub mod users;
