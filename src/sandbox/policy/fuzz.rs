//! Any job, on an agent with any options: what the plan grants is what the options allow.

use std::path::{Component, Path};

use super::{Ask, Denied, Host, Policy, Value};
use crate::cgroup::Limits;
use crate::config::{DriverConfig, PluginConfig};
use crate::fuzzing::texts;
use crate::sandbox::capabilities::CapSet;
use crate::sandbox::device::AskedDevice;
use crate::sandbox::network::{AllocatedPort, PortName, Right};
use crate::sandbox::place::NamedBy;
use crate::sandbox::plan::Plan;
use crate::sandbox::seccomp::{Filter, Profile};
use crate::sandbox::volume::AskedVolume;
use crate::users::User;

const TASK_DIR: &str = "/data/alloc_mounts/1-web";
/// The hard limits of the plugin itself.
const MOST: Value = Value(4096);

/// The lines of the input: the agent's options and the job's, as JSON; then volumes, devices and ports of the allocation, whose
/// fields are separated by tabs. Whether a plan was made.
pub fn asks(input: &str) -> bool {
    let mut lines = input.lines();
    let agent = PluginConfig::decode_json(lines.next().unwrap_or_default());
    let job = DriverConfig::decode_json(lines.next().unwrap_or_default());
    let (agent, job) = match (agent, job) {
        (Ok(agent), Ok(job)) => (agent, job),
        (Err(error), _) | (_, Err(error)) => {
            assert!(!error.to_string().is_empty());
            return false;
        }
    };
    let (mut volumes, mut devices, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        let [kind, source, destination, how, label] = texts(line, '\t').map(str::to_owned);
        match kind.as_str() {
            "port" => {
                let number = |text: &str| text.parse().unwrap_or(1);
                ports.push(AllocatedPort { label: source, inside: number(&destination), host: number(&how) });
            }
            "device" => devices.push(AskedDevice { source, destination, permissions: how }),
            _ => {
                let read_only = kind == "ro";
                volumes.push(AskedVolume {
                    source,
                    destination,
                    read_only,
                    propagation: how,
                    selinux_label: label,
                });
            }
        }
    }
    let policy = agent.policy();
    let ask = Ask { volumes: &volumes, devices: &devices, ..job.ask() };
    match policy.plan(&ask, &User::unknown("nomad-80000", 80_000, 80_000), Host { ports: &ports, ..host() }) {
        Ok(plan) => {
            is_allowed(&policy, &ask, &plan);
            is_within_ports(&policy, &ports, &plan);
            let stored = serde_json::to_vec(&plan).expect("a plan can be stored");
            assert_eq!(serde_json::from_slice::<Plan>(&stored).expect("and read"), plan);
            true
        }
        Err(denied) => {
            is_explained(&denied);
            false
        }
    }
}

fn host() -> Host<'static> {
    Host {
        task_dir: Path::new(TASK_DIR),
        kept: None,
        cgroup: None,
        limits: Limits::UNLIMITED,
        network: None,
        ports: &[],
        landlock_abi: || 10,
        dns: false,
        capabilities: CapSet::ALL,
        open_files: None,
        hard_limits: |_| MOST,
        open_files_max: || 1 << 20,
    }
}

fn is_explained(denied: &Denied) {
    // Values are quoted, so that none can begin another line of the log.
    let text = denied.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}

fn is_allowed(policy: &Policy<'_>, ask: &Ask<'_>, plan: &Plan) {
    assert!(plan.capabilities.difference(policy.allowed_caps()).is_empty(), "{:?}", plan.capabilities);
    let by_job = plan.landlock.rules.iter().filter(|rule| rule.named_by == NamedBy::Job).count();
    assert!(by_job == 0 || policy.unveil_by_task);
    for (name, limit) in &plan.rlimits.asked {
        let most = policy.ulimit.get(name).map_or(MOST, |limit| limit.hard);
        assert!(limit.soft <= limit.hard && limit.hard <= most, "{name} {limit}");
    }
    let limits = &plan.resources.limits;
    let within = |limit: Option<u64>, most: Option<u64>| {
        most.is_none_or(|most| limit.is_some_and(|limit| limit <= most))
    };
    assert!(within(limits.pids_max, u64::try_from(policy.pids_max).ok().filter(|most| *most > 0)));
    assert!(within(limits.swap_max, u64::try_from(policy.memory_swap).ok().map(|most| most << 20)));
    for volume in &plan.volumes {
        is_plain(&volume.path);
        is_plain(&volume.source);
        assert!(policy.own_root && !Path::new(TASK_DIR).starts_with(&volume.path), "{volume:?}");
        assert!(!volume.path.starts_with(Path::new(TASK_DIR).join("alloc")), "{volume:?}");
        assert!(["/proc", "/dev", "/sys"].iter().all(|own| volume.path != Path::new(own)), "{volume:?}");
    }
    assert!(
        ask.volumes.iter().filter(|volume| volume.read_only).count()
            >= plan.volumes.iter().filter(|volume| volume.read_only).count()
    );
    for device in &plan.devices {
        is_plain(&device.path);
        is_plain(&device.source);
        assert!(
            policy.own_root && device.path.starts_with("/dev") && device.path != Path::new("/dev"),
            "{device:?}"
        );
    }
    is_filtered(policy, plan);
}

/// What the agent limits stays within its lists, whatever the job says. A limit of UDP has port 0 as well, which the kernel replaces.
fn is_within_ports(policy: &Policy<'_>, allocated: &[AllocatedPort], plan: &Plan) {
    let network = &plan.landlock.network;
    for (right, most) in Right::ALL.into_iter().zip(policy.network.0) {
        let Some(most) = most else { continue };
        let is_listed = |port: u16| {
            let is = |one: &AllocatedPort| one.inside == port || one.host == port;
            most.iter().any(|name| match name {
                PortName::Range(low, high) => (*low..=*high).contains(&port),
                PortName::Label(label) => allocated.iter().any(|one| one.label == *label && is(one)),
                PortName::Allocated => allocated.iter().any(is),
            })
        };
        match network.limits().find(|(of, _)| *of == right) {
            Some((_, limit)) => {
                assert!(limit.iter().all(|port| port == 0 || is_listed(port)), "{right}: {limit}");
            }
            // A list of all ports is no limit.
            None => assert!((1..=u16::MAX).all(is_listed), "{right} has no limit"),
        }
    }
}

/// Absolute and without `..`, so that joining it to a root does not lead out of that.
fn is_plain(path: &Path) {
    let ordinary = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    assert!(path.is_absolute() && path.components().all(ordinary), "{path:?}");
}

fn is_filtered(policy: &Policy<'_>, plan: &Plan) {
    let free = policy.seccomp == Profile::Unconfined || policy.allow_seccomp.unconfined;
    let limits_tcp = plan.landlock.network.limits_tcp();
    match (&plan.seccomp, Filter::new(policy.allow_seccomp.groups, plan.capabilities, limits_tcp)) {
        (Filter::Unconfined, _) => assert!(free),
        (Filter::Default { allow }, Filter::Default { allow: most }) => {
            assert!(free || allow.difference(most).is_empty(), "{allow} beside {most}");
        }
        (Filter::Default { .. }, Filter::Unconfined) => unreachable!("a new filter is one"),
    }
    let Some(program) = plan.seccomp.program() else { return };
    // BPF_MAXINSNS of linux/bpf_common.h.
    let code = program.instructions();
    assert!(code.len() <= 4096);
    for (at, instruction) in code.iter().enumerate() {
        let furthest = usize::from(instruction.if_true.max(instruction.if_false));
        assert!(furthest == 0 || at + 1 + furthest < code.len(), "{instruction:?} at {at}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise the fuzzer begins where no plan is made.
    #[test]
    fn the_seeds_are_planned_but_for_those_that_are_refused() {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/asks"));
        for file in std::fs::read_dir(directory).unwrap() {
            let file = file.unwrap();
            let planned = asks(&std::fs::read_to_string(file.path()).unwrap());
            assert_eq!(planned, file.file_name() != "refused", "{}", file.file_name().display());
        }
    }
}
