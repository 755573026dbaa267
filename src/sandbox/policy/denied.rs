//! The refusals.

use std::path::PathBuf;

use crate::quote::quote;
use crate::sandbox::capabilities::{AllowedCaps, CapSet};
use crate::sandbox::device::DeviceError;
use crate::sandbox::network::NetworkError;
use crate::sandbox::rlimits::{Rlimit, Value};
use crate::sandbox::seccomp::{Allowed, GroupSet};
use crate::sandbox::unveil::Unveil;
use crate::sandbox::volume::VolumeError;
use crate::users::{DynamicRange, ID_MAX};

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
        .written.hcl(*.refused)
    )]
    Capability { refused: CapSet, allowed: CapSet, written: AllowedCaps },
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
