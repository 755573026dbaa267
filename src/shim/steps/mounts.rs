//! The mount namespace of the task.

use nix::mount::{MsFlags, mount};

use super::Result;
use crate::sandbox::plan::{HidePid, Namespace};
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;

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
