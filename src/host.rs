//! What this host provides of what the driver needs: read once, then judged without further access to the host.
//!
//! [`probe`] reads about twenty small files and makes a few system calls: cheap enough for every fingerprint. [`Host::health`]
//! follows Nomad's two kinds of failure: *undetected* needs another boot or another way to start the agent, *unhealthy* can be
//! fixed while the agent runs.

mod observe;
mod own_root;

use std::io;

use nix::errno::Errno;

use crate::config::RootKind;
use crate::sandbox::landlock::ERRATA;
use crate::sandbox::seccomp::Profile;
pub(crate) use observe::{CgroupMount, Namespace, Observations};

/// Oldest kernel (major, minor) that is accepted by its number: the first long-term one with both Landlock (5.13) and
/// `cgroup.kill` (5.14). An older one that shows both is accepted as well: enterprise distributions backport features.
pub(crate) const KERNEL_MIN: (u32, u32) = (5, 15);

/// Controllers that the driver itself uses.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Controllers that the Nomad client needs to create cgroups for tasks.
const CONTROLLERS_OF_NOMAD: [&str; 2] = ["cpuset", "io"];

/// Capabilities needed to start a task, with their numbers (<linux/capability.h>).
const CAPABILITIES: [(&str, u32); 7] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
    ("CAP_SETPCAP", 8),
    ("CAP_SYS_ADMIN", 21),
];

/// The consequence of an unmet requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Cannot be fixed without another boot or another way to start the agent.
    Undetected,
    /// Can be fixed while the agent runs.
    Unhealthy,
    /// The same, and of no consequence with `root = "host"`.
    OwnRoot,
    /// The same, and of no consequence with `seccomp = "unconfined"`.
    Seccomp,
}

/// The options of the plugin that decide what tasks need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub root: RootKind,
    pub seccomp: Profile,
}

impl Wanted {
    fn needs(self, severity: Severity) -> bool {
        match severity {
            Severity::Undetected | Severity::Unhealthy => true,
            Severity::OwnRoot => self.root == RootKind::Private,
            Severity::Seccomp => self.seccomp == Profile::Default,
        }
    }
}

/// Whether a requirement is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Ok,
    /// `fix`: what to do about it, in the imperative.
    Missing {
        fix: String,
        severity: Severity,
    },
    /// Not visible from here; it does not count against the host.
    Unknown,
}

/// One requirement of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requirement {
    /// Short and stable: scripts may search for it.
    pub name: &'static str,
    /// What was found, in words.
    pub found: String,
    pub state: State,
}

/// The verdict. The text is for `nomad node status`: what is wrong and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    Healthy,
    Undetected(String),
    Unhealthy(String),
}

/// The result for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub requirements: Vec<Requirement>,
    /// Landlock ABI, for the attribute `driver.exec2.landlock.abi`.
    pub landlock_abi: Option<u32>,
    /// Landlock's errata that are fixed, by their numbers; none: the kernel does not say.
    pub landlock_errata: Option<Vec<u32>>,
    /// Controllers of the root cgroup (v2), for the attribute `driver.exec2.cgroup.controllers`.
    pub controllers: Vec<String>,
    /// Kernel release, as in `uname -r`.
    pub kernel: String,
}

/// Probes this host.
///
/// # Errors
/// This process is out of descriptors or memory, which says nothing about the host.
pub(crate) fn probe() -> io::Result<Host> {
    Ok(Host::judge(&Observations::read()?))
}

impl Host {
    /// Judges the observations, without further access to the host.
    pub(crate) fn judge(seen: &Observations) -> Host {
        let mut requirements = vec![
            root(seen),
            kernel(seen),
            cgroup(seen),
            controllers(seen),
            cgroup_kill(seen),
            landlock(seen),
            seccomp(seen),
        ];
        requirements.extend(seen.namespaces.iter().map(namespace));
        requirements.push(own_root::judge(seen));
        Host {
            requirements,
            landlock_abi: seen.landlock.ok(),
            landlock_errata: seen.landlock_errata.map(fixed),
            controllers: seen.controllers.clone(),
            kernel: seen.kernel.clone(),
        }
    }

    /// Whether tasks can run here with these options. If several requirements are unmet, all are named, and the most severe
    /// one decides.
    pub(crate) fn health(&self, wanted: Wanted) -> Health {
        let missing = self.requirements.iter().filter_map(|r| match &r.state {
            State::Missing { severity, .. } if !wanted.needs(*severity) => None,
            State::Missing { fix, severity } => Some((format!("{}: {}; {fix}", r.name, r.found), *severity)),
            State::Ok | State::Unknown => None,
        });
        let (reasons, severities): (Vec<String>, Vec<Severity>) = missing.unzip();
        let reason = reasons.join(". ");
        if severities.contains(&Severity::Undetected) {
            Health::Undetected(reason)
        } else if severities.is_empty() {
            Health::Healthy
        } else {
            Health::Unhealthy(reason)
        }
    }
}

fn ok(name: &'static str, found: impl Into<String>) -> Requirement {
    Requirement { name, found: found.into(), state: State::Ok }
}

fn missing(
    name: &'static str,
    found: impl Into<String>,
    severity: Severity,
    fix: impl Into<String>,
) -> Requirement {
    Requirement { name, found: found.into(), state: State::Missing { fix: fix.into(), severity } }
}

fn unknown(name: &'static str, found: impl Into<String>) -> Requirement {
    Requirement { name, found: found.into(), state: State::Unknown }
}

fn root(seen: &Observations) -> Requirement {
    const NAME: &str = "root";
    if seen.euid != 0 {
        let fix = "run the Nomad agent (or this command) as root";
        return missing(NAME, format!("uid {}", seen.euid), Severity::Undetected, fix);
    }
    let Some(effective) = seen.capabilities else {
        return unknown(NAME, "uid 0, capabilities not visible in /proc/self/status");
    };
    let lacking: Vec<&str> =
        CAPABILITIES.iter().filter(|(_, bit)| effective & (1 << bit) == 0).map(|(name, _)| *name).collect();
    if lacking.is_empty() {
        return ok(NAME, "uid 0 with the capabilities needed to start tasks");
    }
    let fix =
        "give the agent's service its full capabilities (CapabilityBoundingSet=, or a privileged container)";
    missing(NAME, format!("uid 0 without {}", lacking.join(" ")), Severity::Undetected, fix)
}

fn kernel(seen: &Observations) -> Requirement {
    const NAME: &str = "kernel";
    let (major, minor) = KERNEL_MIN;
    match version(&seen.kernel) {
        None => unknown(NAME, format!("release {:?}", seen.kernel)),
        Some(have) if have >= KERNEL_MIN => ok(NAME, seen.kernel.clone()),
        // If Landlock is available but not active, only that has to be fixed.
        Some(_)
            if matches!(seen.landlock, Ok(_) | Err(Errno::EOPNOTSUPP)) && seen.cgroup_kill == Some(true) =>
        {
            ok(NAME, seen.kernel.clone())
        }
        Some(_) => {
            let fix = format!("boot Linux {major}.{minor} or later: older ones lack Landlock or cgroup.kill");
            missing(NAME, seen.kernel.clone(), Severity::Undetected, fix)
        }
    }
}

/// Major and minor of a release like `6.12.117+deb13-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn cgroup(seen: &Observations) -> Requirement {
    const NAME: &str = "cgroup v2";
    let boot = "boot with systemd.unified_cgroup_hierarchy=1 (and without cgroup v1 mounts)";
    match seen.cgroup {
        CgroupMount::V2 => ok(NAME, "mounted at /sys/fs/cgroup"),
        CgroupMount::V1 => missing(NAME, "cgroup v1 at /sys/fs/cgroup", Severity::Undetected, boot),
        CgroupMount::Hybrid => missing(
            NAME,
            "hybrid: v1 controllers at /sys/fs/cgroup, v2 only at /sys/fs/cgroup/unified",
            Severity::Undetected,
            boot,
        ),
        CgroupMount::None => missing(
            NAME,
            "not mounted at /sys/fs/cgroup",
            Severity::Unhealthy,
            "run mount -t cgroup2 none /sys/fs/cgroup, then restart the agent",
        ),
    }
}

fn controllers(seen: &Observations) -> Requirement {
    const NAME: &str = "controllers";
    if seen.cgroup != CgroupMount::V2 {
        return unknown(NAME, "not visible without cgroup v2");
    }
    let found = if seen.controllers.is_empty() { "none".to_owned() } else { seen.controllers.join(" ") };
    let absent = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().filter(|n| !seen.controllers.iter().any(|c| c == *n)).copied().collect()
    };
    let (ours, nomads) = (absent(&CONTROLLERS), absent(&CONTROLLERS_OF_NOMAD));
    let lacking = [ours.clone(), nomads].concat();
    if lacking.is_empty() {
        return ok(NAME, found);
    }
    let whose = if ours.is_empty() { " (without it Nomad creates no cgroups for tasks)" } else { "" };
    let fix = format!(
        "enable {}{whose}: unmount cgroup v1 controllers, remove cgroup_disable= from the kernel's parameters (on some boards add cgroup_enable=memory)",
        lacking.join(", ")
    );
    missing(NAME, format!("{found}; lacks {}", lacking.join(" ")), Severity::Unhealthy, fix)
}

fn cgroup_kill(seen: &Observations) -> Requirement {
    const NAME: &str = "cgroup.kill";
    match (seen.cgroup_kill, version(&seen.kernel)) {
        (Some(true), _) => ok(NAME, "present"),
        (Some(false), _) => missing(NAME, "absent", Severity::Undetected, "boot Linux 5.14 or later"),
        // The root cgroup has no such file; without another cgroup to check, the kernel version decides.
        (None, Some(have)) if have >= KERNEL_MIN => ok(NAME, "expected with this kernel version"),
        (None, _) => unknown(NAME, "not visible without cgroup v2"),
    }
}

/// The numbers of the bits that are set.
fn fixed(errata: u32) -> Vec<u32> {
    (1..=u32::BITS).filter(|number| errata & (1 << (number - 1)) != 0).collect()
}

/// Which errata of Landlock are fixed, and what those that are not mean. They are no reason against the host: its tasks are better off with a
/// Landlock that has them than with none.
fn errata(abi: u32, answer: Option<u32>) -> String {
    let Some(answer) = answer else { return "the kernel does not say which errata are fixed".to_owned() };
    let numbers: Vec<_> = fixed(answer).iter().map(u32::to_string).collect();
    let mut text =
        format!("errata fixed: {}", if numbers.is_empty() { "none".into() } else { numbers.join(", ") });
    for erratum in ERRATA.iter().filter(|erratum| erratum.since <= abi && !erratum.is_fixed(answer)) {
        let warning = if erratum.matters { "warning: " } else { "" };
        text += &format!("; {warning}not fixed: {}, {}", erratum.number, erratum.what);
    }
    text
}

fn landlock(seen: &Observations) -> Requirement {
    const NAME: &str = "Landlock";
    // The kernel lists "capability" too, but it is always active and not accepted in lsm=.
    let active = seen.lsm.as_deref().unwrap_or("").split(',').filter(|m| !matches!(*m, "" | "capability"));
    let lsm = active.fold(String::new(), |list, module| format!("{list},{module}"));
    match seen.landlock {
        Ok(abi) => ok(NAME, format!("ABI {abi}; {}", errata(abi, seen.landlock_errata))),
        Err(Errno::EOPNOTSUPP) => {
            let parameter = if lsm.is_empty() {
                "add landlock to the list in the kernel parameter lsm= (CONFIG_LSM has the default list)"
                    .to_owned()
            } else {
                format!("boot with lsm=landlock{lsm}")
            };
            missing(NAME, "built into the kernel, but not active", Severity::Undetected, parameter)
        }
        Err(Errno::ENOSYS) => missing(
            NAME,
            "not in this kernel",
            Severity::Undetected,
            "boot a kernel (5.13 or later) built with CONFIG_SECURITY_LANDLOCK=y and with landlock in lsm= or CONFIG_LSM",
        ),
        Err(errno) => missing(
            NAME,
            format!("landlock_create_ruleset failed: {errno}"),
            Severity::Undetected,
            "allow landlock_create_ruleset where the agent runs (a container's seccomp profile may forbid it)",
        ),
    }
}

fn seccomp(seen: &Observations) -> Requirement {
    const NAME: &str = "seccomp";
    let instead = |fix: &str| format!("set seccomp = \"unconfined\" in the plugin block, or {fix}");
    match seen.seccomp {
        Ok(()) => ok(NAME, "filters of system calls"),
        Err(Errno::ENOSYS | Errno::EINVAL | Errno::EOPNOTSUPP) => {
            let fix = instead("boot a kernel built with CONFIG_SECCOMP_FILTER");
            missing(NAME, "not in this kernel", Severity::Seccomp, fix)
        }
        Err(errno) => {
            let fix =
                instead("allow seccomp where the agent runs (a container's seccomp profile may forbid it)");
            missing(NAME, format!("seccomp failed: {errno}"), Severity::Seccomp, fix)
        }
    }
}

fn namespace(seen: &Namespace) -> Requirement {
    let Namespace { name, present, max, .. } = seen;
    match (present, max) {
        (false, _) => missing(
            name,
            "not in this kernel",
            Severity::Undetected,
            "boot a kernel built with CONFIG_NAMESPACES, CONFIG_PID_NS and CONFIG_IPC_NS",
        ),
        (true, Some(0)) => missing(
            name,
            format!("{} is 0", seen.sysctl()),
            Severity::Unhealthy,
            format!("set {} to a few thousand", seen.sysctl()),
        ),
        (true, _) => ok(name, "available"),
    }
}

#[cfg(test)]
mod tests;
