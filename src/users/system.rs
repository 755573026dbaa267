//! The host's own user database: /etc/passwd and /etc/group, and `getent` for other sources.

use super::nsswitch::Nsswitch;
use super::{Database, Entry, LookupError, files, getent};

/// The database of this host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct System;

impl Database for System {
    fn by_name(&self, name: &str) -> Result<Option<Entry>, LookupError> {
        match files::by_name(&files::read(files::PASSWD)?, name) {
            None => getent::user(name, None),
            found => Ok(found),
        }
    }

    /// Runs `getent` only if nsswitch.conf names a source other than the files: every start of a dynamic user calls this, and
    /// one more process would be noticeable.
    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, LookupError> {
        match files::by_uid(&files::read(files::PASSWD)?, uid) {
            None if Nsswitch::read().users_of_service() => getent::user(&uid.to_string(), Some(uid)),
            found => Ok(found),
        }
    }

    /// A user who is not in the file comes from a service, which is then queried for the groups as well.
    fn memberships(&self, user: &str) -> Result<Vec<u32>, LookupError> {
        let mut gids = files::memberships(&files::read(files::GROUP)?, user);
        let of_service = || Ok(files::by_name(&files::read(files::PASSWD)?, user).is_none());
        if Nsswitch::read().groups_of_service() || of_service()? {
            gids.extend(getent::groups(user)?);
        }
        Ok(gids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_knows_root() {
        assert_eq!(System.by_name("root").unwrap().unwrap().uid, 0);
        assert_eq!(System.by_uid(0).unwrap().unwrap().name, "root");
        assert_eq!(System.by_name("no-such-user-of-exec2").unwrap(), None);
        System.memberships("root").unwrap();
    }
}
