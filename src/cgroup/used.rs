//! A cgroup in which processes have been before, as the shim holds it: without a path.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;
use nix::unistd::write;

const CPU_STAT: &str = "cpu.stat";
/// The first line of it: µs of CPU time.
const USAGE: &[u8] = b"usage_usec ";
const PROCS: &str = "cgroup.procs";

/// Whether a process of the cgroup has run. Nomad keeps a task's cgroup for all its starts in one allocation.
///
/// What clone3(2) puts into a cgroup in which `cgroup.kill` was written before, some kernels kill at once (Debian's 6.1.176, 6.18): they
/// compare how often the cgroup of the *caller* was killed. [`enter`] is how a process gets there all the same.
pub(crate) fn was_used(cgroup: BorrowedFd<'_>) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let mut bytes = [0; 32];
    let read = openat(cgroup, CPU_STAT, flags, Mode::empty()).and_then(|file| pread(file, &mut bytes, 0));
    let usage = read.ok().and_then(|length| bytes[..length].strip_prefix(USAGE));
    usage.is_some_and(|usage| usage.first() != Some(&b'0'))
}

/// Moves a child, by its id in the caller's PID namespace, into the cgroup.
pub(crate) fn enter(cgroup: BorrowedFd<'_>, pid: i32) -> nix::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let file = openat(cgroup, PROCS, flags, Mode::empty())?;
    let text = pid.to_string();
    match write(file.as_fd(), text.as_bytes())? {
        written if written == text.len() => Ok(()),
        _ => Err(Errno::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempTree;
    use super::*;

    #[test]
    fn a_cgroup_was_used_if_it_has_cpu_time() {
        let tree = TempTree::new();
        for (text, wanted) in [
            ("usage_usec 0\nuser_usec 0\n", false),
            ("usage_usec 7\nuser_usec 7\n", true),
            ("usage_usec 1500000\nuser_usec 1000000\n", true),
            ("", false),
        ] {
            tree.dir("a.scope");
            tree.file("a.scope/cpu.stat", text);
            let dir = std::fs::File::open(tree.root().join("a.scope")).unwrap();
            assert_eq!(was_used(dir.as_fd()), wanted, "{text}");
        }
        let dir = std::fs::File::open(tree.root()).unwrap();
        assert!(!was_used(dir.as_fd()), "no such file");
    }

    #[test]
    fn a_child_is_moved_by_its_id() {
        let tree = TempTree::new();
        tree.file("cgroup.procs", "");
        let dir = std::fs::File::open(tree.root()).unwrap();
        enter(dir.as_fd(), 2).unwrap();
        assert_eq!(tree.read("cgroup.procs"), "2");
    }
}
