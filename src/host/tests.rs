use super::*;
use crate::sys::mount::features::Feature;

/// A host that meets all requirements.
fn good() -> Observations {
    let namespace = |name, kind| Namespace { name, kind, present: true, max: Some(63000) };
    Observations {
        euid: 0,
        capabilities: Some(0x1ff_ffff_ffff),
        kernel: "6.12.117+deb13-cloud-amd64".to_owned(),
        cgroup: CgroupMount::V2,
        controllers: ["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).to_vec(),
        cgroup_kill: Some(true),
        landlock: Ok(6),
        landlock_errata: Some(0b111),
        lsm: Some("lockdown,capability,landlock,yama".to_owned()),
        seccomp: Ok(()),
        namespaces: vec![
            namespace("pid namespaces", "pid"),
            namespace("mount namespaces", "mnt"),
            namespace("ipc namespaces", "ipc"),
        ],
        root_features: vec![
            (Feature::Call("openat2", "5.6"), Ok(())),
            (Feature::Call("mount_setattr", "5.12"), Ok(())),
            (Feature::FileSystem("mqueue", "CONFIG_POSIX_MQUEUE"), Ok(())),
        ],
    }
}

const DEFAULT: Wanted = Wanted { root: RootKind::Private, seccomp: Profile::Default };

fn health(change: impl FnOnce(&mut Observations)) -> Health {
    let mut seen = good();
    change(&mut seen);
    Host::judge(&seen).health(DEFAULT)
}

fn undetected(change: impl FnOnce(&mut Observations), words: &[&str]) {
    match health(change) {
        Health::Undetected(reason) => words.iter().for_each(|w| assert!(reason.contains(w), "{w}: {reason}")),
        other => panic!("{other:?}"),
    }
}

fn unhealthy(change: impl FnOnce(&mut Observations), words: &[&str]) {
    match health(change) {
        Health::Unhealthy(reason) => words.iter().for_each(|w| assert!(reason.contains(w), "{w}: {reason}")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn errata_are_shown_and_only_one_that_matters_is_a_warning() {
    let found = |abi, errata| {
        let host = Host::judge(&Observations { landlock: Ok(abi), landlock_errata: errata, ..good() });
        assert_eq!(host.health(DEFAULT), Health::Healthy);
        host.requirements.into_iter().find(|r| r.name == "Landlock").unwrap().found
    };
    assert_eq!(found(7, Some(0b111)), "ABI 7; errata fixed: 1, 2, 3");
    assert_eq!(found(7, None), "ABI 7; the kernel does not say which errata are fixed");
    assert_eq!(
        found(4, Some(0b1_0000)),
        "ABI 4; errata fixed: 5; not fixed: 1, limits on TCP ports also deny MPTCP, SMC and SCTP; warning: not fixed: 3, a directory that is \
         moved out of a mount while it is open may give more rights than were granted"
    );
    assert!(found(1, Some(0)).starts_with("ABI 1; errata fixed: none; warning: not fixed: 3, "));
}

#[test]
fn a_host_with_everything_is_healthy() {
    let host = Host::judge(&good());
    assert_eq!(host.health(DEFAULT), Health::Healthy);
    assert_eq!(host.landlock_abi, Some(6));
    assert!(host.requirements.iter().all(|r| r.state == State::Ok), "{host:?}");
}

#[test]
fn not_root() {
    undetected(|s| s.euid = 1000, &["root: uid 1000", "as root"]);
    undetected(|s| s.capabilities = Some(0x1ff_ffdf_ffff), &["without CAP_SYS_ADMIN;", "capabilities"]);
    undetected(|s| s.capabilities = Some(0), &["CAP_CHOWN", "CAP_SETUID"]);
}

#[test]
fn old_kernel() {
    undetected(
        |s| {
            s.kernel = "5.10.0-35-amd64".to_owned();
            s.landlock = Err(Errno::ENOSYS);
            s.cgroup_kill = Some(false);
        },
        &["kernel: 5.10.0-35-amd64", "5.15 or later", "Landlock: not in this kernel", "cgroup.kill: absent"],
    );
    for lacks in
        [|s: &mut Observations| s.landlock = Err(Errno::ENOSYS), |s: &mut Observations| s.cgroup_kill = None]
    {
        undetected(
            |s| {
                s.kernel = "5.14.0-570.el9".to_owned();
                lacks(s);
            },
            &["kernel: 5.14.0-570.el9; boot Linux 5.15 or later"],
        );
    }
    match health(|s| {
        s.kernel = "5.14.0-570.el9".to_owned();
        s.landlock = Err(Errno::EOPNOTSUPP);
    }) {
        Health::Undetected(reason) => assert!(reason.starts_with("Landlock:"), "{reason}"),
        other => panic!("{other:?}"),
    }
    // A lower version may have backported features.
    assert_eq!(health(|s| s.kernel = "5.14.0-570.el9.x86_64".to_owned()), Health::Healthy);
    for new in ["5.15.0", "5.15", "6.1.0-50-cloud-amd64", "10.0-rc1", "6.18.44-x"] {
        assert_eq!(health(|s| s.kernel = new.to_owned()), Health::Healthy, "{new}");
    }
    // A name without a number does not count against the host.
    assert_eq!(health(|s| s.kernel = "mainline".to_owned()), Health::Healthy);
}

#[test]
fn cgroup_versions() {
    undetected(|s| s.cgroup = CgroupMount::V1, &["cgroup v2: cgroup v1 at", "unified_cgroup_hierarchy=1"]);
    undetected(|s| s.cgroup = CgroupMount::Hybrid, &["hybrid", "unified_cgroup_hierarchy=1"]);
    unhealthy(|s| s.cgroup = CgroupMount::None, &["not mounted", "mount -t cgroup2"]);
}

#[test]
fn missing_controllers() {
    unhealthy(
        |s| s.controllers.retain(|c| c != "memory"),
        &["controllers: cpuset cpu io pids; lacks memory", "enable memory:", "cgroup_disable="],
    );
    unhealthy(|s| s.controllers.clear(), &["none; lacks cpu memory pids"]);
    // The driver does not need it, but Nomad does.
    unhealthy(|s| s.controllers.retain(|c| c != "io"), &["lacks io", "Nomad creates no cgroups"]);
}

#[test]
fn landlock_off_and_absent() {
    undetected(
        |s| {
            s.landlock = Err(Errno::EOPNOTSUPP);
            s.lsm = Some("lockdown,capability,yama,apparmor".to_owned());
        },
        &["Landlock: built into the kernel, but not active", "boot with lsm=landlock,lockdown,yama,apparmor"],
    );
    undetected(
        |s| {
            s.landlock = Err(Errno::EOPNOTSUPP);
            s.lsm = None;
        },
        &["kernel parameter lsm=", "CONFIG_LSM"],
    );
    undetected(|s| s.landlock = Err(Errno::ENOSYS), &["CONFIG_SECURITY_LANDLOCK"]);
    undetected(|s| s.landlock = Err(Errno::EPERM), &["EPERM", "seccomp"]);
}

#[test]
fn namespaces() {
    undetected(|s| s.namespaces[2].present = false, &["ipc namespaces: not in this kernel", "CONFIG_IPC_NS"]);
    unhealthy(
        |s| s.namespaces[1].max = Some(0),
        &["mount namespaces: user.max_mnt_namespaces is 0", "set user.max_mnt_namespaces"],
    );
    assert_eq!(health(|s| s.namespaces[0].max = None), Health::Healthy);
}

#[test]
fn unknown_requirements_do_not_count() {
    assert_eq!(
        health(|s| {
            s.capabilities = None;
            s.cgroup_kill = None;
        }),
        Health::Healthy
    );
    // Without cgroup v2 its files are unknown, not missing: one cause is reported once.
    match health(|s| {
        s.cgroup = CgroupMount::V1;
        s.controllers.clear();
        s.cgroup_kill = None;
    }) {
        Health::Undetected(reason) => assert!(!reason.contains("controllers:"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn undetected_outweighs_unhealthy_and_all_are_named() {
    undetected(
        |s| {
            s.euid = 7;
            s.namespaces[0].max = Some(0);
        },
        &["root: uid 7", "user.max_pid_namespaces"],
    );
}

#[test]
fn root_of_its_own() {
    fn lacks(features: &[usize], errno: Errno) -> Observations {
        let mut seen = good();
        features.iter().for_each(|at| seen.root_features[*at].1 = Err(errno));
        seen
    }
    let reason = |seen: &Observations| match Host::judge(seen).health(DEFAULT) {
        Health::Unhealthy(reason) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        reason(&lacks(&[0, 1], Errno::ENOSYS)),
        "own root: the kernel lacks openat2, mount_setattr; set root = \"host\" in the plugin block, or boot Linux 5.12 or later"
    );
    assert_eq!(
        reason(&lacks(&[2], Errno::ENODEV)),
        "own root: the kernel lacks mqueue; set root = \"host\" in the plugin block, or boot a kernel built with CONFIG_POSIX_MQUEUE"
    );
    assert!(reason(&lacks(&[1], Errno::EPERM)).contains("mount_setattr failed: EPERM: "));
    for errno in [Errno::ENOSYS, Errno::ENODEV, Errno::EPERM] {
        let host = Host::judge(&lacks(&[1], errno));
        assert_eq!(host.health(Wanted { root: RootKind::Host, ..DEFAULT }), Health::Healthy, "{errno}");
    }
}

#[test]
fn without_root_the_calls_for_an_own_root_are_unknown() {
    let mut seen = good();
    seen.euid = 1000;
    seen.root_features[1].1 = Err(Errno::EPERM);
    let host = Host::judge(&seen);
    assert_eq!(host.requirements.last().map(|r| &r.state), Some(&State::Unknown));
    seen.root_features[0].1 = Err(Errno::ENOSYS);
    let host = Host::judge(&seen);
    assert!(matches!(host.requirements.last().map(|r| &r.state), Some(State::Missing { .. })), "{host:?}");
}

#[test]
fn filters_of_system_calls_are_needed_unless_tasks_are_unconfined() {
    for (errno, words) in [(Errno::EINVAL, "CONFIG_SECCOMP_FILTER"), (Errno::EPERM, "container")] {
        unhealthy(|s| s.seccomp = Err(errno), &["seccomp: ", "seccomp = \"unconfined\"", words]);
        let host = Host::judge(&Observations { seccomp: Err(errno), ..good() });
        assert_eq!(host.health(Wanted { seccomp: Profile::Unconfined, ..DEFAULT }), Health::Healthy);
    }
}
