//! User, group and supplementary groups of the calling thread: setresuid(2), setresgid(2), setgroups(2).
//!
//! The functions of the C library change those of all threads, for which they block and unblock signals; the callers of these have one
//! thread.

use nix::Result;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::nix_errno;

/// Real, effective and saved uid.
pub(crate) fn set_uid(uid: u32) -> Result<()> {
    let uid = Uid::from_raw(uid);
    set_thread_res_uid(uid, uid, uid).map_err(nix_errno)
}

/// Real, effective and saved gid.
pub(crate) fn set_gid(gid: u32) -> Result<()> {
    let gid = Gid::from_raw(gid);
    set_thread_res_gid(gid, gid, gid).map_err(nix_errno)
}

/// Supplementary groups.
pub(crate) fn set_groups(groups: &[u32]) -> Result<()> {
    let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups).map_err(nix_errno)
}

#[cfg(test)]
mod tests {
    use nix::unistd::{geteuid, getgid};

    use super::*;

    #[test]
    fn what_root_may_nobody_else_may() {
        // On a thread of its own: the other tests keep what they have.
        let done = std::thread::spawn(|| [set_groups(&[4001]), set_gid(4002), set_uid(4003)]);
        // EPERM, or EINVAL in a user namespace that lacks these ids.
        assert_eq!(done.join().unwrap().map(|done| done.is_ok()), [geteuid().is_root(); 3]);
        assert_ne!((geteuid().as_raw(), getgid().as_raw()), (4003, 4002), "of this thread");
    }
}
