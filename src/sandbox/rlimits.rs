//! `ulimit`: the resource limits of a task's processes, getrlimit(2).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use nix::sys::resource::Resource;
use serde::{Deserialize, Serialize};

/// The limits by the name that ulimit(1) of podman, systemd and Docker has for them: RLIMIT_ in lower case.
pub(crate) const RESOURCES: [(&str, Resource); 16] = [
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];
/// That of open files, which has a minimum and, for "unlimited", a maximum.
pub(crate) const NOFILE: &str = "nofile";
/// What a program needs to start: the dynamic linker opens files, and the shim a few before it.
pub(crate) const NOFILE_MIN: u64 = 64;
/// The soft limit for `nofile = "unlimited"`, as systemd's default: old programs close every number up to it when they start.
pub(crate) const NOFILE_SOFT_MAX: u64 = 512 * 1024;
/// How "no limit" is written.
const UNLIMITED: &str = "unlimited";

/// A value of a limit, in the kernel's unit: bytes, seconds, or a number. RLIM_INFINITY is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Value(pub(crate) u64);

impl Value {
    pub(crate) const UNLIMITED: Self = Self(libc::RLIM_INFINITY);
}

impl FromStr for Value {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == UNLIMITED {
            return Ok(Self::UNLIMITED);
        }
        let plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let number =
            plain.then(|| text.parse().ok()).flatten().filter(|number| *number < libc::RLIM_INFINITY);
        number.map(Self).ok_or(())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::UNLIMITED => f.write_str(UNLIMITED),
            Self(number) => write!(f, "{number}"),
        }
    }
}

/// What a process may use, and up to where it may raise that itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub soft: Value,
    pub hard: Value,
}

impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.soft == self.hard {
            true => write!(f, "{}", self.hard),
            false => write!(f, "{}:{}", self.soft, self.hard),
        }
    }
}

/// By the names of [`RESOURCES`].
pub type Rlimits = BTreeMap<String, Rlimit>;

/// Why a limit is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub problem: &'static str,
    pub write: &'static str,
}

/// Parses an entry of `ulimit`.
pub(crate) fn parse(name: &str, text: &str) -> Result<Rlimit, Malformed> {
    const VALUE: &str = r#"a whole number, "unlimited", or "SOFT:HARD" of these"#;
    if resource(name).is_none() {
        return Err(Malformed {
            problem: "there is no such limit",
            write: "one of as, core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack",
        });
    }
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    let (Ok(soft), Ok(hard)) = (soft.parse(), hard.parse()) else {
        return Err(Malformed { problem: "it is not a limit", write: VALUE });
    };
    if soft > hard {
        return Err(Malformed {
            problem: "the soft limit is above the hard limit",
            write: r#""SOFT:HARD" with a soft limit up to the hard one"#,
        });
    }
    if name == NOFILE && soft < Value(NOFILE_MIN) {
        return Err(Malformed { problem: "no program starts with so few open files", write: "64 or more" });
    }
    Ok(Rlimit { soft, hard })
}

/// None: there is no such limit.
pub(crate) fn resource(name: &str) -> Option<Resource> {
    RESOURCES.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_both_limits_and_two_are_soft_and_hard() {
        let shown =
            |name, text| parse(name, text).map(|limit| (limit.soft.0, limit.hard.0, limit.to_string()));
        assert_eq!(shown("nofile", "1024:4096"), Ok((1024, 4096, "1024:4096".into())));
        assert_eq!(shown("core", "0"), Ok((0, 0, "0".into())));
        let none = libc::RLIM_INFINITY;
        assert_eq!(shown("memlock", "unlimited"), Ok((none, none, "unlimited".into())));
        assert_eq!(shown("stack", "8388608:unlimited"), Ok((8 << 20, none, "8388608:unlimited".into())));
    }

    #[test]
    fn anything_else_is_refused() {
        for (name, text, problem) in [
            ("files", "1", "there is no such limit"),
            ("NOFILE", "1024", "there is no such limit"),
            ("nofile", "", "it is not a limit"),
            ("nofile", "-1", "it is not a limit"),
            ("nofile", "+1024", "it is not a limit"),
            ("nofile", "1024:", "it is not a limit"),
            ("nofile", "1:2:3", "it is not a limit"),
            ("nofile", "64k", "it is not a limit"),
            // RLIM_INFINITY in figures
            ("as", "18446744073709551615", "it is not a limit"),
            ("nofile", "4096:1024", "the soft limit is above the hard limit"),
            ("nofile", "unlimited:1024", "the soft limit is above the hard limit"),
            ("nofile", "63:1024", "no program starts with so few open files"),
        ] {
            assert_eq!(parse(name, text).unwrap_err().problem, problem, "{name} {text}");
        }
        assert!(parse("nofile", "64").is_ok());
    }

    #[test]
    fn the_names_are_the_kernels() {
        for (name, resource) in RESOURCES {
            assert_eq!(format!("{resource:?}"), format!("RLIMIT_{}", name.to_uppercase()));
        }
    }
}
