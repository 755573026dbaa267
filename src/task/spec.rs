//! The task specification: all decisions are made here, and later steps do not depend on Nomad's request or the job.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::cgroup::Limits;
use crate::record::run_dir::RUN_DIR;
use crate::record::spec::StoredSpec;
use crate::sandbox::capabilities::{CapSet, own};
use crate::sandbox::names::Names;
use crate::sandbox::network::AllocatedPort;
use crate::sandbox::place::{NamedBy, Place};
use crate::sandbox::plan::{Landlock, Plan, Root};
use crate::sandbox::policy::{Ask, Denied, Host, Policy};
use crate::shim::spec::{Command, Foreground, OwnOutput, Stdio, TaskDirs};
use crate::sys;
use crate::task::elsewhere::{MOUNTS, elsewhere};
use crate::task::env::{Whereabouts, environment};
use crate::task::id::TaskId;
use crate::task::name_files::name_files;
use crate::task::open_files;
use crate::task::user_files::user_files;
use crate::users::User;

/// A task start in the driver's own types: from Nomad's StartTask or from the `run` verb.
#[derive(Debug)]
pub struct Request<'a> {
    pub id: TaskId,
    pub user: User,
    pub program: &'a str,
    pub args: &'a [String],
    pub env: &'a HashMap<String, String>,
    /// The task's own directory, from [`super::dirs::root`].
    pub root: &'a Path,
    /// Where its contents are, for a root of its own.
    pub dirs: TaskDirs,
    pub logs: Logs<'a>,
    pub network: Option<&'a Path>,
    pub names: Names,
    /// Those that Nomad gave the allocation.
    pub ports: &'a [AllocatedPort],
    pub cgroup: Option<&'a Path>,
    pub limits: Limits,
    pub ask: Ask<'a>,
}

/// Where the output goes.
#[derive(Debug, Clone)]
pub enum Logs<'a> {
    /// The names of Nomad's FIFOs in `alloc/logs`; only the last component of each path is used.
    Fifos { stdout: &'a Path, stderr: &'a Path },
    /// The journal or files, by this identifier and name; see [`OwnOutput`].
    Own { identifier: String, task: &'a str },
    /// /dev/null.
    Null,
    /// The caller's own standard output and error; the task ends with the caller.
    Inherited(Foreground),
}

/// A task ready to be started.
#[derive(Debug)]
pub struct TaskSpec {
    pub id: TaskId,
    pub user: User,
    pub plan: Plan,
    pub command: Command,
    /// None: the task sees the host's tree.
    pub root: Option<OwnRoot>,
}

/// What is in a root of its own, beside what the plan says.
#[derive(Debug)]
pub struct OwnRoot {
    pub dirs: TaskDirs,
    /// Names and contents of files that only this task has.
    pub files: Vec<(String, String)>,
    /// None: the host's.
    pub hostname: Option<String>,
    /// Whether the task has nothing but the host's name servers, and a network namespace from which it may not reach them.
    pub needs_name_server: bool,
}

/// The job asks for something that is not allowed or not possible.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("the log path {0:?} has no file name")]
    LogPath(PathBuf),
    #[error("failed to read {MOUNTS}: {0}")]
    Mounts(std::io::Error),
    #[error("the {0} has a NUL byte, which cannot be passed to a program; remove it")]
    Nul(String),
}

impl TaskSpec {
    pub fn new(request: Request<'_>, policy: &Policy<'_>) -> Result<Self, SpecError> {
        let host = Host {
            task_dir: request.root,
            kept: match &request.dirs {
                TaskDirs::Nomad { alloc_dir, .. } => Some((alloc_dir, Path::new(RUN_DIR))),
                TaskDirs::Scratch => None,
            },
            cgroup: request.cgroup,
            limits: request.limits,
            network: request.network,
            dns: request.names.dns.is_some(),
            ports: request.ports,
            landlock_abi: || sys::landlock::abi().unwrap_or(0),
            // Read only for a job that asks for some.
            capabilities: if request.ask.cap_add.is_empty() { CapSet::EMPTY } else { own_capabilities() },
            open_files: open_files::for_tasks(),
            hard_limits: open_files::hard_limit,
            open_files_max: open_files::most,
        };
        let mut plan = policy.plan(&request.ask, &request.user, host)?;
        deny_elsewhere(&mut plan.landlock)?;
        let work_dir = plan.work_dir.place.display();
        let whereabouts = Whereabouts { user: &request.user, root: request.root, work_dir: &work_dir };
        // What a task of `run` gets, its caller has chosen.
        let by_caller = matches!(request.dirs, TaskDirs::Scratch);
        let of_agent = |name: &str| if by_caller { None } else { std::env::var(name).ok() };
        let env = environment(request.env, of_agent, whereabouts);
        if let Some(entry) = env.iter().find(|entry| entry.contains('\0')) {
            let name = entry.split('=').next().unwrap_or_default();
            return Err(SpecError::Nul(format!("environment variable {name:?}")));
        }
        let root = match plan.root {
            Root::Host => None,
            Root::Private { defaults } => {
                let mut files = if defaults { user_files(&request.user, &env) } else { Vec::new() };
                files.extend(name_files(&request.names, request.network.is_some()));
                Some(OwnRoot {
                    dirs: request.dirs,
                    files,
                    needs_name_server: defaults
                        && request.names.reaches_others
                        && request.names.dns.is_none(),
                    hostname: request.names.hosts.map(|hosts| hosts.hostname),
                })
            }
        };
        let (stdio, foreground) = stdio(request.logs, request.root)?;
        let program = request.program.to_owned();
        let command = Command { program, args: request.args.to_vec(), env, stdio, foreground };
        Ok(Self { id: request.id, user: request.user, plan, command, root })
    }

    /// The part that is stored in the run directory.
    pub(crate) fn stored(&self) -> StoredSpec<'_> {
        StoredSpec {
            task: self.id.as_str().into(),
            alloc: self.id.alloc().into(),
            name: self.id.name().into(),
            user: Cow::Borrowed(&self.user),
            plan: Cow::Borrowed(&self.plan),
        }
    }
}

/// What is denied stays so by the other paths at which the host has mounted it.
fn deny_elsewhere(landlock: &mut Landlock) -> Result<(), SpecError> {
    if landlock.rules.iter().any(|rule| rule.named_by != NamedBy::Driver) {
        let others = elsewhere(&landlock.denied).map_err(SpecError::Mounts)?;
        landlock.denied.extend(others);
    }
    Ok(())
}

fn stdio(logs: Logs<'_>, root: &Path) -> Result<(Stdio, Option<Foreground>), SpecError> {
    let (stdout, stderr) = match logs {
        Logs::Fifos { stdout, stderr } => (stdout, stderr),
        Logs::Own { identifier, task } => {
            return Ok((Stdio::Own(OwnOutput { identifier, task: task.to_owned() }), None));
        }
        Logs::Null => return Ok((Stdio::Null, None)),
        Logs::Inherited(foreground) => return Ok((Stdio::Inherited, Some(foreground))),
    };
    let fifo = |path: &Path| {
        let name = path.file_name().ok_or_else(|| SpecError::LogPath(path.into()))?;
        Ok::<_, SpecError>(Place::beneath(root, Path::new("alloc/logs").join(name)))
    };
    Ok((Stdio::Fifos { stdout: fifo(stdout)?, stderr: fifo(stderr)? }, None))
}

/// The capabilities that this process can grant.
fn own_capabilities() -> CapSet {
    own(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PluginConfig;

    fn spec(ask: Ask<'_>, env: &HashMap<String, String>) -> Result<TaskSpec, SpecError> {
        let request = Request {
            id: TaskId::new("1/web/2", "1", "web").unwrap(),
            user: User::unknown("u", 80_000, 80_000),
            program: "env",
            args: &[],
            env,
            root: Path::new("/m/1-web"),
            dirs: TaskDirs::Scratch,
            logs: Logs::Fifos {
                stdout: Path::new("/d/.web.stdout.fifo"),
                stderr: Path::new("/d/.web.stderr.fifo"),
            },
            network: None,
            names: Names::default(),
            ports: &[],
            cgroup: None,
            limits: Limits::UNLIMITED,
            ask,
        };
        TaskSpec::new(request, &PluginConfig::default().policy())
    }

    #[test]
    fn logs_are_opened_from_the_tasks_root() {
        let spec = spec(Ask::default(), &HashMap::new()).unwrap();
        assert_eq!(
            spec.command.stdio,
            Stdio::Fifos {
                stdout: Place::beneath("/m/1-web", "alloc/logs/.web.stdout.fifo"),
                stderr: Place::beneath("/m/1-web", "alloc/logs/.web.stderr.fifo"),
            }
        );
    }

    #[test]
    fn the_environment_names_the_working_directory() {
        let ask = Ask { work_dir: Some(Path::new("local/app")), ..Ask::default() };
        let spec = spec(ask, &HashMap::new()).unwrap();
        assert_eq!(spec.command.env("NOMAD_WORK_DIR"), Some("/m/1-web/local/app"));
        assert_eq!(spec.command.env("LOGNAME"), Some("u"));
    }

    #[test]
    fn a_variable_with_a_nul_byte_is_named_without_its_value() {
        let env = HashMap::from([("TOKEN".to_owned(), "secret\0".to_owned())]);
        let error = spec(Ask::default(), &env).unwrap_err().to_string();
        assert!(error.contains("\"TOKEN\"") && !error.contains("secret"), "{error}");
    }
}
