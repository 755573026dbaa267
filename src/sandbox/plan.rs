//! What a task may do: a plain value, made by [`super::policy`] and executed by the shim.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::capabilities::CapSet;
use super::device::Device;
use super::landlock;
use super::network::NetworkRules;
use super::place::{NamedBy, Place, Rule};
use super::rlimits;
use super::seccomp;
use super::unveil::Unveil;
use super::volume::Volume;
use crate::cgroup::Limits;

/// Everything that a task may do.
///
/// It is stored with the task and read by later versions, so every field has a default: what the task of a version without the field has, or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// The task's own directory, `alloc_mounts/<alloc>-<task>`. It has been proven to be its own, so the symbolic links that
    /// lead to it are followed.
    #[serde(with = "crate::os_path")]
    pub task_dir: PathBuf,
    pub root: Root,
    pub proc_hidepid: HidePid,
    pub namespaces: Namespaces,
    pub landlock: Landlock,
    /// What the task starts with (ambient for an ordinary user, permitted for root) and the most that it and its
    /// children can ever hold (the bounding set).
    pub capabilities: CapSet,
    pub rlimits: ProcessLimits,
    /// proc_pid_oom_score_adj(5). Always written: the agent's own, often -1000, must not be inherited.
    pub oom_score_adj: i32,
    pub resources: Resources,
    pub work_dir: WorkDir,
    pub volumes: Vec<Volume>,
    pub devices: Vec<Device>,
    /// The system calls that the task may make.
    pub seccomp: seccomp::Filter,
}

impl Plan {
    /// Whether the task sees a volume at this path.
    pub(crate) fn is_in_volume(&self, path: &Path) -> bool {
        self.volumes.iter().any(|volume| path.starts_with(&volume.path))
    }
}

/// What a task has as its root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// The host's tree, in which Landlock alone decides what can be used. Tasks of versions before 0.2.0 have it.
    #[default]
    Host,
    /// One of its own, in which there is nothing but what was granted: also what all tasks get, if `defaults`.
    Private { defaults: bool },
}

/// Which processes of other users a task sees in its /proc: proc(5), `hidepid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HidePid {
    /// All of the task.
    #[default]
    Off,
    /// Their numbers only.
    Noaccess,
    /// None.
    Invisible,
    /// Those that it could trace.
    Ptraceable,
}

impl HidePid {
    pub const ALL: [Self; 4] = [Self::Off, Self::Noaccess, Self::Invisible, Self::Ptraceable];

    /// The value of the mount option.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Noaccess => "noaccess",
            Self::Invisible => "invisible",
            Self::Ptraceable => "ptraceable",
        }
    }
}

/// The namespaces that a task does not share with the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespaces {
    /// Created for the task.
    pub own: BTreeSet<Namespace>,
    /// Network namespace to join (setns(2)), for example `/var/run/netns/<alloc>`; none = the host's.
    #[serde(with = "crate::os_path::option")]
    pub network: Option<PathBuf>,
}

/// A kind of namespace, namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    Pid,
    Mount,
    Ipc,
    Uts,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self { own: [Namespace::Pid, Namespace::Mount, Namespace::Ipc].into(), network: None }
    }
}

/// What Landlock denies and allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Landlock {
    /// The task does not start unless the kernel can deny all rights of this ABI.
    pub required_abi: i32,
    /// The rights of this ABI are denied as far as the kernel knows them.
    pub handled_abi: i32,
    /// What no rule grants is denied.
    pub rules: Vec<Rule>,
    pub network: NetworkRules,
    /// The task can connect only to abstract unix sockets that its own processes have made.
    pub own_abstract_sockets: bool,
    /// What neither the agent nor a job can unveil.
    #[serde(with = "crate::os_path::list")]
    pub denied: Vec<PathBuf>,
    /// What the job's rules may grant; none: whatever is not denied.
    pub allowed: Option<Vec<Unveil>>,
    /// The sockets of the host, and directories of them, to which the task may connect where it sees them.
    #[serde(with = "crate::os_path::list")]
    pub sockets: Vec<PathBuf>,
}

impl Default for Landlock {
    fn default() -> Self {
        Self {
            required_abi: landlock::REQUIRED_ABI,
            handled_abi: landlock::HANDLED_ABI,
            rules: Vec::new(),
            network: NetworkRules::default(),
            own_abstract_sockets: false,
            denied: Vec::new(),
            allowed: None,
            sockets: Vec::new(),
        }
    }
}

/// Resource limits of the process, getrlimit(2).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessLimits {
    /// Soft limit of RLIMIT_NOFILE where `asked` has none; none = the plugin's.
    pub open_files: Option<u64>,
    /// Those of `ulimit`; the others are the plugin's.
    pub asked: rlimits::Rlimits,
}

/// What the task may use of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// None: the task has no cgroup, and no limits.
    #[serde(with = "crate::os_path::option")]
    pub cgroup: Option<PathBuf>,
    pub limits: Limits,
}

/// Where a task starts, and who named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkDir {
    pub place: Place,
    pub named_by: NamedBy,
}

impl Default for WorkDir {
    /// The one directory that every host has.
    fn default() -> Self {
        Self { place: Place::host("/"), named_by: NamedBy::Job }
    }
}
