use proptest::prelude::*;

use super::super::testing::{TempTree, task_cgroup};
use super::*;

fn request(memory_mb: i64, memory_max_mb: i64, cpu_mhz: i64) -> ResourceRequest {
    ResourceRequest { memory_mb, memory_max_mb, cpu_mhz, cores: None, oom_group: false }
}

fn mhz(n: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(n)
}

#[test]
fn memory_alone_is_the_hard_limit() {
    let limits = Limits::plan(&request(200, 0, 0), None);
    assert_eq!(limits.memory_max, MemoryMax::Bytes(209_715_200));
    assert_eq!(limits.memory_low, None);
}

#[test]
fn memory_max_makes_memory_the_soft_limit() {
    let limits = Limits::plan(&request(150, 250, 0), None);
    assert_eq!(limits.memory_max, MemoryMax::Bytes(262_144_000));
    assert_eq!(limits.memory_low, Some(157_286_400));
    // memory_max below memory never happens in a valid job; the hard limit still wins.
    let limits = Limits::plan(&request(250, 150, 0), None);
    assert_eq!((limits.memory_max, limits.memory_low), (MemoryMax::Bytes(157_286_400), Some(157_286_400)));
}

#[test]
fn memory_max_minus_one_is_no_hard_limit() {
    let limits = Limits::plan(&request(150, -1, 0), None);
    assert_eq!((limits.memory_max, limits.memory_low), (MemoryMax::Max, Some(157_286_400)));
    // Only -1 has that meaning.
    let limits = Limits::plan(&request(150, -2, 0), None);
    assert_eq!((limits.memory_max, limits.memory_low), (MemoryMax::Bytes(157_286_400), None));
}

#[test]
fn nothing_asked_is_nothing_limited() {
    assert_eq!(Limits::plan(&ResourceRequest::default(), mhz(2000)), Limits::UNLIMITED);
}

#[test]
fn mhz_become_a_share_of_a_core() {
    let quota = |r, m| Limits::plan(&r, m).cpu_max;
    let us = |quota_us| Some(CpuMax { quota_us, period_us: 100_000 });
    assert_eq!(quota(request(0, 0, 1000), mhz(2000)), us(50_000));
    assert_eq!(quota(request(0, 0, 5000), mhz(2000)), us(250_000));
    assert_eq!(quota(request(0, 0, 100), mhz(2596)), us(3_852));
    // Below the kernel's minimum.
    assert_eq!(quota(request(0, 0, 1), mhz(5000)), us(1_000));
    // No topology: no limit rather than a division by zero.
    assert_eq!(quota(request(0, 0, 1000), None), None);
}

#[test]
fn mhz_become_a_weight_on_the_scale_of_cpu_shares() {
    let weight = |mhz| Limits::plan(&request(0, 0, mhz), None).cpu_weight;
    assert_eq!([1, 2, 500, 1024, 262_144, i64::MAX].map(weight), [1, 1, 58, 100, 10_000, 10_000].map(Some));
    assert_eq!([0, -1].map(weight), [None, None]);
}

#[test]
fn swap_that_the_kernel_does_not_count_is_no_error_unless_some_was_asked_for() {
    let tree = TempTree::new();
    let cgroup = task_cgroup(&tree, "a.scope");
    tree.remove("a.scope/memory.swap.max");
    cgroup.apply(&Limits { swap_max: Some(0), ..Limits::UNLIMITED }).unwrap();
    let error = cgroup.apply(&Limits { swap_max: Some(4096), ..Limits::UNLIMITED }).unwrap_err().to_string();
    assert!(error.contains("memory.swap.max"), "{error}");
}

#[test]
fn reserved_cores_are_pinned_and_given_whole() {
    // A slow core of a machine with fast ones: MHz would say 40 %.
    let request = ResourceRequest { cores: CpuSet::from_nomad("4,6-7").unwrap(), ..request(0, 0, 3000) };
    let limits = Limits::plan(&request, mhz(2500));
    assert_eq!(limits.cpu_max, Some(CpuMax { quota_us: 300_000, period_us: 100_000 }));
    assert_eq!(limits.cpuset_cpus.unwrap().to_string(), "4,6-7");
    assert_eq!(Limits::plan(&request, None).cpu_max, limits.cpu_max);
}

#[test]
fn cpu_lists() {
    for (list, count) in [("0", 1), ("0,1", 2), ("0-3", 4), ("0-3,2,8-9", 6), ("65535", 1), ("1\n", 1)] {
        assert_eq!(list.parse::<CpuSet>().unwrap().count(), count, "{list}");
    }
    assert_eq!(CpuSet::from_nomad("").unwrap(), None);
    assert_eq!(CpuSet::from_nomad(" \n").unwrap(), None);
    for bad in
        [",", "1,", "a", "-1", "1-", "3-1", "+1", "1--2", "1 2", "65536", "0-4294967295", "1\n2", "0-2:1/2"]
    {
        assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
    }
}

#[test]
fn apply_writes_every_file() {
    let tree = TempTree::new();
    let cgroup = task_cgroup(&tree, "a.scope");
    let request = ResourceRequest {
        cores: CpuSet::from_nomad("1,3").unwrap(),
        oom_group: true,
        ..request(150, 250, 4000)
    };
    let limits =
        Limits { swap_max: Some(1 << 20), pids_max: Some(8192), ..Limits::plan(&request, mhz(2000)) };
    cgroup.apply(&limits).unwrap();
    assert!(tree.read("a.scope/memory.swap.max").starts_with("1048576"));
    assert!(tree.read("a.scope/pids.max").starts_with("8192"));
    assert!(tree.read("a.scope/cpu.weight").starts_with("297"));
    assert!(tree.read("a.scope/memory.oom.group").starts_with('1'));
    assert_eq!(tree.read("a.scope/memory.max"), "262144000");
    assert_eq!(tree.read("a.scope/memory.low"), "157286400");
    assert_eq!(tree.read("a.scope/cpu.max"), "200000 100000");
    assert_eq!(tree.read("a.scope/cpuset.cpus"), "1,3");
}

#[test]
fn apply_resets_what_an_earlier_run_left() {
    let tree = TempTree::new();
    let cgroup = task_cgroup(&tree, "a.scope");
    tree.file("a.scope/cpu.max", "1000 100000\n");
    tree.file("a.scope/memory.low", "4096\n");
    tree.file("a.scope/memory.swap.max", "0\n");
    tree.file("a.scope/pids.max", "7\n");
    tree.file("a.scope/cpu.weight", "1\n");
    tree.file("a.scope/memory.oom.group", "1\n");
    tree.file("a.scope/memory.max", "4096\n");
    cgroup.apply(&Limits::UNLIMITED).unwrap();
    assert_eq!(tree.read("a.scope/memory.max"), "max");
    assert_eq!(tree.read("a.scope/memory.low"), "0");
    assert_eq!(tree.read("a.scope/cpu.max"), "max 100000");
    assert!(tree.read("a.scope/memory.swap.max").starts_with("max"));
    assert!(tree.read("a.scope/pids.max").starts_with("max"));
    assert!(tree.read("a.scope/cpu.weight").starts_with("100"));
    assert!(tree.read("a.scope/memory.oom.group").starts_with('0'));
    // A task with `cpu` must stay on its parent's CPUs, whatever they become.
    assert_eq!(tree.read("a.scope/cpuset.cpus"), "\n");
}

#[test]
fn apply_needs_only_the_controllers_that_were_asked_for() {
    let tree = TempTree::new();
    tree.dir("bare.scope");
    let cgroup = Cgroup::open_in(tree.mount(), &tree.root().join("bare.scope")).unwrap();
    cgroup.apply(&Limits::UNLIMITED).unwrap();
    assert_eq!(std::fs::read_dir(tree.root().join("bare.scope")).unwrap().count(), 0);

    for (limits, controller, value) in [
        (Limits { memory_max: MemoryMax::Bytes(4096), ..Limits::UNLIMITED }, "memory", "4096"),
        (Limits { memory_low: Some(8192), ..Limits::UNLIMITED }, "memory", "8192"),
        (Limits::plan(&request(0, 0, 1000), mhz(2000)), "cpu", "50000 100000"),
        (Limits { pids_max: Some(7), ..Limits::UNLIMITED }, "pids", "7"),
        (Limits { cpuset_cpus: CpuSet::from_nomad("0").unwrap(), ..Limits::UNLIMITED }, "cpuset", "0"),
    ] {
        let e = cgroup.apply(&limits).unwrap_err().to_string();
        assert!(e.contains(&format!("the {controller} controller")) && e.contains(value), "{e}");
    }
}

#[test]
fn apply_names_file_value_and_cause() {
    let tree = TempTree::new();
    let cgroup = task_cgroup(&tree, "a.scope");
    // A directory in the file's place: the write fails for every user.
    tree.remove("a.scope/memory.max");
    tree.dir("a.scope/memory.max");
    let e = cgroup.apply(&Limits::plan(&request(1, 0, 0), None)).unwrap_err().to_string();
    assert!(e.contains("a.scope/memory.max") && e.contains("1048576") && e.contains("Is a directory"), "{e}");
}

proptest! {
    #[test]
    fn every_plan_is_one_that_the_kernel_takes(
        memory in any::<i64>(), memory_max in any::<i64>(), cpu in any::<i64>(), per_core in any::<u64>(),
        cores in prop::option::of(0u32..=65535),
    ) {
        let cores = cores.map(|n| n.to_string().parse().unwrap());
        let request = ResourceRequest { memory_mb: memory, memory_max_mb: memory_max, cpu_mhz: cpu, cores, oom_group: false };
        let limits = Limits::plan(&request, mhz(per_core));
        if let Some(max) = limits.cpu_max {
            prop_assert!((CPU_QUOTA_MIN_US..=CPU_QUOTA_MAX_US).contains(&max.quota_us));
            prop_assert_eq!(max.period_us, CPU_PERIOD_US);
        }
        if let MemoryMax::Bytes(hard) = limits.memory_max {
            prop_assert!((1..=MEMORY_MAX_BYTES).contains(&hard));
            prop_assert!(limits.memory_low.is_none_or(|low| low <= hard));
        }
        // A limit that was asked for is never lost.
        if memory > 0 && memory_max != -1 {
            prop_assert!(limits.memory_max != MemoryMax::Max);
        }
        prop_assert_eq!(limits.cpuset_cpus.is_some(), request.cores.is_some());
    }

    #[test]
    fn more_mhz_never_mean_less_time(a in 1i64..i64::MAX, b in 1i64..i64::MAX, per_core in 1u64..) {
        let quota = |m| Limits::plan(&request(0, 0, m), mhz(per_core)).cpu_max.unwrap().quota_us;
        prop_assert!(quota(a.min(b)) <= quota(a.max(b)));
    }

    #[test]
    fn cpu_lists_never_panic(list in "[0-9,\\- ]{0,24}") {
        if let Ok(set) = list.parse::<CpuSet>() {
            prop_assert!(set.count() >= 1 && set.count() <= 65536);
        }
    }
}

#[test]
fn a_cgroup_without_a_cpu_is_named() {
    let tree = TempTree::new();
    tree.dir("nomad.slice/share.slice");
    let cgroup = task_cgroup(&tree, "nomad.slice/share.slice/a.scope");
    cgroup.has_cpu().unwrap();
    // Without the controller: those of the nearest cgroup above that has it.
    tree.file("nomad.slice/cpuset.cpus.effective", "0-3\n");
    tree.file("nomad.slice/share.slice/cpuset.cpus.effective", "\n");
    let error = cgroup.has_cpu().unwrap_err().to_string();
    assert!(error.starts_with("the cgroup has no CPU") && error.contains("share.slice/cpuset"), "{error}");
    tree.file("nomad.slice/share.slice/a.scope/cpuset.cpus.effective", "2\n");
    cgroup.has_cpu().unwrap();
    tree.file("nomad.slice/share.slice/a.scope/cpuset.cpus.effective", "\n");
    let error = cgroup.has_cpu().unwrap_err();
    assert!(matches!(error, CgroupError::NoCpu { .. }), "{error}");
}
