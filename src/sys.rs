//! System calls, and the only `unsafe` of the crate, for those that neither std nor nix nor rustix covers.
//!
//! Every function is a thin wrapper: it takes plain values, returns `nix::Result`, and keeps no state.
#![allow(unsafe_code, reason = "denied everywhere else, by Cargo.toml")]

pub mod arena;
pub(crate) mod async_fd;
pub(crate) mod attributes;
pub(crate) mod bpf;
pub(crate) mod caps;
pub mod clone;
mod error;
pub mod fd;
pub(crate) mod ids;
pub(crate) mod keyring;
pub(crate) mod landlock;
pub(crate) mod mount;
pub(crate) mod open;
pub mod pidfd;
pub(crate) mod poll;
pub(crate) mod read;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod slots;
pub(crate) mod stat;
pub(crate) mod terminal;
pub(crate) mod title;
pub(crate) mod userns;
pub(crate) mod wait;

pub(crate) use error::{CallError, IoError, errno_of, is_transient};
use nix::errno::Errno;

/// An error of rustix as one of nix.
fn nix_errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}
