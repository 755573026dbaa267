use proptest::prelude::*;

use super::ask::{NO_IO_LIMITS, NO_LIMITS};
use super::*;
use crate::sandbox::capabilities::{AllowedCaps, CapList};
use crate::sandbox::defaults::SOCKETS;
use crate::sandbox::rlimits::NOFILE;
use crate::sandbox::seccomp::GroupSet;

pub(super) const TASK_DIR: &str = "/data/alloc_mounts/1-web";
pub(super) const CGROUP: &str = "/sys/fs/cgroup/nomad.slice/share.slice/1.web.scope";

pub(super) static NO_IDS: IdRanges = IdRanges::NONE;

pub(super) fn policy() -> Policy<'static> {
    Policy {
        own_root: false,
        unveil_defaults: true,
        unveil_paths: &[],
        unveil_by_task: true,
        unveil_allow: &[],
        unveil_deny: &[],
        allow_caps: AllowedCaps::default(),
        ulimit: &NO_LIMITS,
        pids_max: 0,
        memory_swap: -1,
        cpu_hard_limit: true,
        network: Lists([None; 4]),
        network_unsupported: Unsupported::Error,
        abstract_sockets: AbstractSockets::Own,
        cpu_weight_max: 0,
        cpu_burst: 0,
        io_weight: 100,
        io_max: &NO_IO_LIMITS,
        allow_root: true,
        denied_uids: &NO_IDS,
        denied_gids: &NO_IDS,
        dynamic_user_range: DynamicRange::default(),
        volume_idmap: VolumeIdmap::Auto,
        proc_hidepid: HidePid::Off,
        seccomp: Profile::Default,
        allow_seccomp: Allowed::default(),
    }
}

pub(super) fn host() -> Host<'static> {
    Host {
        task_dir: Path::new(TASK_DIR),
        kept: None,
        cgroup: Some(Path::new(CGROUP)),
        limits: Limits::UNLIMITED,
        network: None,
        ports: &[],
        landlock_abi: || 4,
        dns: false,
        capabilities: CapSet::ALL,
        open_files: None,
        hard_limits: |name| Value(if name == NOFILE { 4096 } else { 0 }),
        open_files_max: || 1 << 20,
    }
}

pub(super) fn user() -> User {
    User::unknown("nomad-80000", 80_000, 80_000)
}

fn list(names: &[&str]) -> CapList {
    CapList::from_names(names).unwrap()
}

pub(super) fn set(names: &[&str]) -> CapSet {
    list(names).set()
}

/// The capabilities of a job with these options, of a plugin that has `own`.
fn capabilities(add: CapList, drop: CapList, allow_caps: CapSet, own: CapSet) -> Result<CapSet, Denied> {
    let policy = Policy { allow_caps: AllowedCaps::only(allow_caps), ..policy() };
    let ask = Ask { cap_add: add, cap_drop: drop, ..Ask::default() };
    policy.plan(&ask, &user(), Host { capabilities: own, ..host() }).map(|plan| plan.capabilities)
}

#[test]
fn a_task_holds_what_it_asks_for_and_no_more() {
    let allow = set(&["net_bind_service", "chown"]);
    let ok = |add: &[&str], drop: &[&str]| capabilities(list(add), list(drop), allow, CapSet::ALL).unwrap();
    assert_eq!(ok(&[], &[]), CapSet::EMPTY);
    assert_eq!(ok(&["chown"], &[]), set(&["chown"]));
    assert_eq!(ok(&["chown", "net_bind_service"], &["CAP_CHOWN"]), set(&["net_bind_service"]));
    // Dropped again, so never asked of the operator.
    assert_eq!(ok(&["chown", "sys_admin"], &["sys_admin"]), set(&["chown"]));
    assert_eq!(ok(&["chown"], &["all"]), set(&["chown"]));
    assert_eq!(ok(&["all"], &["all"]), CapSet::EMPTY);
    assert_eq!(ok(&["all", "chown"], &["all"]), set(&["chown"]));
    assert_eq!(ok(&["chown"], &["all", "chown"]), CapSet::EMPTY);
    assert_eq!(ok(&[], &["all"]), CapSet::EMPTY);
    assert_eq!(
        capabilities(list(&["all"]), list(&["sys_admin"]), CapSet::ALL, CapSet::ALL),
        Ok(CapSet::ALL.difference(set(&["sys_admin"])))
    );
    let root = User { name: "root".into(), known: true, ..User::unknown("root", 0, 0) };
    let of_root = policy().plan(&Ask::default(), &root, host()).unwrap();
    assert_eq!(of_root.capabilities, CapSet::EMPTY, "root has none by itself");
}

#[test]
fn a_refused_capability_says_what_to_set() {
    let allow = set(&["chown", "net_raw"]);
    let refusal =
        |add: &[&str]| capabilities(list(add), list(&[]), allow, CapSet::ALL).unwrap_err().to_string();
    assert_eq!(
        refusal(&["chown", "sys_admin"]),
        "cap_add asks for sys_admin, which allow_caps does not allow (it allows: chown, net_raw); remove it from \
         cap_add, or set allow_caps = [\"chown\", \"net_raw\", \"sys_admin\"] in the agent's plugin \
         \"nomad-driver-exec2\" block"
    );
    assert!(capabilities(list(&["chown"]), list(&[]), CapSet::EMPTY, CapSet::ALL).is_err());
    let all = refusal(&["all"]);
    assert!(all.contains("set allow_caps = [\"all\"] in"), "{all}");
}

#[test]
fn all_is_what_the_plugin_has_and_a_named_capability_must_be_there() {
    let own = CapSet::ALL.difference(set(&["sys_resource"]));
    let of = |add: &[&str]| capabilities(list(add), list(&[]), CapSet::ALL, own);
    assert_eq!(of(&["all"]), Ok(own));
    assert_eq!(of(&["chown"]), Ok(set(&["chown"])));
    for named in [&["sys_resource", "chown"][..], &["all", "sys_resource"]] {
        let error = of(named).unwrap_err().to_string();
        assert!(
            error.starts_with("cap_add asks for sys_resource, which the plugin itself does not have"),
            "{error}"
        );
    }
}

#[test]
fn a_root_of_its_own_needs_no_list_of_defaults() {
    for defaults in [true, false] {
        let policy = Policy { own_root: true, unveil_defaults: defaults, ..policy() };
        let plan = policy.plan(&Ask::default(), &user(), host()).unwrap();
        assert_eq!(plan.root, Root::Private { defaults });
        assert_eq!(plan.landlock.rules, []);
        // The shim makes it: a copy of the host's would cost as much as the host has mounts.
        assert!(!plan.namespaces.own.contains(&Namespace::Mount));
    }
}

#[test]
fn the_plan_has_what_the_host_provides() {
    let ask = Ask { oom_score_adj: 500, ..Ask::default() };
    let limits = Limits { memory_low: Some(1), ..Limits::UNLIMITED };
    let network = Some(Path::new("/var/run/netns/a"));
    let host = Host { limits: limits.clone(), network, open_files: Some(1024), ..host() };
    let policy = Policy { proc_hidepid: HidePid::Invisible, ..policy() };
    let plan = policy.plan(&ask, &user(), host).unwrap();
    assert_eq!(plan.proc_hidepid, HidePid::Invisible);
    assert_eq!(plan.task_dir, Path::new(TASK_DIR));
    let own = [Namespace::Pid, Namespace::Mount, Namespace::Ipc, Namespace::Uts].into();
    assert_eq!(plan.namespaces, Namespaces { own, network: network.map(Path::to_owned) });
    assert_eq!(plan.root, Root::Host);
    let limits = Limits { io_weight: Some(100), ..limits };
    assert_eq!(plan.resources, Resources { cgroup: Some(CGROUP.into()), limits });
    assert_eq!((plan.rlimits.open_files, plan.oom_score_adj), (Some(1024), 500));
    assert_eq!((plan.landlock.required_abi, plan.landlock.handled_abi), (1, 9));
}

proptest! {
    #[test]
    fn capabilities_never_exceed_what_is_allowed(
        add in any::<(u64, bool)>(), drop in any::<(u64, bool)>(), allow in any::<u64>(), own in any::<u64>(),
    ) {
        let list = |(bits, all)| CapList { named: CapSet::from_bits(bits), all };
        let (allow, own) = (CapSet::from_bits(allow), CapSet::from_bits(own));
        if let Ok(set) = capabilities(list(add), list(drop), allow, own) {
            prop_assert!(set.is_subset(allow) && set.is_subset(list(add).set()) && set.is_subset(own));
            prop_assert!(set.intersection(list(drop).named).is_empty());
        }
    }
}

#[test]
fn the_sockets_of_the_host_come_with_the_default_unveils_where_others_can_be_denied() {
    let sockets = |defaults, abi, deny: &[&str]| {
        let deny: Vec<PathBuf> = deny.iter().map(PathBuf::from).collect();
        let policy = Policy { unveil_defaults: defaults, unveil_deny: &deny, ..policy() };
        let host = Host { landlock_abi: abi, ..host() };
        policy.plan(&Ask::default(), &user(), host).unwrap().landlock.sockets
    };
    assert_eq!(sockets(true, || 9, &[]), SOCKETS.iter().map(PathBuf::from).collect::<Vec<_>>());
    assert!(sockets(true, || 8, &[]).is_empty());
    assert!(sockets(false, || 9, &[]).is_empty());
    let denied = sockets(true, || 9, &["/run/nscd/socket", "/run/systemd/journal"]);
    assert_eq!(denied.len(), SOCKETS.len() - 3);
    assert!(!denied.iter().any(|path| path.ends_with("nscd") || path.starts_with("/run/systemd/journal")));
}

#[test]
fn abstract_sockets_of_others_are_those_of_the_hosts_network() {
    let own = |abstract_sockets, network: Option<&str>| {
        let policy = Policy { abstract_sockets, ..policy() };
        let host = Host { network: network.map(Path::new), ..host() };
        policy.plan(&Ask::default(), &user(), host).unwrap().landlock.own_abstract_sockets
    };
    assert!(own(AbstractSockets::Own, None));
    assert!(!own(AbstractSockets::Host, None));
    assert!(!own(AbstractSockets::Own, Some("/run/netns/1")), "its sidecars are there");
}

/// The filter of a task with these options of plugin and job.
fn filter(
    agent: (Profile, &[&str]),
    job: (Option<Profile>, &[&str]),
    capabilities: &[&str],
) -> Result<Filter, Denied> {
    let groups = |names: &[&str]| names.iter().filter_map(|name| GroupSet::named(name)).collect();
    let allow_seccomp = Allowed { groups: groups(agent.1), unconfined: agent.1.contains(&"unconfined") };
    let policy =
        Policy { seccomp: agent.0, allow_seccomp, allow_caps: AllowedCaps::only(CapSet::ALL), ..policy() };
    let ask =
        Ask { seccomp: job.0, seccomp_allow: groups(job.1), cap_add: list(capabilities), ..Ask::default() };
    policy.plan(&ask, &user(), host()).map(|plan| plan.seccomp)
}

#[test]
fn a_job_may_open_the_groups_that_the_operator_allows() {
    const DEFAULT: Profile = Profile::Default;
    let of = |agent, job| filter((DEFAULT, agent), job, &[]);
    let allow = |names: &[&str]| {
        let unlimited = ["tcp_variants"];
        Ok(Filter::Default {
            allow: names.iter().chain(&unlimited).filter_map(|name| GroupSet::named(name)).collect(),
        })
    };
    assert_eq!(of(&[], (None, &[])), allow(&[]));
    assert_eq!(of(&["bpf", "perf"], (None, &["perf"])), allow(&["perf"]));
    assert_eq!(of(&["unconfined"], (None, &["perf"])), allow(&["perf"]));
    assert_eq!(of(&["unconfined"], (Some(Profile::Unconfined), &[])), Ok(Filter::Unconfined));
    assert_eq!(filter((DEFAULT, &[]), (None, &[]), &["sys_time"]), allow(&["clock"]));
    assert_eq!(
        of(&["bpf"], (None, &["bpf", "io_uring"])).unwrap_err().to_string(),
        "seccomp_allow asks for io_uring, which allow_seccomp does not allow; remove it from seccomp_allow, or set allow_seccomp = \
         [\"bpf\", \"io_uring\"] in the agent's plugin \"nomad-driver-exec2\" block"
    );
    assert_eq!(
        of(&["bpf"], (Some(Profile::Unconfined), &[])).unwrap_err().to_string(),
        "seccomp = \"unconfined\" is not allowed by the agent's plugin option allow_seccomp; remove it from the task, or set allow_seccomp = \
         [\"bpf\", \"unconfined\"] in the agent's plugin \"nomad-driver-exec2\" block"
    );
}

#[test]
fn an_unconfined_agent_has_filters_only_for_the_jobs_that_want_them() {
    let of = |job| filter((Profile::Unconfined, &[]), job, &[]).unwrap();
    assert_eq!(of((None, &[])), Filter::Unconfined);
    assert_eq!(of((None, &["bpf"])), Filter::Unconfined);
    assert_eq!(of((Some(Profile::Unconfined), &[])), Filter::Unconfined);
    assert_eq!(
        of((Some(Profile::Default), &["bpf"])),
        Filter::Default { allow: ["bpf", "tcp_variants"].into_iter().filter_map(GroupSet::named).collect() }
    );
}
