//! The processes of tests that need no task.

use std::path::Path;
use std::process::{Child, Command};

use super::identity::Identity;
use super::key::Key;
use super::run_dir::RunDir;

/// A process in place of a shim, the first process of a task, or a plugin.
pub(crate) struct FakeProcess {
    child: Child,
    pub(crate) identity: Identity,
}

impl FakeProcess {
    pub(crate) fn new() -> Self {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = Identity::of(child.id() as i32).unwrap();
        Self { child, identity }
    }

    /// Without reaping it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Kills and reaps it.
    pub(crate) fn end(&mut self) -> Identity {
        self.kill();
        self.child.wait().unwrap();
        self.identity
    }

    /// False once it is killed, even if nothing else has reaped it.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for FakeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The entry of a task with this shim, as during its start.
pub(crate) fn entry(base: &Path, id: &str, shim: Identity) -> RunDir {
    let entry = RunDir::of(base, Key::new(id).unwrap());
    entry.create().unwrap();
    entry.record_shim(&shim).unwrap();
    entry
}
