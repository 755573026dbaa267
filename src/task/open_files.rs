//! The limits of open files for the plugin and for its tasks.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft limit that the plugin was started with.
static AT_START: OnceLock<u64> = OnceLock::new();

/// Raises the plugin's soft limit to the hard one: systemd starts services with 1024, too few for a host with many tasks
/// that start at once. Programs that use select(2) need the low one, so tasks do not inherit this.
pub fn raise() -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    AT_START.get_or_init(|| soft);
    if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
}

/// The soft limit for a task; none if the plugin's was not changed.
pub(crate) fn for_tasks() -> Option<u64> {
    AT_START.get().copied()
}
