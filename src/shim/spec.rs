//! What the plugin tells the shim, and its wire form: MessagePack in a sealed memfd, so that no secret shows in `ps`.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::MAX_DEPTH;

use crate::sandbox::capabilities::CapSet;
use crate::sandbox::place::{Place, Rule};
use crate::sandbox::plan::WorkDir;
use crate::sys::signals::Bits;

/// The shim and the plugin are the same file; a mismatch means that something else wrote the spec.
const VERSION: u32 = 1;

/// Everything that the shim does, in the order in which it does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimSpec {
    /// Network namespace to join (setns(2)), for example `/var/run/netns/<alloc>`; none = the host's.
    pub netns: Option<PathBuf>,
    /// Where standard output and error go.
    pub stdio: Stdio,
    /// The task's own directory, `alloc_mounts/<alloc>-<task>`: proven to be its own, so what leads to it is not looked at.
    pub task_root: PathBuf,
    /// The Landlock rules. What no rule grants is denied.
    pub rules: Vec<Rule>,
    /// Working directory of the task.
    pub work_dir: WorkDir,
    /// Whether the last of [`super::fds`], the cgroup directory, is there.
    pub cgroup: bool,
    /// Whether the task ends when the process that started it does (the `run` verb). A plugin's tasks outlive it.
    pub die_with_parent: bool,
    /// Signals that stay ignored in the task (the `run` verb); all others get their default disposition.
    pub ignored: Bits,
    /// Which of the descriptors 0, 1 and 2 is the task's controlling terminal; none = it has no terminal.
    pub terminal: Option<RawFd>,
    /// Soft limit of open files for the task, RLIMIT_NOFILE of getrlimit(2); none = as the plugin's.
    pub open_files: Option<u64>,
    /// proc_pid_oom_score_adj(5). Always written: the agent's own, often -1000, must not be inherited.
    pub oom_score_adj: i32,
    pub uid: u32,
    pub gid: u32,
    /// What the task starts with (ambient for an ordinary user, permitted for root) and the most that it and its
    /// children can ever hold (the bounding set).
    pub granted: CapSet,
    /// Name (looked up in the task's PATH) or path.
    pub command: String,
    pub args: Vec<String>,
    /// `KEY=value`, as execve(2) takes it.
    pub env: Vec<String>,
    /// Supplementary groups, setgroups(2); with the primary one where the user database knows the user.
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// Where the task's output goes. Standard input is always /dev/null under Nomad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// Nomad's log FIFOs.
    Fifos { stdout: Place, stderr: Place },
    /// Nowhere: /dev/null (a job's `logs { disabled = true }`).
    Null,
    /// What the shim was started with (the `run` verb).
    Inherited,
}

impl ShimSpec {
    pub fn encode(&self) -> Result<Vec<u8>, rmp_serde::encode::Error> {
        rmp_serde::to_vec(&(VERSION, self))
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

    /// Value of `name` in the task's environment.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Where a command is looked for when the task has no PATH: what Debian gives a login.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The paths that `command` may mean, in order. A name with a slash is taken as it is; an empty or relative element of
/// PATH, which would mean the working directory, is passed over. An empty command means no path at all.
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
    use crate::sandbox::place::{Missing, NamedBy};
    use crate::sandbox::unveil::Unveil;

    fn spec() -> ShimSpec {
        ShimSpec {
            netns: Some("/var/run/netns/x".into()),
            stdio: Stdio::Fifos {
                stdout: Place::beneath("/a", "alloc/logs/o"),
                stderr: Place::beneath("/a", "alloc/logs/e"),
            },
            task_root: "/a".into(),
            rules: vec![Rule {
                access: "rw:/srv".parse::<Unveil>().unwrap().access,
                place: Place::host("/srv"),
                named_by: NamedBy::Agent,
                missing: Missing::Fail,
            }],
            work_dir: WorkDir { place: Place::beneath("/a", "local"), named_by: NamedBy::Driver },
            cgroup: true,
            die_with_parent: true,
            ignored: 1,
            terminal: Some(0),
            open_files: Some(1024),
            oom_score_adj: 500,
            uid: 80_000,
            gid: 80_000,
            granted: CapSet::default(),
            command: "env".into(),
            args: vec!["-0".into()],
            env: vec!["PATH=/bin".into(), "EMPTY=".into()],
            groups: vec![80_000, 44],
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
        let other = rmp_serde::to_vec(&(VERSION + 1, spec())).unwrap();
        assert!(ShimSpec::decode(&other).unwrap_err().to_string().contains("version 2"));
        assert!(ShimSpec::decode(b"").is_err());
        assert!(ShimSpec::decode(&[0xc1; 64]).is_err());
        // Arrays of one array, deeper than a stack of any size would take.
        assert!(ShimSpec::decode(&[0x91; 1 << 20]).is_err());
    }

    #[test]
    fn env_takes_the_whole_name() {
        let spec = spec();
        assert_eq!(spec.env("PATH"), Some("/bin"));
        assert_eq!(spec.env("EMPTY"), Some(""));
        assert_eq!(spec.env("PAT"), None);
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
