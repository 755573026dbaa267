//! A task as it will be: validated, with every decision taken. Past this point nothing asks Nomad or the job again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::cgroup::Limits;
use crate::config::{DriverConfig, PluginConfig};
use crate::sandbox::capabilities::{CapSet, CapabilityError, available, own, wanted};
use crate::sandbox::place::Place;
use crate::sandbox::plan::{PlanError, Sources, WorkDirError, rules, work_dir};
use crate::shim::spec::{ShimSpec, Stdio};
use crate::task::env::{Whereabouts, environment};
use crate::task::events::Unveiled;
use crate::task::id::TaskId;
use crate::task::open_files;
use crate::users::User;

/// What is asked for, in values of our own: from Nomad's StartTask or from the `run` verb.
#[derive(Debug)]
pub struct Request<'a> {
    pub id: TaskId,
    pub user: User,
    pub env: &'a HashMap<String, String>,
    /// The task's own directory, from [`super::dirs::root`].
    pub root: &'a Path,
    pub logs: Logs<'a>,
    pub netns: Option<&'a Path>,
    pub cgroup: Option<&'a Path>,
    pub limits: Limits,
    pub config: &'a DriverConfig,
}

/// Where the output goes.
#[derive(Debug, Clone, Copy)]
pub enum Logs<'a> {
    /// The names of Nomad's FIFOs in `alloc/logs`; only the last component of each path is used.
    Fifos { stdout: &'a Path, stderr: &'a Path },
    /// /dev/null.
    Null,
    /// The caller's own standard output and error.
    Inherited,
}

/// A task ready to be started.
#[derive(Debug)]
pub struct TaskSpec {
    pub id: TaskId,
    pub cgroup: Option<PathBuf>,
    pub limits: Limits,
    /// Whether no user database knows the uid: then it must not be another allocation's (see [`super::uids`]).
    pub unknown_user: bool,
    /// What the task sees, for its event.
    pub unveiled: Unveiled,
    pub shim: ShimSpec,
}

/// The job asks for something that the agent's configuration does not allow, or that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error(
        "the task sets unveil, which the agent's plugin option unveil_by_task does not allow; remove unveil from the task, \
         or set unveil_by_task = true in the agent's plugin \"nomad-driver-exec2\" block"
    )]
    UnveilByTask,
    #[error(transparent)]
    WorkDir(#[from] WorkDirError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    #[error("the log path {0:?} has no file name")]
    LogPath(PathBuf),
    #[error("the {0} has a NUL byte, which no program can be given; remove it")]
    Nul(String),
}

impl TaskSpec {
    pub fn new(request: &Request<'_>, plugin: &PluginConfig) -> Result<Self, SpecError> {
        let config = request.config;
        if !config.unveil.is_empty() && !plugin.unveil_by_task {
            return Err(SpecError::UnveilByTask);
        }
        let sources = Sources {
            root: request.root,
            cgroup: request.cgroup,
            defaults: plugin.unveil_defaults,
            agent: &plugin.unveil_paths,
            job: &config.unveil,
        };
        let work_dir = work_dir(&sources, config.work_dir.as_deref(), plugin.unveil_by_task)?;
        let whereabouts =
            Whereabouts { user: &request.user, root: request.root, work_dir: &work_dir.place.display() };
        let env = environment(request.env, |name| std::env::var(name).ok(), whereabouts);
        if let Some(entry) = env.iter().find(|entry| entry.contains('\0')) {
            let name = entry.split('=').next().unwrap_or_default();
            return Err(SpecError::Nul(format!("environment variable {name:?}")));
        }
        let shim = ShimSpec {
            netns: request.netns.map(Path::to_owned),
            stdio: stdio(request)?,
            task_root: request.root.to_owned(),
            rules: rules(&sources)?,
            work_dir,
            cgroup: request.cgroup.is_some(),
            die_with_parent: false,
            ignored: 0,
            terminal: None,
            open_files: open_files::for_tasks(),
            oom_score_adj: config.oom_score_adj,
            uid: request.user.uid,
            gid: request.user.gid,
            granted: granted(config, plugin)?,
            command: config.command.clone(),
            args: config.args.clone(),
            env,
            groups: request.user.groups.clone(),
        };
        Ok(Self {
            id: request.id.clone(),
            cgroup: request.cgroup.map(Path::to_owned),
            limits: request.limits.clone(),
            unknown_user: !request.user.known,
            unveiled: Unveiled::new(
                plugin.unveil_defaults,
                plugin.unveil_paths.len(),
                config.unveil.iter().map(ToString::to_string).collect(),
            ),
            shim,
        })
    }
}

fn stdio(request: &Request<'_>) -> Result<Stdio, SpecError> {
    let (stdout, stderr) = match request.logs {
        Logs::Fifos { stdout, stderr } => (stdout, stderr),
        Logs::Null => return Ok(Stdio::Null),
        Logs::Inherited => return Ok(Stdio::Inherited),
    };
    let fifo = |path: &Path| {
        let name = path.file_name().ok_or_else(|| SpecError::LogPath(path.into()))?;
        Ok::<_, SpecError>(Place::beneath(request.root, Path::new("alloc/logs").join(name)))
    };
    Ok(Stdio::Fifos { stdout: fifo(stdout)?, stderr: fifo(stderr)? })
}

/// The capabilities that a task holds: what it asks for, whoever its user is. Root gets no other, so that a job shows what
/// its task can do.
fn granted(config: &DriverConfig, plugin: &PluginConfig) -> Result<CapSet, CapabilityError> {
    let wanted = wanted(config.cap_add, config.cap_drop, plugin.allow_caps)?;
    if wanted.is_empty() {
        return Ok(wanted);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    available(wanted, config.cap_add, own(&status))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::sandbox::capabilities::Capability;

    fn config(options: &Value) -> DriverConfig {
        let mut all = json!({"command": "env"});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        DriverConfig::decode_json(&all.to_string()).unwrap()
    }

    fn spec(uid: u32, config: &DriverConfig, plugin: &PluginConfig) -> Result<TaskSpec, SpecError> {
        TaskSpec::new(
            &Request {
                id: TaskId::new("1/web/2", "1", "web").unwrap(),
                user: User::unknown("u", uid, uid),
                env: &HashMap::new(),
                root: Path::new("/m/1-web"),
                logs: Logs::Fifos {
                    stdout: Path::new("/d/.web.stdout.fifo"),
                    stderr: Path::new("/d/.web.stderr.fifo"),
                },
                netns: None,
                cgroup: None,
                limits: Limits::UNLIMITED,
                config,
            },
            plugin,
        )
    }

    #[test]
    fn a_jobs_unveil_needs_the_operators_leave() {
        let config = config(&json!({"unveil": ["r:/srv"]}));
        let error = spec(80_000, &config, &PluginConfig::default()).unwrap_err();
        assert!(error.to_string().contains("unveil_by_task = true"), "{error}");
        let plugin = PluginConfig { unveil_by_task: true, ..PluginConfig::default() };
        let spec = spec(80_000, &config, &plugin).unwrap();
        assert!(spec.shim.rules.iter().any(|rule| rule.to_string() == "r:/srv"));
    }

    #[test]
    fn logs_are_opened_from_the_tasks_root() {
        let spec = spec(80_000, &config(&json!({})), &PluginConfig::default()).unwrap();
        assert_eq!(
            spec.shim.stdio,
            Stdio::Fifos {
                stdout: Place::beneath("/m/1-web", "alloc/logs/.web.stdout.fifo"),
                stderr: Place::beneath("/m/1-web", "alloc/logs/.web.stderr.fifo"),
            }
        );
    }

    #[test]
    fn a_task_holds_what_it_asks_for_and_no_more() {
        let (bind, chown) = (Capability::NET_BIND_SERVICE, Capability::CHOWN);
        let plugin = PluginConfig {
            unveil_by_task: true,
            allow_caps: [bind, chown].into_iter().collect(),
            ..PluginConfig::default()
        };
        for uid in [0, 80_000] {
            let of = |add: &[&str], drop: &[&str]| {
                let config = config(&json!({"cap_add": add, "cap_drop": drop}));
                spec(uid, &config, &plugin).map(|spec| spec.shim.granted)
            };
            assert_eq!(of(&[], &[]).unwrap(), CapSet::EMPTY, "uid {uid}: root has none by itself");
            assert_eq!(of(&["chown"], &["chown"]).unwrap(), CapSet::EMPTY);
            assert_eq!(of(&[], &["all"]).unwrap(), CapSet::EMPTY);
            assert!(of(&["sys_admin"], &[]).is_err());
        }
    }

    #[test]
    fn the_environment_names_the_working_directory() {
        let config = config(&json!({"work_dir": "local/app"}));
        let spec = spec(80_000, &config, &PluginConfig::default()).unwrap();
        assert_eq!(spec.shim.env("NOMAD_WORK_DIR"), Some("/m/1-web/local/app"));
        assert_eq!(spec.shim.env("LOGNAME"), Some("u"));
    }
}
