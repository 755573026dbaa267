//! Who is at the other end of a connection: only processes of the plugin's own PID namespace are served.
//!
//! So nothing in a container with a PID namespace of its own, root included, can call the plugin. The host, which started the plugin,
//! is always in the plugin's namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// What is known of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// In the plugin's own PID namespace.
    Own,
    /// In another PID namespace: below the plugin's (a container), or one in which it has no PID that the plugin can see.
    Foreign,
    /// It has ended, so its namespace is unknown. A host's probe connects and hangs up at once.
    Gone,
}

/// Identifies the process that connected.
///
/// # Errors
/// The plugin has no descriptor or memory left ([`crate::errno::is_transient`]), or the kernel refused.
pub(crate) fn identify(socket: &impl AsFd) -> io::Result<Peer> {
    match pidfd(socket)? {
        Found::Process(pidfd) => {
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
            judge(&info)
                .ok_or_else(|| io::Error::other("no usable NSpid line in the fdinfo of the peer's pidfd"))
        }
        Found::Nobody(peer) => Ok(peer),
    }
}

enum Found {
    Process(OwnedFd),
    Nobody(Peer),
}

/// SO_PEERPIDFD names the process itself. Before Linux 6.5 there is only its number, which can be reused between connect(2) and
/// here; an attacker has to win that race against the kernel's whole range of PIDs.
fn pidfd(socket: &impl AsFd) -> io::Result<Found> {
    match getsockopt(socket, PeerPidfd) {
        Ok(pidfd) => Ok(Found::Process(pidfd)),
        Err(Errno::ENOPROTOOPT) => by_number(getsockopt(socket, PeerCredentials)?.pid()),
        // EINVAL before Linux 6.16, ESRCH since: the peer has been reaped.
        Err(Errno::EINVAL | Errno::ESRCH) => Ok(Found::Nobody(Peer::Gone)),
        Err(errno) => Err(errno.into()),
    }
}

fn by_number(pid: i32) -> io::Result<Found> {
    // 0: it has no number in the plugin's PID namespace.
    let Some(pid) = (pid > 0).then(|| Pid::from_raw(pid)).flatten() else {
        return Ok(Found::Nobody(Peer::Foreign));
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Found::Process(pidfd)),
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(Found::Nobody(Peer::Gone)),
        Err(errno) => Err(errno.into()),
    }
}

/// The `NSpid:` line of a pidfd's fdinfo (pidfd_open(2)) has the number of the process in the namespace of this /proc, and one
/// more for each namespace below it: -1 for a process that has been reaped, 0 for one that is not visible from here.
fn judge(info: &str) -> Option<Peer> {
    let numbers = info.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let numbers: Vec<i32> =
        numbers.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    match numbers[..] {
        [] => None,
        [(..0), ..] => Some(Peer::Gone),
        [(1..)] => Some(Peer::Own),
        [0, ..] | [_, _, ..] => Some(Peer::Foreign),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_one_number_is_the_own_namespace() {
        let of = |numbers: &str| judge(&format!("pos:\t0\nflags:\t02000002\nPid:\t7\nNSpid:{numbers}\n"));
        assert_eq!(of("\t7"), Some(Peer::Own));
        assert_eq!(of("\t7\t1"), Some(Peer::Foreign), "a container");
        assert_eq!(of("\t7\t9\t1"), Some(Peer::Foreign), "two levels below");
        assert_eq!(of("\t0"), Some(Peer::Foreign), "not visible");
        assert_eq!(of("\t-1"), Some(Peer::Gone));
        for strange in ["", "\t", "\tx", "\t7\tx"] {
            assert_eq!(of(strange), None, "{strange:?}");
        }
        assert_eq!(judge("pos:\t0\n"), None, "no such line");
    }

    #[test]
    fn this_process_is_in_its_own_namespace_by_pidfd_and_by_number() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(identify(&ours).unwrap(), Peer::Own);
        let Found::Process(pidfd) = by_number(std::process::id() as i32).unwrap() else {
            panic!("not found")
        };
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
        assert_eq!(judge(&info), Some(Peer::Own));
    }

    #[test]
    fn a_peer_without_a_number_or_without_a_process_is_not_served() {
        assert!(matches!(by_number(0).unwrap(), Found::Nobody(Peer::Foreign)));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(matches!(by_number(child.id() as i32).unwrap(), Found::Nobody(Peer::Gone)));
    }
}
