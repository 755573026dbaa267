//! From the `user` of a job to uid, gid and home.
//!
//! Four forms: a name, a uid that the host's user database knows, `uid:gid`, and Nomad's dynamic `nomad-N`. uid 0 has
//! one spelling, `root`, so that whoever reviews a job sees it; everything else that would end there is refused.

mod getent;

use std::path::PathBuf;

use nix::errno::Errno;

pub use getent::System;

/// Home of a user without one: dynamic users (Nomad and systemd use the same path) and a bare `uid:gid`.
pub const NO_HOME: &str = "/nonexistent";

/// The one name that may have uid 0.
const ROOT: &str = "root";

/// Prefix of Nomad's dynamic workload users.
const DYNAMIC_PREFIX: &str = "nomad-";

/// Highest dynamic id that Nomad can hand out: it keeps them in 31 bits.
const DYNAMIC_MAX: u32 = i32::MAX as u32;

/// Highest uid or gid: the one above it means "leave as it is" to setresuid(2).
const ID_MAX: u32 = u32::MAX - 1;

/// Longest name that is looked up, bytes. useradd(8) stops at 256.
const NAME_MAX: usize = 256;

/// A user that a task can run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// For the USER variable: the name in the database, or what the job wrote where there is none.
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// For the HOME variable; always absolute, need not exist.
    pub home: PathBuf,
}

/// A line of the host's user database (passwd(5)), as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
}

/// The host's user database.
pub trait Database {
    fn by_name(&self, name: &str) -> Result<Option<Entry>, LookupError>;
    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, LookupError>;
}

/// The user database could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("getpwnam_r or getpwuid_r: {0}")]
    Passwd(Errno),
    #[error("cannot run {program}: {errno}")]
    Spawn { program: &'static str, errno: Errno },
    #[error("{program} gave no answer within {seconds} s")]
    Timeout { program: &'static str, seconds: u64 },
    #[error("{program} failed ({status})")]
    Failed { program: &'static str, status: std::process::ExitStatus },
    #[error("{program} answered {line:?}, which is no line of passwd(5)")]
    Answer { program: &'static str, line: String },
}

/// Why a `user` is not accepted. Every message says what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    #[error(
        "the task's user must be set: write user = \"NAME\" in the task, or let Nomad assign a dynamic user (it does so by itself when the client's users block allows)"
    )]
    Empty,
    #[error("user {user:?} {why}: write a user name, a uid, uid:gid in numbers, or leave it to Nomad")]
    Malformed { user: String, why: &'static str },
    #[error(
        "user {user:?} is another way to say uid 0: write user = \"root\" if the task really has to run as root"
    )]
    RootAlias { user: String },
    #[error("user {user:?} is not known on this host: create it, or write uid:gid in numbers")]
    NotFound { user: String },
    #[error("uid {uid} is not in this host's user database: write \"{uid}:GID\" to say which group it has")]
    UidNotFound { uid: u32 },
    #[error("user {user:?} has {what} {id}, which the kernel reserves: give it another one")]
    Reserved { user: String, what: &'static str, id: u32 },
    #[error(
        "user {user:?} is a dynamic user of Nomad, but uid {uid} belongs to {owner:?} on this host: write user = {owner:?}, or move the client's users block (dynamic_user_min, dynamic_user_max) to a free range"
    )]
    Taken { user: String, uid: u32, owner: String },
    #[error("cannot look up user {user:?}: {source}")]
    Lookup { user: String, source: LookupError },
}

impl UserError {
    /// Whether only another job could mend it. The others may vanish without a change to the job (a user is created, a
    /// directory service comes back), so the start is worth another try.
    pub fn is_job_fault(&self) -> bool {
        matches!(self, UserError::Empty | UserError::Malformed { .. } | UserError::RootAlias { .. })
    }
}

/// Looks `user` up on this host. May run `getent` and wait for it some seconds: not for a thread of the async runtime.
pub fn lookup(user: &str) -> Result<User, UserError> {
    lookup_in(&System, user)
}

/// As [`lookup`], in the given database.
pub fn lookup_in(database: &impl Database, user: &str) -> Result<User, UserError> {
    let failed = |source| UserError::Lookup { user: user.to_owned(), source };
    let by_uid = |uid| database.by_uid(uid).map_err(failed);
    match parse(user)? {
        Spec::Name(name) => {
            let entry = database.by_name(name).map_err(failed)?;
            accept(user, entry.ok_or_else(|| UserError::NotFound { user: user.to_owned() })?)
        }
        Spec::Uid(uid) => accept(user, by_uid(uid)?.ok_or(UserError::UidNotFound { uid })?),
        Spec::UidGid(uid, gid) => match by_uid(uid)? {
            Some(entry) => accept(user, Entry { gid, ..entry }),
            None => Ok(User { name: uid.to_string(), uid, gid, home: NO_HOME.into() }),
        },
        Spec::Dynamic(id) => match by_uid(id)? {
            Some(entry) => Err(UserError::Taken { user: user.to_owned(), uid: id, owner: entry.name }),
            None => Ok(User { name: user.to_owned(), uid: id, gid: id, home: NO_HOME.into() }),
        },
    }
}

/// What the job wrote, before the host is asked.
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
        return Err(malformed("has a blank, a slash or a control character in it"));
    }
    let root_alias = || UserError::RootAlias { user: user.to_owned() };
    if let Some((uid, gid)) = user.split_once(':') {
        let not_numbers = "has a colon, but is not uid:gid in plain decimal numbers up to 4294967294";
        // "0" before its spelling: "00:0" is the alias that it looks like.
        if is_zero(uid) {
            return Err(root_alias());
        }
        let (Some(uid), Some(gid)) = (number(uid, ID_MAX), number(gid, ID_MAX)) else {
            return Err(malformed(not_numbers));
        };
        return Ok(Spec::UidGid(uid, gid));
    }
    if is_zero(user) {
        return Err(root_alias());
    }
    if user.bytes().all(|b| b.is_ascii_digit()) {
        let too_big = "is not a plain decimal uid up to 4294967294";
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

/// A number in the one spelling that decimal has for it.
fn number(s: &str, max: u32) -> Option<u32> {
    let plain = s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
    plain.then(|| s.parse().ok()).flatten().filter(|n| *n <= max)
}

/// The checks on what the database answered. `user` is what the job wrote, which decides about uid 0: a directory service
/// may match names without regard to case.
fn accept(user: &str, entry: Entry) -> Result<User, UserError> {
    if entry.uid == 0 && user != ROOT {
        return Err(UserError::RootAlias { user: user.to_owned() });
    }
    for (what, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > ID_MAX {
            return Err(UserError::Reserved { user: user.to_owned(), what, id });
        }
    }
    let home = if entry.home.is_absolute() { entry.home } else { NO_HOME.into() };
    Ok(User { name: entry.name, uid: entry.uid, gid: entry.gid, home })
}

#[cfg(test)]
mod tests;
