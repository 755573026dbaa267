//! Resolves a job's `user` to uid, gid, groups and home.
//!
//! There are four forms: a name, a uid that the host's user database has, `uid:gid`, and Nomad's dynamic `nomad-N`. uid 0 has
//! one spelling, `root`, so that a reviewer of a job notices it; every other spelling of it is refused.

mod files;
mod getent;
mod nsswitch;
mod range;
mod system;

use std::collections::BTreeSet;
use std::path::PathBuf;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

pub(crate) use range::{DynamicRange, IdRanges};
pub(crate) use system::System;

/// The only name that may have uid 0.
const ROOT: &str = "root";

/// Prefix of Nomad's dynamic workload users.
const DYNAMIC_PREFIX: &str = "nomad-";

/// Highest dynamic id that Nomad can assign: it keeps them in 31 bits.
const DYNAMIC_MAX: u32 = i32::MAX as u32;

/// Uid and gid of a shim whose task runs: reserved for shims, and refused for tasks, so that the kernel lets no task, root
/// included, act on a shim by user id (prlimit(2), sched_setaffinity(2), setpriority(2), kill(2)). The highest id there is;
/// 4294967295 means "leave as it is" to setresuid(2).
pub(crate) const SHIM_ID: u32 = u32::MAX - 1;

/// Highest uid or gid of a task.
pub(crate) const ID_MAX: u32 = SHIM_ID - 1;

/// Longest name that is looked up, in bytes. useradd(8) allows at most 256.
const NAME_MAX: usize = 256;

/// Highest number of groups of a process (NGROUPS_MAX of limits.h; setgroups(2)).
const GROUPS_MAX: usize = 65_536;

/// A user that a task can run as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// For the USER variable: the name in the database, or what the job wrote if there is none.
    #[serde(default)]
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// All groups that the database gives the user, as set by initgroups(3); none for dynamic users and `uid:gid`.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// The home in the database, always absolute; it may not exist. None: the user has no home.
    #[serde(default, with = "crate::os_path::option")]
    pub home: Option<PathBuf>,
    /// Whether the user is in the database. Two jobs may name the same uid otherwise.
    #[serde(default)]
    pub known: bool,
}

impl User {
    /// A user that is not in the database: it has no home and no groups.
    pub(crate) fn unknown(name: impl Into<String>, uid: u32, gid: u32) -> Self {
        Self { name: name.into(), uid, gid, groups: Vec::new(), home: None, known: false }
    }
}

/// The relevant fields of a line of the host's user database (passwd(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
}

/// The host's user database.
pub(crate) trait Database {
    fn by_name(&self, name: &str) -> Result<Option<Entry>, LookupError>;
    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, LookupError>;
    /// The gids of the groups that have this user as a member, in any order.
    fn memberships(&self, user: &str) -> Result<Vec<u32>, LookupError>;
}

/// Failed to query the user database.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("failed to read {path}: {error}")]
    File { path: &'static str, error: std::io::Error },
    #[error("failed to run {program}: {errno}")]
    Spawn { program: &'static str, errno: Errno },
    #[error("{program} did not respond within {seconds} s")]
    Timeout { program: &'static str, seconds: u64 },
    #[error("{program} failed ({status})")]
    Failed { program: &'static str, status: std::process::ExitStatus },
    #[error("{program} returned {line:?}, which is not in the format of its database")]
    Answer { program: &'static str, line: String },
}

/// Why a `user` is not accepted. Every message says what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    #[error(
        "the task's user must be set: write user = \"NAME\" in the task, or let Nomad assign a dynamic user (the default if the client's users block allows it)"
    )]
    Empty,
    #[error("user {user:?} {why}: write a user name, a uid, uid:gid in numbers, or leave it to Nomad")]
    Malformed { user: String, why: &'static str },
    #[error(
        "user {user:?} is another spelling of uid 0: write user = \"root\" if the task really has to run as root"
    )]
    RootAlias { user: String },
    #[error("user {user:?} has gid 0, which is root's: write the gid of another group")]
    RootGroup { user: String },
    #[error("user {user:?} is not known on this host: create it, or write uid:gid in numbers")]
    NotFound { user: String },
    #[error("uid {uid} is not in this host's user database: write \"{uid}:GID\" to set its group")]
    UidNotFound { uid: u32 },
    #[error("user {user:?} is in {count} groups: a process can have {GROUPS_MAX}")]
    TooManyGroups { user: String, count: usize },
    #[error(
        "user {user:?} is a dynamic user of Nomad, but uid {uid} belongs to {owner:?} on this host: write user = {owner:?}, or move the client's users block (dynamic_user_min, dynamic_user_max) and the plugin option dynamic_user_range to a free range"
    )]
    Taken { user: String, uid: u32, owner: String },
    #[error("failed to look up user {user:?}: {source}")]
    Lookup { user: String, source: LookupError },
}

impl UserError {
    /// Whether only a change to the job can fix it. Other errors may disappear without one (a user is created, a directory
    /// service comes back, another task ends), so the start may be retried.
    pub(crate) fn is_job_fault(&self) -> bool {
        matches!(
            self,
            UserError::Empty
                | UserError::Malformed { .. }
                | UserError::RootAlias { .. }
                | UserError::RootGroup { .. }
        )
    }
}

/// Looks `user` up on this host. May run `getent` and wait for some seconds: do not call it on a thread of the async runtime.
pub fn lookup(user: &str) -> Result<User, UserError> {
    lookup_in(&System, user)
}

/// The uid that Nomad's dynamic `nomad-N` means; none for a user of another form. Does not ask the host.
pub(crate) fn dynamic_id(user: &str) -> Result<Option<u32>, UserError> {
    match parse(user)? {
        Spec::Dynamic(id) => Ok(Some(id)),
        Spec::Name(_) | Spec::Uid(_) | Spec::UidGid(..) => Ok(None),
    }
}

/// Like [`lookup`], in the given database.
pub(crate) fn lookup_in(database: &impl Database, user: &str) -> Result<User, UserError> {
    let failed = |source| UserError::Lookup { user: user.to_owned(), source };
    let by_uid = |uid| database.by_uid(uid).map_err(failed);
    let named = |entry| accept(user, entry).and_then(|user| with_groups(database, user));
    match parse(user)? {
        Spec::Name(name) => {
            let entry = database.by_name(name).map_err(failed)?;
            named(entry.ok_or_else(|| UserError::NotFound { user: user.to_owned() })?)
        }
        Spec::Uid(uid) => named(by_uid(uid)?.ok_or(UserError::UidNotFound { uid })?),
        // The job names the group, so those of the database are not added.
        Spec::UidGid(uid, gid) => match by_uid(uid)? {
            Some(entry) => accept(user, Entry { gid, ..entry }),
            None => Ok(User::unknown(uid.to_string(), uid, gid)),
        },
        Spec::Dynamic(id) => match by_uid(id)? {
            Some(entry) => Err(UserError::Taken { user: user.to_owned(), uid: id, owner: entry.name }),
            None => Ok(User::unknown(user, id, id)),
        },
    }
}

/// The `user` of the job, before the host is queried.
#[derive(Debug, PartialEq, Eq)]
enum Spec<'a> {
    Name(&'a str),
    Uid(u32),
    UidGid(u32, u32),
    Dynamic(u32),
}

fn parse(user: &str) -> Result<Spec<'_>, UserError> {
    let malformed = |why| UserError::Malformed { user: user.to_owned(), why };
    if user.is_empty() {
        return Err(UserError::Empty);
    }
    if user.len() > NAME_MAX {
        return Err(malformed("is too long"));
    }
    if user.starts_with(['-', '+']) {
        return Err(malformed("begins with a sign"));
    }
    if user.contains(|c: char| c.is_control() || c.is_whitespace() || c == '/') {
        return Err(malformed("contains a blank, a slash or a control character"));
    }
    let root_alias = || UserError::RootAlias { user: user.to_owned() };
    if let Some((uid, gid)) = user.split_once(':') {
        let not_numbers = "has a colon, but is not uid:gid in plain decimal numbers up to 4294967293";
        // Checks the number before its spelling: "00:0" is another spelling of uid 0.
        if is_zero(uid) {
            return Err(root_alias());
        }
        let (Some(uid), Some(gid)) = (number(uid, ID_MAX), number(gid, ID_MAX)) else {
            return Err(malformed(not_numbers));
        };
        if gid == 0 {
            return Err(UserError::RootGroup { user: user.to_owned() });
        }
        return Ok(Spec::UidGid(uid, gid));
    }
    if is_zero(user) {
        return Err(root_alias());
    }
    if user.bytes().all(|b| b.is_ascii_digit()) {
        let too_big = "is not a plain decimal uid up to 4294967293";
        return number(user, ID_MAX).map(Spec::Uid).ok_or_else(|| malformed(too_big));
    }
    if let Some(id) = user.strip_prefix(DYNAMIC_PREFIX) {
        let digits = id.trim_start_matches(['+', '-']);
        if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            if is_zero(digits) {
                return Err(root_alias());
            }
            let bad = "is not a dynamic user of Nomad (nomad-N, N a plain decimal number up to 2147483647)";
            return number(id, DYNAMIC_MAX).map(Spec::Dynamic).ok_or_else(|| malformed(bad));
        }
    }
    Ok(Spec::Name(user))
}

/// Zero in any number of digits.
fn is_zero(s: &str) -> bool {
    !s.is_empty() && s.bytes().all(|b| b == b'0')
}

/// A number in its only canonical decimal spelling.
fn number(s: &str, max: u32) -> Option<u32> {
    let plain = s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
    plain.then(|| s.parse().ok()).flatten().filter(|n| *n <= max)
}

/// Checks the response of the database. `user` is what the job wrote, which decides about uid 0: a directory service may match
/// names case-insensitively. A gid 0 from the database is accepted: the operator wrote it.
fn accept(user: &str, entry: Entry) -> Result<User, UserError> {
    if entry.uid == 0 && user != ROOT {
        return Err(UserError::RootAlias { user: user.to_owned() });
    }
    let plain = |home: &str| home.starts_with('/') && !home.contains(char::is_control);
    // HOME cannot name another one.
    let usable = |home: &PathBuf| home.to_str().is_some_and(plain);
    Ok(User {
        name: entry.name,
        uid: entry.uid,
        gid: entry.gid,
        groups: Vec::new(),
        home: Some(entry.home).filter(usable),
        known: true,
    })
}

/// Adds the groups like initgroups(3): the primary one, then those that list the user, each once.
fn with_groups(database: &impl Database, mut user: User) -> Result<User, UserError> {
    let failed = |source| UserError::Lookup { user: user.name.clone(), source };
    let others: BTreeSet<u32> = database.memberships(&user.name).map_err(failed)?.into_iter().collect();
    user.groups =
        std::iter::once(user.gid).chain(others.into_iter().filter(|gid| *gid != user.gid)).collect();
    match user.groups.len() {
        0..=GROUPS_MAX => Ok(user),
        count => Err(UserError::TooManyGroups { user: user.name, count }),
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests;
