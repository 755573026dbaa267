//! A directory that looks like a cgroup to a reader, for tests without root.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Cgroup, Mount};

pub(super) struct TempTree {
    dir: tempfile::TempDir,
    mount: Arc<Mount>,
}

impl TempTree {
    pub(super) fn new() -> TempTree {
        let dir = tempfile::tempdir().unwrap();
        let mount = Arc::new(Mount::unchecked(dir.path()).unwrap());
        TempTree { dir, mount }
    }

    pub(super) fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    pub(super) fn dir(&self, path: &str) {
        std::fs::create_dir_all(self.dir.path().join(path)).unwrap();
    }

    pub(super) fn file(&self, path: &str, content: &str) {
        std::fs::write(self.dir.path().join(path), content).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        std::fs::remove_file(self.dir.path().join(path)).unwrap();
    }

    pub(super) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(path)).unwrap()
    }
}

/// The files that Linux 6.12 shows in a task's cgroup, as far as this module touches them.
const TASK_FILES: [(&str, &str); 17] = [
    ("cgroup.type", "domain\n"),
    ("cgroup.controllers", "cpuset cpu io memory pids\n"),
    ("cgroup.events", "populated 1\nfrozen 0\n"),
    ("cgroup.kill", ""),
    ("cpu.weight", "100\n"),
    ("cpu.max", "max 100000\n"),
    (
        "cpu.stat",
        "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnice_usec 0\nnr_periods 20\n\
         nr_throttled 3\nthrottled_usec 40000\nnr_bursts 0\nburst_usec 0\n",
    ),
    ("cpuset.cpus", "\n"),
    ("pids.max", "max\n"),
    ("memory.max", "max\n"),
    ("memory.swap.max", "max\n"),
    ("memory.low", "0\n"),
    ("memory.oom.group", "0\n"),
    ("memory.current", "8388608\n"),
    ("memory.peak", "16777216\n"),
    ("memory.stat", "anon 4194304\nfile 2097152\nkernel 1048576\nkernel_stack 65536\nsock 0\n"),
    ("memory.events", "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n"),
];

/// A cgroup with [`TASK_FILES`] (no `memory.swap.current`: a kernel without swap accounting).
pub(super) fn task_cgroup(tree: &TempTree, path: &str) -> Cgroup {
    tree.dir(path);
    for (name, content) in TASK_FILES {
        tree.file(&format!("{path}/{name}"), content);
    }
    Cgroup::open_in(tree.mount(), &tree.root().join(path)).unwrap()
}
