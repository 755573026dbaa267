//! The cgroups of sessions in a task: `exec-N`, each a child of the task's cgroup.
//!
//! A child has no controllers of its own, so the task's limits hold for all together. It exists so that everything that a session
//! has started can be killed, whatever became of it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Cgroup, CgroupError};
use crate::sys::IoError;

/// Names are `exec-N` for sessions of a plugin, and `exec-cli-N` for those of the `exec` command.
const PREFIX: &str = "exec-";
/// How many names are tried, which is far more than there can be sessions in a task.
const NAMES: u32 = 4096;
/// Mode of a cgroup directory, as Nomad's.
const MODE: Mode = Mode::from_bits_truncate(0o755);
/// First and longest pause between two attempts to remove a cgroup, for whose processes SIGKILL is on its way.
const PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);

/// Who opens a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Plugin,
    Cli,
}

impl Owner {
    fn prefix(self) -> &'static str {
        match self {
            Self::Plugin => PREFIX,
            Self::Cli => "exec-cli-",
        }
    }

    /// Whether a directory with this name is a session of this owner.
    fn owns(self, name: &str) -> bool {
        name.strip_prefix(self.prefix()).is_some_and(|number| number.parse::<u32>().is_ok())
    }
}

/// The cgroup of one session, by descriptors: the processes that hold it may not see cgroupfs.
#[derive(Debug)]
pub(crate) struct SessionCgroup {
    parent: OwnedFd,
    dir: OwnedFd,
    name: String,
}

impl SessionCgroup {
    /// What another process has created.
    pub(crate) fn given(parent: OwnedFd, dir: OwnedFd, name: String) -> Self {
        Self { parent, dir, name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The task's cgroup directory.
    pub(crate) fn parent(&self) -> BorrowedFd<'_> {
        self.parent.as_fd()
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// SIGKILL to every process in it (`cgroup.kill`). A cgroup that is gone has none.
    pub(crate) fn kill(&self) -> nix::Result<()> {
        kill(&self.dir)
    }

    /// Removes it once it is empty; false if it is not by then.
    pub(crate) fn remove(&self, deadline: Instant) -> nix::Result<bool> {
        remove(self.parent.as_fd(), &self.name, deadline)
    }
}

fn kill(dir: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let file = match openat(dir, "cgroup.kill", flags, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
        opened => opened?,
    };
    match File::from(file).write(b"1").map_err(|error| crate::sys::errno_of(&error)) {
        Ok(_) | Err(Errno::ENODEV) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn remove(parent: BorrowedFd<'_>, name: &str, deadline: Instant) -> nix::Result<bool> {
    let mut pause = PAUSE;
    loop {
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => return Ok(true),
            Err(Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(pause),
            Err(Errno::EBUSY) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

impl Cgroup {
    /// Makes the cgroup of a new session.
    pub(crate) fn new_session(&self, owner: Owner) -> Result<SessionCgroup, CgroupError> {
        let failed = |name: &str, errno| IoError::new("create the cgroup", self.path().join(name), errno);
        for number in 0..NAMES {
            let name = format!("{}{number}", owner.prefix());
            match mkdirat(self.dir_fd(), name.as_str(), MODE) {
                Ok(()) => {}
                Err(Errno::EEXIST) => continue,
                Err(errno) => return Err(failed(&name, errno).into()),
            }
            let opened = self.open_session(&name).and_then(|dir| {
                let parent =
                    self.dir_fd().try_clone_to_owned().map_err(|error| crate::sys::errno_of(&error))?;
                Ok(SessionCgroup { parent, dir, name: name.clone() })
            });
            return opened.map_err(|errno| {
                let _ = unlinkat(self.dir_fd(), name.as_str(), UnlinkatFlags::RemoveDir);
                failed(&name, errno).into()
            });
        }
        Err(failed(PREFIX, Errno::EEXIST).into())
    }

    fn open_session(&self, name: &str) -> nix::Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(self.dir_fd(), name, flags, Mode::empty())
    }

    /// Kills what is left of sessions of these owners, and removes their cgroups, which Nomad's rmdir(2) of the task's needs. Blocks
    /// until they are empty, or until the deadline: false.
    pub(crate) fn end_sessions(&self, owners: &[Owner], deadline: Instant) -> Result<bool, CgroupError> {
        let names = self.sessions(owners)?;
        let failed = |name: &String, errno| IoError::new("end the session in", self.path().join(name), errno);
        for name in &names {
            match self.open_session(name) {
                Ok(dir) => kill(&dir).map_err(|errno| failed(name, errno))?,
                Err(Errno::ENOENT | Errno::ENODEV) => {}
                Err(errno) => return Err(failed(name, errno).into()),
            }
        }
        let mut all = true;
        for name in &names {
            all &= remove(self.dir_fd(), name, deadline).map_err(|errno| failed(name, errno))?;
        }
        Ok(all)
    }

    fn sessions(&self, owners: &[Owner]) -> Result<Vec<String>, CgroupError> {
        let entries = match std::fs::read_dir(self.fd_path()) {
            Ok(entries) => entries,
            // The cgroup was removed.
            Err(error) if matches!(crate::sys::errno_of(&error), Errno::ENOENT | Errno::ENODEV) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(IoError::new("list the cgroup", self.path(), error).into()),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter(|name| owners.iter().any(|owner| owner.owns(name))).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cgroup::Mount;

    fn cgroup(dir: &tempfile::TempDir) -> Cgroup {
        std::fs::create_dir_all(dir.path().join("task")).unwrap();
        let mount = Arc::new(Mount::unchecked(dir.path()).unwrap());
        Cgroup::open_in(&mount, &dir.path().join("task")).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    #[test]
    fn each_session_has_a_cgroup_of_its_own_and_a_free_name_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let task = cgroup(&dir);
        let names = |owner| {
            let made = task.new_session(owner).unwrap();
            made.name().to_owned()
        };
        assert_eq!([names(Owner::Plugin), names(Owner::Plugin)], ["exec-0", "exec-1"]);
        assert_eq!(names(Owner::Cli), "exec-cli-0");
        std::fs::remove_dir(dir.path().join("task/exec-0")).unwrap();
        let again = task.new_session(Owner::Plugin).unwrap();
        assert_eq!(again.name(), "exec-0");
        assert_eq!(again.remove(soon()), Ok(true));
        assert_eq!(again.remove(soon()), Ok(true), "it is gone");
        again.kill().unwrap();
    }

    #[test]
    fn only_the_sessions_of_the_owner_are_ended() {
        let dir = tempfile::tempdir().unwrap();
        let task = cgroup(&dir);
        for name in ["exec-0", "exec-7", "exec-cli-0", "exec-x", "exec-", "other"] {
            std::fs::create_dir(dir.path().join("task").join(name)).unwrap();
        }
        let left = || {
            let entries = std::fs::read_dir(dir.path().join("task")).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert!(task.end_sessions(&[Owner::Plugin], soon()).unwrap());
        assert_eq!(left(), ["exec-", "exec-cli-0", "exec-x", "other"]);
        assert!(task.end_sessions(&[Owner::Plugin, Owner::Cli], soon()).unwrap());
        assert_eq!(left(), ["exec-", "exec-x", "other"]);
        std::fs::remove_dir_all(dir.path().join("task")).unwrap();
        assert!(task.end_sessions(&[Owner::Plugin], soon()).unwrap(), "the cgroup is gone");
    }
}
