//! What a task uses.

use std::num::NonZeroU64;
use std::time::Instant;

use super::events::flat_keyed;
use super::{Cgroup, CgroupError};

/// Memory of a cgroup and everything below it, bytes. `None` where the kernel does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MemoryStats {
    /// `memory.current`: everything that counts against `memory.max`.
    pub usage: Option<u64>,
    /// `anon` of `memory.stat`: what a cgroup v2 has for the resident set.
    pub rss: Option<u64>,
    /// `file` of `memory.stat`: page cache, tmpfs and shared memory.
    pub cache: Option<u64>,
    /// `memory.swap.current`; absent without swap accounting.
    pub swap: Option<u64>,
    /// `kernel` of `memory.stat`; since Linux 5.18.
    pub kernel: Option<u64>,
    /// `memory.peak`, since the cgroup was created; since Linux 5.19.
    pub peak: Option<u64>,
}

/// CPU time since the cgroup was created, µs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CpuTimes {
    pub usage_us: u64,
    pub user_us: u64,
    pub system_us: u64,
}

/// `cpu.stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CpuStats {
    pub times: CpuTimes,
    /// Periods of `cpu.max` in which the task ran out of quota; absent without the cpu controller.
    pub throttled_periods: Option<u64>,
    /// Time that it stood still because of that, µs; absent without the cpu controller.
    pub throttled_us: Option<u64>,
}

/// One reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stats {
    pub memory: MemoryStats,
    pub cpu: CpuStats,
}

impl Cgroup {
    /// `memory.max`, bytes; `None` for no limit, or no memory controller.
    pub(crate) fn memory_limit(&self) -> Result<Option<u64>, CgroupError> {
        Ok(self.read_if_there("memory.max")?.and_then(|text| text.trim().parse().ok()))
    }

    /// Reads the statistics: five small files. [`CgroupError::is_gone`] tells a cgroup that was removed meanwhile.
    pub(crate) fn stats(&self) -> Result<Stats, CgroupError> {
        let number = |name: &str| -> Result<Option<u64>, CgroupError> {
            Ok(self.read_if_there(name)?.and_then(|text| text.trim().parse().ok()))
        };
        // In every cgroup v2 whatever the controllers: its absence means that the cgroup has gone.
        let cpu = self.read("cpu.stat")?;
        let memory = self.read_if_there("memory.stat")?.unwrap_or_default();
        Ok(Stats {
            memory: MemoryStats {
                usage: number("memory.current")?,
                rss: flat_keyed(&memory, "anon"),
                cache: flat_keyed(&memory, "file"),
                swap: number("memory.swap.current")?,
                kernel: flat_keyed(&memory, "kernel"),
                peak: number("memory.peak")?,
            },
            cpu: CpuStats {
                times: CpuTimes {
                    usage_us: flat_keyed(&cpu, "usage_usec").unwrap_or(0),
                    user_us: flat_keyed(&cpu, "user_usec").unwrap_or(0),
                    system_us: flat_keyed(&cpu, "system_usec").unwrap_or(0),
                },
                throttled_periods: flat_keyed(&cpu, "nr_throttled"),
                throttled_us: flat_keyed(&cpu, "throttled_usec"),
            },
        })
    }
}

/// CPU usage over an interval. 100 % is one core.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct CpuUsage {
    pub user_percent: f64,
    pub system_percent: f64,
    pub percent: f64,
    /// MHz consumed, Nomad's "ticks": percent / 100 × MHz per core. 0 without a topology.
    pub ticks: f64,
}

/// Turns successive [`CpuTimes`] into usage. One per reader (a TaskStats stream), so that each sees its own intervals.
#[derive(Debug, Clone)]
pub(crate) struct CpuSampler {
    mhz_per_core: Option<NonZeroU64>,
    last: Option<(Instant, CpuTimes)>,
}

impl CpuSampler {
    /// The first [`sample`](CpuSampler::sample) is zero because there is no interval yet, like that of Nomad's own drivers.
    pub(crate) fn new(mhz_per_core: Option<NonZeroU64>) -> CpuSampler {
        CpuSampler { mhz_per_core, last: None }
    }

    /// With a reading taken earlier (when the task or the stream started): the first sample covers the time since.
    pub(crate) fn since(mhz_per_core: Option<NonZeroU64>, at: Instant, times: CpuTimes) -> CpuSampler {
        CpuSampler { mhz_per_core, last: Some((at, times)) }
    }

    /// Usage between the previous call and this one. `now` (CLOCK_MONOTONIC) is when `times` was read. Counters that
    /// went backwards (a new cgroup under the old name) give zero and a new start.
    pub(crate) fn sample(&mut self, now: Instant, times: CpuTimes) -> CpuUsage {
        let Some((then, before)) = self.last.replace((now, times)) else { return CpuUsage::default() };
        let elapsed_us = now.saturating_duration_since(then).as_secs_f64() * 1e6;
        if elapsed_us <= 0.0 {
            // No interval yet: keep the old start for the next one.
            self.last = Some((then, before));
            return CpuUsage::default();
        }
        let percent = |a: u64, b: u64| b.saturating_sub(a) as f64 / elapsed_us * 100.0;
        let total = percent(before.usage_us, times.usage_us);
        CpuUsage {
            user_percent: percent(before.user_us, times.user_us),
            system_percent: percent(before.system_us, times.system_us),
            percent: total,
            ticks: total / 100.0 * self.mhz_per_core.map_or(0.0, |m| m.get() as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testing::{TempTree, task_cgroup};
    use super::*;

    #[test]
    fn reads_what_the_kernel_has() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        let stats = cgroup.stats().unwrap();
        assert_eq!(
            stats.memory,
            MemoryStats {
                usage: Some(8_388_608),
                rss: Some(4_194_304),
                cache: Some(2_097_152),
                swap: None,
                kernel: Some(1_048_576),
                peak: Some(16_777_216),
            }
        );
        assert_eq!(
            stats.cpu,
            CpuStats {
                times: CpuTimes { usage_us: 1_500_000, user_us: 1_000_000, system_us: 500_000 },
                throttled_periods: Some(3),
                throttled_us: Some(40_000),
            }
        );
    }

    #[test]
    fn absent_is_absent_not_zero() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        for file in ["memory.peak", "memory.current", "memory.stat"] {
            tree.remove(&format!("a.scope/{file}"));
        }
        tree.file("a.scope/cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\n");
        tree.file("a.scope/memory.swap.current", "0\n");
        let stats = cgroup.stats().unwrap();
        assert_eq!(stats.memory, MemoryStats { swap: Some(0), ..MemoryStats::default() });
        assert_eq!((stats.cpu.times.usage_us, stats.cpu.throttled_periods), (7, None));
    }

    #[test]
    fn a_cgroup_that_has_gone_says_so() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        std::fs::remove_dir_all(tree.root().join("a.scope")).unwrap();
        assert!(cgroup.stats().unwrap_err().is_gone());
    }

    #[test]
    fn garbage_is_absent() {
        let tree = TempTree::new();
        let cgroup = task_cgroup(&tree, "a.scope");
        tree.file("a.scope/memory.current", "\n");
        tree.file("a.scope/memory.peak", "99999999999999999999999\n");
        std::fs::write(tree.root().join("a.scope/memory.stat"), b"anon \xff\nfile 1 2\n\xfe").unwrap();
        let memory = cgroup.stats().unwrap().memory;
        assert_eq!((memory.usage, memory.peak, memory.rss, memory.cache), (None, None, None, None));
    }

    fn times(user_us: u64, system_us: u64) -> CpuTimes {
        CpuTimes { usage_us: user_us + system_us, user_us, system_us }
    }

    #[test]
    fn usage_over_each_interval() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut sampler = CpuSampler::new(NonZeroU64::new(2000));
        assert_eq!(sampler.sample(at(0), times(5_000_000, 0)), CpuUsage::default());
        // Half a core in user mode, a quarter in the kernel, over one second.
        let usage = sampler.sample(at(1000), times(5_500_000, 250_000));
        assert_eq!(
            usage,
            CpuUsage { user_percent: 50.0, system_percent: 25.0, percent: 75.0, ticks: 1500.0 }
        );
        // The next interval knows nothing of the last one.
        assert_eq!(sampler.sample(at(2000), times(5_500_000, 250_000)), CpuUsage::default());
        // Two cores for a tenth of a second.
        let usage = sampler.sample(at(2100), times(5_700_000, 250_000));
        assert!((usage.percent - 200.0).abs() < 1e-6 && (usage.ticks - 4000.0).abs() < 1e-6, "{usage:?}");
    }

    #[test]
    fn a_known_start_makes_the_first_sample_count() {
        let start = Instant::now();
        let mut sampler = CpuSampler::since(None, start, times(0, 0));
        let usage = sampler.sample(start + Duration::from_secs(2), times(2_000_000, 0));
        assert_eq!((usage.percent, usage.ticks), (100.0, 0.0));
    }

    #[test]
    fn no_interval_and_counters_that_go_back() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut sampler = CpuSampler::since(None, start, times(1_000_000, 0));
        assert_eq!(sampler.sample(start, times(1_200_000, 0)), CpuUsage::default());
        // The reading without an interval was not used up.
        assert_eq!(sampler.sample(start + second, times(1_500_000, 0)).percent, 50.0);
        assert_eq!(sampler.sample(start + 2 * second, times(100, 0)), CpuUsage::default());
        assert_eq!(sampler.sample(start + 3 * second, times(100_100, 0)).percent, 10.0);
    }
}
