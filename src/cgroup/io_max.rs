//! `io.max`: the most that a task may read and write of a disk, Documentation/admin-guide/cgroup-v2.rst.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, major, minor, stat};
use serde::{Deserialize, Serialize};

use super::{Cgroup, CgroupError};

/// By the path of the disk.
pub type IoLimits = BTreeMap<String, IoMax>;

/// The file of the limits.
const FILE: &str = "io.max";

/// What lifts all limits of a disk.
const NONE: &str = "rbps=max wbps=max riops=max wiops=max";

/// Limits of one disk; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IoMax {
    /// Bytes that are read each second.
    pub rbps: Option<u64>,
    /// Bytes that are written each second.
    pub wbps: Option<u64>,
    /// Reads each second.
    pub riops: Option<u64>,
    /// Writes each second.
    pub wiops: Option<u64>,
}

impl IoMax {
    /// The lower limit of both.
    pub(crate) fn lower(self, other: Self) -> Self {
        let lower = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            rbps: lower(self.rbps, other.rbps),
            wbps: lower(self.wbps, other.wbps),
            riops: lower(self.riops, other.riops),
            wiops: lower(self.wiops, other.wiops),
        }
    }
}

/// A text that is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no limit of io.max")]
pub struct Malformed;

impl FromStr for IoMax {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut read = Self::default();
        for part in text.split_ascii_whitespace() {
            let (name, number) = part.split_once('=').ok_or(Malformed)?;
            let limit = match name {
                "rbps" => &mut read.rbps,
                "wbps" => &mut read.wbps,
                "riops" => &mut read.riops,
                "wiops" => &mut read.wiops,
                _ => return Err(Malformed),
            };
            let number = number.parse().ok().filter(|number| *number > 0).ok_or(Malformed)?;
            if limit.replace(number).is_some() {
                return Err(Malformed);
            }
        }
        if read == Self::default() { Err(Malformed) } else { Ok(read) }
    }
}

impl fmt::Display for IoMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [("rbps", self.rbps), ("wbps", self.wbps), ("riops", self.riops), ("wiops", self.wiops)];
        let set: Vec<_> =
            all.iter().filter_map(|(name, limit)| limit.map(|limit| format!("{name}={limit}"))).collect();
        f.write_str(&set.join(" "))
    }
}

impl Cgroup {
    /// Writes these limits, and lifts those of an earlier run.
    pub(super) fn apply_io_max(&self, limits: &IoLimits) -> Result<(), CgroupError> {
        let path = self.path().join(FILE);
        let now = match self.read_if_there(FILE)? {
            Some(now) => now,
            None if limits.is_empty() => return Ok(()),
            None => {
                let value = limits.values().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(CgroupError::NoController { path, value, controller: "io" });
            }
        };
        for disk in now.lines().filter_map(|line| line.split_ascii_whitespace().next()) {
            self.write(FILE, &format!("{disk} {NONE}"))?;
        }
        let by_number =
            by_number(limits, number).map_err(|(value, errno)| CgroupError::Write { path, value, errno })?;
        for (number, limit) in by_number {
            self.write(FILE, &format!("{number} {limit}"))?;
        }
        Ok(())
    }
}

/// The lowest limits of each disk: a job may name one by another path than the agent does. An error comes with the limit that it is about.
fn by_number(
    limits: &IoLimits,
    number: impl Fn(&Path) -> nix::Result<String>,
) -> Result<BTreeMap<String, IoMax>, (String, Errno)> {
    let mut found: BTreeMap<_, IoMax> = BTreeMap::new();
    for (disk, limit) in limits {
        let number = number(Path::new(disk)).map_err(|errno| (format!("{disk} {limit}"), errno))?;
        let lowest = found.entry(number).or_default();
        *lowest = lowest.lower(*limit);
    }
    Ok(found)
}

/// The number of a block device, as the kernel writes it.
fn number(disk: &Path) -> nix::Result<String> {
    let found = stat(disk)?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFBLK {
        return Err(Errno::ENOTBLK);
    }
    Ok(format!("{}:{}", major(found.st_rdev), minor(found.st_rdev)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_shown() {
        let read = |text: &str| text.parse::<IoMax>();
        let some = IoMax { rbps: Some(1_048_576), wiops: Some(100), ..IoMax::default() };
        assert_eq!(read("rbps=1048576  wiops=100"), Ok(some));
        assert_eq!(some.to_string(), "rbps=1048576 wiops=100");
        for text in
            ["", "rbps", "rbps=", "rbps=0", "rbps=-1", "rbps=max", "rbps=1 rbps=2", "bps=1", "rbps=1,"]
        {
            assert_eq!(read(text), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn a_job_may_only_lower_a_limit() {
        let agent = "rbps=100 wbps=100".parse::<IoMax>().unwrap();
        let job = "rbps=200 wbps=50 riops=7".parse().unwrap();
        assert_eq!(agent.lower(job).to_string(), "rbps=100 wbps=50 riops=7");
    }

    #[test]
    fn another_path_of_a_disk_lifts_no_limit() {
        let limits: IoLimits =
            [("/dev/mapper/data", "rbps=100 wbps=100"), ("/dev/vg/data", "rbps=200 wbps=50")]
                .map(|(disk, limit)| (disk.to_owned(), limit.parse().unwrap()))
                .into();
        let found = by_number(&limits, |_| Ok("253:0".to_owned())).unwrap();
        assert_eq!(found, [("253:0".to_owned(), "rbps=100 wbps=50".parse().unwrap())].into());
        let error = by_number(&limits, |_| Err(Errno::ENOENT)).unwrap_err();
        assert_eq!(error, ("/dev/mapper/data rbps=100 wbps=100".to_owned(), Errno::ENOENT));
    }

    #[test]
    fn only_block_devices_have_limits() {
        assert_eq!(number(Path::new("/dev/null")), Err(Errno::ENOTBLK));
        assert_eq!(number(Path::new("/dev/none")), Err(Errno::ENOENT));
    }
}
