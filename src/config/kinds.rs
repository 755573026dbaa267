//! Types that several options share.

use std::ops::RangeInclusive;

use super::blocks::{braces, entries};
use super::cty::Value;
use super::row::Form;
use super::table::Kind;
use super::{At, ConfigError, hclspec};
use crate::cgroup::{IoLimits, IoMax};
use crate::quote::quote;
use crate::sandbox::capabilities::{CapList, hcl};
use crate::sandbox::plan::HidePid;
use crate::sandbox::rlimits::{self, Malformed, Rlimits};
use crate::sandbox::seccomp::{GroupSet, Profile, UNCONFINED};
use crate::sandbox::unveil::Unveil;
use crate::sandbox::volume::VolumeIdmap;

/// Longest list of rules. Each rule costs an open and a Landlock rule at every start, and the list appears in events that
/// Nomad's servers keep.
const UNVEILS_MAX: usize = 1024;

/// Longest list of capabilities: there are 41, each with a few spellings.
pub(super) const CAPABILITIES_MAX: usize = 256;

/// Longest list of groups of system calls: there are about thirty.
pub(super) const GROUPS_MAX: usize = 256;
/// `pids_max`. 0 is no limit.
pub(super) const PIDS_MAX_RANGE: RangeInclusive<i32> = 0..=PIDS_LIMIT;
pub(super) const PIDS_MAX_WRITE: &str = "a number of processes and threads up to 4194304, or 0 for no limit";
/// The kernel's own (PID_MAX_LIMIT of linux/threads.h).
const PIDS_LIMIT: i32 = 4 << 20;

/// `memory_swap`, MiB. -1 is no limit.
pub(super) const MEMORY_SWAP_RANGE: RangeInclusive<i32> = -1..=i32::MAX;
pub(super) const MEMORY_SWAP_WRITE: &str = "a number of MiB, or -1 for no limit";

/// `cpu_weight` and `io_weight`, cgroup v2.
pub(super) const WEIGHT_RANGE: RangeInclusive<i32> = 1..=10_000;
pub(super) const WEIGHT_WRITE: &str = "a whole number from 1 to 10000";
/// `cpu_burst`: more than the quota of a period is refused by the kernel.
pub(super) const PERCENT_RANGE: RangeInclusive<i32> = 0..=100;
pub(super) const PERCENT_WRITE: &str = "a whole number from 0 to 100";

/// True or false.
pub(super) struct Flag {
    pub(super) default: bool,
}

impl Kind for Flag {
    type Value = bool;
    const FORM: Form = Form::Attribute(hclspec::BOOL);
    const TAKES: &str = "bool";

    fn unset(&self) -> Result<bool, &'static str> {
        Ok(self.default)
    }

    fn read(&self, at: &At, value: Value) -> Result<bool, ConfigError> {
        value.flag(at)
    }

    fn show(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// `volume_idmap`.
pub(super) struct Idmap;

impl Kind for Idmap {
    type Value = VolumeIdmap;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = r#"`"auto"` or `"never"`"#;

    fn unset(&self) -> Result<VolumeIdmap, &'static str> {
        Ok(VolumeIdmap::Auto)
    }

    fn read(&self, at: &At, value: Value) -> Result<VolumeIdmap, ConfigError> {
        match value.text(at)?.as_str() {
            "auto" => Ok(VolumeIdmap::Auto),
            "never" => Ok(VolumeIdmap::Never),
            other => Err(at.bad_value(quote(other), "there is no such mapping", r#""auto" or "never""#)),
        }
    }

    fn show(&self, value: &VolumeIdmap) -> String {
        quote(match value {
            VolumeIdmap::Auto => "auto",
            VolumeIdmap::Never => "never",
        })
    }
}

/// `proc_hidepid`.
pub(super) struct Hidden;

impl Kind for Hidden {
    type Value = HidePid;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = r#"`"off"`, `"noaccess"`, `"invisible"` or `"ptraceable"`"#;

    fn unset(&self) -> Result<HidePid, &'static str> {
        Ok(HidePid::Off)
    }

    fn read(&self, at: &At, value: Value) -> Result<HidePid, ConfigError> {
        let text = value.text(at)?;
        HidePid::ALL.into_iter().find(|choice| choice.name() == text).ok_or_else(|| {
            let write = r#""off", "noaccess", "invisible" or "ptraceable""#;
            at.bad_value(quote(&text), "there is no such choice", write)
        })
    }

    fn show(&self, value: &HidePid) -> String {
        quote(value.name())
    }
}

/// `seccomp`.
pub(super) struct SeccompProfile;

impl Kind for SeccompProfile {
    type Value = Profile;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = r#"`"default"` or `"unconfined"`"#;

    fn unset(&self) -> Result<Profile, &'static str> {
        Ok(Profile::Default)
    }

    fn read(&self, at: &At, value: Value) -> Result<Profile, ConfigError> {
        match value.text(at)?.as_str() {
            "default" => Ok(Profile::Default),
            UNCONFINED => Ok(Profile::Unconfined),
            other => {
                Err(at.bad_value(quote(other), "there is no such filter", r#""default" or "unconfined""#))
            }
        }
    }

    fn show(&self, value: &Profile) -> String {
        quote(match value {
            Profile::Default => "default",
            Profile::Unconfined => UNCONFINED,
        })
    }
}

/// A list of groups of system calls, empty unless set.
pub(super) struct SeccompGroups;

impl Kind for SeccompGroups {
    type Value = GroupSet;
    const FORM: Form = Form::Attribute(hclspec::STRINGS);
    const TAKES: &str = "list of groups";

    fn unset(&self) -> Result<GroupSet, &'static str> {
        Ok(GroupSet::EMPTY)
    }

    fn read(&self, at: &At, value: Value) -> Result<GroupSet, ConfigError> {
        let names = value.texts(at)?;
        at.at_most(names.len(), GROUPS_MAX)?;
        let mut groups = names.iter().enumerate().map(|(i, name)| group(&at.element(i), name));
        groups.try_fold(GroupSet::EMPTY, |all, group| Ok(all.union(group?)))
    }

    fn show(&self, value: &GroupSet) -> String {
        let names: Vec<_> = value.names().into_iter().map(quote).collect();
        format!("[{}]", names.join(", "))
    }
}

/// A group of system calls by its name.
pub(super) fn group(at: &At, name: &str) -> Result<GroupSet, ConfigError> {
    let write = r#"a name such as "io_uring"; docs/security.md, "System calls", lists them"#;
    GroupSet::named(name)
        .ok_or_else(|| at.bad_value(quote(name), "there is no such group of system calls", write))
}

/// `ulimit`.
pub(super) struct Ulimit;

impl Kind for Ulimit {
    type Value = Rlimits;
    const FORM: Form = Form::Entries;
    const TAKES: &str = r#"block of `NAME = "SOFT:HARD"`"#;

    fn unset(&self) -> Result<Rlimits, &'static str> {
        Ok(Rlimits::new())
    }

    fn read(&self, at: &At, value: Value) -> Result<Rlimits, ConfigError> {
        let limit = |(name, text): (String, String)| {
            let at = At { scope: at.scope, option: format!("{}[{}]", at.option, quote(&name)) };
            let limit = rlimits::parse(&name, &text)
                .map_err(|Malformed { problem, write }| at.bad_value(quote(&text), problem, write))?;
            Ok((name, limit))
        };
        entries(at, value)?.into_iter().map(limit).collect()
    }

    fn show(&self, value: &Rlimits) -> String {
        braces(value.iter().map(|(name, limit)| (name.clone(), quote(&limit.to_string()))))
    }
}

/// `io_max`. A list, because HCL takes no path as a name in a block, and an agent's configuration has no maps but blocks.
pub(super) struct IoMaxima;

/// Longest `io_max`: as many disks as a host has at most.
const DISKS_MAX: usize = 256;

impl Kind for IoMaxima {
    type Value = IoLimits;
    const FORM: Form = Form::Attribute(hclspec::STRINGS);
    const TAKES: &str = r#"list of `"DISK LIMIT=N …"`"#;

    fn unset(&self) -> Result<IoLimits, &'static str> {
        Ok(IoLimits::new())
    }

    fn read(&self, at: &At, value: Value) -> Result<IoLimits, ConfigError> {
        let texts = value.texts(at)?;
        at.at_most(texts.len(), DISKS_MAX)?;
        let mut limits = IoLimits::new();
        for (i, text) in texts.iter().enumerate() {
            let (disk, limit) = disk_limit(&at.element(i), text)?;
            if limits.insert(disk, limit).is_some() {
                let problem = "the disk is there twice";
                return Err(at.element(i).bad_value(
                    quote(text),
                    problem,
                    "all limits of a disk in one string",
                ));
            }
        }
        Ok(limits)
    }

    fn show(&self, value: &IoLimits) -> String {
        let limits: Vec<_> = value.iter().map(|(disk, limit)| quote(&format!("{disk} {limit}"))).collect();
        format!("[{}]", limits.join(", "))
    }
}

fn disk_limit(at: &At, text: &str) -> Result<(String, IoMax), ConfigError> {
    let bad = |problem, write| at.bad_value(quote(text), problem, write);
    let (disk, limit) = text.split_once(' ').unwrap_or((text, ""));
    // Which other paths there are is not for a job to find out.
    let path = std::path::Path::new(disk);
    let plain = path.components().all(|part| part != std::path::Component::ParentDir);
    if !path.starts_with("/dev") || !plain || disk.contains('\0') {
        return Err(bad(
            "it begins with no disk",
            r#"its path below /dev first, such as "/dev/vda rbps=1048576""#,
        ));
    }
    let limit = limit.parse().map_err(|_| {
        let write = r#"any of rbps, wbps (bytes a second), riops, wiops (a second) with a number above 0, such as "/dev/vda rbps=1048576 wiops=100""#;
        bad("it has no limit, or a wrong one", write)
    })?;
    Ok((disk.to_owned(), limit))
}

/// A whole number.
pub(super) struct Number {
    pub(super) range: RangeInclusive<i32>,
    pub(super) default: i32,
    /// The range in words.
    pub(super) write: &'static str,
}

impl Kind for Number {
    type Value = i32;
    const FORM: Form = Form::Attribute(hclspec::NUMBER);
    const TAKES: &str = "number";

    fn unset(&self) -> Result<i32, &'static str> {
        Ok(self.default)
    }

    fn read(&self, at: &At, value: Value) -> Result<i32, ConfigError> {
        value.whole_number(at, &self.range, self.write)
    }

    fn show(&self, value: &i32) -> String {
        value.to_string()
    }
}

/// A list of unveil rules, empty unless set.
pub(super) struct UnveilRules;

impl Kind for UnveilRules {
    type Value = Vec<Unveil>;
    const FORM: Form = Form::Attribute(hclspec::STRINGS);
    const TAKES: &str = r#"list of `"MODES:PATH"`"#;

    fn unset(&self) -> Result<Vec<Unveil>, &'static str> {
        Ok(Vec::new())
    }

    fn read(&self, at: &At, value: Value) -> Result<Vec<Unveil>, ConfigError> {
        let rules = value.texts(at)?;
        at.at_most(rules.len(), UNVEILS_MAX)?;
        let parse = |(i, rule): (usize, &String)| {
            let At { scope, option } = at.element(i);
            rule.parse().map_err(|error| ConfigError::Unveil { scope, option, error })
        };
        rules.iter().enumerate().map(parse).collect()
    }

    fn show(&self, value: &Vec<Unveil>) -> String {
        let rules: Vec<_> = value.iter().map(|rule| quote(&rule.to_string())).collect();
        format!("[{}]", rules.join(", "))
    }
}

/// A list of capabilities, empty unless set.
pub(super) struct Capabilities;

impl Kind for Capabilities {
    type Value = CapList;
    const FORM: Form = Form::Attribute(hclspec::STRINGS);
    const TAKES: &str = "list of capabilities";

    fn unset(&self) -> Result<CapList, &'static str> {
        Ok(CapList::default())
    }

    fn read(&self, at: &At, value: Value) -> Result<CapList, ConfigError> {
        let names = value.texts(at)?;
        at.at_most(names.len(), CAPABILITIES_MAX)?;
        names.iter().enumerate().try_fold(CapList::default(), |list, (i, name)| {
            let one = capability(&at.element(i), name)?;
            Ok(CapList { named: list.named.union(one.named), all: list.all || one.all })
        })
    }

    fn show(&self, value: &CapList) -> String {
        hcl(value.set())
    }
}

/// A capability's name, or `all`.
pub(super) fn capability(at: &At, name: &str) -> Result<CapList, ConfigError> {
    CapList::from_names([name]).map_err(|error| ConfigError::Capability {
        scope: at.scope,
        option: at.option.clone(),
        error,
    })
}

/// An option that may be left out.
pub(super) struct Optional<K> {
    pub(super) kind: K,
    /// What is shown for it then.
    pub(super) unset: &'static str,
}

impl<K: Kind> Kind for Optional<K> {
    type Value = Option<K::Value>;
    const FORM: Form = K::FORM;
    const TAKES: &str = K::TAKES;

    fn unset(&self) -> Result<Self::Value, &'static str> {
        Ok(None)
    }

    fn read(&self, at: &At, value: Value) -> Result<Self::Value, ConfigError> {
        self.kind.read(at, value).map(Some)
    }

    fn show(&self, value: &Self::Value) -> String {
        value.as_ref().map_or_else(|| self.unset.to_owned(), |value| self.kind.show(value))
    }
}
