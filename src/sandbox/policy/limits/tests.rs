use super::super::tests::{host, policy, user};
use super::*;

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
