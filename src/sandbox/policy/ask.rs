//! What a job asks for.

use std::path::Path;

use crate::cgroup::IoLimits;
use crate::sandbox::capabilities::CapList;
use crate::sandbox::device::AskedDevice;
use crate::sandbox::network::Lists;
use crate::sandbox::rlimits::Rlimits;
use crate::sandbox::seccomp::{GroupSet, Profile};
use crate::sandbox::unveil::Unveil;
use crate::sandbox::volume::{AskedVolume, VolumeIdmap};

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

pub(super) static NO_LIMITS: Rlimits = Rlimits::new();
pub(super) static NO_IO_LIMITS: IoLimits = IoLimits::new();

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
