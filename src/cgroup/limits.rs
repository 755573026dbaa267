//! A task's limits: planned from Nomad's numbers, then written to the cgroup.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use cgroups_rs::MaxValue;
use cgroups_rs::cpu::CpuController;
use cgroups_rs::cpuset::CpuSetController;
use cgroups_rs::memory::{MemController, SetMemory};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::io_max::IoLimits;
use super::{Cgroup, CgroupError};
use crate::sys::{IoError, errno_of};

/// Bytes in Nomad's "MB", which is a MiB.
const MIB: u64 = 1024 * 1024;

/// Period of `cpu.max`, µs: the kernel's default, and what jobs of the original driver see.
const CPU_PERIOD_US: u64 = 100_000;

/// Smallest quota that the kernel takes, µs (`min_cfs_quota_period`, kernel/sched/core.c). A smaller one is EINVAL.
const CPU_QUOTA_MIN_US: u64 = 1_000;

/// Largest quota that the kernel takes, µs (`max_cfs_runtime`, kernel/sched/core.c: 2^44 - 1).
const CPU_QUOTA_MAX_US: u64 = (1 << 44) - 1;

/// Largest memory value, bytes: cgroups-rs carries it as i64. The kernel caps at the same order of magnitude.
const MEMORY_MAX_BYTES: u64 = i64::MAX as u64;

/// Nomad's number for "no hard limit" in `memory_max`.
const MEMORY_MAX_UNLIMITED: i64 = -1;

/// Highest CPU number in a list: Nomad's core ids have 16 bits.
const CPU_NUMBER_MAX: u32 = u16::MAX as u32;

/// `cpu.weight` that the kernel gives a new cgroup, and the ends of its range (Documentation/admin-guide/cgroup-v2.rst).
pub(crate) const CPU_WEIGHT_DEFAULT: u64 = 100;
const CPU_WEIGHT_MAX: u64 = 10_000;
/// `io.weight` of a new cgroup.
const IO_WEIGHT_DEFAULT: u64 = 100;

/// The range of the CPU shares of cgroup v1, 2 to 2^18, which Nomad's MHz are for other drivers. Nomad 2.0 turns them into `cpu.weight` by the curve
/// of opencontainers/cgroups, on which 1024 shares are the default of 100: the logarithm of the weight is quadratic in that of the shares. With the
/// same curve, tasks of all drivers compete for the CPUs by their MHz.
const CPU_SHARES_MIN: u64 = 2;
const CPU_SHARES_MAX: u64 = 1 << 18;

/// Linux 5.14 has it.
const CPU_BURST: &str = "cpu.max.burst";

/// The CPUs that a cgroup may use, as a list (Documentation/admin-guide/cgroup-v2.rst).
const CPUS_EFFECTIVE: &str = "cpuset.cpus.effective";

/// What the job asks for, in Nomad's units.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceRequest {
    /// `allocated_resources.memory.memory_mb`, MiB. 0 or less: nothing asked, so no limit.
    pub memory_mb: i64,
    /// `allocated_resources.memory.memory_max_mb`, MiB. 0: absent. -1: no hard limit.
    pub memory_max_mb: i64,
    /// `allocated_resources.cpu.cpu_shares`, MHz. 0 or less: nothing asked.
    pub cpu_mhz: i64,
    /// `linux_resources.cpuset_cpus`: the cores of a job with `cores`; `None` (an empty string) for a job with `cpu`.
    pub cores: Option<CpuSet>,
    /// The job's `oom_group`.
    pub oom_group: bool,
}

/// `memory.max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryMax {
    Bytes(u64),
    /// No limit: `max`.
    Max,
}

impl fmt::Display for MemoryMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryMax::Bytes(bytes) => write!(f, "{bytes}"),
            MemoryMax::Max => f.write_str("max"),
        }
    }
}

/// `cpu.max`, both in µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuMax {
    pub quota_us: u64,
    pub period_us: u64,
}

impl fmt::Display for CpuMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.quota_us, self.period_us)
    }
}

/// A list of CPU numbers in the kernel's list format (`0,2-3`; cpuset(7)), never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuSet {
    list: String,
    count: u64,
}

/// A CPU list that the kernel would not understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "CPU list {0:?} is malformed: expected numbers and ranges as in \"0,2-3\", each at most {CPU_NUMBER_MAX}"
)]
pub struct CpuSetError(String);

impl CpuSet {
    /// Parses `linux_resources.cpuset_cpus`; an empty string, which means that no cores are reserved, is `None`.
    pub(crate) fn from_nomad(list: &str) -> Result<Option<CpuSet>, CpuSetError> {
        if list.trim().is_empty() { Ok(None) } else { list.parse().map(Some) }
    }

    /// How many CPUs are in the list.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }
}

impl FromStr for CpuSet {
    type Err = CpuSetError;

    fn from_str(list: &str) -> Result<CpuSet, CpuSetError> {
        let bad = || CpuSetError(list.to_owned());
        let number = |s: &str| -> Option<u32> {
            let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| s.parse().ok()).flatten().filter(|n| *n <= CPU_NUMBER_MAX)
        };
        let mut cpus = std::collections::BTreeSet::new();
        for item in list.trim().split(',') {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let (first, last) = (number(first).ok_or_else(bad)?, number(last).ok_or_else(bad)?);
            if first > last {
                return Err(bad());
            }
            cpus.extend(first..=last);
        }
        Ok(CpuSet { list: list.trim().to_owned(), count: cpus.len() as u64 })
    }
}

impl TryFrom<String> for CpuSet {
    type Error = CpuSetError;

    fn try_from(list: String) -> Result<CpuSet, CpuSetError> {
        list.parse()
    }
}

impl From<CpuSet> for String {
    fn from(set: CpuSet) -> String {
        set.list
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.list)
    }
}

/// What will stand in the task's cgroup. Plain data: [`Cgroup::apply`] writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// `memory.max`.
    pub memory_max: MemoryMax,
    /// `memory.low`, bytes: memory that the kernel reclaims last.
    pub memory_low: Option<u64>,
    /// `cpu.max`; `None` is no limit.
    pub cpu_max: Option<CpuMax>,
    /// `cpu.weight`, 1 to 10000: the share of a busy CPU beside the others' weights. `None` is the kernel's 100.
    pub cpu_weight: Option<u64>,
    /// `cpu.max.burst`, µs: how much of the quota that was not used may be used later.
    pub cpu_burst_us: u64,
    /// `memory.high`, bytes: above it the kernel slows the task down and reclaims its memory. `None` is no limit.
    pub memory_high: Option<u64>,
    /// `io.weight`, 1 to 10000: the share of a busy disk. `None` is the kernel's 100.
    pub io_weight: Option<u64>,
    /// `io.max`.
    pub io_max: IoLimits,
    /// `memory.swap.max`, bytes; `None` is no limit.
    pub swap_max: Option<u64>,
    /// `pids.max`: processes and threads; `None` is no limit.
    pub pids_max: Option<u64>,
    /// `cpuset.cpus`; `None` leaves the task on the CPUs of its parent.
    pub cpuset_cpus: Option<CpuSet>,
    /// `memory.oom.group`: an OOM kill takes the whole cgroup, so that no half of a workload is left running
    /// (Documentation/admin-guide/cgroup-v2.rst).
    pub oom_group: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self::UNLIMITED
    }
}

impl Limits {
    /// No limit at all: what the kernel gives a new cgroup.
    pub const UNLIMITED: Limits = Limits {
        memory_max: MemoryMax::Max,
        memory_low: None,
        cpu_max: None,
        cpu_weight: None,
        cpu_burst_us: 0,
        memory_high: None,
        io_weight: None,
        io_max: IoLimits::new(),
        swap_max: None,
        pids_max: None,
        cpuset_cpus: None,
        oom_group: false,
    };

    /// From Nomad's numbers to the kernel's.
    ///
    /// Memory: `memory` alone is the hard limit. With `memory_max` that is the hard limit and `memory` becomes
    /// `memory.low`; `memory_max = -1` means no hard limit. Any other negative number is ignored, which leaves the
    /// strict reading.
    ///
    /// CPU of a job with `cpu`: `cpu_mhz / mhz_per_core` of each 100 ms, within what the kernel accepts. Without a
    /// topology there is no honest divisor, so such a task runs without a CPU limit (memory is limited all the same)
    /// instead of with a guessed one that could starve it.
    ///
    /// CPU of a job with `cores`: the cores are its own, so the quota is all of their time, whatever MHz they have, and
    /// it is pinned to them. Nomad keeps the two kinds of tasks apart by the cpuset of `share.slice` and
    /// `reserve.slice`; inside `reserve.slice` only the task's own cpuset keeps one job off another's cores. A job
    /// with `cpu` must not be pinned: its parent's cpuset changes whenever cores are reserved or released.
    pub(crate) fn plan(request: &ResourceRequest, mhz_per_core: Option<NonZeroU64>) -> Limits {
        let memory = mib_to_bytes(request.memory_mb);
        let (memory_max, memory_low) = match (request.memory_max_mb, mib_to_bytes(request.memory_max_mb)) {
            (_, Some(hard)) => (MemoryMax::Bytes(hard), memory.map(|m| m.min(hard))),
            (MEMORY_MAX_UNLIMITED, None) => (MemoryMax::Max, memory),
            (_, None) => (memory.map_or(MemoryMax::Max, MemoryMax::Bytes), None),
        };
        let quota_us = match (&request.cores, u64::try_from(request.cpu_mhz), mhz_per_core) {
            (Some(cores), _, _) => Some(u128::from(cores.count()) * u128::from(CPU_PERIOD_US)),
            (None, Ok(mhz @ 1..), Some(per_core)) => {
                Some(u128::from(mhz) * u128::from(CPU_PERIOD_US) / u128::from(per_core.get()))
            }
            _ => None,
        };
        let cpu_max = quota_us.map(|quota| CpuMax {
            quota_us: u64::try_from(quota).unwrap_or(u64::MAX).clamp(CPU_QUOTA_MIN_US, CPU_QUOTA_MAX_US),
            period_us: CPU_PERIOD_US,
        });
        Limits {
            memory_max,
            memory_low,
            cpu_max,
            cpu_weight: u64::try_from(request.cpu_mhz).ok().filter(|mhz| *mhz > 0).map(weight),
            cpuset_cpus: request.cores.clone(),
            oom_group: request.oom_group,
            ..Limits::UNLIMITED
        }
    }
}

/// `cpu.weight` of a task that has these MHz.
fn weight(mhz: u64) -> u64 {
    match mhz {
        ..=CPU_SHARES_MIN => 1,
        CPU_SHARES_MAX.. => CPU_WEIGHT_MAX,
        shares => {
            let log = (shares as f64).log2();
            let weight = 10f64.powf(log.mul_add(log, 125.0 * log) / 612.0 - 7.0 / 34.0).ceil();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it is from 1 to 10000"
            )]
            let weight = weight as u64;
            weight
        }
    }
}

/// `None` for 0 and less.
pub(crate) fn mib_to_bytes(mib: i64) -> Option<u64> {
    let mib = u64::try_from(mib).ok().filter(|m| *m > 0)?;
    Some(mib.saturating_mul(MIB).min(MEMORY_MAX_BYTES))
}

/// The value as cgroups-rs takes it.
fn at_most(value: u64, most: u64) -> i64 {
    i64::try_from(value.min(most)).unwrap_or(i64::MAX)
}

impl Cgroup {
    /// Writes the limits. Values that mean "no limit" are written too, so that nothing of an earlier run stays, but
    /// only where the file exists: nobody asked for that controller. The error names file, value and errno.
    pub(crate) fn apply(&self, limits: &Limits) -> Result<(), CgroupError> {
        let memory = MemController::new(self.fd_path(), true);
        let cpu = CpuController::new(self.fd_path(), true);
        let cpuset = CpuSetController::new(self.fd_path(), true);

        let low = at_most(limits.memory_low.unwrap_or(0), MEMORY_MAX_BYTES);
        self.set("memory", "memory.low", &low.to_string(), limits.memory_low.is_some(), || {
            memory.set_mem(SetMemory { low: Some(MaxValue::Value(low)), ..SetMemory::default() })
        })?;

        let (max, asked) = match limits.memory_max {
            MemoryMax::Bytes(bytes) => (MaxValue::Value(at_most(bytes, MEMORY_MAX_BYTES)), true),
            MemoryMax::Max => (MaxValue::Max, false),
        };
        self.set("memory", "memory.max", &max.to_string(), asked, || {
            memory.set_mem(SetMemory { max: Some(max), ..SetMemory::default() })
        })?;

        // The crate does not know this file. Without the controller there is no OOM kill to be told apart.
        self.write_or_skip("memory.oom.group", &u8::from(limits.oom_group).to_string(), limits.oom_group)?;
        // A kernel without swap, or without its accounting (swapaccount=0), has no such file.
        let swap = limits.swap_max.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        self.write_or_skip("memory.swap.max", &swap, limits.swap_max.is_some_and(|bytes| bytes > 0))?;
        let pids = limits.pids_max.map_or_else(|| "max".to_owned(), |pids| pids.to_string());
        self.write_limit("pids", "pids.max", &pids, limits.pids_max.is_some())?;
        // Without the controller, the task competes as its parent does.
        self.write_or_skip(
            "cpu.weight",
            &limits.cpu_weight.unwrap_or(CPU_WEIGHT_DEFAULT).to_string(),
            false,
        )?;

        let high = limits.memory_high.map_or_else(|| "max".to_owned(), |bytes| bytes.to_string());
        self.write_limit("memory", "memory.high", &high, limits.memory_high.is_some())?;
        let io_weight = limits.io_weight.filter(|weight| *weight != IO_WEIGHT_DEFAULT);
        let weight = format!("default {}", io_weight.unwrap_or(IO_WEIGHT_DEFAULT));
        self.write_limit("io", "io.weight", &weight, io_weight.is_some())?;
        self.apply_io_max(&limits.io_max)?;

        // A quota below the burst of an earlier run is EINVAL.
        self.write_or_skip(CPU_BURST, "0", false)?;
        // The crate writes "max" for a quota that is not positive.
        let (quota, period, value) = match limits.cpu_max {
            Some(m) => (at_most(m.quota_us.max(1), CPU_QUOTA_MAX_US), m.period_us, m.to_string()),
            None => (0, CPU_PERIOD_US, format!("max {CPU_PERIOD_US}")),
        };
        self.set("cpu", "cpu.max", &value, limits.cpu_max.is_some(), || {
            cpu.set_cfs_quota_and_period(Some(quota), Some(period))
        })?;
        if limits.cpu_burst_us > 0 && limits.cpu_max.is_some() {
            self.write_limit("cpu", CPU_BURST, &limits.cpu_burst_us.to_string(), true)?;
        }

        if let Some(cpus) = &limits.cpuset_cpus {
            let list = cpus.to_string();
            self.set("cpuset", "cpuset.cpus", &list, true, || cpuset.set_cpus(&list))?;
        }
        Ok(())
    }

    /// Makes sure that a process can be started in the cgroup: one without any CPU takes none. A cgroup without the cpuset
    /// controller uses the CPUs of the nearest one above it that has it.
    pub(crate) fn has_cpu(&self) -> Result<(), CgroupError> {
        let mut here = None;
        for relative in self.relative.ancestors().filter(|relative| !relative.as_os_str().is_empty()) {
            let path = self.mount.root().join(relative);
            let cgroup = match relative == self.relative {
                true => self,
                false => here.insert(Cgroup::open_in(&self.mount, &path)?),
            };
            if let Some(cpus) = cgroup.read_if_there(CPUS_EFFECTIVE)? {
                let path = path.join(CPUS_EFFECTIVE);
                return if cpus.trim().is_empty() { Err(CgroupError::NoCpu { path }) } else { Ok(()) };
            }
        }
        Ok(())
    }

    /// As `write`. A file that is not there is no error unless the value was asked for.
    fn write_or_skip(&self, file: &str, value: &str, asked: bool) -> Result<(), CgroupError> {
        match self.write(file, value) {
            Err(error) if error.errno() == Some(Errno::ENOENT) && !asked => Ok(()),
            written => written,
        }
    }

    /// The same, with an error that names the controller.
    fn write_limit(
        &self,
        controller: &'static str,
        file: &str,
        value: &str,
        asked: bool,
    ) -> Result<(), CgroupError> {
        match self.write_or_skip(file, value, asked) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Err(CgroupError::NoController {
                path: self.path().join(file),
                value: value.to_owned(),
                controller,
            }),
            written => written,
        }
    }

    fn set(
        &self,
        controller: &'static str,
        file: &str,
        value: &str,
        asked: bool,
        write: impl FnOnce() -> Result<(), cgroups_rs::error::Error>,
    ) -> Result<(), CgroupError> {
        let path = self.path().join(file);
        match self.open_file(file) {
            Ok(_) => {}
            Err(CgroupError::Io(IoError { errno: Errno::ENOENT, .. })) if !asked => return Ok(()),
            Err(CgroupError::Io(IoError { errno: Errno::ENOENT, .. })) => {
                return Err(CgroupError::NoController { path, value: value.to_owned(), controller });
            }
            Err(e) => return Err(e),
        }
        write().map_err(|e| CgroupError::Write { path, value: value.to_owned(), errno: crate_errno(&e) })
    }
}

/// cgroups-rs keeps the `io::Error` as its error's source.
fn crate_errno(e: &cgroups_rs::error::Error) -> Errno {
    std::error::Error::source(e)
        .and_then(|cause| cause.downcast_ref::<std::io::Error>())
        .map_or(Errno::EINVAL, errno_of)
}

#[cfg(test)]
mod tests;
