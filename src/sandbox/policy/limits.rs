//! Limits of a task's processes and of its cgroup.

use super::{Ask, Denied, Host, Policy};
use crate::cgroup::{CPU_WEIGHT_DEFAULT, IoLimits, Limits, mib_to_bytes};
use crate::sandbox::rlimits::{NOFILE, NOFILE_SOFT_MAX, Rlimit, Rlimits, Value};

impl Policy<'_> {
    /// The agent's limits and the job's. A limit that only the job names may be as high as the agent's own.
    pub(super) fn ulimits(&self, ask: &Ask<'_>, host: &Host<'_>) -> Result<Rlimits, Denied> {
        let mut limits = self.ulimit.clone();
        for (name, asked) in ask.ulimit {
            let most = self.ulimit.get(name).map_or_else(|| (host.hard_limits)(name), |limit| limit.hard);
            let asked = possible(name, *asked, host);
            if asked.hard > most {
                return Err(Denied::Ulimit { name: name.clone(), asked, most });
            }
            limits.insert(name.clone(), asked);
        }
        Ok(limits.into_iter().map(|(name, limit)| (name.clone(), possible(&name, limit, host))).collect())
    }

    pub(super) fn limits(&self, ask: &Ask<'_>, planned: Limits) -> Result<Limits, Denied> {
        let pids = match (self.pids_max, ask.pids_max) {
            (most, None) => most,
            (0, Some(asked)) => asked,
            (most, Some(asked)) if asked == 0 || asked > most => return Err(Denied::PidsMax { asked, most }),
            (_, Some(asked)) => asked,
        };
        let swap = match (self.memory_swap, ask.memory_swap) {
            (most, None) => most,
            (-1, Some(asked)) => asked,
            (most, Some(asked)) if asked == -1 || asked > most => {
                return Err(Denied::MemorySwap { asked, most });
            }
            (_, Some(asked)) => asked,
        };
        let hard = match (self.cpu_hard_limit, ask.cpu_hard_limit) {
            (true, Some(false)) => return Err(Denied::CpuHardLimit),
            (agent, task) => task.unwrap_or(agent),
        };
        let cpu_max = planned.cpu_max.filter(|_| hard);
        let burst = up_to("cpu_burst", self.cpu_burst, ask.cpu_burst)?;
        let io_weight = up_to("io_weight", self.io_weight, ask.io_weight)?;
        Ok(Limits {
            cpu_weight: self.cpu_weight(ask, planned.cpu_weight)?,
            cpu_burst_us: cpu_max.map_or(0, |max| max.quota_us / 100 * u64::try_from(burst).unwrap_or(0)),
            memory_high: mib_to_bytes(ask.memory_high.into()),
            io_weight: u64::try_from(io_weight).ok(),
            io_max: self.io_max(ask),
            pids_max: u64::try_from(pids).ok().filter(|pids| *pids > 0),
            swap_max: (swap >= 0).then(|| mib_to_bytes(swap.into()).unwrap_or(0)),
            cpu_max,
            ..planned
        })
    }

    /// A job may ask for less than the weight of its `cpu`, and for more if the agent's option is higher.
    fn cpu_weight(&self, ask: &Ask<'_>, planned: Option<u64>) -> Result<Option<u64>, Denied> {
        let Some(asked) = ask.cpu_weight.and_then(|weight| u64::try_from(weight).ok()) else {
            return Ok(planned);
        };
        let own = planned.unwrap_or(CPU_WEIGHT_DEFAULT);
        let most = u64::try_from(self.cpu_weight_max).map_or(own, |most| most.max(own));
        if asked > most { Err(Denied::CpuWeight { asked, most }) } else { Ok(Some(asked)) }
    }

    fn io_max(&self, ask: &Ask<'_>) -> IoLimits {
        let mut limits = self.io_max.clone();
        for (disk, limit) in ask.io_max {
            let found = limits.entry(disk.clone()).or_default();
            *found = found.lower(*limit);
        }
        limits
    }
}

/// What a job asks for, which may be up to the agent's value.
fn up_to(option: &'static str, most: i32, asked: Option<i32>) -> Result<i32, Denied> {
    match asked {
        Some(asked) if asked > most => Err(Denied::AboveTheAgents { option, asked, most }),
        asked => Ok(asked.unwrap_or(most)),
    }
}

/// The kernel takes no hard limit of open files above fs.nr_open.
fn possible(name: &str, limit: Rlimit, host: &Host<'_>) -> Rlimit {
    if name != NOFILE || limit.hard != Value::UNLIMITED {
        return limit;
    }
    let hard = Value((host.open_files_max)());
    let soft = if limit.soft == Value::UNLIMITED { Value(NOFILE_SOFT_MAX) } else { limit.soft };
    Rlimit { soft: soft.min(hard), hard }
}

#[cfg(test)]
mod tests;
