//! Linux capabilities: names, sets, and which of them a task gets. See capabilities(7).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::quote::quote;

/// One Linux capability, known by its number in `linux/capability.h`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capability(u8);

macro_rules! capabilities {
    ($($name:ident)*) => {
        capabilities!(@consts 0u8; $($name)*);

        /// The names in the order of their numbers, without the `CAP_` prefix.
        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
    (@consts $number:expr; $name:ident $($rest:ident)*) => {
        impl Capability {
            #[doc = concat!("`CAP_", stringify!($name), "`")]
            pub const $name: Self = Self($number);
        }
        capabilities!(@consts $number + 1u8; $($rest)*);
    };
    (@consts $number:expr;) => {};
}

// In the order of linux/capability.h: the position is the number. The last one came with Linux 5.9, older than
// any kernel that has Landlock.
capabilities! {
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
    SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
    AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
    PERFMON BPF CHECKPOINT_RESTORE
}

impl Capability {
    /// The number that the kernel uses.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The capability with this number, if this driver knows it.
    pub const fn from_number(number: u8) -> Option<Self> {
        if (number as usize) < NAMES.len() { Some(Self(number)) } else { None }
    }

    /// The name in capitals without prefix, `NET_BIND_SERVICE`.
    pub fn name(self) -> &'static str {
        NAMES[usize::from(self.0)]
    }

    /// Reads a name in any case, with or without `CAP_`. Fails with the unknown name.
    fn from_name(name: &str) -> Result<Self, UnknownCapability> {
        let plain = plain(name);
        (0u8..)
            .zip(NAMES)
            .find(|(_, known)| **known == plain)
            .map(|(number, _)| Self(number))
            .ok_or_else(|| UnknownCapability { name: name.to_owned(), closest: closest(&plain) })
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().to_ascii_lowercase())
    }
}

impl fmt::Debug for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CAP_{}", self.name())
    }
}

/// A set of capabilities. Bit n is capability number n, as in the kernel's own masks.
///
/// Serialized as a list of names; `all` stands for every capability when it is read.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct CapSet(u64);

impl CapSet {
    /// No capability.
    pub const EMPTY: Self = Self(0);
    /// Every capability that this driver knows.
    pub(crate) const fn of(members: &[Capability]) -> Self {
        let (mut bits, mut i) = (0, 0);
        while i < members.len() {
            bits |= 1 << members[i].0;
            i += 1;
        }
        Self(bits)
    }

    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// The set as the kernel's mask.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set of a kernel mask; bits without a known capability are dropped.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & Self::ALL.0)
    }

    /// Reads names in any case, with or without `CAP_`; `all` adds every capability.
    pub fn from_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self, UnknownCapability> {
        CapList::from_names(names).map(CapList::set)
    }

    /// The set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The number of members.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Has this member.
    pub const fn contains(self, cap: Capability) -> bool {
        self.0 & (1 << cap.0) != 0
    }

    /// The members of either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The members of both.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The members that `other` does not have.
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// `other` has every member.
    pub const fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// The members by number.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        (0u8..).take(NAMES.len()).map(Capability).filter(move |cap| self.contains(*cap))
    }

    /// The members as Nomad users write them, `net_bind_service`.
    pub fn names(self) -> Vec<String> {
        self.iter().map(|cap| cap.to_string()).collect()
    }
}

impl FromIterator<Capability> for CapSet {
    fn from_iter<I: IntoIterator<Item = Capability>>(caps: I) -> Self {
        caps.into_iter().fold(Self::EMPTY, |set, cap| Self(set.0 | 1 << cap.0))
    }
}

impl fmt::Display for CapSet {
    /// `net_bind_service, net_raw`; `none` and `all` for the two extremes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::EMPTY => f.write_str("none"),
            Self::ALL => f.write_str("all"),
            set => f.write_str(&set.names().join(", ")),
        }
    }
}

impl fmt::Debug for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapSet({self})")
    }
}

impl TryFrom<Vec<String>> for CapSet {
    type Error = UnknownCapability;

    fn try_from(names: Vec<String>) -> Result<Self, UnknownCapability> {
        Self::from_names(names)
    }
}

impl From<CapSet> for Vec<String> {
    fn from(set: CapSet) -> Self {
        set.names()
    }
}

/// A list of capabilities as written: the names, and whether `all` was among them.
///
/// The two are kept apart because `cap_drop = ["all"]` beside a named `cap_add` means "only these", as in
/// Nomad's other drivers, while a named `cap_drop` takes a member away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapList {
    /// The capabilities written by name.
    pub named: CapSet,
    /// The list has `all`.
    pub all: bool,
}

impl CapList {
    /// Reads names in any case, with or without `CAP_`, and `all`.
    pub fn from_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self, UnknownCapability> {
        names.into_iter().try_fold(Self::default(), |list, name| {
            let name = name.as_ref();
            if plain(name) == ALL_NAME {
                return Ok(Self { all: true, ..list });
            }
            let cap = Capability::from_name(name)?;
            Ok(Self { named: list.named.union(CapSet(1 << cap.0)), ..list })
        })
    }

    /// Every member, `all` expanded.
    pub const fn set(self) -> CapSet {
        if self.all { CapSet::ALL } else { self.named }
    }

    /// Nothing was written.
    pub const fn is_empty(self) -> bool {
        !self.all && self.named.is_empty()
    }
}

/// What an operator lets jobs request, as written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AllowedCaps {
    pub named: CapSet,
    /// The list has `default`: those that follow from the other options.
    pub default: bool,
}

/// The name in `allow_caps` of those that follow from the other options.
pub(crate) const DEFAULT_NAME: &str = "default";

impl AllowedCaps {
    pub(crate) const DEFAULT: Self = Self { named: CapSet::EMPTY, default: true };

    pub(crate) const fn only(named: CapSet) -> Self {
        Self { named, default: false }
    }

    /// As a list of HCL, with these capabilities in addition.
    pub(crate) fn hcl(self, more: CapSet) -> String {
        let named = self.named.union(more);
        let default = self.default && named != CapSet::ALL;
        let names = if named == CapSet::ALL { vec![ALL_NAME.to_ascii_lowercase()] } else { named.names() };
        let names: Vec<_> = default.then(|| DEFAULT_NAME.to_owned()).into_iter().chain(names).collect();
        format!("[{}]", names.iter().map(|name| quote(name)).collect::<Vec<_>>().join(", "))
    }
}

/// No capability has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}: unknown capability; write {}, with or without cap_, in any case; capabilities(7) lists them",
    quote(.name), suggestion(*.closest)
)]
pub struct UnknownCapability {
    /// The name as written.
    name: String,
    /// The capability that was probably meant.
    closest: Option<Capability>,
}

/// A set as a list of HCL.
pub(crate) fn hcl(set: CapSet) -> String {
    AllowedCaps::only(set).hcl(CapSet::EMPTY)
}

/// What a process with this /proc/PID/status can grant: capabilities in its permitted and bounding sets. All if
/// the file does not say: the kernel then refuses what is missing.
pub(crate) fn own(status: &str) -> CapSet {
    let line =
        |name| status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(name)?.trim(), 16).ok());
    let bits = ["CapPrm:", "CapBnd:"].map(|name| line(name).unwrap_or(u64::MAX));
    CapSet::from_bits(bits[0] & bits[1])
}

/// The name for all capabilities, as [`plain`] returns it.
const ALL_NAME: &str = "ALL";

/// A prefix of at least this length identifies a name.
const PREFIX_BYTES_MIN: usize = 4;

/// With more typing errors than this it is another word.
const SLIPS_MAX: usize = 3;

/// The name in capitals, without surrounding blanks and `CAP_`. Nomad's other drivers accept the same forms.
fn plain(name: &str) -> String {
    let name = name.trim().to_ascii_uppercase();
    match name.strip_prefix("CAP_") {
        Some(rest) => rest.to_owned(),
        None => name,
    }
}

/// The capability that was probably meant: the only one with this prefix, else the one with the fewest typing errors.
fn closest(plain: &str) -> Option<Capability> {
    // Limits the work: a longer text cannot be close enough.
    if plain.len() > NAMES.iter().map(|name| name.len()).max()? + SLIPS_MAX {
        return None;
    }
    let begins = |cap: &Capability| plain.len() >= PREFIX_BYTES_MIN && cap.name().starts_with(plain);
    let mut longer = CapSet::ALL.iter().filter(begins);
    if let (Some(cap), None) = (longer.next(), longer.next()) {
        return Some(cap);
    }
    CapSet::ALL
        .iter()
        .map(|cap| (strsim::damerau_levenshtein(plain, cap.name()), cap))
        .filter(|(slips, cap)| *slips <= SLIPS_MAX.min(cap.name().len() / 3))
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, cap)| cap)
}

fn suggestion(closest: Option<Capability>) -> String {
    match closest {
        Some(cap) => format!("\"{cap}\" if that was meant, or another name"),
        None => "a name such as \"net_bind_service\", or \"all\"".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(names: &[&str]) -> CapSet {
        CapSet::from_names(names).unwrap()
    }

    #[test]
    fn numbers_are_those_of_the_kernel_header() {
        for (cap, number) in [
            (Capability::CHOWN, 0),
            (Capability::KILL, 5),
            (Capability::NET_BIND_SERVICE, 10),
            (Capability::SYS_ADMIN, 21),
            (Capability::MKNOD, 27),
            (Capability::SETFCAP, 31),
            (Capability::SYSLOG, 34),
            (Capability::AUDIT_READ, 37),
            (Capability::PERFMON, 38),
            (Capability::BPF, 39),
            (Capability::CHECKPOINT_RESTORE, 40),
        ] {
            assert_eq!(cap.number(), number, "{cap:?}");
            assert_eq!(Capability::from_number(number), Some(cap));
        }
        assert_eq!(Capability::from_number(41), None);
        assert_eq!(CapSet::ALL.bits(), 0x1ff_ffff_ffff);
        assert_eq!(CapSet::ALL.len(), 41);
        assert_eq!(CapSet::from_bits(u64::MAX), CapSet::ALL);
    }

    #[test]
    fn names_in_every_style() {
        for name in [
            "net_bind_service",
            "NET_BIND_SERVICE",
            "CAP_NET_BIND_SERVICE",
            "cap_net_bind_service",
            "Cap_Net_Bind_Service",
            " net_bind_service\n",
        ] {
            assert_eq!(set(&[name]).bits(), 1 << 10, "{name}");
        }
        for name in ["all", "ALL", "cap_all"] {
            assert_eq!(set(&[name, "chown"]), CapSet::ALL);
        }
        assert_eq!(set(&["net_raw", "chown", "net_raw"]).to_string(), "chown, net_raw");
        assert_eq!(CapSet::EMPTY.to_string(), "none");
        assert_eq!(CapSet::ALL.to_string(), "all");
    }

    #[test]
    fn unknown_names_are_named_with_the_closest() {
        let closest = |name: &str| match CapSet::from_names([name]) {
            Err(UnknownCapability { closest, .. }) => closest,
            other => panic!("{other:?}"),
        };
        assert_eq!(closest("net_bind"), Some(Capability::NET_BIND_SERVICE));
        assert_eq!(closest("net_"), None);
        assert_eq!(closest("net_rwa"), Some(Capability::NET_RAW));
        assert_eq!(closest("klil"), Some(Capability::KILL));
        assert_eq!(closest("root"), None);
        assert_eq!(closest("net_bind_services"), Some(Capability::NET_BIND_SERVICE));
        assert_eq!(closest("CAP_NETBINDSERVICE"), Some(Capability::NET_BIND_SERVICE));
        assert_eq!(closest("sys-admin"), Some(Capability::SYS_ADMIN));
        assert_eq!(closest("sysptrace"), Some(Capability::SYS_PTRACE));
        assert_eq!(closest("bfp"), Some(Capability::BPF));
        assert_eq!(closest(""), None);
        assert_eq!(closest(&"x".repeat(1 << 20)), None);
        assert_eq!(
            CapSet::from_names(["netraw"]).unwrap_err().to_string(),
            "\"netraw\": unknown capability; write \"net_raw\" if that was meant, or another name, with or without \
             cap_, in any case; capabilities(7) lists them"
        );
    }

    #[test]
    fn set_operations() {
        let (a, b) = (set(&["chown", "kill"]), set(&["kill", "bpf"]));
        assert_eq!(a.union(b), set(&["chown", "kill", "bpf"]));
        assert_eq!(a.difference(b), set(&["chown"]));
        assert_eq!(a.intersection(b), set(&["kill"]));
        assert!(set(&["kill"]).is_subset(a) && !a.is_subset(b) && CapSet::EMPTY.is_subset(a));
        assert_eq!(a.iter().collect::<Vec<_>>(), [Capability::CHOWN, Capability::KILL]);
        assert_eq!(a.iter().collect::<CapSet>(), a);
    }

    #[test]
    fn own_capabilities_are_permitted_and_in_the_bounding_set() {
        assert_eq!(
            own("CapPrm:\t0000000000000403\nCapEff:\t0\nCapBnd:\t0000000000000401\n"),
            set(&["chown", "net_bind_service"])
        );
        assert_eq!(own("CapPrm:\t1\n"), set(&["chown"]));
        assert_eq!(own(""), CapSet::ALL);
    }

    proptest! {
        #[test]
        fn parser_is_total(names in proptest::collection::vec(any::<String>(), 0..4)) {
            let _ = CapSet::from_names(names);
        }

        #[test]
        fn names_parse_back(bits in any::<u64>()) {
            let set = CapSet::from_bits(bits);
            prop_assert_eq!(CapSet::from_names(set.names()), Ok(set));
            let json = serde_json::to_string(&set).unwrap();
            prop_assert_eq!(serde_json::from_str::<CapSet>(&json).unwrap(), set);
        }
    }
}
