//! The cgroup of one `run`: created for it and always removed after it.

use std::path::Path;

use anyhow::bail;

use super::run_id::RunId;
use super::say;
use crate::cgroup::{Cgroup, MOUNT_POINT, MissingController};

/// The parent of the cgroups of `run`. They are not in Nomad's slice, which the agent manages.
const SLICE: &str = "nomad-driver-exec2.slice";

/// Suffix of the cgroup's name.
const SUFFIX: &str = ".scope";

/// The cgroup; none if cgroup v2 is not available.
#[derive(Debug)]
pub(super) struct OwnCgroup(Option<Cgroup>);

impl OwnCgroup {
    /// Creates the cgroup. The controllers in `asked` are needed for a limit, so a missing one is an error. Other missing
    /// controllers are reported, and the task runs without them.
    pub(super) fn new(id: RunId, asked: &[&str]) -> anyhow::Result<Self> {
        let path = Path::new(MOUNT_POINT).join(SLICE).join(format!("{id}{SUFFIX}"));
        let created = match Cgroup::create(&path) {
            Ok(created) => created,
            Err(error) => {
                remove_slice();
                if !asked.is_empty() {
                    bail!("failed to set the {} limit: {error}", asked.join(" and "));
                }
                say(&format!(
                    "nomad-driver-exec2: running without a cgroup, so memory and CPU are not limited: {error}\n"
                ));
                return Ok(Self(None));
            }
        };
        let this = Self(Some(created.cgroup));
        for MissingController { name, why } in created.missing {
            if asked.contains(&name) {
                bail!("failed to set the {name} limit: {why}");
            }
            say(&format!(
                "nomad-driver-exec2: running without the controller {name}, so without its limits: {why}\n"
            ));
        }
        Ok(this)
    }

    pub(super) fn get(&self) -> Option<&Cgroup> {
        self.0.as_ref()
    }

    /// Whether the OOM killer acted because the cgroup reached its own limit.
    pub(super) fn reached_its_limit(&self) -> bool {
        self.get().and_then(|cgroup| cgroup.oom().ok().flatten()).is_some_and(|counts| counts.oom > 0)
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let Some(cgroup) = self.0.take() else { return };
        if let Err(error) = cgroup.remove() {
            say(&format!("nomad-driver-exec2: {error}\n"));
        }
        remove_slice();
    }
}

/// Removes the empty cgroups of killed `run`s. A cgroup that still has processes is left for the next sweep.
pub(super) fn sweep() {
    let slice = Path::new(MOUNT_POINT).join(SLICE);
    let Ok(entries) = std::fs::read_dir(&slice) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(RunId::parse);
        if !owner.is_some_and(RunId::has_ended) {
            continue;
        }
        if let Ok(cgroup) = Cgroup::open(&entry.path())
            && matches!(cgroup.populated(), Ok(false))
            && let Err(error) = cgroup.remove()
        {
            say(&format!("nomad-driver-exec2: {error}\n"));
        }
    }
}

/// Removes the slice with its last cgroup. This fails if another `run` uses it.
fn remove_slice() {
    let _ = std::fs::remove_dir(Path::new(MOUNT_POINT).join(SLICE));
}
