//! Any user of a job, in any user database.

use std::path::Path;

use super::nsswitch::Nsswitch;
use super::range::{DynamicRange, IdRanges};
use super::{Database, Entry, GROUPS_MAX, LookupError, files, getent, lookup_in};
use crate::fuzzing::parts;
use crate::task::user_files::user_files;

/// The contents of passwd, group and nsswitch.conf; what `getent` answers; the user and HOME of a job; ranges of ids.
pub fn users(input: &[u8]) {
    let [passwd, group, nsswitch, answer, user, home, range] = parts(input, 0x1e);
    let nsswitch = Nsswitch::of(String::from_utf8_lossy(nsswitch).into_owned());
    let _ = (nsswitch.users_of_service(), nsswitch.groups_of_service());
    let [user, home, range] = [user, home, range].map(String::from_utf8_lossy);
    ranges(&range);
    for uid in [None, Some(1000)] {
        if let Ok(entry) = getent::entry("getent", answer, uid) {
            assert!(uid.is_none_or(|uid| uid == entry.uid) && !entry.name.is_empty(), "{entry:?}");
        }
    }
    let _ = getent::gids("getent", answer, &user);
    match lookup_in(&Files { passwd, group }, &user) {
        Ok(found) => {
            assert!(found.uid != 0 || user == "root", "{user:?}");
            assert!(found.groups.len() <= GROUPS_MAX);
            assert!(found.home.as_deref().is_none_or(Path::is_absolute));
            for (name, content) in user_files(&found, &[format!("HOME={home}")]) {
                let fields = if name == "passwd" { 7 } else { 4 };
                assert!((2..=3).contains(&content.lines().count()), "{content:?}");
                for line in content.split_terminator('\n') {
                    assert!(
                        line.split(':').count() == fields && !line.starts_with(['+', '-', '#', ':']),
                        "{line:?}"
                    );
                }
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn ranges(text: &str) {
    if let Ok(ids) = text.parse::<IdRanges>() {
        assert_eq!(ids.to_string().parse::<IdRanges>().as_ref(), Ok(&ids), "{text:?}");
    }
    if let Ok(range) = text.parse::<DynamicRange>() {
        assert_eq!(range.to_string().parse::<DynamicRange>(), Ok(range), "{text:?}");
        assert!(!range.contains(0), "{text:?}");
    }
}

struct Files<'a> {
    passwd: &'a [u8],
    group: &'a [u8],
}

impl Database for Files<'_> {
    fn by_name(&self, name: &str) -> Result<Option<Entry>, LookupError> {
        Ok(files::by_name(self.passwd, name))
    }

    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, LookupError> {
        Ok(files::by_uid(self.passwd, uid))
    }

    fn memberships(&self, user: &str) -> Result<Vec<u32>, LookupError> {
        Ok(files::memberships(self.group, user))
    }
}
