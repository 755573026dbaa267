use proptest::prelude::*;

use super::*;

fn names(list: &str) -> Vec<PortName> {
    list.split_whitespace().map(|name| name.parse().unwrap()).collect()
}

fn ports() -> Vec<AllocatedPort> {
    let port = |label: &str, inside, host| AllocatedPort { label: label.into(), inside, host };
    vec![port("http", 80, 25_001), port("db", 5432, 25_002)]
}

const NEWEST: fn() -> u32 = || 10;

/// The limit of one right, from lists of agent and job.
fn judged(right: Right, agent: Option<&str>, job: Option<&str>, abi: fn() -> u32) -> Result<String, String> {
    let (agent, job) = (agent.map(names), job.map(names));
    let (mut agents, mut jobs) = (Lists::default(), Lists::default());
    agents.0[right as usize] = agent.as_deref();
    jobs.0[right as usize] = job.as_deref();
    let ports = ports();
    let surroundings = Surroundings { ports: &ports, landlock_abi: abi, unsupported: Unsupported::Error };
    let rules = surroundings.judge(agents, jobs).map_err(|error| error.to_string())?;
    let found = rules.limits().find(|(found, _)| *found == right);
    Ok(found.map_or_else(|| "free".to_owned(), |(_, ports)| ports.to_string()))
}

#[test]
fn a_list_that_is_absent_limits_nothing_and_an_empty_one_denies_everything() {
    for right in Right::ALL {
        assert_eq!(judged(right, None, None, || 0), Ok("free".into()), "and asks for no kernel");
        let none = if right == Right::BindUdp { "0" } else { "none" };
        assert_eq!(judged(right, None, Some(""), NEWEST), Ok(none.into()));
        assert_eq!(judged(right, Some(""), None, NEWEST), Ok(none.into()));
        assert_eq!(judged(right, None, Some("0-65535"), || 0), Ok("free".into()));
    }
    assert_eq!(judged(Right::Connect, None, Some("1-65535"), NEWEST), Ok("free".into()));
    assert!(
        judged(Right::Bind, None, Some("1-65535"), NEWEST).is_err(),
        "port 0 is one that the kernel chooses"
    );
}

#[test]
fn a_label_is_the_port_in_the_tasks_network_and_to_connect_also_the_hosts() {
    assert_eq!(judged(Right::Bind, None, Some("http 8000-8010 8011"), NEWEST), Ok("80, 8000-8011".into()));
    assert_eq!(judged(Right::Connect, None, Some("db"), NEWEST), Ok("5432, 25002".into()));
    assert_eq!(judged(Right::Bind, None, Some("@allocated"), NEWEST), Ok("80, 5432".into()));
    assert_eq!(
        judged(Right::Bind, None, Some("htpp"), NEWEST).unwrap_err(),
        "network_policy.bind has \"htpp\", which is not the label of a port of the allocation (those are: http, db); write one of them, or a port"
    );
}

#[test]
fn a_job_may_narrow_what_the_agent_allows_and_not_widen_it() {
    let of = |agent, job| judged(Right::Bind, Some(agent), job, NEWEST);
    assert_eq!(of("@allocated 8000-8999", None), Ok("80, 5432, 8000-8999".into()));
    assert_eq!(of("@allocated 8000-8999", Some("http 8500")), Ok("80, 8500".into()));
    assert_eq!(of("8000-8999", Some("")), Ok("none".into()));
    assert_eq!(
        of("8000-8999", Some("22 7999-9000 http")).unwrap_err(),
        "network_policy.bind has 22, 80, 7999, 9000, and the agent's plugin option network_policy allows 8000-8999; remove them from the task, or add them in \
         the agent's plugin \"nomad-driver-exec2\" block"
    );
    assert!(of("8000-8999", Some("0-65535")).is_err());
    assert!(of("", Some("80")).unwrap_err().contains("allows none;"));
}

#[test]
fn a_right_that_the_kernel_lacks_is_an_error_unless_it_may_be_ignored() {
    assert!(judged(Right::Bind, None, Some("80"), || 4).is_ok());
    assert_eq!(
        judged(Right::Connect, None, Some("80"), || 3).unwrap_err(),
        "network_policy.connect cannot be enforced here: it needs Landlock ABI 4 (Linux 6.7), and this kernel has ABI 3; boot a newer kernel, remove the list, or \
         set unsupported = \"ignore\" in network_policy of the agent's plugin \"nomad-driver-exec2\" block"
    );
    assert!(judged(Right::BindUdp, Some("80"), None, || 9).unwrap_err().contains("ABI 10 (Linux 7.2)"));
    let (tcp, udp) = (names("80"), names("53"));
    let job = Lists([Some(&tcp), None, Some(&udp), Some(&udp)]);
    let rules = |landlock_abi| {
        Surroundings { ports: &[], landlock_abi, unsupported: Unsupported::Ignore }
            .judge(Lists::default(), job)
            .unwrap()
    };
    let limited = |rules: &NetworkRules| rules.limits().map(|(right, _)| right).collect::<Vec<_>>();
    let old = rules(|| 9);
    assert_eq!(
        (limited(&old), &old.ignored[..]),
        (vec![Right::Bind], &[Right::BindUdp, Right::ConnectUdp][..])
    );
    assert!(old.limits_tcp());
    let none = rules(|| 3);
    assert!(limited(&none).is_empty() && none.ignored.len() == 3 && !none.limits_tcp());
}

#[test]
fn who_may_send_may_have_a_port_that_the_kernel_chooses() {
    let bind = |connect: Option<&[PortName]>| {
        let limited = names("53");
        let lists = Lists([None, None, Some(&limited), connect]);
        let surroundings = Surroundings { ports: &[], landlock_abi: NEWEST, unsupported: Unsupported::Error };
        surroundings.judge(Lists::default(), lists).unwrap().limits[2].clone().unwrap().to_string()
    };
    assert_eq!(bind(None), "0, 53");
    assert_eq!(bind(Some(&names("123"))), "0, 53");
    assert_eq!(bind(Some(&[])), "53");
}

#[test]
fn a_list_has_a_limit() {
    assert!(judged(Right::Bind, None, Some("1-4096"), NEWEST).is_ok());
    assert_eq!(
        judged(Right::Bind, None, Some("1-4096 5000"), NEWEST).unwrap_err(),
        "network_policy.bind has 4097 ports; write 4096 at most, or all (0-65535)"
    );
}

#[test]
fn what_is_no_port_and_no_label_is_refused() {
    for bad in ["", "65536", "-", "80-", "-80", "9-8", "80,81", "a b", "@all", "*", "http:", "1-2-3", "ü"] {
        assert!(bad.parse::<PortName>().is_err(), "{bad}");
    }
    for (text, name) in [
        ("0", PortName::Range(0, 0)),
        ("80-81", PortName::Range(80, 81)),
        ("http-2_a", PortName::Label("http-2_a".into())),
        ("@allocated", PortName::Allocated),
    ] {
        assert_eq!(text.parse(), Ok(name.clone()));
        assert_eq!(name.to_string(), text);
    }
}

#[test]
fn a_stored_policy_of_a_version_without_one_limits_nothing() {
    let read: NetworkRules = serde_json::from_str("{}").unwrap();
    assert_eq!(read.limits().count(), 0);
}

proptest! {
    #[test]
    fn sets_of_ports_are_sets(
        one in proptest::collection::vec((0u16..40, 0u16..8), 0..6),
        other in proptest::collection::vec((0u16..40, 0u16..8), 0..6),
    ) {
        let set = |ranges: &[(u16, u16)]| ranges.iter().map(|&(low, more)| (low, low + more)).collect::<Ports>();
        let has = |ranges: &[(u16, u16)], port| ranges.iter().any(|&(low, more)| (low..=low + more).contains(&port));
        let difference: Vec<_> = set(&one).difference(&set(&other)).iter().collect();
        let expected: Vec<_> = (0..60).filter(|port| has(&one, *port) && !has(&other, *port)).collect();
        prop_assert_eq!(difference, expected);
        prop_assert_eq!(set(&one).count(), set(&one).iter().count());
    }
}
