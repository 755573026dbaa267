//! Decides whether a task may have what its job asks for, and makes its plan.
//!
//! Every such decision is here or in the modules below. `config` and `users` check only whether a value is well-formed, `task::dirs` whether the directories are
//! the task's, the shim only what the kernel answers.

mod ask;
mod capabilities;
mod denied;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod limits;
mod network;
mod paths;
mod user;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::capabilities::{AllowedCaps, CapSet};
use super::device;
use super::network::{AbstractSockets, AllocatedPort, Lists, NetworkRules, Unsupported};
use super::plan::{HidePid, Landlock, Namespace, Namespaces, Plan, ProcessLimits, Resources, Root};
use super::rlimits::{Rlimits, Value};
use super::seccomp::{Allowed, Filter, Profile};
use super::unveil::Unveil;
use super::volume::{Surroundings, Volume, VolumeIdmap};
use crate::cgroup::{IoLimits, Limits};
use crate::users::{self, DynamicRange, IdRanges, User};

pub use ask::Ask;
pub use denied::Denied;
pub(crate) use network::{NetworkMode, network};
pub(crate) use user::may_share_uid;

/// What a job may set as `oom_score_adj`; `config` names the option when it refuses a value. The kernel's range is -1000 to
/// 1000 (proc_pid_oom_score_adj(5)), but below 0 a task would be spared at the cost of the host and of its neighbours, and
/// -1000 would exempt it completely.
pub(crate) const OOM_SCORE_ADJ_RANGE: RangeInclusive<i32> = 0..=1000;

/// What the operator allows, from the plugin's options.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// Whether tasks have a root of their own.
    pub own_root: bool,
    /// Whether every task gets the default paths and its own directories.
    pub unveil_defaults: bool,
    /// Paths that every task gets.
    pub unveil_paths: &'a [Unveil],
    /// Whether jobs may unveil paths and start outside the task's own directories.
    pub unveil_by_task: bool,
    /// What they may unveil if not.
    pub unveil_allow: &'a [Unveil],
    /// What no task may have.
    pub unveil_deny: &'a [PathBuf],
    pub allow_caps: AllowedCaps,
    /// Limits of every task's processes. A job may ask for others, up to these hard limits.
    pub ulimit: &'a Rlimits,
    /// Processes and threads of a task; 0 is no limit.
    pub pids_max: i32,
    /// MiB of swap of a task; -1 is no limit.
    pub memory_swap: i32,
    /// Whether `cpu` is a limit.
    pub cpu_hard_limit: bool,
    /// Ports for tasks. A job may narrow them.
    pub network: Lists<'a>,
    /// What becomes of a limit on ports that the kernel does not know.
    pub network_unsupported: Unsupported,
    pub abstract_sockets: AbstractSockets,
    /// The highest weight that a job may ask for; 0: that of its `cpu`.
    pub cpu_weight_max: i32,
    /// Percent of the quota.
    pub cpu_burst: i32,
    pub io_weight: i32,
    /// Limits of every task. A job may ask for lower ones, and for some of other disks.
    pub io_max: &'a IoLimits,
    pub allow_root: bool,
    pub denied_uids: &'a IdRanges,
    pub denied_gids: &'a IdRanges,
    pub dynamic_user_range: DynamicRange,
    pub volume_idmap: VolumeIdmap,
    pub proc_hidepid: HidePid,
    /// What tasks have whose jobs do not say.
    pub seccomp: Profile,
    pub allow_seccomp: Allowed,
}

/// What the host provides for this task.
#[derive(Debug, Clone)]
pub(crate) struct Host<'a> {
    /// The task's own directory: `alloc_mounts/<alloc>-<task>` with `alloc`, `local`, `secrets` and `tmp` in it.
    pub task_dir: &'a Path,
    /// Nomad's directory of the allocation, and where this driver keeps its records; none: Nomad has made no directory.
    pub kept: Option<(&'a Path, &'a Path)>,
    /// None: the task has no cgroup.
    pub cgroup: Option<&'a Path>,
    pub limits: Limits,
    /// The network namespace; none = the host's.
    pub network: Option<&'a Path>,
    /// The ports that Nomad gave the allocation.
    pub ports: &'a [AllocatedPort],
    pub landlock_abi: fn() -> u32,
    /// Whether Nomad sends DNS settings.
    pub dns: bool,
    /// What this process can grant.
    pub capabilities: CapSet,
    /// The soft limit of open files for tasks; none = the plugin's.
    pub open_files: Option<u64>,
    /// The plugin's own hard limits, getrlimit(2), and the highest that the kernel takes for open files (fs.nr_open).
    pub hard_limits: fn(&str) -> Value,
    pub open_files_max: fn() -> u64,
}

impl Policy<'_> {
    /// Judges what the job asks for.
    pub(crate) fn plan(&self, ask: &Ask<'_>, user: &User, host: Host<'_>) -> Result<Plan, Denied> {
        if !ask.unveil.is_empty() && !self.unveil_by_task && self.unveil_allow.is_empty() {
            return Err(Denied::UnveilByTask);
        }
        user::no_reserved_id(user)?;
        self.no_denied_id(user)?;
        if host.dns && !self.own_root {
            return Err(Denied::Dns);
        }
        let volumes = self.volumes(ask, user, host.task_dir)?;
        let work_dir = self.work_dir(ask, host.task_dir, &volumes)?;
        let rules = self.rules(ask, &host)?;
        let capabilities = self.capabilities(ask, host.capabilities)?;
        let network = self.network(ask, &host)?;
        let seccomp = self.seccomp(ask, capabilities, &network)?;
        let denied = self.denied_paths(&host);
        Ok(Plan {
            task_dir: host.task_dir.to_owned(),
            root: match self.own_root {
                true => Root::Private { defaults: self.unveil_defaults },
                false => Root::Host,
            },
            proc_hidepid: self.proc_hidepid,
            namespaces: Namespaces { own: self.namespaces(), network: host.network.map(Path::to_owned) },
            landlock: Landlock {
                rules,
                network,
                // In a namespace of the group there are only those of the group.
                own_abstract_sockets: host.network.is_none() && self.abstract_sockets == AbstractSockets::Own,
                sockets: self.sockets(&host, &denied),
                denied,
                allowed: (!self.unveil_by_task).then(|| self.unveil_allow.to_vec()),
                ..Landlock::default()
            },
            capabilities,
            rlimits: ProcessLimits { open_files: host.open_files, asked: self.ulimits(ask, &host)? },
            oom_score_adj: ask.oom_score_adj,
            resources: Resources {
                cgroup: host.cgroup.map(Path::to_owned),
                limits: self.limits(ask, host.limits)?,
            },
            work_dir,
            volumes,
            devices: device::judge(ask.devices, self.own_root)?,
            seccomp,
        })
    }

    /// A job that may have no filter may also have one with any group.
    fn seccomp(&self, ask: &Ask<'_>, capabilities: CapSet, network: &NetworkRules) -> Result<Filter, Denied> {
        let allowed = self.allow_seccomp;
        let free = allowed.unconfined || self.seccomp == Profile::Unconfined;
        if ask.seccomp == Some(Profile::Unconfined) && !free {
            return Err(Denied::Unconfined(allowed));
        }
        let refused = ask.seccomp_allow.difference(allowed.groups);
        if !free && !refused.is_empty() {
            return Err(Denied::Seccomp { refused, allowed });
        }
        Ok(match ask.seccomp.unwrap_or(self.seccomp) {
            Profile::Unconfined => Filter::Unconfined,
            Profile::Default => Filter::new(ask.seccomp_allow, capabilities, network.limits_tcp()),
        })
    }

    fn volumes(&self, ask: &Ask<'_>, user: &User, task_dir: &Path) -> Result<Vec<Volume>, Denied> {
        let idmap = match (self.volume_idmap, ask.volume_idmap) {
            (VolumeIdmap::Never, Some(VolumeIdmap::Auto)) => return Err(Denied::VolumeIdmap),
            (agent, task) => task.unwrap_or(agent),
        };
        // A user that the job names has the files that it has on the host.
        let dynamic = matches!(users::dynamic_id(&user.name), Ok(Some(_)));
        let surroundings = Surroundings {
            own_root: self.own_root,
            task_dir,
            unveils: [self.unveil_paths, ask.unveil],
            mapped: dynamic && idmap == VolumeIdmap::Auto,
        };
        Ok(surroundings.judge(ask.volumes)?)
    }

    /// A root of its own is assembled in a mount namespace that the shim makes itself.
    fn namespaces(&self) -> BTreeSet<Namespace> {
        let mut own = BTreeSet::from([Namespace::Pid, Namespace::Ipc, Namespace::Uts]);
        if !self.own_root {
            own.insert(Namespace::Mount);
        }
        own
    }
}

#[cfg(test)]
mod tests;
