//! TaskStats: one cgroup reading per interval.

use std::time::{Duration, Instant, SystemTime};

use crate::cgroup::{CpuUsage, Stats};
use crate::proto::driver::{
    CpuUsage as ProtoCpu, MemoryUsage, TaskResourceUsage, TaskStats, cpu_usage, memory_usage,
};

/// The default interval of Nomad's client.
pub(super) const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest supported interval; each reading opens five files.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// A reading in Nomad's form: each field that the kernel reported is listed as measured.
pub(super) fn task_stats(id: &str, stats: &Stats, cpu: CpuUsage) -> TaskStats {
    TaskStats {
        id: id.into(),
        timestamp: Some(SystemTime::now().into()),
        agg_resource_usage: Some(TaskResourceUsage {
            cpu: Some(cpu_usage(stats, cpu)),
            memory: Some(memory(stats)),
        }),
        resource_usage_by_pid: Default::default(),
    }
}

fn cpu_usage(stats: &Stats, usage: CpuUsage) -> ProtoCpu {
    use cpu_usage::Fields;
    let mut measured = vec![Fields::SystemMode, Fields::UserMode, Fields::TotalTicks, Fields::Percent];
    measured.extend(stats.cpu.throttled_periods.map(|_| Fields::ThrottledPeriods));
    measured.extend(stats.cpu.throttled_us.map(|_| Fields::ThrottledTime));
    ProtoCpu {
        system_mode: usage.system_percent,
        user_mode: usage.user_percent,
        total_ticks: usage.ticks,
        throttled_periods: stats.cpu.throttled_periods.unwrap_or(0),
        // Nomad's field is in ns, that of cpu.stat in µs.
        throttled_time: stats.cpu.throttled_us.unwrap_or(0).saturating_mul(1000),
        percent: usage.percent,
        measured_fields: measured.into_iter().map(i32::from).collect(),
    }
}

fn memory(stats: &Stats) -> MemoryUsage {
    use memory_usage::Fields;
    let memory = stats.memory;
    let fields = [
        (Fields::Rss, memory.rss),
        (Fields::Cache, memory.cache),
        (Fields::MaxUsage, memory.peak),
        (Fields::KernelUsage, memory.kernel),
        (Fields::Usage, memory.usage),
        (Fields::Swap, memory.swap),
    ];
    MemoryUsage {
        rss: memory.rss.unwrap_or(0),
        cache: memory.cache.unwrap_or(0),
        max_usage: memory.peak.unwrap_or(0),
        kernel_usage: memory.kernel.unwrap_or(0),
        kernel_max_usage: 0,
        usage: memory.usage.unwrap_or(0),
        swap: memory.swap.unwrap_or(0),
        measured_fields: fields
            .into_iter()
            .filter(|(_, value)| value.is_some())
            .map(|(field, _)| field.into())
            .collect(),
    }
}

/// The interval for what Nomad sent.
pub(super) fn interval(asked: Option<prost_types::Duration>) -> Duration {
    match asked.map(Duration::try_from) {
        Some(Ok(asked)) if !asked.is_zero() => asked.max(MIN_INTERVAL),
        _ => DEFAULT_INTERVAL,
    }
}

/// The time of a reading, taken as close to it as possible.
pub(super) fn read(cgroup: &crate::cgroup::Cgroup) -> Result<(Instant, Stats), crate::cgroup::CgroupError> {
    let stats = cgroup.stats()?;
    Ok((Instant::now(), stats))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{CpuStats, MemoryStats};

    #[test]
    fn only_reported_values_are_listed_as_measured() {
        let stats = Stats {
            memory: MemoryStats { usage: Some(5), rss: Some(3), ..Default::default() },
            cpu: CpuStats { throttled_us: Some(7), ..Default::default() },
        };
        let usage = task_stats("a", &stats, CpuUsage::default()).agg_resource_usage.unwrap();
        let (memory, cpu) = (usage.memory.unwrap(), usage.cpu.unwrap());
        assert_eq!(
            memory.measured_fields,
            [memory_usage::Fields::Rss as i32, memory_usage::Fields::Usage as i32]
        );
        assert_eq!((memory.usage, memory.rss, memory.swap), (5, 3, 0));
        assert_eq!(cpu.throttled_time, 7000);
        assert!(cpu.measured_fields.contains(&(cpu_usage::Fields::ThrottledTime as i32)));
        assert!(!cpu.measured_fields.contains(&(cpu_usage::Fields::ThrottledPeriods as i32)));
    }

    #[test]
    fn a_missing_or_impossible_interval_means_one_second() {
        let of = |seconds, nanos| interval(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!(interval(None), DEFAULT_INTERVAL);
        assert_eq!(of(0, 0), DEFAULT_INTERVAL);
        assert_eq!(of(-5, 0), DEFAULT_INTERVAL);
        assert_eq!(of(5, 0), Duration::from_secs(5));
        assert_eq!(of(0, 1), MIN_INTERVAL);
    }
}
