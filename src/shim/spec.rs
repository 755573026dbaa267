//! The task as the shim receives it: MessagePack in a sealed memfd, so that no secret is visible in `ps`.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::MAX_DEPTH;
use crate::sandbox::place::Place;
use crate::sandbox::plan::Plan;
use crate::sandbox::root::layout::Layout;
use crate::sys::signals::Bits;
use crate::users::User;

/// The shim and the plugin are the same file; a mismatch means that something else wrote the spec.
const VERSION: u32 = 4;

/// A task as its shim sees it: who it is, what it may do, and what it runs.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ShimSpec {
    pub user: User,
    pub plan: Plan,
    pub command: Command,
    /// None: the task sees the host's tree.
    pub root: Option<PrivateRoot>,
}

/// What the plugin knows of a task's own root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateRoot {
    /// What the template has; none without `unveil_defaults`: then there is no template.
    pub(crate) layout: Option<Layout>,
    pub dirs: TaskDirs,
    /// Name below [`crate::sandbox::root::OWN`], and content.
    pub files: Vec<(String, String)>,
    /// None: the host's.
    pub hostname: Option<String>,
    /// Size of /dev/shm in bytes; none = half of the host's memory, as tmpfs(5).
    pub shm_size: Option<u64>,
    /// Where cgroup2 is mounted on the host.
    #[serde(with = "crate::os_path::option")]
    pub cgroup_root: Option<PathBuf>,
}

/// Where a task's directories come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskDirs {
    /// `<alloc_dir>/<task>` and `<alloc_dir>/alloc`, from Nomad's TaskConfig.
    Nomad {
        #[serde(with = "crate::os_path")]
        alloc_dir: PathBuf,
        task: String,
    },
    /// They are made in the root, and gone with it (the `run` verb).
    Scratch,
}

/// What a task runs, with which arguments, environment and descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// A name, looked up in the task's PATH, or a path.
    pub program: String,
    pub args: Vec<String>,
    /// `KEY=value`, as execve(2) takes it.
    pub env: Vec<String>,
    pub stdio: Stdio,
    /// None for Nomad's tasks, which outlive the plugin that started them.
    pub foreground: Option<Foreground>,
}

/// Where the task's output goes. Standard input is always /dev/null under Nomad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Nomad's log FIFOs.
    Fifos { stdout: Place, stderr: Place },
    /// Not to Nomad's log collector.
    Own(OwnOutput),
    /// Nowhere: /dev/null (a job's `logs { disabled = true }`).
    Null,
    /// What the shim was started with (the `run` verb).
    Inherited,
}

/// Output that goes to the journal, or where there is none, to files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnOutput {
    /// By which it is found in the journal.
    pub identifier: String,
    /// The task's name.
    pub task: String,
}

impl OwnOutput {
    /// The names of both streams, as Nomad's log collector has them.
    pub(crate) fn names(&self) -> [String; 2] {
        ["stdout", "stderr"].map(|stream| format!("{}.{stream}", self.task))
    }
}

/// The task of a `run` verb: it ends when the process that started it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreground {
    /// Signals that stay ignored in the task; all others get their default disposition.
    pub ignored: Bits,
    /// Which of the descriptors 0, 1 and 2 is the task's controlling terminal; none = it has no terminal.
    pub terminal: Option<RawFd>,
}

impl ShimSpec {
    /// Whether the task's user may do more in /proc than other users.
    pub(crate) fn is_privileged(&self) -> bool {
        self.user.uid == 0 || !self.plan.capabilities.is_empty()
    }

    /// The wire form of these parts.
    pub(crate) fn encode_parts(
        user: &User,
        plan: &Plan,
        command: &Command,
        root: Option<&PrivateRoot>,
    ) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        rmp_serde::to_vec(&(VERSION, (user, plan, command, root)))
    }

    pub fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        Self::encode_parts(&self.user, &self.plan, &self.command, self.root.as_ref())
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        let mut reader = rmp_serde::Deserializer::new(bytes);
        reader.set_max_depth(MAX_DEPTH);
        let (version, spec) = <(u32, Self)>::deserialize(&mut reader)?;
        if version != VERSION {
            return Err(rmp_serde::decode::Error::Uncategorized(format!(
                "version {version} instead of {VERSION}"
            )));
        }
        Ok(spec)
    }
}

impl Command {
    /// Value of `name` in the task's environment.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }

    /// The descriptor of the task's controlling terminal.
    pub(crate) fn terminal(&self) -> Option<RawFd> {
        self.foreground?.terminal
    }
}

/// The search path for a task without PATH: the default of a login on Debian.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The paths that `command` may mean, in order. A name with a slash is taken as it is; an empty or relative element of
/// PATH, which would mean the working directory, is skipped. An empty command has no path.
pub fn candidates(command: &str, path: Option<&str>) -> Vec<PathBuf> {
    if command.is_empty() {
        return Vec::new();
    }
    if command.contains('/') {
        return vec![PathBuf::from(command)];
    }
    let path = path.filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH);
    path.split(':').map(Path::new).filter(|dir| dir.is_absolute()).map(|dir| dir.join(command)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::{CpuMax, Limits, MemoryMax};
    use crate::sandbox::capabilities::Capability;
    use crate::sandbox::device::{Device, Permissions};
    use crate::sandbox::place::{Missing, NamedBy, Rule};
    use crate::sandbox::plan::{Landlock, Namespaces, ProcessLimits, Resources, WorkDir};
    use crate::sandbox::seccomp::{Filter, GroupSet};
    use crate::sandbox::unveil::Unveil;
    use crate::sandbox::volume::{Propagation, Volume};

    fn spec() -> ShimSpec {
        let rule = Rule {
            access: "rw:/srv".parse::<Unveil>().unwrap().access,
            place: Place::host("/srv"),
            named_by: NamedBy::Agent,
            missing: Missing::Fail,
        };
        let limits = Limits {
            memory_max: MemoryMax::Bytes(1 << 30),
            memory_low: Some(1 << 20),
            cpu_max: Some(CpuMax { quota_us: 50_000, period_us: 100_000 }),
            cpu_weight: Some(39),
            cpu_burst_us: 25_000,
            memory_high: Some(1 << 29),
            io_weight: Some(50),
            io_max: [("/dev/vda".to_owned(), "rbps=7".parse().unwrap())].into(),
            swap_max: Some(0),
            pids_max: Some(8192),
            cpuset_cpus: Some("0,2-3".parse().unwrap()),
            oom_group: true,
        };
        ShimSpec {
            user: User { groups: vec![80_000, 44], ..User::unknown("nomad-80000", 80_000, 80_000) },
            root: Some(PrivateRoot {
                layout: Some(Layout::default()),
                dirs: TaskDirs::Nomad { alloc_dir: "/d/alloc/1".into(), task: "web".into() },
                files: vec![("passwd".into(), "root:x:0:0::/root:/bin/sh\n".into())],
                hostname: Some("web-1".into()),
                shm_size: Some(1 << 20),
                cgroup_root: Some("/sys/fs/cgroup".into()),
            }),
            plan: Plan {
                devices: vec![Device {
                    source: "/dev/dri/card0".into(),
                    path: "/dev/card".into(),
                    permissions: Permissions::READ_WRITE,
                }],
                volumes: vec![Volume {
                    source: "/srv/db".into(),
                    path: "/data".into(),
                    read_only: true,
                    propagation: Propagation::HostToTask,
                    mapped: true,
                }],
                root: crate::sandbox::plan::Root::Private { defaults: true },
                proc_hidepid: crate::sandbox::plan::HidePid::Ptraceable,
                task_dir: "/a".into(),
                namespaces: Namespaces { network: Some("/var/run/netns/x".into()), ..Namespaces::default() },
                landlock: Landlock {
                    rules: vec![rule],
                    denied: vec!["/etc/shadow".into()],
                    allowed: Some(vec!["r:/srv".parse().unwrap()]),
                    ..Landlock::default()
                },
                capabilities: [Capability::CHOWN].into_iter().collect(),
                rlimits: ProcessLimits { open_files: Some(1024), ..ProcessLimits::default() },
                oom_score_adj: 500,
                resources: Resources { cgroup: Some("/sys/fs/cgroup/x".into()), limits },
                work_dir: WorkDir { place: Place::beneath("/a", "local"), named_by: NamedBy::Driver },
                seccomp: Filter::Default { allow: GroupSet::named("io_uring").unwrap() },
            },
            command: Command {
                program: "env".into(),
                args: vec!["-0".into()],
                env: vec!["PATH=/bin".into(), "EMPTY=".into()],
                stdio: Stdio::Fifos {
                    stdout: Place::beneath("/a", "alloc/logs/o"),
                    stderr: Place::beneath("/a", "alloc/logs/e"),
                },
                foreground: Some(Foreground { ignored: 1, terminal: Some(0) }),
            },
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let spec = spec();
        assert_eq!(ShimSpec::decode(&spec.encode().unwrap()).unwrap(), spec);
    }

    /// Written by this test when EXEC2_WRITE_SEEDS is set.
    #[test]
    fn the_fuzz_seed_has_the_present_form() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/shim_spec/full");
        let now = spec().encode().unwrap();
        if std::env::var_os("EXEC2_WRITE_SEEDS").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        assert!(
            std::fs::read(path).unwrap() == now,
            "run this test with EXEC2_WRITE_SEEDS=1 to write the seed"
        );
    }

    #[test]
    fn another_version_and_garbage_are_refused() {
        let ShimSpec { user, plan, command, root } = spec();
        let other = rmp_serde::to_vec(&(VERSION + 1, (user, plan, command, root))).unwrap();
        assert!(ShimSpec::decode(&other).unwrap_err().to_string().contains("version 5"));
        assert!(ShimSpec::decode(b"").is_err());
        assert!(ShimSpec::decode(&[0xc1; 64]).is_err());
        // Arrays of one array, deeper than a stack of any size would take.
        assert!(ShimSpec::decode(&[0x91; 1 << 20]).is_err());
    }

    #[test]
    fn env_takes_the_whole_name() {
        let ShimSpec { command, .. } = spec();
        assert_eq!(command.env("PATH"), Some("/bin"));
        assert_eq!(command.env("EMPTY"), Some(""));
        assert_eq!(command.env("PAT"), None);
    }

    #[test]
    fn commands_are_looked_up_in_absolute_directories_only() {
        assert_eq!(candidates("a/b", Some("/bin")), [PathBuf::from("a/b")]);
        assert_eq!(
            candidates("ls", Some(":/bin:.:usr:/usr/bin")),
            ["/bin/ls", "/usr/bin/ls"].map(PathBuf::from)
        );
        assert_eq!(candidates("ls", None).len(), 3);
        assert_eq!(candidates("", Some("/bin")), [] as [PathBuf; 0]);
        assert_eq!(candidates("ls", Some("")), candidates("ls", None));
    }
}
