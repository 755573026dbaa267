//! The only `unsafe` of the crate: system calls that no safe wrapper covers.
//!
//! Everything here is a thin, total wrapper: it takes plain values, returns `nix::Result`, and keeps no state. [`is_passing`] judges
//! errors of such calls.
#![allow(unsafe_code, reason = "denied everywhere else, by Cargo.toml")]

pub(crate) mod async_fd;
pub(crate) mod attributes;
pub(crate) mod caps;
pub mod clone;
pub mod fd;
pub(crate) mod keyring;
pub(crate) mod landlock;
pub mod pidfd;
pub(crate) mod signals;
pub(crate) mod terminal;
pub(crate) mod wait;

use nix::errno::Errno;

/// Whether a call failed because this process or the host has no descriptor or memory left: nothing is wrong with what it was
/// about, and later it may succeed.
pub fn is_passing(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM))
}
