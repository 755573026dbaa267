//! Ids and capabilities, of the task and of the shim.

use nix::errno::Errno;
use nix::sys::prctl;

use super::Result;
use crate::sandbox::capabilities::CapSet;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;
use crate::sys;
use crate::users::SHIM_ID;

/// Bounding set of root, groups, gid, uid, then exactly the capabilities that were granted.
pub(crate) fn become_user(spec: &ShimSpec) -> Result<()> {
    let (user, granted) = (&spec.user, spec.plan.capabilities);
    let caps = |errno| Failure::new(Step::Capabilities, granted.to_string(), errno);
    let failed = |errno| Failure::new(Step::User, format!("{}:{}", user.uid, user.gid), errno);
    // For other users no_new_privs suppresses file capabilities. A smaller bounding set would only make the kernel refuse
    // programs that have them, capabilities(7), "capability-dumb binaries".
    if user.uid == 0 {
        limit_bounding(granted)?;
    }
    sys::ids::set_groups(&user.groups).map_err(failed)?;
    sys::ids::set_gid(user.gid).map_err(failed)?;
    prctl::set_keepcaps(true).map_err(caps)?;
    sys::ids::set_uid(user.uid).map_err(failed)?;
    prctl::set_keepcaps(false).map_err(caps)?;
    sys::keyring::join_new_session().map_err(|errno| Failure::new(Step::Session, "the keyring", errno))?;
    let bits = granted.bits();
    sys::caps::set(sys::caps::Sets { effective: bits, permitted: bits, inheritable: bits }).map_err(caps)?;
    sys::caps::clear_ambient().map_err(caps)?;
    // Root's programs get the bounding set; those of other users need ambient capabilities.
    if user.uid != 0 {
        granted.iter().try_for_each(|cap| sys::caps::raise_ambient(cap.number())).map_err(caps)?;
    }
    Ok(())
}

/// A change of ids has made this process as open to others of its user as fs.suid_dumpable says, proc_sys_fs(5). Exec ends that.
pub(crate) fn hide() -> Result<()> {
    prctl::set_dumpable(false).map_err(|errno| Failure::new(Step::Session, "the task", errno))
}

/// In the shim, before the task's command runs: from here on it only waits. It keeps no privilege that a bug could abuse, and its
/// id is one that no task has.
pub(crate) fn drop_privileges() -> Result<()> {
    let caps = |errno| Failure::new(Step::Capabilities, "none", errno).with_note("of the shim");
    let user = |errno| Failure::new(Step::User, SHIM_ID.to_string(), errno).with_note("of the shim");
    limit_bounding(CapSet::EMPTY)?;
    sys::caps::clear_ambient().map_err(caps)?;
    sys::ids::set_groups(&[]).map_err(user)?;
    sys::ids::set_gid(SHIM_ID).map_err(user)?;
    sys::ids::set_uid(SHIM_ID).map_err(user)?;
    sys::caps::set(sys::caps::Sets::default()).map_err(caps)?;
    // The change of ids has set it to fs.suid_dumpable, proc_sys_fs(5).
    prctl::set_dumpable(false).map_err(user)?;
    prctl::set_no_new_privs().map_err(|errno| Failure::new(Step::NoNewPrivs, "the shim", errno))
}

fn limit_bounding(allowed: CapSet) -> Result<()> {
    // Every bit of a CapSet.
    for number in (0..64_u8).filter(|number| allowed.bits() >> number & 1 == 0) {
        match sys::caps::drop_from_bounding(number) {
            Ok(()) => {}
            // Higher than the kernel's last capability.
            Err(Errno::EINVAL) => break,
            Err(errno) => {
                return Err(Failure::new(
                    Step::Capabilities,
                    format!("bounding set without {number}"),
                    errno,
                ));
            }
        }
    }
    Ok(())
}
