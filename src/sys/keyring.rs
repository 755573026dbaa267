//! The session keyring: keyctl(2).

use nix::Result;
use nix::errno::Errno;

/// `KEYCTL_JOIN_SESSION_KEYRING` of `linux/keyctl.h`.
const JOIN_SESSION_KEYRING: libc::c_ulong = 1;

/// Gives the calling process a new, empty session keyring, without the keys of the user who started the agent.
/// ENOSYS: the kernel has no keyrings.
pub(crate) fn join_new_session() -> Result<()> {
    let anonymous: *const libc::c_char = std::ptr::null();
    // SAFETY: a null name asks for an anonymous keyring; nothing else is passed.
    match Errno::result(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, anonymous) }) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
