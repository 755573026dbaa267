//! Which system calls a task may make: the groups that are refused, and which of them a task may use all the same.
//!
//! Every system call that this driver knows is allowed, except for those of the groups in [`table`]. All others, those of a newer
//! kernel and those of another architecture (32-bit and x32 programs), answer ENOSYS, as on a kernel without them, so that programs
//! fall back. [`program`] makes the filter of it: seccomp(2).

/// A system call by its constant.
macro_rules! call {
    ($constant:ident) => {
        Call::new(stringify!($constant), $constant)
    };
}

pub(crate) mod program;
pub(crate) mod shim;
mod table;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::capabilities::{CapSet, Capability};
use crate::quote::quote;
pub(crate) use program::Program;
pub(crate) use table::{GROUPS, TCP_VARIANTS};

/// System calls that are refused for the same reason.
#[derive(Debug)]
pub(crate) struct Group {
    /// As options name it.
    pub name: &'static str,
    /// Why a task may not use it, in one line.
    pub why: &'static str,
    /// A task with this capability may use the group: it has no other purpose.
    pub opened_by: Option<Capability>,
    pub calls: &'static [Call],
}

/// A system call, or a use of it, that is refused; in [`shim`], one of which all other uses are allowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// `SYS_mount`.
    #[cfg_attr(not(test), expect(dead_code, reason = "only the documentation has it"))]
    constant: &'static str,
    number: libc::c_long,
    /// Refused if all of these hold.
    when: &'static [When],
    errno: i32,
}

impl Call {
    const fn new(constant: &'static str, number: libc::c_long) -> Self {
        Self { constant, number, when: &[], errno: libc::EPERM }
    }

    const fn when(self, when: &'static [When]) -> Self {
        Self { when, ..self }
    }

    const fn errno(self, errno: i32) -> Self {
        Self { errno, ..self }
    }

    #[cfg(test)]
    fn name(&self) -> &'static str {
        self.constant.trim_start_matches("SYS_")
    }
}

/// A condition on an argument, by its number. Only the lower 32 bits are compared: all these arguments are ints for the kernel, which
/// ignores the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Is(usize, u32),
    IsNot(usize, u32),
    /// It has any of these bits.
    Any(usize, u32),
    /// Of the bits of the first number, exactly those of the second.
    Has(usize, u32, u32),
}

/// A set of groups. Bit n is number n of [`GROUPS`].
///
/// Serialized as a list of names. Names that this version does not know are ignored: it refuses what they stand for in any case.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct GroupSet(u64);

impl GroupSet {
    /// No group.
    pub const EMPTY: Self = Self(0);

    /// The group with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        GROUPS.iter().position(|group| group.name == name).map(|at| Self(1 << at))
    }

    /// The groups that a task with these capabilities may use.
    fn opened_by(capabilities: CapSet) -> Self {
        let opened = |group: &Group| group.opened_by.is_some_and(|cap| capabilities.contains(cap));
        let bits = GROUPS.iter().enumerate().filter(|(_, group)| opened(group)).map(|(at, _)| 1 << at);
        Self(bits.sum())
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) fn names(self) -> Vec<&'static str> {
        let has = |at: &usize| self.0 & 1 << at != 0;
        (0..GROUPS.len()).filter(has).map(|at| GROUPS[at].name).collect()
    }

    /// The groups of the table that are not in this set.
    fn others(self) -> impl Iterator<Item = &'static Group> {
        GROUPS.iter().enumerate().filter(move |(at, _)| self.0 & 1 << at == 0).map(|(_, group)| group)
    }
}

impl FromIterator<Self> for GroupSet {
    fn from_iter<I: IntoIterator<Item = Self>>(sets: I) -> Self {
        sets.into_iter().fold(Self::EMPTY, Self::union)
    }
}

impl fmt::Display for GroupSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

impl fmt::Debug for GroupSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupSet({self})")
    }
}

impl From<Vec<String>> for GroupSet {
    fn from(names: Vec<String>) -> Self {
        names.iter().filter_map(|name| Self::named(name)).collect()
    }
}

impl From<GroupSet> for Vec<String> {
    fn from(set: GroupSet) -> Self {
        set.names().into_iter().map(str::to_owned).collect()
    }
}

/// The filter of a task, as a job or an operator names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// All but those of some groups.
    Default,
    /// All.
    Unconfined,
}

/// What the operator lets jobs ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowed {
    pub groups: GroupSet,
    /// A job may have no filter, and so any group.
    pub unconfined: bool,
}

/// The groups by which a task makes files that outlive it and give more than its own files do.
const MAKING_FILES: [&str; 3] = ["device_nodes", "io_uring", "set_id"];

/// The name in `allow_seccomp` that allows a job to have no filter.
pub(crate) const UNCONFINED: &str = "unconfined";

impl Allowed {
    pub(crate) const EVERYTHING: Self = Self { groups: GroupSet::EMPTY, unconfined: true };

    /// Whether no job can make set-id files and device nodes, itself or by operations that no filter sees.
    pub(crate) fn keeps_files_plain(self) -> bool {
        let making: GroupSet = MAKING_FILES.into_iter().filter_map(GroupSet::named).collect();
        !self.unconfined && self.groups.difference(making) == self.groups
    }

    /// As a list of HCL, with these groups in addition.
    pub(crate) fn hcl(self, more: GroupSet) -> String {
        let mut names = self.groups.union(more).names();
        names.extend(self.unconfined.then_some(UNCONFINED));
        format!("[{}]", names.into_iter().map(quote).collect::<Vec<_>>().join(", "))
    }
}

/// The filter of a task, in its plan.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// None. Tasks of builds that had no filter have it.
    #[default]
    Unconfined,
    /// The groups that are not refused.
    Default { allow: GroupSet },
}

impl Filter {
    /// The default filter for a task that may use these groups, has these capabilities, and may have limits on the ports of TCP.
    pub(crate) fn new(allow: GroupSet, capabilities: CapSet, limits_tcp: bool) -> Self {
        let variants = if limits_tcp { None } else { GroupSet::named(TCP_VARIANTS) };
        let allow = allow.union(GroupSet::opened_by(capabilities));
        Self::Default { allow: allow.union(variants.unwrap_or_default()) }
    }

    /// As the kernel takes it; none = no filter.
    pub(crate) fn program(&self) -> Option<Program> {
        match self {
            Self::Unconfined => None,
            Self::Default { allow } => Some(Program::new(*allow)),
        }
    }
}

#[cfg(test)]
mod tests;
