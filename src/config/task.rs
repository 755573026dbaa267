//! A job's options: `task { driver = "exec2"; config { … } }`.

use std::path::{Component, Path, PathBuf};

use super::blocks::Block;
use super::cty::Value;
use super::kinds::{
    Capabilities, Flag, Idmap, IoMaxima, MEMORY_SWAP_RANGE, MEMORY_SWAP_WRITE, Number, Optional,
    PERCENT_RANGE, PERCENT_WRITE, PIDS_MAX_RANGE, PIDS_MAX_WRITE, SeccompGroups, SeccompProfile, Ulimit,
    UnveilRules, WEIGHT_RANGE, WEIGHT_WRITE,
};
use super::network::TaskNetwork;
use super::row::{Form, Row};
use super::table::{self, Kind, Table, options};
use super::{At, ConfigError, Scope, hclspec};
use crate::cgroup::IoLimits;
use crate::proto::hclspec::Spec;
use crate::quote::quote;
use crate::sandbox::capabilities::CapList;
use crate::sandbox::policy::{Ask, OOM_SCORE_ADJ_RANGE};
use crate::sandbox::rlimits::Rlimits;
use crate::sandbox::seccomp::{GroupSet, Profile};
use crate::sandbox::unveil::Unveil;
use crate::sandbox::volume::VolumeIdmap;

/// As the agent's option of the same name says, if a job leaves it out.
const fn or_the_agents<K>(kind: K) -> Optional<K> {
    Optional { kind, unset: "the agent's" }
}

options! {
    /// The options that a job sets. Nomad has already replaced `${…}`.
    ///
    /// Decoding is the only way to make one, so it is valid. Not to be confused with `TaskConfig`, Nomad's message about a task,
    /// whose field `msgpack_driver_config` holds these options.
    #[derive(Clone, PartialEq, Eq)]
    pub struct DriverConfig {
        /// a path, or a name that is looked up in the task's `PATH`
        ///
        /// In a job it is not empty. It contains no NUL byte.
        pub command: String = Command,
        /// the arguments of the command
        ///
        /// They contain no NUL byte. They may hold secrets.
        pub args: Vec<String> = Args,
        /// more paths; needs `unveil_by_task`
        pub unveil: Vec<Unveil> = UnveilRules,
        /// which task the kernel kills first when memory runs out; 0 to 1000
        ///
        /// It is written even if it is 0: otherwise the task inherits the agent's value, often -1000.
        pub oom_score_adj: i32 =
            Number { range: OOM_SCORE_ADJ_RANGE, default: 0, write: "a whole number from 0 to 1000" },
        /// start with these capabilities; each must be in `allow_caps`
        pub cap_add: CapList = Capabilities,
        /// take these capabilities away from `cap_add`
        pub cap_drop: CapList = Capabilities,
        /// an absolute path, or one relative to the directory that holds `local/`, `secrets/` and `tmp/`
        ///
        /// In a job it has no `..`: a relative path is normalized, and `.` is the parent of the task directory. None means the
        /// task directory.
        pub work_dir: Option<PathBuf> = WorkDir,
        /// when memory runs out, kill all processes of the task, not one
        ///
        /// This is `memory.oom.group`, for a task whose processes are useless without each other: the whole task ends, and
        /// Nomad restarts it.
        pub oom_group: bool = Flag { default: false },
        /// limits of the task's processes, getrlimit(2): `nofile = "1024:4096"`; up to the agent's
        ///
        /// In the kernel's units: bytes, seconds, or numbers.
        pub ulimit: Rlimits = Ulimit,
        /// how many processes and threads the task may have; as the agent's option, up to which it may be
        pub pids_max: Option<i32> = or_the_agents(Number { range: PIDS_MAX_RANGE, default: 0, write: PIDS_MAX_WRITE }),
        /// MiB of swap that the task may use; as the agent's option, up to which it may be
        pub memory_swap: Option<i32> = or_the_agents(Number { range: MEMORY_SWAP_RANGE, default: 0, write: MEMORY_SWAP_WRITE }),
        /// `false`: `cpu` is a share, not a limit; only if the agent allows it
        pub cpu_hard_limit: Option<bool> = or_the_agents(Flag { default: false }),
        /// [ports](#ports) to which the task may bind and connect, within those that the agent allows
        pub network_policy: Option<TaskNetwork> = Block::<TaskNetwork>::new(),
        /// the task's share of a busy CPU, instead of that of its `cpu`, up to which it may be, or to the agent's `cpu_weight_max`
        pub cpu_weight: Option<i32> =
            Optional { kind: Number { range: WEIGHT_RANGE, default: 0, write: WEIGHT_WRITE }, unset: "by cpu" },
        /// how much of its CPU quota the task may save for later, percent of 100 ms; as the agent's option, up to which it may be
        pub cpu_burst: Option<i32> = or_the_agents(Number { range: PERCENT_RANGE, default: 0, write: PERCENT_WRITE }),
        /// MiB above which the kernel slows the task down and reclaims its memory; 0: none
        pub memory_high: i32 = Number { range: 0..=i32::MAX, default: 0, write: "a number of MiB, or 0 for none" },
        /// the task's share of a busy disk; as the agent's option, up to which it may be
        pub io_weight: Option<i32> = or_the_agents(Number { range: WEIGHT_RANGE, default: 0, write: WEIGHT_WRITE }),
        /// the most that the task may read and write of a disk: `"/dev/vda rbps=1048576 wiops=100"`; the agent's limits hold as well
        pub io_max: IoLimits = IoMaxima,
        /// the same as the agent's option, for this task; `"auto"` only if the agent allows it
        pub volume_idmap: Option<VolumeIdmap> = or_the_agents(Idmap),
        /// the same as the agent's option, for this task; `"unconfined"` only if the agent allows it
        pub seccomp: Option<Profile> = or_the_agents(SeccompProfile),
        /// groups of system calls that the task may use; each must be in `allow_seccomp`
        pub seccomp_allow: GroupSet = SeccompGroups,
        .. sealed
    }
}

impl DriverConfig {
    /// All options.
    pub fn options() -> Vec<Row> {
        Self::rows()
    }

    /// The schema for Driver.TaskConfigSchema.
    pub(crate) fn schema() -> Spec {
        table::schema(Scope::Task, Self::rows())
    }

    /// Decodes `msgpack_driver_config` of Driver.StartTask.
    pub fn decode(msgpack: &[u8]) -> Result<Self, ConfigError> {
        table::decode(Scope::Task, msgpack)
    }

    /// Decodes the same options from a JSON object.
    pub fn decode_json(json: &str) -> Result<Self, ConfigError> {
        table::decode_json(Scope::Task, json)
    }

    /// What the job asks to be allowed.
    pub fn ask(&self) -> Ask<'_> {
        Ask {
            unveil: &self.unveil,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            work_dir: self.work_dir.as_deref(),
            oom_score_adj: self.oom_score_adj,
            ulimit: &self.ulimit,
            pids_max: self.pids_max,
            memory_swap: self.memory_swap,
            cpu_hard_limit: self.cpu_hard_limit,
            network: self.network_policy.as_ref().map(TaskNetwork::lists).unwrap_or_default(),
            cpu_weight: self.cpu_weight,
            cpu_burst: self.cpu_burst,
            memory_high: self.memory_high,
            io_weight: self.io_weight,
            io_max: &self.io_max,
            volumes: &[],
            devices: &[],
            volume_idmap: self.volume_idmap,
            seccomp: self.seccomp,
            seccomp_allow: self.seccomp_allow,
        }
    }
}

/// `command`. An empty one counts as not set.
struct Command;

impl Command {
    const WRITE: &str = r#"the program to run, for example "python3""#;
}

impl Kind for Command {
    type Value = String;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = "string";

    fn unset(&self) -> Result<String, &'static str> {
        Err(Self::WRITE)
    }

    fn read(&self, at: &At, value: Value) -> Result<String, ConfigError> {
        let command = value.text(at)?;
        if command.is_empty() {
            return Err(at.missing(Self::WRITE));
        }
        at.without_nul(&command, true)?;
        Ok(command)
    }

    fn show(&self, value: &String) -> String {
        quote(value)
    }
}

/// `args`. Only their number is shown.
struct Args;

impl Kind for Args {
    type Value = Vec<String>;
    const FORM: Form = Form::Attribute(hclspec::STRINGS);
    const TAKES: &str = "list of strings";

    fn unset(&self) -> Result<Vec<String>, &'static str> {
        Ok(Vec::new())
    }

    fn read(&self, at: &At, value: Value) -> Result<Vec<String>, ConfigError> {
        let args = value.texts(at)?;
        for (i, arg) in args.iter().enumerate() {
            // Formatting the index costs more than the check, and there may be thousands of arguments.
            if arg.contains('\0') {
                at.element(i).without_nul(arg, false)?;
            }
        }
        Ok(args)
    }

    fn show(&self, value: &Vec<String>) -> String {
        if value.is_empty() { "[]".to_owned() } else { format!("[({} not shown)]", value.len()) }
    }
}

/// `work_dir`. An empty one counts as not set.
struct WorkDir;

impl Kind for WorkDir {
    type Value = Option<PathBuf>;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = "string";

    fn unset(&self) -> Result<Option<PathBuf>, &'static str> {
        Ok(None)
    }

    fn read(&self, at: &At, value: Value) -> Result<Option<PathBuf>, ConfigError> {
        let text = value.text(at)?;
        if text.is_empty() { Ok(None) } else { work_dir(at, &text).map(Some) }
    }

    fn show(&self, value: &Option<PathBuf>) -> String {
        match value {
            Some(dir) => quote(&dir.to_string_lossy()),
            None => r#""${NOMAD_TASK_DIR}""#.to_owned(),
        }
    }
}

/// Checks the text of `work_dir`. A relative path is normalized as in the Go driver, so `local/../tmp` is `tmp`; symbolic links
/// are handled when it is opened.
fn work_dir(at: &At, text: &str) -> Result<PathBuf, ConfigError> {
    let refuse = |problem, write| at.bad_value(quote(text), problem, write);
    at.without_nul(text, true)?;
    let path = Path::new(text);
    let mut folded = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir | Component::Prefix(_) => {}
            Component::RootDir | Component::Normal(_) => folded.push(component),
            Component::ParentDir if path.is_absolute() => {
                let problem = "it has a `..`, which means different places before and after symlinks";
                return Err(refuse(problem, "the path itself"));
            }
            Component::ParentDir => {
                if !folded.pop() {
                    let problem = "it leads out of the parent of the task directory";
                    return Err(refuse(
                        problem,
                        r#"a path below it such as "local/app", or an absolute path"#,
                    ));
                }
            }
        }
    }
    if folded.as_os_str().is_empty() {
        folded.push(".");
    }
    Ok(folded)
}
