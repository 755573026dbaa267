use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;

/// A database with the users of [`PASSWD`] and the groups of [`GROUPS`]. `broken` simulates a directory service that is down.
struct Text {
    entries: Vec<Entry>,
    broken: bool,
}

const PASSWD: [(&str, u32, u32, &str); 10] = [
    ("root", 0, 0, "/root"),
    ("toor", 0, 0, "/root"),
    ("ann", 1000, 1000, "/home/ann"),
    ("rel", 1001, 1001, "home/rel"),
    ("evil", 1002, u32::MAX, "/"),
    ("nobody", 65534, 65534, "/nonexistent"),
    ("CORP\\eve", 300_000, 300_001, "/home/eve"),
    ("operator", 1003, 0, "/root"),
    ("crowd", 1004, 1004, "/home/\u{7}"),
    ("shim", 4_294_967_294, 1, "/"),
];

/// Members of groups, as listed by /etc/group and a directory service together.
const GROUPS: [(&str, &[u32]); 4] =
    [("ann", &[44, 27, 44, 1000]), ("root", &[0, 6]), ("operator", &[5, 0]), ("evil", &[1])];

fn odd_home() -> Entry {
    let home = OsStr::from_bytes(b"/home/\xff").into();
    Entry { name: "odd".into(), uid: 1005, gid: 1005, home }
}

fn database() -> Text {
    let entries = PASSWD
        .iter()
        .map(|(name, uid, gid, home)| Entry {
            name: (*name).to_owned(),
            uid: *uid,
            gid: *gid,
            home: PathBuf::from(home),
        })
        .chain([odd_home()])
        .collect();
    Text { entries, broken: false }
}

impl Text {
    fn find(&self, matches: impl Fn(&&Entry) -> bool) -> Result<Option<Entry>, LookupError> {
        match self.entries.iter().find(matches) {
            None if self.broken => Err(LookupError::Timeout { program: "/usr/bin/getent", seconds: 5 }),
            found => Ok(found.cloned()),
        }
    }
}

impl Database for Text {
    // Like a case-insensitive directory service.
    fn by_name(&self, name: &str) -> Result<Option<Entry>, LookupError> {
        self.find(|e| e.name.eq_ignore_ascii_case(name))
    }
    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, LookupError> {
        self.find(|e| e.uid == uid)
    }
    fn memberships(&self, user: &str) -> Result<Vec<u32>, LookupError> {
        if self.broken {
            return Err(LookupError::Timeout { program: "/usr/bin/getent", seconds: 5 });
        }
        if user == "crowd" {
            return Ok((2000..2000 + GROUPS_MAX as u32).collect());
        }
        let listed = GROUPS.iter().find(|(name, _)| *name == user);
        Ok(listed.map(|(_, gids)| gids.to_vec()).unwrap_or_default())
    }
}

fn user(s: &str) -> Result<User, UserError> {
    lookup_in(&database(), s)
}

/// `home` is that of a user of the database; none is for one that is not in the database.
fn is(s: &str, name: &str, uid: u32, gid: u32, home: Option<&str>) {
    let got = user(s).unwrap();
    assert_eq!((got.name.as_str(), got.uid, got.gid), (name, uid, gid), "{s}");
    assert_eq!(got.home.as_deref(), home.map(Path::new), "{s}");
    assert_eq!(got.known, home.is_some() || name == "rel", "{s}");
}

#[test]
fn every_form() {
    is("ann", "ann", 1000, 1000, Some("/home/ann"));
    is("root", "root", 0, 0, Some("/root"));
    is("nobody", "nobody", 65534, 65534, Some("/nonexistent"));
    is("CORP\\eve", "CORP\\eve", 300_000, 300_001, Some("/home/eve"));
    is("1000", "ann", 1000, 1000, Some("/home/ann"));
    is("1000:7", "ann", 1000, 7, Some("/home/ann"));
    is("4294967293:4294967293", "4294967293", ID_MAX, ID_MAX, None);
    is("nomad-80001", "nomad-80001", 80001, 80001, None);
    is("nomad-2147483647", "nomad-2147483647", 2_147_483_647, 2_147_483_647, None);
    // A relative home would depend on the task's current directory.
    is("rel", "rel", 1001, 1001, None);
    // HOME could not name it.
    assert_eq!(lookup_in(&database(), "odd").unwrap().home, None);
}

#[test]
fn a_named_user_has_the_groups_of_the_database() {
    let groups = |s| user(s).unwrap().groups;
    assert_eq!(groups("ann"), [1000, 27, 44], "the primary one first, each once");
    assert_eq!(groups("1000"), [1000, 27, 44]);
    assert_eq!(groups("rel"), [1001]);
    assert_eq!(groups("root"), [0, 6]);
    // Written into the database by the operator.
    assert_eq!(groups("operator"), [0, 5]);
    for none in ["nomad-80001", "4242:7", "1000:7"] {
        assert!(groups(none).is_empty(), "{none}");
    }
    let refused = matches!(user("crowd"), Err(UserError::TooManyGroups { count: 65_537, .. }));
    assert!(refused, "more than a process can have");
}

#[test]
fn group_0_is_not_the_jobs_to_ask_for() {
    for written in ["555:0", "1000:0", "4294967293:0"] {
        let error = user(written).unwrap_err();
        assert!(matches!(error, UserError::RootGroup { .. }) && error.is_job_fault(), "{written}: {error}");
    }
    assert_eq!(user("555:1").unwrap().gid, 1);
}

#[test]
fn only_a_dynamic_user_has_a_dynamic_id() {
    assert_eq!(dynamic_id("nomad-80001").unwrap(), Some(80_001));
    for other in ["root", "nomad", "nomad-x", "80001", "80001:80001"] {
        assert_eq!(dynamic_id(other).unwrap(), None, "{other}");
    }
    assert!(dynamic_id("nomad-0").is_err() && dynamic_id("").is_err());
}

#[test]
fn empty_says_that_user_must_be_set() {
    let e = user("").unwrap_err();
    assert!(e.to_string().contains("user must be set"), "{e}");
    assert!(e.is_job_fault());
}

#[test]
fn uid_0_has_one_name() {
    for alias in [
        "0",
        "00",
        "0000000000000",
        "0:0",
        "0:1000",
        "00:0",
        "0:x",
        "toor",
        "TOOR",
        "ROOT",
        "Root",
        "nomad-0",
        "nomad-00",
        "nomad-+0",
        "nomad--0",
    ] {
        let e = user(alias).unwrap_err();
        assert!(matches!(e, UserError::RootAlias { .. }), "{alias}: {e}");
        assert!(e.to_string().contains("user = \"root\"") && e.is_job_fault(), "{e}");
    }
}

#[test]
fn malformed() {
    for bad in [
        "-ann",
        "--",
        "+",
        "+ann",
        "-1",
        " ann",
        "ann ",
        "a b",
        "a\nb",
        "a\0b",
        "a/b",
        "007",
        "01",
        "4294967294",
        "4294967295",
        "4294967296",
        "99999999999999999999",
        "ann:users",
        "ann:1000",
        "1000:users",
        "1000:",
        ":1000",
        ":",
        "1:2:3",
        "01:1",
        "1:01",
        "1:-1",
        "1:4294967294",
        "4294967294:1",
        "1:4294967295",
        "4294967295:1",
        "nomad-01",
        "nomad-+5",
        "nomad--5",
        "nomad-2147483648",
        "nomad-4294967295",
        "nomad-99999999999999999999",
        "nomad-１2x y",
    ] {
        let e = user(bad).unwrap_err();
        assert!(matches!(e, UserError::Malformed { .. }), "{bad:?}: {e}");
        assert!(e.is_job_fault());
    }
    assert!(matches!(user(&"a".repeat(257)), Err(UserError::Malformed { .. })));
    assert!(matches!(user(&"a".repeat(256)), Err(UserError::NotFound { .. })));
}

#[test]
fn unknown_users() {
    // Names that only resemble the dynamic form.
    for name in ["bob", "nomad", "nomad-", "nomad-x", "nomad-1a", "xnomad-1", "0x0", "nomad-٣"] {
        let e = user(name).unwrap_err();
        assert!(matches!(e, UserError::NotFound { .. }), "{name}: {e}");
        assert!(!e.is_job_fault());
    }
    let e = user("4242").unwrap_err().to_string();
    assert!(e.contains("\"4242:GID\""), "{e}");
}

#[test]
fn a_dynamic_id_of_a_real_user_is_refused() {
    let e = user("nomad-1000").unwrap_err();
    assert!(matches!(&e, UserError::Taken { owner, .. } if owner == "ann"), "{e}");
    assert!(e.to_string().contains("dynamic_user_min"), "{e}");
}

#[test]
fn a_database_that_is_down_is_a_recoverable_error() {
    let down = Text { broken: true, ..database() };
    for s in ["bob", "4242", "4242:1", "nomad-80001"] {
        let e = lookup_in(&down, s).unwrap_err();
        assert!(matches!(e, UserError::Lookup { .. }) && !e.is_job_fault(), "{s}: {e}");
        assert!(e.to_string().contains("within 5 s"), "{e}");
    }
    // Without its groups the task would not be the one that was requested.
    assert!(matches!(lookup_in(&down, "ann"), Err(UserError::Lookup { .. })));
    assert_eq!(lookup_in(&down, "1000:7").unwrap().uid, 1000);
}

#[test]
fn on_this_host() {
    let root = lookup("root").unwrap();
    assert_eq!((root.uid, root.home.is_some(), root.groups.first()), (0, true, Some(&0)));
    assert!(matches!(lookup("no-such-user-of-exec2"), Err(UserError::NotFound { .. })));
    assert!(lookup("0").is_err());
    assert_eq!(lookup("nomad-2147483646").unwrap().home, None);
}

proptest! {
    #[test]
    fn only_root_is_uid_0(s in "(nomad-)?[-+0-9:]{0,12}|[ -~]{0,12}|(?i)root|(?i)toor|\\PC{0,8}") {
        if let Ok(user) = user(&s) {
            prop_assert!(user.uid != 0 || s == "root", "{s}");
            prop_assert!(user.home.is_none_or(|home| home.is_absolute()));
        }
    }

    #[test]
    fn dynamic_users_are_their_number(n in 1u32..=i32::MAX as u32) {
        prop_assume!(!PASSWD.iter().any(|p| p.1 == n));
        let user = user(&format!("nomad-{n}")).unwrap();
        prop_assert_eq!((user.uid, user.gid), (n, n));
    }

    #[test]
    fn no_name_reaches_getent_as_an_option(s in "[-+].{0,20}") {
        prop_assert!(user(&s).is_err());
    }
}
