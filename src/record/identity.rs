//! The identity of a process across restarts of the plugin: PID, start time and boot, never the PID alone.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::sys;
use crate::sys::stat::field;

/// A process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Field 22 of proc_pid_stat(5): clock ticks between boot and the start of the process.
    pub start_time: u64,
}

impl Identity {
    /// The current process with this PID.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = read_proc(&format!("/proc/{pid}/stat"))?;
        let start_time = field(&stat, START_TIME)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no field {START_TIME}")))?;
        Ok(Self { pid, start_time })
    }

    /// The process of a pidfd. ESRCH: it has been reaped.
    pub(crate) fn behind(pidfd: &OwnedFd) -> io::Result<Self> {
        let gone = || io::Error::from(Errno::ESRCH);
        let pid = pid_behind(pidfd)?.ok_or_else(gone)?;
        let found = Self::of(pid);
        // If it was reaped in between, its PID may be unused or reused.
        pid_behind(pidfd)?.ok_or_else(gone)?;
        found
    }

    /// Opens the process if it is still the same one; none if it is gone or its PID was reused.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let pidfd = match sys::pidfd::open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(Errno::ESRCH | Errno::EINVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // A pidfd always means the same process. If the start time read now matches, the right process was opened, unless it ended
        // in between, which the signal 0 below detects.
        let same = match Self::of(self.pid) {
            Ok(found) => found == self,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => false,
            Err(error) => return Err(error),
        };
        Ok((same && sys::pidfd::signal(pidfd.as_fd(), 0).is_ok()).then_some(pidfd))
    }
}

/// The `Pid:` line of a pidfd's fdinfo (pidfd_open(2)); none once the process has been reaped.
fn pid_behind(pidfd: &OwnedFd) -> io::Result<Option<i32>> {
    let info = read_proc(&format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let info = String::from_utf8_lossy(&info);
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i32>().ok());
    Ok(pid.filter(|pid| *pid > 0))
}

/// A short file of proc(5). The standard library starts with a few bytes, and proc(5) computes the file again for each read.
fn read_proc(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PROC_SIZE);
    let file = File::from(open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?);
    file.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// More than /proc/PID/stat has on most hosts, bytes.
const PROC_SIZE: usize = 512;

/// Whether `pid` has ended or has a pending SIGKILL, so that it will not run in user space again. Also true for an unused PID.
pub(crate) fn is_dying(pid: i32) -> bool {
    let Ok(stat) = std::fs::read(format!("/proc/{pid}/stat")) else { return true };
    if field::<u64>(&stat, FLAGS).is_none_or(|flags| flags & PF_EXITING != 0) {
        return true;
    }
    let Ok(status) = std::fs::read(format!("/proc/{pid}/status")) else { return true };
    // Pending for the thread, or for the process; hexadecimal sets of signals.
    status.split(|byte| *byte == b'\n').any(|line| {
        let set = line.strip_prefix(b"SigPnd:").or_else(|| line.strip_prefix(b"ShdPnd:"));
        let set = set.and_then(|set| std::str::from_utf8(set.trim_ascii()).ok());
        set.and_then(|set| u64::from_str_radix(set, 16).ok())
            .is_some_and(|set| set >> (libc::SIGKILL - 1) & 1 != 0)
    })
}

/// Fields of proc_pid_stat(5).
const FLAGS: usize = 9;
pub(crate) const START_TIME: usize = 22;
/// In [`FLAGS`], `linux/sched.h`: it is exiting, or has ended.
const PF_EXITING: u64 = 0x4;

/// The identity of this boot: /proc/sys/kernel/random/boot_id, random(4). Read once.
pub fn boot_id() -> io::Result<String> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(known.clone());
    }
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT_ID.get_or_init(|| read.trim_end().to_owned()).clone())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;
    use crate::record::testing::FakeProcess;

    #[test]
    fn a_name_that_is_cut_within_a_letter_hides_nobody() {
        // The kernel keeps 15 bytes of a name.
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("приложение");
        // A link and not a copy: another test's child may still hold a file that was just written, and exec is refused then.
        // To sh, the only program that a Nix build has in /bin.
        std::os::unix::fs::symlink("/bin/sh", &program).unwrap();
        let mut child = std::process::Command::new(&program)
            .arg0("sh")
            .args(["-c", "read line"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The kernel names it a moment after exec has closed what tells the parent of it.
        let name = || std::fs::read(format!("/proc/{}/comm", child.id())).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while std::str::from_utf8(&name()).is_ok() {
            assert!(std::time::Instant::now() < deadline, "{}", name().escape_ascii());
        }
        let identity = Identity::of(child.id() as i32).unwrap();
        assert!(identity.open().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_dying_from_the_moment_that_it_is_killed() {
        let mut process = FakeProcess::new();
        let pid = process.identity.pid;
        assert!(!is_dying(pid));
        process.kill();
        assert!(is_dying(pid), "killed");
        process.end();
        assert!(is_dying(pid), "reaped");
    }

    #[test]
    fn a_process_is_opened_only_while_it_is_the_same() {
        let mut process = FakeProcess::new();
        let identity = process.identity;
        let pidfd = identity.open().unwrap().expect("it runs");
        assert_eq!(Identity::behind(&pidfd).unwrap(), identity);
        let other = Identity { start_time: identity.start_time + 1, ..identity };
        assert!(other.open().unwrap().is_none(), "another process with this pid");
        process.end();
        assert!(identity.open().unwrap().is_none(), "it has ended");
        assert_eq!(Identity::behind(&pidfd).unwrap_err().raw_os_error(), Some(Errno::ESRCH as i32));
    }

    #[test]
    fn a_process_that_is_reaped_meanwhile_is_gone() {
        for _ in 0..100 {
            let mut child = std::process::Command::new("true").spawn().unwrap();
            let pidfd = sys::pidfd::open(child.id() as i32).unwrap();
            let reaper = std::thread::spawn(move || child.wait());
            while Identity::behind(&pidfd)
                .inspect_err(|error| assert_eq!(error.raw_os_error(), Some(Errno::ESRCH as i32), "{error}"))
                .is_ok()
            {}
            reaper.join().unwrap().unwrap();
        }
    }

    #[test]
    fn the_boot_has_an_id() {
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
