//! System calls, and the only `unsafe` of the crate, for those that neither std nor nix nor rustix covers.
//!
//! Every function is a thin wrapper: it takes plain values, returns `nix::Result`, and keeps no state.
#![allow(unsafe_code, reason = "denied everywhere else, by Cargo.toml")]

pub(crate) mod async_fd;
pub(crate) mod attributes;
pub(crate) mod caps;
pub mod clone;
pub mod fd;
pub(crate) mod ids;
pub(crate) mod keyring;
pub(crate) mod landlock;
pub(crate) mod mount;
pub(crate) mod open;
pub mod pidfd;
pub(crate) mod poll;
pub(crate) mod read;
pub(crate) mod signals;
pub(crate) mod terminal;
pub(crate) mod wait;

use nix::errno::Errno;

/// An error of rustix as one of nix.
fn nix_errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// Whether a call failed because this process or the host has no descriptor or memory left, so that it may succeed later.
pub fn is_passing(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}
