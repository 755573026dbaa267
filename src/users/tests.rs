use std::path::Path;

use proptest::prelude::*;

use super::*;

/// A database from the text of passwd(5). `broken` stands for a directory service that is down.
struct Text {
    entries: Vec<Entry>,
    broken: bool,
}

const PASSWD: [(&str, u32, u32, &str); 7] = [
    ("root", 0, 0, "/root"),
    ("toor", 0, 0, "/root"),
    ("ann", 1000, 1000, "/home/ann"),
    ("rel", 1001, 1001, "home/rel"),
    ("evil", 1002, u32::MAX, "/"),
    ("nobody", 65534, 65534, "/nonexistent"),
    ("CORP\\eve", 300_000, 300_001, "/home/eve"),
];

fn database() -> Text {
    let entries = PASSWD
        .iter()
        .map(|(name, uid, gid, home)| Entry {
            name: (*name).to_owned(),
            uid: *uid,
            gid: *gid,
            home: PathBuf::from(home),
        })
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
    // Like a directory service that does not care about case.
    fn by_name(&self, name: &str) -> Result<Option<Entry>, LookupError> {
        self.find(|e| e.name.eq_ignore_ascii_case(name))
    }
    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, LookupError> {
        self.find(|e| e.uid == uid)
    }
}

fn user(s: &str) -> Result<User, UserError> {
    lookup_in(&database(), s)
}

fn is(s: &str, name: &str, uid: u32, gid: u32, home: &str) {
    let want = User { name: name.to_owned(), uid, gid, home: PathBuf::from(home) };
    assert_eq!(user(s).unwrap(), want, "{s}");
}

#[test]
fn every_form() {
    is("ann", "ann", 1000, 1000, "/home/ann");
    is("root", "root", 0, 0, "/root");
    is("nobody", "nobody", 65534, 65534, "/nonexistent");
    is("CORP\\eve", "CORP\\eve", 300_000, 300_001, "/home/eve");
    is("1000", "ann", 1000, 1000, "/home/ann");
    is("1000:7", "ann", 1000, 7, "/home/ann");
    is("4294967294:4294967294", "4294967294", ID_MAX, ID_MAX, NO_HOME);
    is("555:0", "555", 555, 0, NO_HOME);
    is("nomad-80001", "nomad-80001", 80001, 80001, NO_HOME);
    is("nomad-2147483647", "nomad-2147483647", 2_147_483_647, 2_147_483_647, NO_HOME);
    // A home that is not absolute would be taken below whatever directory the task is in.
    is("rel", "rel", 1001, 1001, NO_HOME);
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
    // Not of the dynamic form: names like any other.
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
fn the_id_that_means_no_change_is_refused() {
    let e = user("evil").unwrap_err();
    assert!(matches!(e, UserError::Reserved { what: "gid", .. }), "{e}");
    // With a group of its own it is an ordinary user.
    assert_eq!(user("1002:1002").unwrap().gid, 1002);
}

#[test]
fn a_database_that_is_down_refuses_and_is_worth_another_try() {
    let down = Text { broken: true, ..database() };
    for s in ["bob", "4242", "4242:1", "nomad-80001"] {
        let e = lookup_in(&down, s).unwrap_err();
        assert!(matches!(e, UserError::Lookup { .. }) && !e.is_job_fault(), "{s}: {e}");
        assert!(e.to_string().contains("within 5 s"), "{e}");
    }
    assert_eq!(lookup_in(&down, "ann").unwrap().uid, 1000);
}

#[test]
fn on_this_host() {
    let root = lookup("root").unwrap();
    assert_eq!((root.uid, root.home.is_absolute()), (0, true));
    assert!(matches!(lookup("no-such-user-of-exec2"), Err(UserError::NotFound { .. })));
    assert!(lookup("0").is_err());
    assert_eq!(lookup("nomad-2147483646").unwrap().home, Path::new(NO_HOME));
}

proptest! {
    #[test]
    fn only_root_is_uid_0(s in "(nomad-)?[-+0-9:]{0,12}|[ -~]{0,12}|(?i)root|(?i)toor|\\PC{0,8}") {
        if let Ok(user) = user(&s) {
            prop_assert!(user.uid != 0 || s == "root", "{s}");
            prop_assert!(user.uid <= ID_MAX && user.gid <= ID_MAX && user.home.is_absolute());
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
