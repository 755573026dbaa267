//! Decides whether a task may have what its job asks for, and makes its plan.
//!
//! Every such decision is here. `config` and `users` check only whether a value is well-formed, `task::dirs` whether the directories are
//! the task's, the shim only what the kernel answers.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::capabilities::{CapList, CapSet, Capability, hcl};
use super::defaults::DEFAULTS;
use super::device::{self, AskedDevice, DeviceError};
use super::network::{self, AbstractSockets, AllocatedPort, Lists, NetworkError, NetworkRules, Unsupported};
use super::place::{Missing, NamedBy, Place, Rule};
use super::plan::{Landlock, Namespace, Namespaces, Plan, ProcessLimits, Resources, Root, WorkDir};
use super::rlimits::{NOFILE, NOFILE_SOFT_MAX, Rlimit, Rlimits, Value};
use super::seccomp::{Allowed, Filter, GroupSet, Profile};
use super::unveil::{Access, Unveil};
use super::volume::{AskedVolume, Surroundings, Volume, VolumeError, VolumeIdmap};
use crate::cgroup::{CPU_WEIGHT_DEFAULT, IoLimits, Limits, mib_to_bytes};
use crate::quote::quote;
use crate::users::{self, DynamicRange, ID_MAX, IdRanges, User};

/// What a job may set as `oom_score_adj`; `config` names the option when it refuses a value. The kernel's range is -1000 to
/// 1000 (proc_pid_oom_score_adj(5)), but below 0 a task would be spared at the cost of the host and of its neighbours, and
/// -1000 would exempt it completely.
pub(crate) const OOM_SCORE_ADJ_RANGE: RangeInclusive<i32> = 0..=1000;

const R: Access = Access::READ;
const RX: Access = Access::READ.union(Access::EXECUTE);
const RWXC: Access = R.union(Access::WRITE).union(Access::EXECUTE).union(Access::CREATE);

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
    pub allow_caps: CapSet,
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
    /// What tasks have whose jobs do not say.
    pub seccomp: Profile,
    pub allow_seccomp: Allowed,
}

/// What a job asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub unveil: &'a [Unveil],
    pub cap_add: CapList,
    pub cap_drop: CapList,
    /// Absolute, or relative to the task's own directory.
    pub work_dir: Option<&'a Path>,
    pub oom_score_adj: i32,
    pub ulimit: &'a Rlimits,
    /// None, here and below: as the agent says.
    pub pids_max: Option<i32>,
    pub memory_swap: Option<i32>,
    pub cpu_hard_limit: Option<bool>,
    pub network: Lists<'a>,
    /// None: that of its `cpu`.
    pub cpu_weight: Option<i32>,
    pub cpu_burst: Option<i32>,
    /// MiB; 0 is no limit.
    pub memory_high: i32,
    pub io_weight: Option<i32>,
    pub io_max: &'a IoLimits,
    pub volumes: &'a [AskedVolume],
    pub devices: &'a [AskedDevice],
    /// None: as the agent says.
    pub volume_idmap: Option<VolumeIdmap>,
    /// None: as the agent says.
    pub seccomp: Option<Profile>,
    pub seccomp_allow: GroupSet,
}

/// No limits.
static NO_LIMITS: Rlimits = Rlimits::new();
static NO_IO_LIMITS: IoLimits = IoLimits::new();

impl Default for Ask<'_> {
    fn default() -> Self {
        Self {
            unveil: &[],
            cap_add: CapList::default(),
            cap_drop: CapList::default(),
            work_dir: None,
            oom_score_adj: 0,
            ulimit: &NO_LIMITS,
            pids_max: None,
            memory_swap: None,
            cpu_hard_limit: None,
            network: Lists([None; 4]),
            cpu_weight: None,
            cpu_burst: None,
            memory_high: 0,
            io_weight: None,
            io_max: &NO_IO_LIMITS,
            volumes: &[],
            devices: &[],
            seccomp: None,
            seccomp_allow: GroupSet::EMPTY,
            volume_idmap: None,
        }
    }
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

/// How Nomad isolates the network of an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    Host,
    /// A namespace that Nomad created for the allocation (bridge and CNI).
    Group,
    None,
    /// A namespace that the driver would have to create.
    Task,
}

/// Why a task may not have what its job asks for. Every message says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error(
        "the task sets unveil, which the agent's plugin option unveil_by_task does not allow; remove unveil from the task, \
         or set unveil_by_task = true or unveil_allow in the agent's plugin \"nomad-driver-exec2\" block"
    )]
    UnveilByTask,
    #[error(
        "unveil \"{0}\" is about one process, and the programs that it starts have others; write \"{access}:/proc\": a task's \
         /proc has no processes but its own",
        access = .0.access
    )]
    ProcSelf(Unveil),
    #[error(
        "unveil \"{0}\" uses a link of proc(5) to a file that a process has open; unveil the path of the file itself"
    )]
    MagicLink(Unveil),
    #[error(
        "work_dir {0:?} is outside the task's own directories, which the agent's plugin option unveil_by_task does not \
         allow; write a path relative to the task, for example \"local/app\""
    )]
    WorkDir(PathBuf),
    #[error(
        "cap_add asks for {refused}, which allow_caps does not allow (it allows: {allowed}); remove it from cap_add, or set \
         allow_caps = {} in the agent's plugin \"nomad-driver-exec2\" block",
        hcl(.allowed.union(*.refused))
    )]
    Capability { refused: CapSet, allowed: CapSet },
    #[error(
        "cap_add asks for {lacking}, which the plugin itself does not have: give it to the agent's service \
         (CapabilityBoundingSet=) or container, or remove it from cap_add"
    )]
    LackingCapability { lacking: CapSet },
    #[error(
        "user {user:?} is outside of {range}, the plugin option dynamic_user_range: leave user out of the task, so that Nomad assigns one; if the client's users block has another dynamic_user_min or dynamic_user_max, write the same range in dynamic_user_range"
    )]
    DynamicUser { user: String, range: DynamicRange },
    #[error("user {user:?} has {what} {id}, which is reserved: give it another one, up to {ID_MAX}")]
    ReservedId { user: String, what: &'static str, id: u32 },
    #[error(
        "user {user:?} has uid {uid}, which a task of another allocation on this host is using: leave user out of the task, so that Nomad assigns one"
    )]
    UidInUse { user: String, uid: u32 },
    #[error(
        "user = \"root\" is not allowed: the agent's plugin option allow_root is false; write another user, or leave it to Nomad"
    )]
    Root,
    #[error(
        "user {user:?} has {what} {id}, which the agent's plugin option {option} denies; write another user, or leave it to Nomad"
    )]
    Id { user: String, what: &'static str, option: &'static str, id: u32 },
    #[error(
        "ulimit {name} = \"{asked}\" is above {most}, the highest hard limit that is allowed; write a lower one, or set ulimit {{ {name} = \"{asked}\" }} in \
         the agent's plugin \"nomad-driver-exec2\" block"
    )]
    Ulimit { name: String, asked: Rlimit, most: Value },
    #[error(
        "pids_max = {asked} is not allowed, because the agent's plugin option pids_max is {most} (0 is no limit); write a number up to that, or raise it in \
         the agent's plugin \"nomad-driver-exec2\" block"
    )]
    PidsMax { asked: i32, most: i32 },
    #[error(
        "memory_swap = {asked} is not allowed, because the agent's plugin option memory_swap is {most} (MiB, -1 is no limit); write a number up to that, or \
         raise it in the agent's plugin \"nomad-driver-exec2\" block"
    )]
    MemorySwap { asked: i32, most: i32 },
    #[error(
        "cpu_hard_limit = false is not allowed: the agent's plugin option cpu_hard_limit is true; remove it from the task, or set cpu_hard_limit = false in \
         the agent's plugin \"nomad-driver-exec2\" block"
    )]
    CpuHardLimit,
    #[error(
        "cpu_weight = {asked} is not allowed: the most for this task is {most}, by its cpu or by the agent's plugin option cpu_weight_max; write a lower one, or \
         raise that option in the agent's plugin \"nomad-driver-exec2\" block"
    )]
    CpuWeight { asked: u64, most: u64 },
    #[error(
        "{option} = {asked} is not allowed, because the agent's plugin option {option} is {most}; write a number up to that, or raise it in the agent's plugin \
         \"nomad-driver-exec2\" block"
    )]
    AboveTheAgents { option: &'static str, asked: i32, most: i32 },
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(
        "volume_idmap = \"auto\" is not allowed: the agent's plugin option volume_idmap is \"never\"; remove it from the task, or set volume_idmap = \"auto\" in \
         the agent's plugin \"nomad-driver-exec2\" block"
    )]
    VolumeIdmap,
    #[error(
        "seccomp = \"unconfined\" is not allowed by the agent's plugin option allow_seccomp; remove it from the task, or set allow_seccomp = {} in the agent's \
         plugin \"nomad-driver-exec2\" block",
        Allowed { unconfined: true, ..*.0 }.hcl(GroupSet::EMPTY)
    )]
    Unconfined(Allowed),
    #[error(
        "seccomp_allow asks for {refused}, which allow_seccomp does not allow; remove it from seccomp_allow, or set allow_seccomp = {} in the agent's \
         plugin \"nomad-driver-exec2\" block",
        .allowed.hcl(*.refused)
    )]
    Seccomp { refused: GroupSet, allowed: Allowed },
    #[error(
        "the job or its network has DNS settings (network dns), and with root = \"host\" a task has the host's /etc/resolv.conf; \
         set root = \"private\" in the agent's plugin \"nomad-driver-exec2\" block, or remove dns from the job"
    )]
    Dns,
    #[error("a network of the task's own (network mode \"task\") is not supported by this driver")]
    NetworkOfTask,
    #[error("the request has no path of the network namespace")]
    NoNetworkPath,
    #[error("Nomad sent an invalid value: network namespace {}, which is not absolute", quote(.0))]
    RelativeNetworkPath(String),
}

impl Denied {
    /// Whether the same job may be allowed a moment later: the user database is changed, or another task ends.
    pub(crate) fn may_change(&self) -> bool {
        matches!(self, Self::ReservedId { .. } | Self::UidInUse { .. })
    }
}

impl Policy<'_> {
    /// Judges what the job asks for.
    pub(crate) fn plan(&self, ask: &Ask<'_>, user: &User, host: Host<'_>) -> Result<Plan, Denied> {
        if !ask.unveil.is_empty() && !self.unveil_by_task && self.unveil_allow.is_empty() {
            return Err(Denied::UnveilByTask);
        }
        no_reserved_id(user)?;
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
        Ok(Plan {
            task_dir: host.task_dir.to_owned(),
            root: match self.own_root {
                true => Root::Private { defaults: self.unveil_defaults },
                false => Root::Host,
            },
            namespaces: Namespaces { own: self.namespaces(), network: host.network.map(Path::to_owned) },
            landlock: Landlock {
                rules,
                network,
                // In a namespace of the group there are only those of the group.
                own_abstract_sockets: host.network.is_none() && self.abstract_sockets == AbstractSockets::Own,
                denied: self.denied_paths(&host),
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

    fn network(&self, ask: &Ask<'_>, host: &Host<'_>) -> Result<NetworkRules, NetworkError> {
        let surroundings = network::Surroundings {
            ports: host.ports,
            landlock_abi: host.landlock_abi,
            unsupported: self.network_unsupported,
        };
        surroundings.judge(self.network, ask.network)
    }

    fn no_denied_id(&self, user: &User) -> Result<(), Denied> {
        if user.uid == 0 && !self.allow_root {
            return Err(Denied::Root);
        }
        let denied = |what, option, id| Denied::Id { user: user.name.clone(), what, option, id };
        if self.denied_uids.contains(user.uid) {
            return Err(denied("uid", "denied_host_uids", user.uid));
        }
        let mut gids = std::iter::once(&user.gid).chain(&user.groups);
        match gids.find(|gid| self.denied_gids.contains(**gid)) {
            Some(gid) => Err(denied("gid", "denied_host_gids", *gid)),
            None => Ok(()),
        }
    }

    /// The agent's limits and the job's. A limit that only the job names may be as high as the agent's own.
    fn ulimits(&self, ask: &Ask<'_>, host: &Host<'_>) -> Result<Rlimits, Denied> {
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

    fn limits(&self, ask: &Ask<'_>, planned: Limits) -> Result<Limits, Denied> {
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

    /// A job's dynamic user must be one that Nomad can have assigned.
    pub(crate) fn dynamic_user(&self, user: &str, uid: u32) -> Result<(), Denied> {
        let range = self.dynamic_user_range;
        if range.contains(uid) {
            return Ok(());
        }
        Err(Denied::DynamicUser { user: user.to_owned(), range })
    }

    /// Whether the owner of a task's directory identifies the task's user. If jobs may have CAP_CHOWN, a task could have given its
    /// directory to the user of another task.
    pub(crate) fn trusts_owner(&self) -> bool {
        !self.allow_caps.contains(Capability::CHOWN)
    }

    /// `cap_add` less `cap_drop`, for every user. Root gets no others, so that a job shows what its task can do.
    ///
    /// A name in `cap_drop` always takes that member away. `all` in `cap_drop` takes away only what `cap_add`
    /// did not name, so that `cap_drop = ["all"]`, `cap_add = ["chown"]` leaves `chown`. `all` in `cap_add` means all that the
    /// plugin has; one that it names must be there.
    fn capabilities(&self, ask: &Ask<'_>, own: CapSet) -> Result<CapSet, Denied> {
        let added = if ask.cap_drop.all { ask.cap_add.named } else { ask.cap_add.set() };
        let wanted = added.difference(ask.cap_drop.named);
        let refused = wanted.difference(self.allow_caps);
        if !refused.is_empty() {
            return Err(Denied::Capability { refused, allowed: self.allow_caps });
        }
        let lacking = wanted.intersection(ask.cap_add.named).difference(own);
        if !lacking.is_empty() {
            return Err(Denied::LackingCapability { lacking });
        }
        Ok(wanted.intersection(own))
    }

    fn work_dir(&self, ask: &Ask<'_>, task_dir: &Path, volumes: &[Volume]) -> Result<WorkDir, Denied> {
        let path = task_dir.join(ask.work_dir.unwrap_or(Path::new("local")));
        let in_volume = volumes.iter().any(|volume| path.starts_with(&volume.path));
        let allowed = self.unveil_allow.iter().any(|unveil| path.starts_with(&unveil.path));
        if !in_volume && !allowed && !path.starts_with(task_dir) && !self.unveil_by_task {
            return Err(Denied::WorkDir(path));
        }
        Ok(WorkDir {
            place: Place::of(&path, self.writable(ask, task_dir)),
            named_by: if ask.work_dir.is_some() { NamedBy::Job } else { NamedBy::Driver },
        })
    }

    /// The directories in which tasks can create and rename, as far as they are known here: the task's own, and those of the
    /// agent's and this job's rules. What another job was unveiled, or what the host's permissions let others write, is
    /// not known.
    fn writable<'a>(&'a self, ask: &'a Ask<'_>, task_dir: &'a Path) -> impl Iterator<Item = &'a Path> {
        let unveils = self.unveil_paths.iter().chain(ask.unveil);
        unveils.filter(|unveil| unveil.access.create()).map(|unveil| unveil.path.as_path()).chain([task_dir])
    }

    /// The rules, the task's own directories first. Paths that a task could have tampered with are opened from above.
    fn rules(&self, ask: &Ask<'_>, host: &Host<'_>) -> Result<Vec<Rule>, Denied> {
        let writable: Vec<&Path> = self.writable(ask, host.task_dir).collect();
        // What a root of its own has needs no list: the template knows it.
        let listed = self.unveil_defaults && !self.own_root;
        let mut rules = if listed { default_rules(host, &writable) } else { Vec::new() };
        let by_agent = self.unveil_paths.iter().map(|unveil| (NamedBy::Agent, unveil));
        let by_job = ask.unveil.iter().map(|unveil| (NamedBy::Job, unveil));
        for (named_by, unveil) in by_agent.chain(by_job) {
            if OWN_STREAMS.iter().any(|stream| unveil.path.starts_with(stream)) {
                continue;
            }
            if let Some(below) = PROC_SELF.iter().find_map(|link| unveil.path.strip_prefix(link).ok()) {
                if MAGIC.iter().any(|name| below.starts_with(name)) {
                    return Err(Denied::MagicLink(unveil.clone()));
                }
                if !self.grants_proc(ask, unveil.access) {
                    return Err(Denied::ProcSelf(unveil.clone()));
                }
                continue;
            }
            rules.push(Rule {
                access: unveil.access,
                place: Place::of(&unveil.path, writable.iter().copied()),
                named_by,
                missing: Missing::Fail,
            });
        }
        Ok(rules)
    }

    /// A root of its own is assembled in a mount namespace that the shim makes itself.
    fn namespaces(&self) -> BTreeSet<Namespace> {
        let mut own = BTreeSet::from([Namespace::Pid, Namespace::Ipc, Namespace::Uts]);
        if !self.own_root {
            own.insert(Namespace::Mount);
        }
        own
    }

    /// What no rule may grant: the agent's list, what Nomad keeps of other tasks and of itself, and the driver's records. Those of Nomad's directories
    /// are found from the allocation's, with Nomad's names for the others: the agent does not tell a driver its data_dir.
    fn denied_paths(&self, host: &Host<'_>) -> Vec<PathBuf> {
        let mut denied = self.unveil_deny.to_vec();
        let Some((alloc_dir, records)) = host.kept else { return denied };
        let Some(allocs) = alloc_dir.parent() else { return denied };
        let mounts = host.task_dir.parent();
        denied.extend([Some(records), Some(allocs), mounts].into_iter().flatten().map(Path::to_owned));
        // An operator may have put one of them elsewhere, where the names beside it are not Nomad's.
        let beside = |dir: Option<&Path>, name| {
            dir.filter(|dir| dir.ends_with(name)).and_then(Path::parent).map(Path::to_owned)
        };
        let data = BTreeSet::from([beside(Some(allocs), ALLOCS), beside(mounts, ALLOC_MOUNTS)]);
        denied.extend(data.into_iter().flatten().flat_map(|data| OF_NOMAD.map(|name| data.join(name))));
        denied.retain(|path| path.parent().is_some());
        denied
    }

    /// Whether another rule grants this access to the whole of /proc.
    fn grants_proc(&self, ask: &Ask<'_>, access: Access) -> bool {
        let proc = Path::new("/proc");
        let default = DEFAULTS.iter().find(|default| self.unveil_defaults && Path::new(default.path) == proc);
        let asked = self.unveil_paths.iter().chain(ask.unveil);
        let granted = asked
            .filter(|unveil| proc.starts_with(&unveil.path))
            .fold(default.map_or(Access::NONE, |default| default.mode), |all, unveil| all | unveil.access);
        granted.contains(access)
    }
}

/// The directories of allocations in the agent's data_dir, unless its options alloc_dir and alloc_mounts_dir say otherwise.
const ALLOCS: &str = "alloc";
const ALLOC_MOUNTS: &str = "alloc_mounts";

/// What the agent keeps in its data_dir, beside the directories of allocations.
const OF_NOMAD: [&str; 2] = ["client", "server"];

/// Links to the directory of whichever process looks, proc(5).
const PROC_SELF: [&str; 2] = ["/proc/self", "/proc/thread-self"];

/// Names below such a directory that are links, or directories of links, to what the process has open.
const MAGIC: [&str; 6] = ["root", "cwd", "exe", "fd", "map_files", "ns"];

/// Links into /proc/self/fd, each to a descriptor of whichever process looks. A task may use its own in any case: standard
/// input is /dev/null, and the pipes of output and error are granted for writing.
const OWN_STREAMS: [&str; 4] = ["/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd"];

/// The task's own directories, its cgroup, and the default paths.
fn default_rules(host: &Host<'_>, writable: &[&Path]) -> Vec<Rule> {
    let rule = |access, place, missing| Rule { access, place, named_by: NamedBy::Driver, missing };
    let own = |access, path: &str| rule(access, Place::beneath(host.task_dir, path), Missing::Fail);
    let mut rules = Vec::from(["local", "alloc", "secrets", "tmp"].map(|directory| own(RWXC, directory)));
    rules.push(own(RX, "alloc/logs"));
    // So that runtimes (Go, the JVM) size themselves by the task's limits, not by the host.
    rules.extend(host.cgroup.map(|cgroup| rule(R, Place::host(cgroup), Missing::Skip)));
    rules.extend(DEFAULTS.iter().flat_map(|default| {
        let place = |path: &PathBuf| Place::of(path, writable.iter().copied());
        default.paths().into_iter().map(move |path| rule(default.mode, place(&path), Missing::Skip))
    }));
    rules
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

/// No task may have the id of the shims, or it could signal, trace and limit them.
fn no_reserved_id(user: &User) -> Result<(), Denied> {
    let ids = [("uid", user.uid), ("gid", user.gid)];
    let groups = user.groups.iter().map(|gid| ("group", *gid));
    match ids.into_iter().chain(groups).find(|(_, id)| *id > ID_MAX) {
        Some((what, id)) => Err(Denied::ReservedId { user: user.name.clone(), what, id }),
        None => Ok(()),
    }
}

/// Whether another allocation may use the same uid: only an operator who lists the user in the database can intend that.
pub(crate) fn may_share_uid(user: &User) -> bool {
    user.known
}

/// The network namespace that Nomad created for the allocation; none = the host's.
///
/// A path is joined whatever the mode, and only a job with the host's network may have none: a request that is not understood
/// must not end in the host's network.
pub(crate) fn network(mode: NetworkMode, path: &str) -> Result<Option<PathBuf>, Denied> {
    match (mode, path) {
        (NetworkMode::Host, "") => Ok(None),
        // Nomad asks only drivers that create networks for this.
        (NetworkMode::Task, "") => Err(Denied::NetworkOfTask),
        (_, "") => Err(Denied::NoNetworkPath),
        (_, path) if !path.starts_with('/') => Err(Denied::RelativeNetworkPath(path.to_owned())),
        (_, path) => Ok(Some(path.into())),
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests;
