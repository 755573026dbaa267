//! Reconciles the run directory with what earlier plugins left in it.
//!
//! A plugin that dies between the start of a task and its answer to Nomad leaves an orphaned task.
//! Its entry still has the mark of the start, and the plugin named there is gone: only such tasks are ended here.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use tokio::io::Interest;

use super::identity::Identity;
use super::key::Key;
use super::run_dir::{self, RunDir};
use crate::sys;

/// How long an entry of a task that has ended is kept if no agent asks for it. An agent may be down for
/// days; an entry takes some 10 KiB of /run.
const KEEP_ENDED: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long a killed shim and its task may take to die. A process in an uninterruptible wait takes longer; callers do not wait
/// for it.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A task could not be ended. Its entry is kept for the next attempt.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    #[error("failed to find the task's shim: {0}")]
    Find(std::io::Error),
    #[error("failed to kill the task's shim: {}", .0.desc())]
    Kill(Errno),
    #[error(
        "an earlier process of the task is still there {KILL_LIMIT:?} after SIGKILL: it hangs in the kernel (a dead disk, NFS)"
    )]
    Hangs,
}

/// How long Nomad has to ask for an unacknowledged task of an earlier plugin. It asks within seconds of the new plugin's
/// configuration, if it received the answer.
pub(crate) const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// Goes through all entries and never ends a task that Nomad may know. Returns the unacknowledged ones:
/// [`end_unacknowledged`] ends them after [`ACKNOWLEDGE_LIMIT`].
pub(crate) fn sweep(base: &Path) -> Vec<RunDir> {
    let entries = run_dir::entries(base).unwrap_or_else(|error| {
        tracing::warn!(%error, "failed to list the run directories of earlier plugins");
        Vec::new()
    });
    let (mut orphans, mut doubtful) = (Vec::new(), Vec::new());
    for entry in entries {
        if gone(entry.starting()) {
            orphans.push(entry);
        } else if gone(entry.answered()) {
            doubtful.push(entry);
        } else if entry.is_of_former_boot() || ended(&entry) && old(&entry) {
            forget(&entry);
        }
    }
    end_and_forget(&orphans);
    doubtful
}

/// Ends the tasks that are still unacknowledged: Nomad did not receive the answer to their start.
pub(crate) fn end_unacknowledged(doubtful: &[RunDir]) {
    end_and_forget(doubtful.iter().filter(|entry| gone(entry.answered())));
}

/// Ends every earlier invocation of a task that is about to be started. Nomad has destroyed those that it knew, so any
/// other is orphaned: its agent or plugin died before the answer arrived.
pub(crate) fn end_siblings(base: &Path, task_id: Key<'_>) -> Result<(), EndError> {
    let found = run_dir::siblings(base, task_id).unwrap_or_else(|error| {
        tracing::warn!(%error, "failed to look for earlier invocations of the task");
        Vec::new()
    });
    end_all(&found).into_iter().try_for_each(|(entry, ended)| ended.map(|()| forget(entry)))
}

/// Ends the shim of an entry, and with it the task, if it still runs: one that Nomad does not know or wants to end.
pub(crate) fn end_earlier(entry: &RunDir) -> Result<(), EndError> {
    kill_shim_of(entry)?.map_or(Ok(()), |dying| dying.wait(Instant::now() + KILL_LIMIT))
}

/// Kills a shim, and with it its pid namespace, and waits until it is gone; reaps it if it is our child. Blocking.
pub(crate) fn end(shim: OwnedFd) -> Result<(), EndError> {
    kill(shim)?.wait(Instant::now() + KILL_LIMIT)
}

fn end_and_forget<'a>(entries: impl IntoIterator<Item = &'a RunDir>) {
    for (entry, ended) in end_all(entries) {
        match ended {
            Ok(()) => forget(entry),
            Err(error) => {
                tracing::error!(entry = %entry.path().display(), %error, "failed to end an orphaned task")
            }
        }
    }
}

/// Kills all of them, and only then waits, for all within one limit: so many tasks
/// take no longer than one, and a task that hangs does not delay the others.
fn end_all<'a>(entries: impl IntoIterator<Item = &'a RunDir>) -> Vec<(&'a RunDir, Result<(), EndError>)> {
    let killed: Vec<_> = entries.into_iter().map(|entry| (entry, kill_shim_of(entry))).collect();
    let deadline = Instant::now() + KILL_LIMIT;
    let wait = |dying: Option<Dying>| dying.map_or(Ok(()), |dying| dying.wait(deadline));
    killed.into_iter().map(|(entry, killed)| (entry, killed.and_then(wait))).collect()
}

fn forget(entry: &RunDir) {
    tracing::info!(entry = %entry.path().display(), "removing the run directory of an ended task");
    if let Err(error) = entry.remove() {
        tracing::warn!(%error, "failed to remove the run directory of an ended task");
    }
}

/// A shim that was sent SIGKILL.
struct Dying(OwnedFd);

/// None: there is no shim any more.
fn kill_shim_of(entry: &RunDir) -> Result<Option<Dying>, EndError> {
    let Some(shim) = entry.shim().map(Identity::open).transpose().map_err(EndError::Find)?.flatten() else {
        return Ok(None);
    };
    if !wait_for_end(&shim, Duration::ZERO) {
        tracing::warn!(entry = %entry.path().display(), "ending an orphaned task");
    }
    kill(shim).map(Some)
}

fn kill(shim: OwnedFd) -> Result<Dying, EndError> {
    match sys::pidfd::signal(shim.as_fd(), libc::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(Dying(shim)),
        Err(errno) => Err(EndError::Kill(errno)),
    }
}

impl Dying {
    /// Returns when it is gone, which is when its whole pid namespace is; reaps it if it is our child.
    fn wait(self, deadline: Instant) -> Result<(), EndError> {
        let Self(shim) = self;
        if wait_for_end(&shim, deadline.saturating_duration_since(Instant::now())) {
            reap(&shim);
            return Ok(());
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(reap_late(shim));
        }
        Err(EndError::Hangs)
    }
}

/// Whether the process has ended within that time, reaped or not.
fn wait_for_end(process: &OwnedFd, limit: Duration) -> bool {
    sys::poll::readable(process, Instant::now() + limit) == Ok(true)
}

/// Reaps a shim that hung in the kernel when it finally ends.
async fn reap_late(shim: OwnedFd) {
    let Ok(shim) = sys::async_fd::register(shim, Interest::READABLE) else { return };
    if shim.readable().await.is_ok() {
        reap(shim.get_ref());
    }
}

/// ECHILD: an earlier plugin started it, and init reaps it.
fn reap(shim: &OwnedFd) {
    let _ = waitid(Id::PIDFd(shim.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
}

/// Whether there is a mark, and its plugin is gone.
fn gone(mark: Option<Identity>) -> bool {
    mark.is_some_and(|plugin| matches!(plugin.open(), Ok(None)))
}

/// No shim of it is left.
pub(crate) fn ended(entry: &RunDir) -> bool {
    entry.shim().is_none_or(|shim| matches!(shim.open(), Ok(None)))
}

fn old(entry: &RunDir) -> bool {
    entry.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > KEEP_ENDED)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, FileTimes};
    use std::time::SystemTime;

    use super::*;
    use crate::record::identity::boot_id;
    use crate::record::testing::{FakeProcess, entry};

    /// As if another plugin, now gone, had started the task's launch.
    fn begun_by(entry: &RunDir, plugin: Identity) {
        write_record(entry, "starting", &boot_id().unwrap(), plugin);
    }

    fn write_record(entry: &RunDir, name: &str, boot_id: &str, Identity { pid, start_time }: Identity) {
        let record = serde_json::json!({ "boot_id": boot_id, "pid": pid, "start_time": start_time });
        fs::write(entry.path().join(name), record.to_string()).unwrap();
    }

    #[test]
    fn only_what_nobody_can_ask_for_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("run");
        let gone = FakeProcess::new().end();
        let (mut known, mut ours) = (FakeProcess::new(), FakeProcess::new());
        let mut orphans = [FakeProcess::new(), FakeProcess::new(), FakeProcess::new()];
        let orphaned = [1, 2, 3].map(|n| entry(&base, &format!("a/orphan/{n}"), orphans[n - 1].identity));
        orphaned.iter().for_each(|entry| begun_by(entry, gone));
        let running = entry(&base, "a/known/1", known.identity);
        running.started().unwrap();
        running.acknowledged().unwrap();
        // Still being started, by a plugin that lives: this one.
        let starting = entry(&base, "a/ours/1", ours.identity);
        let recent = entry(&base, "a/recent/1", gone);
        recent.started().unwrap();
        let ancient = entry(&base, "a/ancient/1", gone);
        ancient.started().unwrap();
        let file = fs::File::options().write(true).open(ancient.path().join("exit")).unwrap();
        file.set_times(FileTimes::new().set_modified(SystemTime::now() - 2 * KEEP_ENDED)).unwrap();

        sweep(&base);

        assert!(orphans.iter_mut().all(|orphan| !orphan.runs()));
        assert!(orphaned.iter().all(|entry| !entry.path().exists()));
        assert!(!ancient.path().exists());
        assert!(running.path().exists() && starting.path().exists() && recent.path().exists());
        assert!(known.runs() && ours.runs());
    }

    #[test]
    fn a_former_boot_is_forgotten_and_nobody_killed_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("run");
        // The same pid and start time, in a boot that is over: an innocent process now.
        let mut innocent = FakeProcess::new();
        let known = entry(&base, "a/known/1", innocent.identity);
        known.started().unwrap();
        write_record(&known, "shim", "former", innocent.identity);
        let orphan = entry(&base, "a/orphan/1", innocent.identity);
        write_record(&orphan, "shim", "former", innocent.identity);
        write_record(&orphan, "starting", "former", innocent.identity);
        sweep(&base);
        end_siblings(&base, Key::new("a/orphan/2").unwrap()).unwrap();
        assert!(!known.path().exists() && !orphan.path().exists());
        assert!(innocent.runs());
    }

    #[test]
    fn an_answer_that_was_lost_is_waited_for_and_then_ended() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("run");
        let gone = FakeProcess::new().end();
        let (mut lost, mut known) = (FakeProcess::new(), FakeProcess::new());
        let answered = |id, shim: &FakeProcess| {
            let entry = entry(&base, id, shim.identity);
            begun_by(&entry, gone);
            entry.started().unwrap();
            entry
        };
        let (of_lost, of_known) = (answered("a/lost/1", &lost), answered("a/known/1", &known));
        let ours = entry(&base, "a/ours/1", known.identity);
        ours.started().unwrap();
        let doubtful = sweep(&base);
        assert_eq!(doubtful.len(), 2);
        assert!(lost.runs() && known.runs(), "not before Nomad had time to ask");
        of_known.acknowledged().unwrap();
        end_unacknowledged(&doubtful);
        assert!(!lost.runs() && known.runs());
        assert!(!of_lost.path().exists() && of_known.path().exists() && ours.path().exists());
    }

    #[test]
    fn what_was_made_by_half_is_kept_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("run");
        let half = RunDir::of(&base, Key::new("a/half/1").unwrap());
        half.create().unwrap();
        for file in ["exit", "starting"] {
            fs::remove_file(half.path().join(file)).unwrap();
        }
        sweep(&base);
        assert!(half.path().exists());
        let long_ago = FileTimes::new().set_modified(SystemTime::now() - 2 * KEEP_ENDED);
        fs::File::open(half.path()).unwrap().set_times(long_ago).unwrap();
        sweep(&base);
        assert!(!half.path().exists());
    }

    #[test]
    fn an_earlier_invocation_of_a_task_does_not_outlive_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("run");
        let (mut orphan, mut other) = (FakeProcess::new(), FakeProcess::new());
        let orphaned = entry(&base, "a/web/1", orphan.identity);
        orphaned.started().unwrap();
        let another = entry(&base, "a/db/1", other.identity);
        another.started().unwrap();
        end_siblings(&base, Key::new("a/web/2").unwrap()).unwrap();
        assert!(!orphan.runs());
        assert!(!orphaned.path().exists());
        assert!(another.path().exists() && other.runs());
    }

    #[test]
    fn a_sweep_leaves_what_belongs_to_no_task() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("run");
        run_dir::make_base(&base).unwrap();
        let others = [format!("{}etc-1", run_dir::NO_TASK), "old".to_owned()].map(|name| base.join(name));
        for path in &others {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
            fs::write(path.join("exit"), "").unwrap();
            let long_ago = FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
            fs::File::options().write(true).open(path.join("exit")).unwrap().set_times(long_ago).unwrap();
        }
        sweep(&base);
        assert_eq!(others.map(|path| path.exists()), [true, false]);
    }

    #[test]
    fn nothing_to_sweep_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        sweep(&dir.path().join("missing"));
    }
}
