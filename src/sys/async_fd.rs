//! Registering a descriptor with tokio's reactor.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for `interest` on a descriptor that epoll(7) takes: a pidfd, a pipe, a file of cgroupfs. Must be called in a
/// tokio runtime with IO.
///
/// tokio made the registration unsafe in general, because a foreign type's `as_raw_fd` may name a descriptor that
/// somebody else closes or reuses. With an `OwnedFd` that cannot happen, so this form is safe.
///
/// # Errors
/// The kernel's, with the descriptor given back.
pub(crate) fn register(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: the AsyncFd owns the OwnedFd, which is open for as long as it lives and always names the same descriptor.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| error.into_parts())
}
