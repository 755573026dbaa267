//! A job's options: `task { driver = "exec2"; config { … } }`.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};

use super::cty::Options;
use super::{ConfigError, Scope, capabilities, element, hclspec, unveils, without_nul};
use crate::proto::hclspec::Spec;
use crate::quote::quote;
use crate::sandbox::capabilities::CapList;
use crate::sandbox::unveil::Unveil;

const COMMAND: &str = "command";
const ARGS: &str = "args";
const UNVEIL: &str = "unveil";
const OOM_SCORE_ADJ: &str = "oom_score_adj";
const CAP_ADD: &str = "cap_add";
const CAP_DROP: &str = "cap_drop";
const WORK_DIR: &str = "work_dir";
const OOM_GROUP: &str = "oom_group";
const OPTIONS: &[&str] = &[COMMAND, ARGS, UNVEIL, OOM_SCORE_ADJ, CAP_ADD, CAP_DROP, WORK_DIR, OOM_GROUP];

/// What a job may set as `oom_score_adj`. The kernel's range is -1000 to 1000 (proc_pid_oom_score_adj(5)), but below
/// 0 a task would be spared at the cost of the host and of its neighbours, and -1000 would exempt it for good.
pub const OOM_SCORE_ADJ_RANGE: RangeInclusive<i32> = 0..=1000;

/// What a job asks for. Nomad has already replaced `${…}`.
#[derive(Clone, PartialEq, Eq)]
pub struct TaskConfig {
    /// `command`: a path, or a name to look up in the task's PATH. Not empty, without NUL.
    pub command: String,
    /// `args`: the arguments after the command's name. Without NUL. May hold secrets.
    pub args: Vec<String>,
    /// `unveil`: paths granted to this task, if the plugin's `unveil_by_task` lets it.
    pub unveil: Vec<Unveil>,
    /// `oom_score_adj`: how much sooner than others the task dies when memory runs out, within
    /// [`OOM_SCORE_ADJ_RANGE`]. 0 unless set; it has to be written also when it is 0, since the agent's own value,
    /// often -1000, would be inherited.
    pub oom_score_adj: i32,
    /// `cap_add`: capabilities to grant, if the plugin's `allow_caps` has them.
    pub cap_add: CapList,
    /// `cap_drop`: capabilities not to grant after all.
    pub cap_drop: CapList,
    /// `work_dir`: an absolute path without `..`, or a path relative to the parent of the task directory that has
    /// no `..` left (`.` is that parent). None means the task directory.
    pub work_dir: Option<PathBuf>,
    /// `oom_group`: when memory runs out, all processes of the task are killed, not one of them (`memory.oom.group`). For
    /// a task whose processes are of no use without each other, so that it ends and Nomad restarts it whole.
    pub oom_group: bool,
}

impl TaskConfig {
    /// The schema for Driver.TaskConfigSchema.
    pub fn schema() -> Spec {
        hclspec::object([
            hclspec::required(COMMAND, hclspec::STRING),
            hclspec::optional(ARGS, hclspec::STRINGS),
            hclspec::optional(UNVEIL, hclspec::STRINGS),
            hclspec::optional(OOM_SCORE_ADJ, hclspec::NUMBER),
            hclspec::optional(CAP_ADD, hclspec::STRINGS),
            hclspec::optional(CAP_DROP, hclspec::STRINGS),
            hclspec::optional(WORK_DIR, hclspec::STRING),
            hclspec::optional(OOM_GROUP, hclspec::BOOL),
        ])
    }

    /// Reads `msgpack_driver_config` of Driver.StartTask.
    pub fn decode(msgpack: &[u8]) -> Result<Self, ConfigError> {
        Self::from_options(Options::from_msgpack(Scope::Task, OPTIONS, msgpack)?)
    }

    /// Reads the same options from a JSON object.
    pub fn decode_json(json: &str) -> Result<Self, ConfigError> {
        Self::from_options(Options::from_json(Scope::Task, OPTIONS, json)?)
    }

    fn from_options(mut options: Options) -> Result<Self, ConfigError> {
        let scope = Scope::Task;
        let command =
            options.text(COMMAND)?.filter(|command| !command.is_empty()).ok_or(ConfigError::Missing {
                scope,
                option: COMMAND,
                write: r#"the program to run, for example "python3""#,
            })?;
        without_nul(scope, COMMAND, &command, true)?;
        let args = options.texts(ARGS)?;
        for (i, arg) in args.iter().enumerate() {
            without_nul(scope, &element(ARGS, i), arg, false)?;
        }
        Ok(Self {
            command,
            args,
            unveil: unveils(scope, UNVEIL, &options.texts(UNVEIL)?)?,
            oom_score_adj: options
                .whole_number(OOM_SCORE_ADJ, OOM_SCORE_ADJ_RANGE, "a whole number from 0 to 1000")?
                .unwrap_or(0),
            cap_add: capabilities(scope, CAP_ADD, &options.texts(CAP_ADD)?)?,
            cap_drop: capabilities(scope, CAP_DROP, &options.texts(CAP_DROP)?)?,
            work_dir: match options.text(WORK_DIR)? {
                Some(dir) if !dir.is_empty() => Some(work_dir(&dir)?),
                _ => None,
            },
            oom_group: options.flag(OOM_GROUP)?.unwrap_or(false),
        })
    }
}

/// Leaves out what may be a secret, so that a task config can be logged.
impl fmt::Debug for TaskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskConfig")
            .field("command", &self.command)
            .field("args", &format_args!("({})", self.args.len()))
            .field("unveil", &self.unveil)
            .field("oom_score_adj", &self.oom_score_adj)
            .field("cap_add", &self.cap_add)
            .field("cap_drop", &self.cap_drop)
            .field("work_dir", &self.work_dir)
            .field("oom_group", &self.oom_group)
            .finish()
    }
}

/// Checks the text of `work_dir`. A relative path is folded as the original driver folds it, so `local/../tmp`
/// is `tmp`; what symlinks do to it is for the one who opens it.
fn work_dir(text: &str) -> Result<PathBuf, ConfigError> {
    let refuse = |problem, write| ConfigError::Value {
        scope: Scope::Task,
        option: WORK_DIR.to_owned(),
        value: quote(text),
        problem,
        write,
    };
    without_nul(Scope::Task, WORK_DIR, text, true)?;
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
