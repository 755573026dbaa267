//! The capabilities of a task.

use super::{Ask, Denied, Policy};
use crate::sandbox::capabilities::{AllowedCaps, CapSet, Capability};
use crate::sandbox::seccomp::Profile;

/// Those that neither change nor reach anything of the host: binding ports below 1024, and signals to the task's own processes of
/// another user (its PID namespace has no others).
const HARMLESS: CapSet = CapSet::of(&[Capability::KILL, Capability::NET_BIND_SERVICE]);

/// The Go driver's 13 less `mknod` and `setfcap`, which make what outlives the task: device nodes, and files that give capabilities to users
/// of the host.
const COMPATIBLE: CapSet = CapSet::of(&[
    Capability::AUDIT_WRITE,
    Capability::CHOWN,
    Capability::DAC_OVERRIDE,
    Capability::FOWNER,
    Capability::FSETID,
    Capability::KILL,
    Capability::NET_BIND_SERVICE,
    Capability::SETGID,
    Capability::SETPCAP,
    Capability::SETUID,
    Capability::SYS_CHROOT,
]);

impl Policy<'_> {
    /// What jobs may request.
    pub(crate) fn allowed_caps(&self) -> CapSet {
        let AllowedCaps { named, default } = self.allow_caps;
        match default {
            false => named,
            true if self.leaves_users_to_jobs() => named.union(COMPATIBLE),
            true => named.union(HARMLESS),
        }
    }

    /// Whether a task gains nothing from being able to act as other users: a job may have any user anyway; what the task can name is in
    /// a root of its own, since Landlock does not cover chown(2) and chmod(2); and it can leave no set-id file and no device node to
    /// users of the host.
    fn leaves_users_to_jobs(&self) -> bool {
        let any_user = self.allow_root && self.denied_uids.are_nobodys() && self.denied_gids.are_nobodys();
        let filtered = self.seccomp == Profile::Default && self.allow_seccomp.keeps_files_plain();
        any_user && self.own_root && filtered
    }

    /// Whether the owner of a task's directory identifies the task's user. If jobs may have CAP_CHOWN, a task could have given its
    /// directory to the user of another task.
    pub(crate) fn trusts_owner(&self) -> bool {
        !self.allowed_caps().contains(Capability::CHOWN)
    }

    /// Whether the user that this driver recorded at a task's directory is that of the task: only CAP_SYS_ADMIN can change the record
    /// (xattr(7), "trusted").
    pub(crate) fn trusts_record(&self) -> bool {
        !self.allowed_caps().contains(Capability::SYS_ADMIN)
    }

    /// `cap_add` less `cap_drop`, for every user. Root gets no others, so that a job shows what its task can do.
    ///
    /// A name in `cap_drop` always takes that member away. `all` in `cap_drop` takes away only what `cap_add`
    /// did not name, so that `cap_drop = ["all"]`, `cap_add = ["chown"]` leaves `chown`. `all` in `cap_add` means all that the
    /// plugin has; one that it names must be there.
    pub(super) fn capabilities(&self, ask: &Ask<'_>, own: CapSet) -> Result<CapSet, Denied> {
        let added = if ask.cap_drop.all { ask.cap_add.named } else { ask.cap_add.set() };
        let wanted = added.difference(ask.cap_drop.named);
        let allowed = self.allowed_caps();
        let refused = wanted.difference(allowed);
        if !refused.is_empty() {
            return Err(Denied::Capability { refused, allowed, written: self.allow_caps });
        }
        let lacking = wanted.intersection(ask.cap_add.named).difference(own);
        if !lacking.is_empty() {
            return Err(Denied::LackingCapability { lacking });
        }
        Ok(wanted.intersection(own))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{policy, set};
    use super::*;
    use crate::sandbox::seccomp::{Allowed, GroupSet};
    use crate::users::IdRanges;

    #[test]
    fn the_default_has_the_go_drivers_where_a_job_may_be_any_user() {
        let nobody: IdRanges = "65534".parse().unwrap();
        let open = Policy {
            own_root: true,
            allow_caps: AllowedCaps::DEFAULT,
            allow_root: true,
            denied_uids: &nobody,
            denied_gids: &nobody,
            ..policy()
        };
        let names = open.allowed_caps().names().join(" ");
        assert_eq!(
            names,
            "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service sys_chroot audit_write"
        );
        assert!(!open.trusts_owner() && open.trusts_record());
        let group = |name| Allowed { groups: GroupSet::named(name).unwrap(), unconfined: false };
        assert_eq!(Policy { allow_seccomp: group("perf"), ..open }.allowed_caps(), open.allowed_caps());
        let system: IdRanges = "0-999,65534".parse().unwrap();
        for (why, policy) in [
            ("root = host", Policy { own_root: false, ..open }),
            ("allow_root = false", Policy { allow_root: false, ..open }),
            ("denied_host_uids", Policy { denied_uids: &system, ..open }),
            ("denied_host_gids", Policy { denied_gids: &system, ..open }),
            ("seccomp = unconfined", Policy { seccomp: Profile::Unconfined, ..open }),
            ("allow_seccomp unconfined", Policy { allow_seccomp: Allowed::EVERYTHING, ..open }),
            ("allow_seccomp set_id", Policy { allow_seccomp: group("set_id"), ..open }),
            ("allow_seccomp io_uring", Policy { allow_seccomp: group("io_uring"), ..open }),
            ("allow_seccomp device_nodes", Policy { allow_seccomp: group("device_nodes"), ..open }),
        ] {
            assert_eq!(policy.allowed_caps().names(), ["kill", "net_bind_service"], "{why}");
            assert!(policy.trusts_owner(), "{why}");
            let set = set(&["net_raw"]);
            assert_eq!(
                Policy { allow_caps: AllowedCaps::only(set), ..policy }.allowed_caps(),
                set,
                "{why}: what is written counts"
            );
        }
    }

    #[test]
    fn a_record_is_trusted_unless_a_task_can_write_it() {
        for (allowed, owner, record) in
            [(&["kill"][..], true, true), (&["chown"], false, true), (&["sys_admin"], true, false)]
        {
            let policy = Policy { allow_caps: AllowedCaps::only(set(allowed)), ..policy() };
            assert_eq!((policy.trusts_owner(), policy.trusts_record()), (owner, record), "{allowed:?}");
        }
    }
}
