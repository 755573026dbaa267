//! The only `unsafe` of the crate: system calls that no safe wrapper covers.
//!
//! Everything here is a thin, total wrapper: it takes plain values, returns `nix::Result`, and keeps no state.
// Denied everywhere else, by Cargo.toml.
#![allow(unsafe_code)]

pub mod async_fd;
pub mod caps;
pub mod clone;
pub mod fd;
pub mod keyring;
pub mod landlock;
pub mod pidfd;
pub mod signals;
pub mod wait;
