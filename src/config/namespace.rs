//! What an operator decides otherwise for the jobs of one Nomad namespace: `namespace "prod" { … }`.

use std::path::PathBuf;

use super::blocks::Block;
use super::kinds::{
    Flag, Hidden, Idmap, IoMaxima, MEMORY_SWAP_RANGE, MEMORY_SWAP_WRITE, Number, Optional, PERCENT_RANGE,
    PERCENT_WRITE, PIDS_MAX_RANGE, PIDS_MAX_WRITE, SeccompProfile, Ulimit, UnveilRules, WEIGHT_RANGE,
    WEIGHT_WRITE,
};
use super::network::{AgentNetwork, WhoseSockets};
use super::plugin::{AllowedCapabilities, AllowedSeccomp, DeniedIds, DeniedPaths};
use super::table::{NULL, options};
use crate::cgroup::IoLimits;
use crate::sandbox::capabilities::AllowedCaps;
use crate::sandbox::network::AbstractSockets;
use crate::sandbox::plan::HidePid;
use crate::sandbox::policy::Policy;
use crate::sandbox::rlimits::Rlimits;
use crate::sandbox::seccomp::{Allowed, Profile};
use crate::sandbox::unveil::Unveil;
use crate::sandbox::volume::VolumeIdmap;
use crate::users::IdRanges;

/// As the option of the same name outside of the block says, if it is left out.
const fn over<K>(kind: K) -> Optional<K> {
    Optional { kind, unset: NULL }
}

/// Options that are about what jobs may do. The others are about the host.
const FLAG: Optional<Flag> = over(Flag { default: false });

options! {
    /// Options that stand for those of the same name outside of the block.
    #[derive(Clone, PartialEq, Eq)]
    pub struct NamespaceConfig {
        /// more paths for every task
        pub unveil_paths: Option<Vec<Unveil>> = over(UnveilRules),
        /// let jobs unveil paths
        pub unveil_by_task: Option<bool> = FLAG,
        /// what jobs may unveil if not
        pub unveil_allow: Option<Vec<Unveil>> = over(UnveilRules),
        /// what no task may have
        pub unveil_deny: Option<Vec<PathBuf>> = over(DeniedPaths),
        /// what jobs may ask for with `cap_add`
        pub allow_caps: Option<AllowedCaps> = over(AllowedCapabilities),
        /// limits of processes
        pub ulimit: Option<Rlimits> = over(Ulimit),
        /// processes and threads of a task
        pub pids_max: Option<i32> = over(Number { range: PIDS_MAX_RANGE, default: 0, write: PIDS_MAX_WRITE }),
        /// MiB of swap of a task
        pub memory_swap: Option<i32> = over(Number { range: MEMORY_SWAP_RANGE, default: 0, write: MEMORY_SWAP_WRITE }),
        /// whether `cpu` is the most that a task gets
        pub cpu_hard_limit: Option<bool> = FLAG,
        /// the highest `cpu_weight` that a job may ask for
        pub cpu_weight_max: Option<i32> =
            over(Number { range: 0..=10_000, default: 0, write: "a whole number from 0 to 10000" }),
        /// how much of its CPU quota a task may save for later
        pub cpu_burst: Option<i32> = over(Number { range: PERCENT_RANGE, default: 0, write: PERCENT_WRITE }),
        /// the share of a busy disk
        pub io_weight: Option<i32> = over(Number { range: WEIGHT_RANGE, default: 100, write: WEIGHT_WRITE }),
        /// the most that a task may read and write of a disk
        pub io_max: Option<IoLimits> = over(IoMaxima),
        /// ports to which tasks may bind and connect
        pub network_policy: Option<AgentNetwork> = Block::<AgentNetwork>::over(),
        /// to which abstract unix sockets tasks in the host's network may connect
        pub abstract_sockets: Option<AbstractSockets> = over(WhoseSockets),
        /// let jobs have `user = "root"`
        pub allow_root: Option<bool> = FLAG,
        /// uids that no task may have
        pub denied_host_uids: Option<IdRanges> = over(DeniedIds),
        /// gids that no task may have
        pub denied_host_gids: Option<IdRanges> = over(DeniedIds),
        /// whether the owner of a volume appears as the task's dynamic user
        pub volume_idmap: Option<VolumeIdmap> = over(Idmap),
        /// which processes of other users a task sees in its `/proc`
        pub proc_hidepid: Option<HidePid> = over(Hidden),
        /// which system calls tasks may make
        pub seccomp: Option<Profile> = over(SeccompProfile),
        /// what jobs may ask for of them
        pub allow_seccomp: Option<Allowed> = over(AllowedSeccomp),
    }
}

impl NamespaceConfig {
    /// What the operator allows a job of this namespace.
    pub(super) fn over<'a>(&'a self, base: Policy<'a>) -> Policy<'a> {
        Policy {
            unveil_paths: self.unveil_paths.as_deref().unwrap_or(base.unveil_paths),
            unveil_by_task: self.unveil_by_task.unwrap_or(base.unveil_by_task),
            unveil_allow: self.unveil_allow.as_deref().unwrap_or(base.unveil_allow),
            unveil_deny: self.unveil_deny.as_deref().unwrap_or(base.unveil_deny),
            allow_caps: self.allow_caps.unwrap_or(base.allow_caps),
            ulimit: self.ulimit.as_ref().unwrap_or(base.ulimit),
            pids_max: self.pids_max.unwrap_or(base.pids_max),
            memory_swap: self.memory_swap.unwrap_or(base.memory_swap),
            cpu_hard_limit: self.cpu_hard_limit.unwrap_or(base.cpu_hard_limit),
            cpu_weight_max: self.cpu_weight_max.unwrap_or(base.cpu_weight_max),
            cpu_burst: self.cpu_burst.unwrap_or(base.cpu_burst),
            io_weight: self.io_weight.unwrap_or(base.io_weight),
            io_max: self.io_max.as_ref().unwrap_or(base.io_max),
            network: self.network_policy.as_ref().map_or(base.network, AgentNetwork::lists),
            network_unsupported: self
                .network_policy
                .as_ref()
                .map_or(base.network_unsupported, |policy| policy.unsupported),
            abstract_sockets: self.abstract_sockets.unwrap_or(base.abstract_sockets),
            allow_root: self.allow_root.unwrap_or(base.allow_root),
            denied_uids: self.denied_host_uids.as_ref().unwrap_or(base.denied_uids),
            denied_gids: self.denied_host_gids.as_ref().unwrap_or(base.denied_gids),
            volume_idmap: self.volume_idmap.unwrap_or(base.volume_idmap),
            proc_hidepid: self.proc_hidepid.unwrap_or(base.proc_hidepid),
            seccomp: self.seccomp.unwrap_or(base.seccomp),
            allow_seccomp: self.allow_seccomp.unwrap_or(base.allow_seccomp),
            ..base
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::tests::{plugin, plugin_err};

    #[test]
    fn a_namespace_has_its_own_policy() {
        let config = plugin(json!({
            "pids_max": 7, "unveil_by_task": true, "allow_root": false,
            "namespace": {"prod": {"unveil_by_task": false, "unveil_allow": ["r:/srv"], "ulimit": {"nofile": "100"}}, "dev": {}},
        }))
        .unwrap();
        let prod = config.policy_in("prod");
        assert!(!prod.unveil_by_task && !prod.allow_root);
        assert_eq!((prod.pids_max, prod.unveil_allow.len(), prod.ulimit.len()), (7, 1, 1));
        for other in ["dev", "default", "", "prod "] {
            let policy = config.policy_in(other);
            assert!(
                policy.unveil_by_task && policy.unveil_allow.is_empty() && policy.ulimit.is_empty(),
                "{other}"
            );
        }
        let error = plugin_err(json!({"namespace": {"prod": {"allow_caps": ["net_rwa"]}}}));
        assert!(error.starts_with("plugin option namespace[\"prod\"].allow_caps[0] \"net_rwa\""), "{error}");
        assert!(
            plugin_err(json!({"namespace": ["prod"]}))
                .starts_with("plugin option namespace is a list; write blocks")
        );
    }

    #[test]
    fn a_policy_for_a_name_that_no_namespace_can_have_is_refused() {
        for name in ["", "*", "prod-*", "a b", "a/b", "ä", &"x".repeat(129)] {
            let error = plugin_err(json!({"namespace": {name: {}}}));
            assert!(error.contains("without wildcards"), "{error}");
        }
        assert!(plugin(json!({"namespace": {"Prod-1": {}, "default": {}}})).is_ok());
    }

    #[test]
    fn the_default_of_allow_caps_is_that_of_each_namespace() {
        let config = plugin(json!({"namespace": {
            "strict": {"allow_root": false}, "open": {"allow_seccomp": ["set_id"]}, "own": {"allow_caps": []}, "same": {},
            "more": {"allow_caps": ["default", "net_raw"]}
        }}))
        .unwrap();
        let allowed = |namespace| config.policy_in(namespace).allowed_caps().len();
        assert_eq!(["default", "same", "more", "strict", "open", "own"].map(allowed), [11, 11, 12, 2, 2, 0]);
        let shown = config.to_hcl();
        let strict = r#""strict" = { allow_caps = ["kill", "net_bind_service"], allow_root = false }"#;
        for part in [
            "\nallow_caps = [\"chown\", \"dac_override\", ",
            strict,
            r#""same" = {}"#,
            r#""own" = { allow_caps = [] }"#,
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }

    #[test]
    fn a_capability_of_one_namespace_can_change_owners_for_all() {
        let trusts = |config: serde_json::Value| {
            let plugin = plugin(config).unwrap();
            (plugin.trusts_owner(), plugin.trusts_record())
        };
        assert_eq!(trusts(json!({})), (false, true), "the default has chown");
        let dev = |caps| json!({"allow_caps": ["kill"], "namespace": {"dev": {"allow_caps": caps}}});
        assert_eq!(trusts(dev(json!([]))), (true, true));
        assert_eq!(trusts(dev(json!(["chown"]))), (false, true));
        assert_eq!(trusts(dev(json!(["sys_admin"]))), (true, false));
        assert_eq!(
            trusts(json!({"allow_caps": ["all"], "namespace": {"dev": {"allow_caps": []}}})),
            (false, false)
        );
    }
}
