//! What earlier plugins left behind, below the run directory.
//!
//! A plugin that dies between the start of a task and its answer to Nomad leaves a task that nobody will ever ask for.
//! Its entry still has the mark of the start, and the plugin named there is gone: that, and nothing less, is ended here.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::run_dir::{self, RunDir};
use crate::sys;

/// How long an entry of a task that has ended is kept for an agent that does not come back. An agent may be down for
/// days; an entry takes a few hundred bytes of /run.
const KEEP_ENDED: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long a killed shim may take to be gone, which is how long its task takes to die.
const KILL_LIMIT: PollTimeoutMs = 10_000;
type PollTimeoutMs = u16;

/// Goes through all entries. Never touches a task that Nomad knows of.
pub fn sweep(base: &Path) {
    let entries = run_dir::entries(base).unwrap_or_else(|error| {
        tracing::warn!(%error, "look for what earlier plugins left behind");
        Vec::new()
    });
    for entry in entries {
        let entry_path = entry.path().to_owned();
        if abandoned(&entry) {
            end_earlier(&entry);
        } else if !(ended(&entry) && old(&entry)) {
            continue;
        }
        tracing::info!(entry = %entry_path.display(), "removing what an earlier plugin left behind");
        if let Err(error) = entry.remove() {
            tracing::warn!(%error, "remove what an earlier plugin left behind");
        }
    }
}

/// Ends the shim of an entry that is about to be used again: a task with the same id that the plugin before this one started
/// without being able to tell.
pub fn end_earlier(entry: &RunDir) {
    let Some(shim) = entry.shim().and_then(|shim| shim.open().ok().flatten()) else { return };
    tracing::warn!(entry = %entry.path().display(), "ending a task that an earlier plugin started and Nomad never knew");
    match sys::pidfd::signal(shim.as_fd(), libc::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => tracing::error!(%errno, "kill the shim of a task that Nomad never knew"),
    }
    let gone = poll(&mut [PollFd::new(shim.as_fd(), PollFlags::POLLIN)], PollTimeout::from(KILL_LIMIT));
    if gone != Ok(1) {
        tracing::error!(entry = %entry.path().display(), "the shim of a task that Nomad never knew is still there");
    }
}

/// The start was begun by a plugin that is gone, and not finished.
fn abandoned(entry: &RunDir) -> bool {
    entry.starting().is_some_and(|plugin| matches!(plugin.open(), Ok(None)))
}

/// No shim of it is left.
fn ended(entry: &RunDir) -> bool {
    entry.shim().is_none_or(|shim| matches!(shim.open(), Ok(None)))
}

fn old(entry: &RunDir) -> bool {
    entry.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > KEEP_ENDED)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, FileTimes};
    use std::process::{Child, Command};
    use std::time::SystemTime;

    use super::*;
    use crate::task::identity::Identity;

    /// A process that stands for a shim, or for a plugin.
    struct Stand(Child);

    impl Stand {
        fn new() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().unwrap())
        }

        fn identity(&self) -> Identity {
            Identity::of(self.0.id() as i32).unwrap()
        }

        fn end(&mut self) -> Identity {
            let identity = self.identity();
            self.0.kill().unwrap();
            self.0.wait().unwrap();
            identity
        }

        fn runs(&mut self) -> bool {
            self.0.try_wait().unwrap().is_none()
        }
    }

    impl Drop for Stand {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn entry(base: &Path, id: &str, shim: &Identity) -> RunDir {
        let entry = RunDir::of(base, id);
        entry.create().unwrap();
        entry.record_shim(shim).unwrap();
        entry
    }

    /// As if another plugin, now gone, had begun the start.
    fn begun_by(entry: &RunDir, plugin: Identity) {
        let mark = entry.path().join("starting");
        fs::write(mark, serde_json::to_vec(&plugin).unwrap()).unwrap();
    }

    #[test]
    fn only_what_nobody_can_ask_for_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("run");
        let gone = Stand::new().end();
        let (mut orphan, mut known, mut ours) = (Stand::new(), Stand::new(), Stand::new());
        let orphaned = entry(&base, "a/orphan/1", &orphan.identity());
        begun_by(&orphaned, gone);
        let running = entry(&base, "a/known/1", &known.identity());
        running.started().unwrap();
        // Still being started, by a plugin that lives: this one.
        let starting = entry(&base, "a/ours/1", &ours.identity());
        let recent = entry(&base, "a/recent/1", &gone);
        recent.started().unwrap();
        let ancient = entry(&base, "a/ancient/1", &gone);
        ancient.started().unwrap();
        let file = fs::File::options().write(true).open(ancient.path().join("exit")).unwrap();
        file.set_times(FileTimes::new().set_modified(SystemTime::now() - 2 * KEEP_ENDED)).unwrap();

        // The test is the parent of the stands: reap what is killed, as init would.
        let reaper = std::thread::spawn(move || {
            orphan.0.wait().unwrap();
        });
        sweep(&base);
        reaper.join().unwrap();

        assert!(!orphaned.path().exists());
        assert!(!ancient.path().exists());
        assert!(running.path().exists() && starting.path().exists() && recent.path().exists());
        assert!(known.runs() && ours.runs());
    }

    #[test]
    fn nothing_to_sweep_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        sweep(&dir.path().join("missing"));
    }
}
