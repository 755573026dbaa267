//! The operator's options: `plugin "nomad-driver-exec2" { config { … } }`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::blocks::{Block, Labelled};
use super::cty::Value;
use super::kinds::{
    CAPABILITIES_MAX, Capabilities, Flag, GROUPS_MAX, Hidden, Idmap, IoMaxima, MEMORY_SWAP_RANGE,
    MEMORY_SWAP_WRITE, Number, PERCENT_RANGE, PERCENT_WRITE, PIDS_MAX_RANGE, PIDS_MAX_WRITE, SeccompProfile,
    Ulimit, UnveilRules, WEIGHT_RANGE, WEIGHT_WRITE, capability, group,
};
use super::namespace::NamespaceConfig;
use super::network::{AgentNetwork, WhoseSockets};
use super::row::{Form, Row};
use super::table::{self, Kind, Table, options};
use super::{At, ConfigError, Scope, hclspec};
use crate::cgroup::IoLimits;
use crate::host::Wanted;
use crate::proto::hclspec::Spec;
use crate::quote::quote;
use crate::sandbox::capabilities::{AllowedCaps, CapSet, DEFAULT_NAME};
use crate::sandbox::network::AbstractSockets;
use crate::sandbox::plan::HidePid;
use crate::sandbox::policy::Policy;
use crate::sandbox::rlimits::Rlimits;
use crate::sandbox::seccomp::{Allowed, GroupSet, Profile, UNCONFINED};
use crate::sandbox::unveil::Unveil;
use crate::sandbox::volume::VolumeIdmap;
use crate::users::{DynamicRange, IdRanges};

/// `pids_max`: twice what the makers of Elasticsearch (4096 threads) and a Jenkins or WildFly ask for, and a quarter of the 32768 ids that a
/// host has whose kernel.pid_max was never raised.
const PIDS_MAX: i32 = 8192;

options! {
    /// The options that an operator sets for all tasks of a client.
    #[derive(Clone, PartialEq, Eq)]
    pub struct PluginConfig {
        /// what a task has as its root directory: `"private"`, one with nothing but what is unveiled, or `"host"`, the host's
        pub root: RootKind = RootDirectory,
        /// give every task the default paths and its own directories
        pub unveil_defaults: bool = Flag { default: true },
        /// more paths for every task
        pub unveil_paths: Vec<Unveil> = UnveilRules,
        /// let jobs unveil paths, and have a `work_dir` outside the alloc
        pub unveil_by_task: bool = Flag { default: false },
        /// what jobs may unveil if `unveil_by_task` is false, with these modes or fewer
        pub unveil_allow: Vec<Unveil> = UnveilRules,
        /// what no task may have, by any unveil of it or of a directory above it; `"default"` stands for the default list
        pub unveil_deny: Vec<PathBuf> = DeniedPaths,
        /// what jobs may ask for with `cap_add`; `"default"` stands for [those that follow from the other options](docs/security.md#capabilities)
        pub allow_caps: AllowedCaps = AllowedCapabilities,
        /// limits of the processes of tasks, getrlimit(2); for those that it names, jobs may ask for no higher hard limit. The others are the agent's own
        pub ulimit: Rlimits = Ulimit,
        /// how many processes and threads a task may have; 0: no limit. Jobs may ask for fewer
        pub pids_max: i32 = Number { range: PIDS_MAX_RANGE, default: PIDS_MAX, write: PIDS_MAX_WRITE },
        /// MiB of swap that a task may use; -1: no limit. Jobs may ask for less
        pub memory_swap: i32 = Number { range: MEMORY_SWAP_RANGE, default: 0, write: MEMORY_SWAP_WRITE },
        /// `cpu` is the most that a task gets. `false`: it is a share of a busy CPU, and jobs may ask for the limit
        pub cpu_hard_limit: bool = Flag { default: true },
        /// [ports](#ports) to which tasks may bind and connect. A job may narrow them
        pub network_policy: Option<AgentNetwork> = Block::<AgentNetwork>::new(),
        /// to which abstract unix sockets tasks in the host's network may connect: their `"own"`, or those of the `"host"`
        pub abstract_sockets: AbstractSockets = WhoseSockets,
        /// the highest `cpu_weight` that a job may ask for; 0: that of its `cpu`
        pub cpu_weight_max: i32 = Number { range: 0..=10_000, default: 0, write: "a whole number from 0 to 10000" },
        /// how much of its CPU quota a task may save for later, percent of 100 ms. Jobs may ask for less
        pub cpu_burst: i32 = Number { range: PERCENT_RANGE, default: 0, write: PERCENT_WRITE },
        /// the share of a busy disk. Jobs may ask for less
        pub io_weight: i32 = Number { range: WEIGHT_RANGE, default: 100, write: WEIGHT_WRITE },
        /// the most that a task may read and write of a disk; jobs may ask for less
        pub io_max: IoLimits = IoMaxima,
        /// let jobs have `user = "root"`
        pub allow_root: bool = Flag { default: true },
        /// uids that no task may have: `"65534,100-999"`
        pub denied_host_uids: IdRanges = DeniedIds,
        /// gids that no task may have, as its group or another one
        pub denied_host_gids: IdRanges = DeniedIds,
        /// the uids that Nomad assigns to tasks without a user; a job that names another `nomad-N` is refused
        pub dynamic_user_range: DynamicRange = UidRange,
        /// `"auto"`: if a job names no user, the owner of a volume appears as the task's dynamic user. `"never"`: volumes are mounted as they are
        pub volume_idmap: VolumeIdmap = Idmap,
        /// which processes of other users a task sees in its `/proc` (`hidepid`): `"off"`, all of the task, or fewer
        pub proc_hidepid: HidePid = Hidden,
        /// which system calls tasks may make: `"default"`, all but those of [some groups](docs/security.md#system-calls), or `"unconfined"`, all
        pub seccomp: Profile = SeccompProfile,
        /// what jobs may ask for: groups for `seccomp_allow`, and `"unconfined"` for `seccomp`
        pub allow_seccomp: Allowed = AllowedSeccomp,
        /// for the jobs of one Nomad namespace, other values of options that are about what jobs may do
        pub namespace: BTreeMap<String, NamespaceConfig> = Labelled::<NamespaceConfig>::new(),
        /// send the output of tasks to the journal, or to files where there is none, instead of to Nomad's log collector
        pub disable_log_collection: bool = Flag { default: false },
    }
}

impl Default for PluginConfig {
    fn default() -> Self {
        table::decode(Scope::Plugin, &[]).expect("no plugin option is required")
    }
}

impl PluginConfig {
    /// All options.
    pub fn options() -> Vec<Row> {
        Self::rows()
    }

    /// The schema for BasePlugin.ConfigSchema.
    pub(crate) fn schema() -> Spec {
        table::schema(Scope::Plugin, Self::rows())
    }

    /// Decodes `msgpack_config` of BasePlugin.SetConfig. Empty input means that nothing is set.
    pub fn decode(msgpack: &[u8]) -> Result<Self, ConfigError> {
        table::decode(Scope::Plugin, msgpack)
    }

    /// Decodes the same options from a JSON object.
    pub fn decode_json(json: &str) -> Result<Self, ConfigError> {
        table::decode_json(Scope::Plugin, json)
    }

    /// What the operator allows a job of this Nomad namespace.
    pub fn policy_in(&self, namespace: &str) -> Policy<'_> {
        match self.namespace.get(namespace) {
            Some(other) => other.over(self.policy()),
            None => self.policy(),
        }
    }

    /// What the operator allows a job of a namespace that has no block of its own.
    pub fn policy(&self) -> Policy<'_> {
        Policy {
            own_root: self.root == RootKind::Private,
            unveil_defaults: self.unveil_defaults,
            unveil_paths: &self.unveil_paths,
            unveil_by_task: self.unveil_by_task,
            unveil_allow: &self.unveil_allow,
            unveil_deny: &self.unveil_deny,
            allow_caps: self.allow_caps,
            ulimit: &self.ulimit,
            pids_max: self.pids_max,
            memory_swap: self.memory_swap,
            cpu_hard_limit: self.cpu_hard_limit,
            network: self.network_policy.as_ref().map(AgentNetwork::lists).unwrap_or_default(),
            network_unsupported: self
                .network_policy
                .as_ref()
                .map(|policy| policy.unsupported)
                .unwrap_or_default(),
            abstract_sockets: self.abstract_sockets,
            cpu_weight_max: self.cpu_weight_max,
            cpu_burst: self.cpu_burst,
            io_weight: self.io_weight,
            io_max: &self.io_max,
            allow_root: self.allow_root,
            denied_uids: &self.denied_host_uids,
            denied_gids: &self.denied_host_gids,
            dynamic_user_range: self.dynamic_user_range,
            volume_idmap: self.volume_idmap,
            proc_hidepid: self.proc_hidepid,
            seccomp: self.seccomp,
            allow_seccomp: self.allow_seccomp,
        }
    }

    /// Whether the owner of a task's directory identifies its user: a task of any namespace could have changed it.
    pub(crate) fn trusts_owner(&self) -> bool {
        self.policies().all(|policy| policy.trusts_owner())
    }

    /// The same for the user that this driver recorded there.
    pub(crate) fn trusts_record(&self) -> bool {
        self.policies().all(|policy| policy.trusts_record())
    }

    fn policies(&self) -> impl Iterator<Item = Policy<'_>> {
        self.namespace.keys().map(|name| self.policy_in(name)).chain([self.policy()])
    }

    /// What tasks need of the host.
    pub(crate) fn wanted(&self) -> Wanted {
        let filtered = self.namespace.values().any(|namespace| namespace.seccomp == Some(Profile::Default));
        Wanted { root: self.root, seccomp: if filtered { Profile::Default } else { self.seccomp } }
    }

    /// Whether tasks have roots of their own that show the default unveils.
    pub(crate) fn has_template(&self) -> bool {
        self.root == RootKind::Private && self.unveil_defaults
    }

    /// The whole config as HCL, one option a line, with the defaults that follow from other options.
    pub(crate) fn to_hcl(&self) -> String {
        let allowed = self.policy().allowed_caps();
        let mut resolved = Self { allow_caps: AllowedCaps::only(allowed), ..self.clone() };
        for (name, namespace) in &mut resolved.namespace {
            let own = self.policy_in(name).allowed_caps();
            if namespace.allow_caps.is_some() || own != allowed {
                namespace.allow_caps = Some(AllowedCaps::only(own));
            }
        }
        resolved.shown().into_iter().map(|(option, value)| format!("{option} = {value}\n")).collect()
    }
}

/// What the default of a list is called in the list.
const DEFAULT: &str = DEFAULT_NAME;

/// `allow_caps`.
pub(super) struct AllowedCapabilities;

impl Kind for AllowedCapabilities {
    type Value = AllowedCaps;
    const FORM: Form = Capabilities::FORM;
    const TAKES: &str = r#"list of capabilities and `"default"`"#;

    fn unset(&self) -> Result<AllowedCaps, &'static str> {
        Ok(AllowedCaps::DEFAULT)
    }

    fn read(&self, at: &At, value: Value) -> Result<AllowedCaps, ConfigError> {
        let names = value.texts(at)?;
        at.at_most(names.len(), CAPABILITIES_MAX)?;
        names.iter().enumerate().try_fold(AllowedCaps::default(), |allowed, (i, name)| {
            if name == DEFAULT {
                return Ok(AllowedCaps { default: true, ..allowed });
            }
            let one = capability(&at.element(i), name)?.set();
            Ok(AllowedCaps { named: allowed.named.union(one), ..allowed })
        })
    }

    fn show(&self, value: &AllowedCaps) -> String {
        value.hcl(CapSet::EMPTY)
    }
}

/// `unveil_deny`.
pub(super) struct DeniedPaths;

/// Longest `unveil_deny`: each path is looked up at each start of a task that unveils something.
const DENIED_MAX: usize = 256;

/// Hashes of passwords and their copies, the agent's configuration, and sockets that make their writers root.
const DENIED: [&str; 19] = [
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/nomad.d",
    "/etc/security/opasswd",
    "/etc/shadow",
    "/etc/shadow-",
    "/run/buildkit",
    "/run/containerd",
    "/run/cri-dockerd.sock",
    "/run/crio",
    "/run/docker.sock",
    "/run/k3s",
    "/run/libvirt",
    "/run/podman",
    "/run/systemd/private",
    "/var/backups",
    "/var/lib/incus",
    "/var/lib/lxd",
    "/var/snap/lxd/common/lxd",
];

impl Kind for DeniedPaths {
    type Value = Vec<PathBuf>;
    const FORM: Form = Form::Attribute(hclspec::STRINGS);
    const TAKES: &str = "list of paths";

    fn unset(&self) -> Result<Vec<PathBuf>, &'static str> {
        Ok(DENIED.map(PathBuf::from).into())
    }

    fn read(&self, at: &At, value: Value) -> Result<Vec<PathBuf>, ConfigError> {
        let texts = value.texts(at)?;
        at.at_most(texts.len(), DENIED_MAX)?;
        let mut denied = Vec::new();
        for (i, text) in texts.iter().enumerate() {
            match text.as_str() {
                DEFAULT => denied.extend(DENIED.map(PathBuf::from)),
                path => denied.push(denied_path(&at.element(i), path)?),
            }
        }
        denied.sort();
        denied.dedup();
        Ok(denied)
    }

    fn show(&self, value: &Vec<PathBuf>) -> String {
        let paths: Vec<_> = value.iter().map(|path| quote(&path.to_string_lossy())).collect();
        format!("[{}]", paths.join(", "))
    }
}

fn denied_path(at: &At, text: &str) -> Result<PathBuf, ConfigError> {
    at.without_nul(text, true)?;
    let bad = |problem, write| Err(at.bad_value(quote(text), problem, write));
    let path: PathBuf = Path::new(text).components().collect();
    if !path.is_absolute() {
        return bad(
            "it is not an absolute path",
            r#"a path such as "/srv/private", or "default" for the default list"#,
        );
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return bad("it has a `..`", "the path itself");
    }
    if path.parent().is_none() {
        return bad("it denies everything", "unveil_by_task = false, and no unveil_allow");
    }
    if path.starts_with("/proc") {
        return bad("a task has a /proc of its own", "paths of the host's file systems");
    }
    Ok(path)
}

/// `allow_seccomp`.
pub(super) struct AllowedSeccomp;

impl Kind for AllowedSeccomp {
    type Value = Allowed;
    const FORM: Form = Form::Attribute(hclspec::STRINGS);
    const TAKES: &str = r#"list of groups and `"unconfined"`"#;

    fn unset(&self) -> Result<Allowed, &'static str> {
        Ok(Allowed::default())
    }

    fn read(&self, at: &At, value: Value) -> Result<Allowed, ConfigError> {
        let names = value.texts(at)?;
        at.at_most(names.len(), GROUPS_MAX)?;
        names.iter().enumerate().try_fold(Allowed::default(), |allowed, (i, name)| {
            if name == UNCONFINED {
                return Ok(Allowed { unconfined: true, ..allowed });
            }
            Ok(Allowed { groups: allowed.groups.union(group(&at.element(i), name)?), ..allowed })
        })
    }

    fn show(&self, value: &Allowed) -> String {
        value.hcl(GroupSet::EMPTY)
    }
}

/// What a task has as its root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RootKind {
    /// One of its own.
    Private,
    /// The host's.
    Host,
}

/// `root`.
struct RootDirectory;

impl Kind for RootDirectory {
    type Value = RootKind;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = r#"`"private"` or `"host"`"#;

    fn unset(&self) -> Result<RootKind, &'static str> {
        Ok(RootKind::Private)
    }

    fn read(&self, at: &At, value: Value) -> Result<RootKind, ConfigError> {
        match value.text(at)?.as_str() {
            "private" => Ok(RootKind::Private),
            "host" => Ok(RootKind::Host),
            other => {
                Err(at.bad_value(quote(other), "there is no such root directory", r#""private" or "host""#))
            }
        }
    }

    fn show(&self, value: &RootKind) -> String {
        quote(match value {
            RootKind::Private => "private",
            RootKind::Host => "host",
        })
    }
}

/// `denied_host_uids` and `denied_host_gids`.
pub(super) struct DeniedIds;

impl Kind for DeniedIds {
    type Value = IdRanges;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = r#"`"ID,MIN-MAX,…"`"#;

    fn unset(&self) -> Result<IdRanges, &'static str> {
        Ok(IdRanges::nobody())
    }

    fn read(&self, at: &At, value: Value) -> Result<IdRanges, ConfigError> {
        let text = value.text(at)?;
        text.parse().map_err(|_| {
            let write = r#"ids and ranges, for example "65534,100-999", or "" for none"#;
            at.bad_value(quote(&text), "it is not a list of ids", write)
        })
    }

    fn show(&self, value: &IdRanges) -> String {
        quote(&value.to_string())
    }
}

/// `dynamic_user_range`.
struct UidRange;

impl Kind for UidRange {
    type Value = DynamicRange;
    const FORM: Form = Form::Attribute(hclspec::STRING);
    const TAKES: &str = r#"`"MIN-MAX"`"#;

    fn unset(&self) -> Result<DynamicRange, &'static str> {
        Ok(DynamicRange::default())
    }

    fn read(&self, at: &At, value: Value) -> Result<DynamicRange, ConfigError> {
        let text = value.text(at)?;
        text.parse().map_err(|_| {
            let write = r#"the client's dynamic_user_min and dynamic_user_max, for example "80000-89999""#;
            at.bad_value(quote(&text), "it is not a range of uids", write)
        })
    }

    fn show(&self, value: &DynamicRange) -> String {
        quote(&value.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::tests::{plugin, plugin_err};

    #[test]
    fn default_stands_for_the_default_list_of_denied_paths() {
        let denied = |list: serde_json::Value| plugin(json!({"unveil_deny": list})).unwrap().unveil_deny;
        let default = PluginConfig::default().unveil_deny;
        assert_eq!(denied(json!(["default"])), default);
        assert_eq!(denied(json!(["/srv//private/", "default"])).len(), default.len() + 1);
        assert!(denied(json!(["/srv//private/"])).contains(&"/srv/private".into()));
        assert!(denied(json!([])).is_empty());
        for (path, problem) in [
            ("/", "everything"),
            ("/proc/kcore", "of its own"),
            ("/a/../b", "`..`"),
            ("Default", "not an absolute path"),
        ] {
            assert!(plugin_err(json!({"unveil_deny": [path]})).contains(problem), "{path}");
        }
    }
}
