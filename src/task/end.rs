//! How a task ended, and waiting for it.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::sleep;

use super::id::TaskId;
use crate::record::run_dir::{RunDir, RunDirError};
use crate::shim::exit::Exit;
use crate::sys;

/// Polling interval for a shim whose pidfd cannot be watched.
const SHIM_PAUSE: Duration = Duration::from_millis(100);

/// Time between two attempts to read an exit record while the plugin has no free descriptor or memory.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// Why a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It exited, or a signal ended it.
    Exited,
    /// The kernel's OOM killer ended it.
    OomKilled,
    /// Unknown: its shim was killed, or could not write the exit record. The exit is then SIGKILL, by which a task ends with
    /// its shim.
    Lost,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub exit: Exit,
    pub verdict: Verdict,
}

impl Ended {
    /// When a shim ends, its task ends by SIGKILL.
    pub(super) fn lost() -> Self {
        Self { exit: Exit::signalled(libc::SIGKILL), verdict: Verdict::Lost }
    }

    pub(crate) fn is_oom_killed(&self) -> bool {
        self.verdict == Verdict::OomKilled
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.verdict == Verdict::Lost
    }

    /// From the exit record, or else from the kernel.
    pub(super) fn read(run_dir: &RunDir, leader: Option<&OwnedFd>) -> Self {
        let exit = match run_dir.exit() {
            Ok(Some(exit)) => Some(exit),
            written => {
                if let Err(error) = written {
                    tracing::error!(%error, "failed to read the exit record");
                }
                // Since Linux 6.15 the kernel keeps it as long as a pidfd is open.
                let status = leader.and_then(|leader| sys::pidfd::exit_status(leader.as_fd()).ok().flatten());
                status.map(Exit::from_wait_status)
            }
        };
        exit.map_or_else(Self::lost, |exit| Self { exit, verdict: Verdict::Exited })
    }
}

/// The end of a task, once it is known.
#[derive(Debug, Clone)]
pub(super) struct End(watch::Receiver<Option<Ended>>);

/// Publishes the end of a task.
#[derive(Debug)]
pub(super) struct EndSender(watch::Sender<Option<Ended>>);

impl End {
    pub(super) fn unknown() -> (EndSender, Self) {
        let (sender, receiver) = watch::channel(None);
        (EndSender(sender), Self(receiver))
    }

    pub(super) fn known(ended: Ended) -> Self {
        Self(watch::channel(Some(ended)).1)
    }

    pub(super) fn get(&self) -> Option<Ended> {
        *self.0.borrow()
    }

    /// At once if the task has ended.
    pub(super) async fn wait(&self) -> Ended {
        let mut end = self.0.clone();
        loop {
            if let Some(ended) = *end.borrow_and_update() {
                return ended;
            }
            if end.changed().await.is_err() {
                // The sender is gone with the runtime: the process is about to exit.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl EndSender {
    pub(super) fn publish(&self, ended: Ended) {
        self.0.send_replace(Some(ended));
    }
}

/// Returns when the shim has ended, even if watching it fails: WaitTask must not wait forever.
pub(super) async fn shim_ended(task: &TaskId, shim: &AsyncFd<OwnedFd>) {
    // A pidfd becomes readable when the process has ended, and stays readable.
    let Err(error) = shim.readable().await.map(drop) else { return };
    tracing::error!(%task, %error, "failed to watch the shim; polling it every {SHIM_PAUSE:?}");
    let ended = || {
        let mut wanted = [PollFd::new(shim.get_ref().as_fd(), PollFlags::POLLIN)];
        sys::poll::now(&mut wanted).is_ok_and(|ready| ready)
    };
    while !ended() {
        sleep(SHIM_PAUSE).await;
    }
}

/// Waits until the plugin has a descriptor and memory to read the exit record: a late exit status is better than a wrong one.
pub(super) async fn readable(task: &TaskId, run_dir: &RunDir) {
    let mut warned = false;
    while let Some(error) = run_dir.exit().err().filter(RunDirError::is_transient) {
        if !std::mem::replace(&mut warned, true) {
            tracing::warn!(%task, %error, "failed to read the exit record of a task that has ended, trying again");
        }
        sleep(READ_PAUSE).await;
    }
}

/// After a panic the exit status is unknown, but the end of the task must still be reported to Nomad.
pub(super) fn or_lost(task: &TaskId, ended: impl FnOnce() -> Ended) -> Ended {
    catch_unwind(AssertUnwindSafe(ended)).unwrap_or_else(|_| {
        tracing::error!(%task, "failed to read the exit status of the task: a panic, see above");
        Ended::lost()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_at_the_end_makes_the_end_unknown() {
        let task = TaskId::new("a/t/1", "a", "t").unwrap();
        let ended = or_lost(&task, || panic!("on purpose"));
        assert!(ended.is_lost() && ended.exit.code == 137, "{ended:?}");
        let known = Ended { exit: Exit::exited(7), verdict: Verdict::Exited };
        assert_eq!(or_lost(&task, || known), known);
    }
}
