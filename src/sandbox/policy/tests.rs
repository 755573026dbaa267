use proptest::prelude::*;

use super::*;

const TASK_DIR: &str = "/data/alloc_mounts/1-web";
const CGROUP: &str = "/sys/fs/cgroup/nomad.slice/share.slice/1.web.scope";

static NO_IDS: IdRanges = IdRanges::NONE;

fn policy() -> Policy<'static> {
    Policy {
        own_root: false,
        unveil_defaults: true,
        unveil_paths: &[],
        unveil_by_task: true,
        unveil_allow: &[],
        unveil_deny: &[],
        allow_caps: CapSet::EMPTY,
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
        seccomp: Profile::Default,
        allow_seccomp: Allowed::default(),
    }
}

fn host() -> Host<'static> {
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

fn user() -> User {
    User::unknown("nomad-80000", 80_000, 80_000)
}

fn parse(rules: &[&str]) -> Vec<Unveil> {
    rules.iter().map(|rule| rule.parse().unwrap()).collect()
}

/// The plan of a job with these unveils and this work_dir, where jobs may unveil.
fn plan(defaults: bool, agent: &[&str], job: &[&str], work_dir: Option<&str>) -> Result<Plan, Denied> {
    let policy = Policy { unveil_defaults: defaults, unveil_paths: &parse(agent), ..policy() };
    let ask = Ask { unveil: &parse(job), work_dir: work_dir.map(Path::new), ..Ask::default() };
    policy.plan(&ask, &user(), host())
}

fn rules(defaults: bool, agent: &[&str], job: &[&str]) -> Vec<Rule> {
    plan(defaults, agent, job, None).unwrap().landlock.rules
}

fn find<'a>(rules: &'a [Rule], text: &str) -> &'a Rule {
    rules.iter().find(|rule| rule.to_string() == text).unwrap_or_else(|| panic!("no {text} in {rules:?}"))
}

fn list(names: &[&str]) -> CapList {
    CapList::from_names(names).unwrap()
}

fn set(names: &[&str]) -> CapSet {
    list(names).set()
}

/// The capabilities of a job with these options, of a plugin that has `own`.
fn capabilities(add: CapList, drop: CapList, allow_caps: CapSet, own: CapSet) -> Result<CapSet, Denied> {
    let policy = Policy { allow_caps, ..policy() };
    let ask = Ask { cap_add: add, cap_drop: drop, ..Ask::default() };
    policy.plan(&ask, &user(), Host { capabilities: own, ..host() }).map(|plan| plan.capabilities)
}

#[test]
fn without_defaults_only_what_was_asked_for() {
    assert_eq!(rules(false, &[], &[]), []);
    let texts: Vec<_> =
        rules(false, &["r:/etc/mime.types"], &["rx:/opt/app"]).iter().map(Rule::to_string).collect();
    assert_eq!(texts, ["r:/etc/mime.types", "rx:/opt/app"]);
}

#[test]
fn a_job_unveils_only_where_the_operator_allows_it() {
    let strict = Policy { unveil_by_task: false, ..policy() };
    let unveil = parse(&["r:/srv"]);
    let ask = Ask { unveil: &unveil, ..Ask::default() };
    let denied = strict.plan(&ask, &user(), host()).unwrap_err();
    assert!(
        denied == Denied::UnveilByTask && denied.to_string().contains("unveil_by_task = true"),
        "{denied}"
    );
    assert!(strict.plan(&Ask::default(), &user(), host()).is_ok());
    find(&rules(true, &[], &["r:/srv"]), "r:/srv");
}

#[test]
fn the_tasks_own_directories_are_opened_from_its_root() {
    let rules = rules(true, &[], &[]);
    for directory in ["local", "alloc", "secrets", "tmp"] {
        let rule = find(&rules, &format!("rwxc:{TASK_DIR}/{directory}"));
        assert_eq!(rule.place, Place::beneath(TASK_DIR, directory));
        assert_eq!(rule.missing, Missing::Fail);
    }
    let logs = find(&rules, &format!("rx:{TASK_DIR}/alloc/logs"));
    assert_eq!(logs.place, Place::beneath(TASK_DIR, "alloc/logs"));
}

#[test]
fn a_path_below_one_that_tasks_can_change_follows_no_symlink() {
    let agent = ["rwc:/srv/shared", "r:/srv/shared/in"];
    let rules = rules(true, &agent, &["r:/data/alloc_mounts/1-web/local/x"]);
    assert_eq!(find(&rules, "r:/srv/shared/in").place, Place::beneath("/srv/shared", "in"));
    assert_eq!(find(&rules, &format!("r:{TASK_DIR}/local/x")).place, Place::beneath(TASK_DIR, "local/x"));
    assert_eq!(find(&rules, "rwc:/srv/shared").place, Place::host("/srv/shared"));
}

#[test]
fn asked_for_must_exist_and_defaults_need_not() {
    let rules = rules(true, &["r:/srv/www"], &[]);
    assert_eq!(find(&rules, "r:/srv/www").missing, Missing::Fail);
    assert_eq!(find(&rules, "rx:/usr/bin").missing, Missing::Skip);
    assert_eq!(find(&rules, &format!("r:{CGROUP}")).missing, Missing::Skip);
}

#[test]
fn the_working_directory_stays_inside_unless_allowed() {
    let of = |asked: Option<&str>, unveil_by_task| {
        let ask = Ask { work_dir: asked.map(Path::new), ..Ask::default() };
        let policy = Policy { unveil_by_task, ..policy() };
        policy.plan(&ask, &user(), host()).map(|plan| plan.work_dir.place)
    };
    assert_eq!(of(None, false), Ok(Place::beneath(TASK_DIR, "local")));
    assert_eq!(of(Some("alloc/data"), false), Ok(Place::beneath(TASK_DIR, "alloc/data")));
    assert_eq!(of(Some("/data/alloc_mounts/1-web/tmp"), false), Ok(Place::beneath(TASK_DIR, "tmp")));
    assert_eq!(of(Some("/srv"), false), Err(Denied::WorkDir("/srv".into())));
    assert_eq!(of(Some("/srv"), true), Ok(Place::host("/srv")));
    assert!(of(Some("/data/alloc_mounts/1-web-other"), false).is_err());
}

#[test]
fn the_working_directory_is_opened_from_above_what_tasks_can_change() {
    let of = |agent: &[&str], job: &[&str]| {
        plan(true, agent, job, Some("/srv/shared/app/run")).unwrap().work_dir.place
    };
    let beneath = Place::beneath("/srv/shared", "app/run");
    assert_eq!(of(&["rwc:/srv/shared"], &[]), beneath);
    assert_eq!(of(&[], &["rwc:/srv/shared"]), beneath);
    assert_eq!(of(&["rwc:/srv/shared/app"], &["c:/srv/shared"]), beneath);
    assert_eq!(of(&["rw:/srv/shared"], &["r:/srv"]), Place::host("/srv/shared/app/run"));
}

#[test]
fn each_path_is_opened_for_whoever_named_it() {
    let rules = rules(true, &["r:/srv/agent"], &["r:/srv/job"]);
    let named_by = |text: &str| find(&rules, text).named_by;
    assert_eq!(named_by("rx:/usr/bin"), NamedBy::Driver);
    assert_eq!(named_by(&format!("rwxc:{TASK_DIR}/local")), NamedBy::Driver);
    assert_eq!(named_by("r:/srv/agent"), NamedBy::Agent);
    assert_eq!(named_by("r:/srv/job"), NamedBy::Job);
    let of = |asked: Option<&str>| plan(true, &[], &[], asked).unwrap().work_dir.named_by;
    assert_eq!(
        (of(None), of(Some("local")), of(Some("/srv"))),
        (NamedBy::Driver, NamedBy::Job, NamedBy::Job)
    );
}

#[test]
fn proc_self_needs_the_whole_of_proc() {
    let judged = |defaults, agent: &[&str], job: &[&str]| plan(defaults, agent, job, None);
    for path in ["/proc/self/mountinfo", "/proc/thread-self", "/proc/self"] {
        let rule = format!("r:{path}");
        let error = judged(false, &[], &[&rule]).unwrap_err().to_string();
        assert!(error.contains(&rule) && error.contains("write \"r:/proc\""), "{error}");
        for (defaults, agent, job) in
            [(true, &[][..], &[&*rule][..]), (false, &["r:/proc"], &[&rule]), (false, &[&rule], &["rx:/"])]
        {
            let rules = rules(defaults, agent, job);
            assert!(rules.iter().all(|found| found.to_string() != rule), "{rules:?}");
        }
    }
    assert!(judged(true, &[], &["rw:/proc/self/comm"]).is_err(), "the default is for reading only");
    for path in ["root/etc/passwd", "cwd", "exe", "fd/3", "ns/net"] {
        let error = judged(true, &[], &[&format!("r:/proc/self/{path}")]).unwrap_err();
        assert!(matches!(error, Denied::MagicLink(_)), "{path}: {error}");
    }
    find(&rules(false, &[], &["r:/proc/selfish"]), "r:/proc/selfish");
}

#[test]
fn the_tasks_own_streams_need_no_rule() {
    let job = ["r:/dev/fd", "r:/dev/fd/0", "w:/dev/stderr", "r:/dev/stdin"];
    assert_eq!(rules(false, &["rw:/dev/stdout"], &job), []);
    find(&rules(false, &[], &["r:/dev/fdx"]), "r:/dev/fdx");
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
fn no_task_has_the_id_of_the_shims_nor_one_above_it() {
    let judged = |user: User| policy().plan(&Ask::default(), &user, host());
    let with = |uid, gid, group| User { groups: vec![group], ..User::unknown("ann", uid, gid) };
    assert!(judged(with(ID_MAX, ID_MAX, ID_MAX)).is_ok());
    for id in [ID_MAX + 1, u32::MAX] {
        for (what, user) in [("uid", with(id, 1, 1)), ("gid", with(1, id, 1)), ("group", with(1, 1, id))] {
            let denied = judged(user).unwrap_err();
            assert_eq!(denied, Denied::ReservedId { user: "ann".into(), what, id });
            assert!(denied.may_change(), "the operator can change the user database");
        }
    }
}

#[test]
fn a_job_has_only_dynamic_users_of_the_range() {
    let policy = policy();
    for inside in [80_000, 89_999] {
        assert_eq!(policy.dynamic_user(&format!("nomad-{inside}"), inside), Ok(()));
    }
    for outside in [1, 1000, 79_999, 90_000, 2_147_483_647] {
        let denied = policy.dynamic_user(&format!("nomad-{outside}"), outside).unwrap_err();
        let text = denied.to_string();
        assert!(text.contains("dynamic_user_range") && text.contains("dynamic_user_min"), "{text}");
        assert!(!denied.may_change(), "{text}");
    }
}

#[test]
fn the_owner_of_a_directory_is_not_trusted_where_jobs_may_change_it() {
    assert!(policy().trusts_owner());
    assert!(!Policy { allow_caps: set(&["chown"]), ..policy() }.trusts_owner());
}

#[test]
fn only_a_user_of_the_database_shares_its_uid() {
    assert!(!may_share_uid(&user()));
    assert!(may_share_uid(&User { known: true, ..user() }));
}

#[test]
fn only_host_mode_without_a_path_is_the_hosts_network() {
    use NetworkMode::{Group, Host, None as NoNetwork, Task};
    assert_eq!(network(Host, ""), Ok(None));
    for (mode, denied) in
        [(Group, Denied::NoNetworkPath), (NoNetwork, Denied::NoNetworkPath), (Task, Denied::NetworkOfTask)]
    {
        assert_eq!(network(mode, ""), Err(denied), "{mode:?} without a path");
    }
    for mode in [Host, Group, NoNetwork, Task] {
        let path = "/var/run/netns/a";
        assert_eq!(network(mode, path), Ok(Some(path.into())), "{mode:?}");
        assert_eq!(network(mode, "netns/a"), Err(Denied::RelativeNetworkPath("netns/a".into())), "{mode:?}");
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
    let plan = policy().plan(&ask, &user(), host).unwrap();
    assert_eq!(plan.task_dir, Path::new(TASK_DIR));
    let own = [Namespace::Pid, Namespace::Mount, Namespace::Ipc, Namespace::Uts].into();
    assert_eq!(plan.namespaces, Namespaces { own, network: network.map(Path::to_owned) });
    assert_eq!(plan.root, Root::Host);
    let limits = Limits { io_weight: Some(100), ..limits };
    assert_eq!(plan.resources, Resources { cgroup: Some(CGROUP.into()), limits });
    assert_eq!((plan.rlimits.open_files, plan.oom_score_adj), (Some(1024), 500));
    assert_eq!((plan.landlock.required_abi, plan.landlock.handled_abi), (1, 5));
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
    let policy = Policy { seccomp: agent.0, allow_seccomp, allow_caps: CapSet::ALL, ..policy() };
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

fn limit(name: &str, text: &str) -> Rlimits {
    [(name.to_owned(), crate::sandbox::rlimits::parse(name, text).unwrap())].into()
}

#[test]
fn a_job_gets_the_limits_of_processes_up_to_the_agents() {
    let asked = |agent: &Rlimits, job: &Rlimits| {
        let ask = Ask { ulimit: job, ..Ask::default() };
        Policy { ulimit: agent, ..policy() }.plan(&ask, &user(), host()).map(|plan| plan.rlimits.asked)
    };
    let none = Rlimits::new();
    assert_eq!(asked(&none, &none), Ok(Rlimits::new()));
    // Up to what the plugin itself has, where the operator says nothing.
    assert_eq!(asked(&none, &limit("nofile", "64:4096")), Ok(limit("nofile", "64:4096")));
    let denied = asked(&none, &limit("nofile", "64:4097")).unwrap_err().to_string();
    assert!(denied.starts_with("ulimit nofile = \"64:4097\" is above 4096"), "{denied}");
    assert!(asked(&none, &limit("memlock", "1")).is_err());
    // What the operator says is for every task, and the most for those that ask.
    let agent = limit("nofile", "1024:65536");
    assert_eq!(asked(&agent, &none), Ok(agent.clone()));
    assert_eq!(asked(&agent, &limit("nofile", "65536")), Ok(limit("nofile", "65536")));
    assert!(asked(&agent, &limit("nofile", "65537")).is_err());
    let strict = limit("nofile", "100");
    assert!(asked(&strict, &limit("nofile", "64:101")).is_err(), "the plugin's own 4096 do not count");
    // A limit that the operator does not name stays beside it.
    let both = asked(&agent, &limit("core", "0")).unwrap();
    assert_eq!(both.keys().collect::<Vec<_>>(), ["core", "nofile"]);
}

#[test]
fn no_limit_of_open_files_is_what_the_kernel_takes() {
    let agent = limit("nofile", "unlimited");
    let plan = Policy { ulimit: &agent, ..policy() }.plan(&Ask::default(), &user(), host()).unwrap();
    assert_eq!(plan.rlimits.asked, limit("nofile", "524288:1048576"));
    let ask = limit("nofile", "1000:unlimited");
    let ask = Ask { ulimit: &ask, ..Ask::default() };
    let plan = Policy { ulimit: &agent, ..policy() }.plan(&ask, &user(), host()).unwrap();
    assert_eq!(plan.rlimits.asked, limit("nofile", "1000:1048576"));
    assert!(policy().plan(&ask, &user(), host()).is_err(), "above the plugin's own");
}

#[test]
fn processes_swap_and_cpu_are_limited_as_the_agent_says_or_further() {
    let cpu_max = Some(crate::cgroup::CpuMax { quota_us: 50_000, period_us: 100_000 });
    let planned = |policy: Policy<'_>, ask: Ask<'_>| {
        let host = Host { limits: Limits { cpu_max, ..Limits::UNLIMITED }, ..host() };
        policy.plan(&ask, &user(), host).map(|plan| plan.resources.limits)
    };
    let pids = |most, asked| {
        let ask = Ask { pids_max: asked, ..Ask::default() };
        planned(Policy { pids_max: most, ..policy() }, ask).map(|limits| limits.pids_max)
    };
    assert_eq!(pids(100, None), Ok(Some(100)));
    assert_eq!(pids(100, Some(99)), Ok(Some(99)));
    assert_eq!(pids(100, Some(100)), Ok(Some(100)));
    assert_eq!(pids(100, Some(101)), Err(Denied::PidsMax { asked: 101, most: 100 }));
    assert_eq!(pids(100, Some(0)), Err(Denied::PidsMax { asked: 0, most: 100 }));
    assert_eq!(pids(0, None), Ok(None));
    assert_eq!(pids(0, Some(7)), Ok(Some(7)));

    let swap = |most, asked| {
        let ask = Ask { memory_swap: asked, ..Ask::default() };
        planned(Policy { memory_swap: most, ..policy() }, ask).map(|limits| limits.swap_max)
    };
    assert_eq!(swap(0, None), Ok(Some(0)));
    assert_eq!(swap(0, Some(1)), Err(Denied::MemorySwap { asked: 1, most: 0 }));
    assert_eq!(swap(64, Some(-1)), Err(Denied::MemorySwap { asked: -1, most: 64 }));
    assert_eq!(swap(64, Some(63)), Ok(Some(63 << 20)));
    assert_eq!(swap(-1, None), Ok(None));
    assert_eq!(swap(-1, Some(0)), Ok(Some(0)));

    let hard = |agent, asked| {
        let ask = Ask { cpu_hard_limit: asked, ..Ask::default() };
        planned(Policy { cpu_hard_limit: agent, ..policy() }, ask).map(|limits| limits.cpu_max)
    };
    assert_eq!(hard(true, None), Ok(cpu_max));
    assert_eq!(hard(true, Some(true)), Ok(cpu_max));
    assert_eq!(hard(true, Some(false)), Err(Denied::CpuHardLimit));
    assert_eq!(hard(false, None), Ok(None));
    assert_eq!(hard(false, Some(true)), Ok(cpu_max));
}

#[test]
fn weights_bursts_and_disks_are_as_the_agent_says_or_lower() {
    let cpu_max = Some(crate::cgroup::CpuMax { quota_us: 50_000, period_us: 100_000 });
    let planned = |policy: Policy<'_>, ask: Ask<'_>| {
        let limits = Limits { cpu_max, cpu_weight: Some(58), ..Limits::UNLIMITED };
        policy.plan(&ask, &user(), Host { limits, ..host() }).map(|plan| plan.resources.limits)
    };
    let weight = |most, asked| {
        let ask = Ask { cpu_weight: asked, ..Ask::default() };
        planned(Policy { cpu_weight_max: most, ..policy() }, ask).map(|limits| limits.cpu_weight)
    };
    assert_eq!(weight(0, None), Ok(Some(58)));
    assert_eq!(weight(0, Some(58)), Ok(Some(58)));
    assert_eq!(weight(0, Some(59)), Err(Denied::CpuWeight { asked: 59, most: 58 }));
    assert_eq!(weight(200, None), Ok(Some(58)));
    assert_eq!(weight(200, Some(200)), Ok(Some(200)));
    assert_eq!(weight(200, Some(201)), Err(Denied::CpuWeight { asked: 201, most: 200 }));
    assert_eq!(weight(7, Some(58)), Ok(Some(58)), "that of its cpu");

    let burst = |most, asked, hard| {
        let ask = Ask { cpu_burst: asked, ..Ask::default() };
        let policy = Policy { cpu_burst: most, cpu_hard_limit: hard, ..policy() };
        planned(policy, ask).map(|limits| limits.cpu_burst_us)
    };
    assert_eq!(burst(50, None, true), Ok(25_000));
    assert_eq!(burst(50, Some(10), true), Ok(5_000));
    assert_eq!(burst(50, None, false), Ok(0), "without a quota");
    let above = |option, asked, most| Denied::AboveTheAgents { option, asked, most };
    assert_eq!(burst(50, Some(51), true), Err(above("cpu_burst", 51, 50)));

    let io =
        |asked| planned(policy(), Ask { io_weight: asked, ..Ask::default() }).map(|limits| limits.io_weight);
    assert_eq!(io(None), Ok(Some(100)));
    assert_eq!(io(Some(1)), Ok(Some(1)));
    assert_eq!(io(Some(101)), Err(above("io_weight", 101, 100)));

    let disks = |text: &[(&str, &str)]| -> IoLimits {
        text.iter().map(|(disk, limit)| ((*disk).to_owned(), limit.parse().unwrap())).collect()
    };
    let agent = disks(&[("/dev/a", "rbps=5 wbps=5")]);
    let job = disks(&[("/dev/a", "rbps=9 wbps=4"), ("/dev/b", "riops=1")]);
    let ask = Ask { io_max: &job, memory_high: 3, ..Ask::default() };
    let limits = planned(Policy { io_max: &agent, ..policy() }, ask).unwrap();
    assert_eq!(limits.io_max, disks(&[("/dev/a", "rbps=5 wbps=4"), ("/dev/b", "riops=1")]));
    assert_eq!(limits.memory_high, Some(3 << 20));
}

#[test]
fn denied_ids_are_refused_by_number() {
    let ids: IdRanges = "100-999,65534".parse().unwrap();
    let ann = User { groups: vec![44], ..User::unknown("ann", 1000, 1001) };
    let judged = |policy: Policy<'_>, user: &User| policy.plan(&Ask::default(), user, host()).map(drop);
    let denied = Policy { denied_uids: &ids, denied_gids: &ids, ..policy() };
    assert_eq!(judged(denied, &ann), Ok(()));
    let no = |user: &User| judged(denied, user).unwrap_err().to_string();
    assert!(
        no(&User { uid: 65_534, ..ann.clone() })
            .contains("uid 65534, which the agent's plugin option denied_host_uids")
    );
    assert!(
        no(&User { gid: 100, ..ann.clone() })
            .contains("gid 100, which the agent's plugin option denied_host_gids")
    );
    assert!(no(&User { groups: vec![44, 999], ..ann.clone() }).contains("gid 999"));
    let only_uids = Policy { denied_gids: &NO_IDS, ..denied };
    assert_eq!(judged(only_uids, &User { gid: 100, ..ann.clone() }), Ok(()));

    let root = User::unknown("root", 0, 0);
    assert_eq!(judged(denied, &root), Ok(()));
    assert_eq!(judged(Policy { allow_root: false, ..denied }, &root), Err(Denied::Root));
    assert_eq!(judged(Policy { allow_root: false, ..denied }, &ann), Ok(()));
}

#[test]
fn what_nomad_and_the_driver_keep_is_denied_to_every_task() {
    let deny = [PathBuf::from("/srv/private")];
    let planned = |kept| {
        let policy = Policy { unveil_deny: &deny, ..policy() };
        let plan = policy.plan(&Ask::default(), &user(), Host { kept, ..host() }).unwrap();
        plan.landlock.denied
    };
    assert_eq!(planned(None), deny, "a task of `run` has nothing of Nomad's");
    let alloc = Path::new("/data/alloc/1");
    let all =
        ["/srv/private", "/run/records", "/data/alloc", "/data/alloc_mounts", "/data/client", "/data/server"];
    assert_eq!(planned(Some((alloc, Path::new("/run/records")))), all.map(PathBuf::from));
    let at_the_top = planned(Some((Path::new("/alloc"), Path::new("/run/records"))));
    assert!(!at_the_top.contains(&"/".into()), "{at_the_top:?}");
    let elsewhere = planned(Some((Path::new("/srv/allocs/1"), Path::new("/run/records"))));
    let all =
        ["/srv/private", "/run/records", "/srv/allocs", "/data/alloc_mounts", "/data/client", "/data/server"];
    assert_eq!(elsewhere, all.map(PathBuf::from), "/srv/client may be anybody's");
}

#[test]
fn what_a_job_may_unveil_is_in_the_plan() {
    let allow = parse(&["r:/srv"]);
    let landlock = |unveil_by_task, job: &[&str]| {
        let policy = Policy { unveil_by_task, unveil_allow: &allow, ..policy() };
        let plan = policy.plan(&Ask { unveil: &parse(job), ..Ask::default() }, &user(), host());
        plan.map(|plan| plan.landlock.allowed)
    };
    assert_eq!(landlock(true, &["r:/etc"]), Ok(None));
    // Whether that is allowed is decided when it is open.
    assert_eq!(landlock(false, &["r:/etc"]), Ok(Some(allow.clone())));
    let nothing = Policy { unveil_by_task: false, ..policy() };
    let asked = nothing.plan(&Ask { unveil: &parse(&["r:/srv"]), ..Ask::default() }, &user(), host());
    assert_eq!(asked, Err(Denied::UnveilByTask));
    for (work_dir, fine) in [("/srv/app", true), ("/opt", false)] {
        let policy = Policy { unveil_by_task: false, unveil_allow: &allow, ..policy() };
        let ask = Ask { work_dir: Some(Path::new(work_dir)), ..Ask::default() };
        assert_eq!(policy.plan(&ask, &user(), host()).is_ok(), fine, "{work_dir}");
    }
}
