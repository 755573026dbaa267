//! The mount namespace of the task.

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use super::Result;
use crate::sandbox::plan::{HidePid, Namespace};
use crate::sandbox::root::RootRule;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;
use crate::sys;

pub(super) const PROC: &str = "/proc";

/// Whether the task's own /proc becomes read-only before its command runs: unless somebody has unveiled a file of it for writing.
///
/// An entry that is not about a process, such as /proc/meminfo, has one owner and one mode on the whole host. Root could change them for everybody
/// (chmod(2), which Landlock does not cover), and so could CAP_FOWNER and CAP_CHOWN.
pub(crate) fn seals_proc(spec: &ShimSpec, rules: &[RootRule]) -> bool {
    let writable = |rule: &RootRule| rule.access.write() || rule.access.create();
    spec.is_privileged() && !rules.iter().any(|rule| writable(rule) && rule.path.starts_with(PROC))
}

/// In the task, after the last write of this driver there.
pub(crate) fn seal_proc() -> Result<()> {
    open(PROC, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(sys::mount::make_read_only)
        .map_err(|errno| Failure::new(Step::Mount, PROC, errno))
}

/// The shim was cloned into a mount namespace of its own. New mounts of the host still
/// appear in it (autofs, volumes), but its mounts do not appear on the host; /proc shows the new PID namespace.
pub(crate) fn separate_mounts(spec: &ShimSpec) -> Result<()> {
    let own = &spec.plan.namespaces.own;
    if !own.contains(&Namespace::Mount) || !own.contains(&Namespace::Pid) {
        // The calls below would change the host's mounts.
        return Err(Failure::text(Step::Mount, "/", "the plan has no own mount and PID namespaces".into()));
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|errno| Failure::new(Step::Mount, "/ (slave)", errno))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let hidepid = format!("hidepid={}", spec.plan.proc_hidepid.name());
    let options = (spec.plan.proc_hidepid != HidePid::Off).then_some(hidepid.as_str());
    mount(Some("proc"), "/proc", Some("proc"), flags, options)
        .map_err(|errno| Failure::new(Step::Mount, "/proc", errno))?;
    // No task may keep the plugin's working directory busy.
    std::env::set_current_dir("/").map_err(|error| Failure::io(Step::Mount, "/", &error))
}
