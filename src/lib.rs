//! The `exec2` task driver for HashiCorp Nomad.
//!
//! `docs/architecture.md` shows how the modules fit together.

// A number that does not fit is an error or is limited explicitly; it never becomes another number. Tests may cast.
#![cfg_attr(
    not(test),
    warn(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)
)]
// clippy.toml has the limit.
#![cfg_attr(not(test), warn(clippy::too_many_lines))]

pub mod cgroup;
pub mod cli;
pub mod config;
pub mod driver;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod host;
mod os_path;
pub mod proto;
mod quote;
pub mod record;
pub mod sandbox;
pub mod shim;
pub mod sys;
pub mod task;
pub mod users;
