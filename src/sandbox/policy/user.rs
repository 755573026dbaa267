//! The user of a task.

use super::{Denied, Policy};
use crate::users::{ID_MAX, User};

impl Policy<'_> {
    /// A job's dynamic user must be one that Nomad can have assigned.
    pub(crate) fn dynamic_user(&self, user: &str, uid: u32) -> Result<(), Denied> {
        let range = self.dynamic_user_range;
        if range.contains(uid) {
            return Ok(());
        }
        Err(Denied::DynamicUser { user: user.to_owned(), range })
    }

    pub(super) fn no_denied_id(&self, user: &User) -> Result<(), Denied> {
        if user.uid == 0 && !self.allow_root {
            return Err(Denied::Root);
        }
        let denied = |what, option, id| Denied::Id { user: user.name.clone(), what, option, id };
        if self.denied_uids.contains(user.uid) {
            return Err(denied("uid", "denied_host_uids", user.uid));
        }
        let mut gids = std::iter::once(&user.gid).chain(&user.groups);
        match gids.find(|gid| self.denied_gids.contains(**gid)) {
            Some(gid) => Err(denied("gid", "denied_host_gids", *gid)),
            None => Ok(()),
        }
    }
}

/// No task may have the id of the shims, or it could signal, trace and limit them.
pub(super) fn no_reserved_id(user: &User) -> Result<(), Denied> {
    let ids = [("uid", user.uid), ("gid", user.gid)];
    let groups = user.groups.iter().map(|gid| ("group", *gid));
    match ids.into_iter().chain(groups).find(|(_, id)| *id > ID_MAX) {
        Some((what, id)) => Err(Denied::ReservedId { user: user.name.clone(), what, id }),
        None => Ok(()),
    }
}

/// Whether another allocation may use the same uid: only an operator who lists the user in the database can intend that.
pub(crate) fn may_share_uid(user: &User) -> bool {
    user.known
}

#[cfg(test)]
mod tests {
    use super::super::Ask;
    use super::super::tests::{NO_IDS, host, policy, user};
    use super::*;
    use crate::users::IdRanges;

    #[test]
    fn no_task_has_the_id_of_the_shims_nor_one_above_it() {
        let judged = |user: User| policy().plan(&Ask::default(), &user, host());
        let with = |uid, gid, group| User { groups: vec![group], ..User::unknown("ann", uid, gid) };
        assert!(judged(with(ID_MAX, ID_MAX, ID_MAX)).is_ok());
        for id in [ID_MAX + 1, u32::MAX] {
            for (what, user) in [("uid", with(id, 1, 1)), ("gid", with(1, id, 1)), ("group", with(1, 1, id))]
            {
                let denied = judged(user).unwrap_err();
                assert_eq!(denied, Denied::ReservedId { user: "ann".into(), what, id });
                assert!(denied.may_change(), "the operator can change the user database");
            }
        }
    }

    #[test]
    fn a_job_has_only_dynamic_users_of_the_range() {
        let policy = policy();
        for inside in [80_000, 89_999] {
            assert_eq!(policy.dynamic_user(&format!("nomad-{inside}"), inside), Ok(()));
        }
        for outside in [1, 1000, 79_999, 90_000, 2_147_483_647] {
            let denied = policy.dynamic_user(&format!("nomad-{outside}"), outside).unwrap_err();
            let text = denied.to_string();
            assert!(text.contains("dynamic_user_range") && text.contains("dynamic_user_min"), "{text}");
            assert!(!denied.may_change(), "{text}");
        }
    }

    #[test]
    fn only_a_user_of_the_database_shares_its_uid() {
        assert!(!may_share_uid(&user()));
        assert!(may_share_uid(&User { known: true, ..user() }));
    }

    #[test]
    fn denied_ids_are_refused_by_number() {
        let ids: IdRanges = "100-999,65534".parse().unwrap();
        let ann = User { groups: vec![44], ..User::unknown("ann", 1000, 1001) };
        let judged = |policy: Policy<'_>, user: &User| policy.plan(&Ask::default(), user, host()).map(drop);
        let denied = Policy { denied_uids: &ids, denied_gids: &ids, ..policy() };
        assert_eq!(judged(denied, &ann), Ok(()));
        let no = |user: &User| judged(denied, user).unwrap_err().to_string();
        assert!(
            no(&User { uid: 65_534, ..ann.clone() })
                .contains("uid 65534, which the agent's plugin option denied_host_uids")
        );
        assert!(
            no(&User { gid: 100, ..ann.clone() })
                .contains("gid 100, which the agent's plugin option denied_host_gids")
        );
        assert!(no(&User { groups: vec![44, 999], ..ann.clone() }).contains("gid 999"));
        let only_uids = Policy { denied_gids: &NO_IDS, ..denied };
        assert_eq!(judged(only_uids, &User { gid: 100, ..ann.clone() }), Ok(()));

        let root = User::unknown("root", 0, 0);
        assert_eq!(judged(denied, &root), Ok(()));
        assert_eq!(judged(Policy { allow_root: false, ..denied }, &root), Err(Denied::Root));
        assert_eq!(judged(Policy { allow_root: false, ..denied }, &ann), Ok(()));
    }
}
