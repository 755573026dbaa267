//! The limits of open files for the plugin and for its tasks, and what other limits the plugin itself has.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::sandbox::rlimits::{self, Value};

/// The kernel's default of fs.nr_open.
const NR_OPEN_DEFAULT: u64 = 1024 * 1024;

/// The soft limit that the plugin was started with.
static AT_START: OnceLock<u64> = OnceLock::new();

/// Raises the plugin's soft limit to the hard one: systemd starts services with 1024, too few for a host with many tasks
/// that start at once. Programs that use select(2) need the low one, so tasks do not inherit this.
pub fn raise() -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    AT_START.get_or_init(|| soft);
    if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
}

/// The plugin's own hard limit, by its name in `ulimit`.
pub(crate) fn hard_limit(name: &str) -> Value {
    let limit = rlimits::resource(name).and_then(|resource| getrlimit(resource).ok());
    limit.map_or(Value(0), |(_, hard)| Value(hard))
}

/// The highest hard limit that the kernel takes, proc_sys_fs(5).
pub(crate) fn most() -> u64 {
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    most.unwrap_or(NR_OPEN_DEFAULT)
}

/// The soft limit for a task; none if the plugin's was not changed.
pub(crate) fn for_tasks() -> Option<u64> {
    AT_START.get().copied()
}
