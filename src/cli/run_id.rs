//! Identifies the `run` that created a run directory or a cgroup: the name holds the pid and start time of the process, so that
//! leftovers of a killed `run` can be told from what a live one uses.

use std::path::Path;

use super::say;
use crate::record::identity::Identity;
use crate::record::reconcile;
use crate::record::run_dir::{self, RunDir};

/// The process of one `run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunId(Identity);

impl RunId {
    /// This process.
    pub(super) fn own() -> std::io::Result<Self> {
        Identity::of(std::process::id().cast_signed()).map(Self)
    }

    /// Parses a name; none for any other name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (pid, start_time) = name.strip_prefix("run-")?.split_once('-')?;
        let id = Self(Identity { pid: pid.parse().ok()?, start_time: start_time.parse().ok()? });
        (id.to_string() == name).then_some(id)
    }

    /// A number that differs between concurrent `run`s.
    pub(super) fn seed(self) -> u32 {
        self.0.pid.unsigned_abs()
    }

    /// Whether the process has ended. False if that is unknown.
    pub(super) fn has_ended(self) -> bool {
        matches!(self.0.open(), Ok(None))
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "run-{}-{}", self.0.pid, self.0.start_time)
    }
}

/// Ends the tasks of killed `run`s, which normally end with their `run`, and removes their run directories.
pub(super) fn sweep(base: &Path) {
    // If the directory cannot be listed, the task start fails with a better message.
    for entry in run_dir::entries(base).unwrap_or_default() {
        let path = entry.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.and_then(RunId::parse).is_some_and(RunId::has_ended) {
            forget(&entry);
        }
    }
}

fn forget(entry: &RunDir) {
    let removed = reconcile::end_earlier(entry).map_err(|error| error.to_string());
    if let Err(error) = removed.and_then(|()| entry.remove().map_err(|error| error.to_string())) {
        let path = entry.path();
        say(&format!("nomad-driver-exec2: failed to clean up {path:?} of a killed run: {error}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{FakeProcess, entry};

    #[test]
    fn a_name_is_read_back_and_other_names_are_not() {
        let own = RunId::own().unwrap();
        assert_eq!(RunId::parse(&own.to_string()), Some(own));
        assert!(!own.has_ended());
        for name in ["run-1", "run-1-", "run--1-2", "run-01-2", "run-1-2.scope", "run-1-2-3", "a.web.1", ""] {
            assert_eq!(RunId::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_sweep_ends_the_task_of_a_dead_run_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("run");
        let dead = RunId(FakeProcess::new().end());
        // The same pid with another start time: a reused PID.
        let own = RunId::own().unwrap();
        let reused = RunId(Identity { start_time: own.0.start_time + 1, ..own.0 });
        let mut shims = [(); 4].map(|()| FakeProcess::new());
        let names = [dead.to_string(), reused.to_string(), own.to_string(), "a/web/1".to_owned()];
        let entries: Vec<RunDir> =
            names.iter().zip(&shims).map(|(name, shim)| entry(&base, name, shim.identity)).collect();
        sweep(&base);
        let exists: Vec<bool> = entries.iter().map(|entry| entry.path().exists()).collect();
        assert_eq!(exists, [false, false, true, true]);
        assert_eq!(shims.each_mut().map(FakeProcess::runs), [false, false, true, true]);
    }
}
