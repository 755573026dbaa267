//! Notices when the host changes, for all tasks of a process: one thread, which only waits; what may hang is done by the
//! processes of [`Templates`].

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::unistd::pipe2;

use super::{Retry, Templates};
use crate::sys;
use crate::task::elsewhere::MOUNTS;

/// How long after a change the host is looked at. A program that changes /etc does so in several steps.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// The least time between two looks. One takes some milliseconds, and each start of a task under Nomad mounts something.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the host is looked at anyway: some file systems report no changes (inotify(7), "Limitations and caveats"). Also
/// how often it is found out whether what did not answer does so again.
const INTERVAL: Duration = Duration::from_secs(30);
/// Stack size of the thread in bytes; as that of the others.
const STACK: usize = 512 * 1024;

/// What a watcher keeps up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The template, for tasks that start later, and the copies of /etc.
    Template,
    /// The copies of /etc, for one task that runs.
    Copies,
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watcher {
    _running: OwnedFd,
}

impl Watcher {
    /// Looks at the host at once, unless that was just done, and at each change.
    pub(crate) fn start(templates: Arc<Templates>, keep: Keep) -> std::io::Result<Self> {
        let (stopped, running) = pipe2(OFlag::O_CLOEXEC)?;
        let mounts = match keep {
            Keep::Template => Some(File::open(MOUNTS)?),
            Keep::Copies => None,
        };
        let watch = Watch { templates, keep, stopped, mounts };
        std::thread::Builder::new()
            .name("watch-roots".into())
            .stack_size(STACK)
            .spawn(move || watch.run())?;
        Ok(Self { _running: running })
    }
}

/// What the thread has.
struct Watch {
    templates: Arc<Templates>,
    keep: Keep,
    /// Hung up when the watcher is dropped.
    stopped: OwnedFd,
    mounts: Option<File>,
}

/// Why the thread stopped waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Stopped,
    Change,
    Timeout,
}

impl Watch {
    fn run(self) {
        let mut changes = self.templates.take_changes();
        let mut due = Instant::now();
        // Not only after a time without changes: a busy host has none.
        let mut retried = due;
        // What a start has just looked at needs no second look.
        let mut woken = Woken::Change;
        if changes.is_some() {
            woken = self.wait(changes.as_ref(), due + INTERVAL);
            due = Instant::now() + DEBOUNCE;
        }
        loop {
            let now = Instant::now();
            let at = if woken == Woken::Timeout { now } else { due.max(now) };
            if woken == Woken::Stopped || self.wait_for_stop(at) {
                return;
            }
            if let Some(mounts) = &self.mounts {
                // What is reported until now is seen by this look.
                let _ = sys::poll::now(&mut [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)]);
            }
            let retry = if retried.elapsed() < INTERVAL { Retry::No } else { Retry::Silent };
            if retry == Retry::Silent {
                retried = Instant::now();
            }
            self.templates.refresh(self.keep, retry);
            changes = self.templates.take_changes();
            let looked = Instant::now();
            woken = self.wait(changes.as_ref(), looked + INTERVAL);
            due = (looked + PAUSE).max(Instant::now() + DEBOUNCE);
        }
    }

    /// Until something changes.
    fn wait(&self, changes: Option<&OwnedFd>, deadline: Instant) -> Woken {
        let mut fds = vec![PollFd::new(self.stopped.as_fd(), PollFlags::empty())];
        fds.extend(changes.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        fds.extend(self.mounts.as_ref().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI)));
        match poll_until(&mut fds, deadline) {
            false => Woken::Timeout,
            true if fds[0].any() == Some(true) => Woken::Stopped,
            true => Woken::Change,
        }
    }

    /// Whether the watcher is dropped before the deadline.
    fn wait_for_stop(&self, deadline: Instant) -> bool {
        poll_until(&mut [PollFd::new(self.stopped.as_fd(), PollFlags::empty())], deadline)
    }
}

/// Whether one is ready before the deadline. A poll that fails because memory is short counts as none, at the deadline.
fn poll_until(fds: &mut [PollFd<'_>], deadline: Instant) -> bool {
    sys::poll::any(fds, Some(deadline)).unwrap_or_else(|_| {
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        false
    })
}
