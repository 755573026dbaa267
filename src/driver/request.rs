//! Converts Nomad's `TaskConfig` to a [`TaskSpec`].

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::{Settings, status::RpcError};
use crate::cgroup::{Cgroup, CpuSet, Limits, ResourceRequest};
use crate::config::{DriverConfig, PluginConfig};
use crate::proto::driver::network_isolation_spec::NetworkIsolationMode;
use crate::proto::driver::{self as proto, NetworkIsolationSpec};
use crate::sandbox::device::AskedDevice;
use crate::sandbox::names::{Dns, Hosts, Names};
use crate::sandbox::network::AllocatedPort;
use crate::sandbox::policy::{self, Ask, NetworkMode};
use crate::sandbox::volume::AskedVolume;
use crate::shim::spec::TaskDirs;
use crate::sys::bpf;
use crate::task::dirs;
use crate::task::id::TaskId;
use crate::task::lifecycle::Job;
use crate::task::spec::{Logs, Request, SpecError, TaskSpec};
use crate::users;

/// Nomad's path for logs that are not collected.
const NO_LOG: &str = "/dev/null";

/// Looks up the user and the directories. Blocks: the user may come from the host's `getent`.
pub(super) fn task_spec(
    id: TaskId,
    task: &proto::TaskConfig,
    settings: &Settings,
) -> Result<TaskSpec, RpcError> {
    let config = DriverConfig::decode(&task.msgpack_driver_config)?;
    let policy = settings.plugin.policy_in(&task.namespace);
    let alloc_dir = Path::new(&task.alloc_dir);
    let root = dirs::root(&task.env, alloc_dir, &task.name, policy.own_root)?;
    let name = user_name(task, &root, &settings.plugin);
    let dynamic = users::dynamic_id(&name)?;
    if let Some(uid) = dynamic {
        policy.dynamic_user(&name, uid).map_err(SpecError::from)?;
    }
    let user = users::lookup(&name)?;
    let resources = task.resources.as_ref();
    let linux = resources.and_then(|resources| resources.linux_resources.as_ref());
    let cgroup = linux.map(|linux| linux.cpuset_cgroup.as_str()).filter(|path| !path.is_empty());
    let cgroup =
        cgroup.map(PathBuf::from).ok_or(RpcError::Absent("cgroup (linux_resources.cpuset_cgroup)"))?;
    let network = network(task.network_isolation_spec.as_ref())?;
    if forgot_devices(task, &cgroup) {
        return Err(RpcError::DevicesForgotten);
    }
    let volumes: Vec<_> = task.mounts.iter().map(volume).collect();
    let devices: Vec<_> = task.devices.iter().map(device).collect();
    let ports = ports(resources, network.is_some());
    let request = Request {
        id,
        user,
        program: &config.command,
        args: &config.args,
        env: &task.env,
        root: &root.path,
        dirs: TaskDirs::Nomad { alloc_dir: alloc_dir.to_owned(), task: task.name.clone() },
        logs: logs(task, settings.plugin.disable_log_collection),
        network: network.as_deref(),
        names: names(task)?,
        ports: &ports,
        cgroup: Some(&cgroup),
        limits: limits(resources, &config, settings)?,
        ask: Ask { volumes: &volumes, devices: &devices, ..config.ask() },
    };
    let spec = TaskSpec::new(request, &policy)?;
    if let Some(uid) = dynamic {
        root.record_user(uid);
    }
    Ok(spec)
}

/// Records the dynamic user of a task that runs already, with this uid: a version that recorded none may have started it.
pub(super) fn record_user(task: &proto::TaskConfig, uid: u32, plugin: &PluginConfig) {
    let policy = plugin.policy_in(&task.namespace);
    let named = !task.user.is_empty() && !matches!(users::dynamic_id(&task.user), Ok(Some(_)));
    if named || !policy.dynamic_user_range.contains(uid) {
        return;
    }
    match dirs::root(&task.env, Path::new(&task.alloc_dir), &task.name, policy.own_root) {
        Ok(root) => root.record_user(uid),
        Err(error) => {
            tracing::debug!(task = task.id, %error, "failed to record the user of a recovered task")
        }
    }
}

/// The job whose task starts are limited together.
pub(super) fn job(task: &proto::TaskConfig) -> Job {
    Job { namespace: task.namespace.clone(), id: task.job_id.clone() }
}

/// The user of the task. An empty name means a task whose dynamic user the agent forgot when it was restarted: it is recorded at its
/// directory, and is still the owner of it.
fn user_name<'a>(task: &'a proto::TaskConfig, root: &dirs::Root, plugin: &PluginConfig) -> Cow<'a, str> {
    if !task.user.is_empty() {
        return task.user.as_str().into();
    }
    let recorded = plugin.trusts_record().then(|| root.recorded_user()).flatten();
    let known = recorded.map(|uid| format!("nomad-{uid}"));
    match known.or_else(|| root.dynamic_user().filter(|_| plugin.trusts_owner())) {
        Some(user) => {
            tracing::info!(
                task = task.id,
                user,
                "the agent has forgotten the user; using that of the last start"
            );
            user.into()
        }
        None => "".into(),
    }
}

fn volume(mount: &proto::Mount) -> AskedVolume {
    AskedVolume {
        source: mount.host_path.clone(),
        destination: mount.task_path.clone(),
        read_only: mount.readonly,
        propagation: mount.propagation_mode.clone(),
        selinux_label: mount.selinux_label.clone(),
    }
}

/// The ports of the group's network, and those of a network in the task's own resources. `own`: the task has a network namespace, to which Nomad maps
/// them; in the host's, `to` means nothing.
fn ports(resources: Option<&proto::Resources>, own: bool) -> Vec<AllocatedPort> {
    let Some(resources) = resources else { return Vec::new() };
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port > 0);
    let of_group = resources.ports.iter().map(|port| (&port.label, port.value, port.to));
    let networks = resources.allocated_resources.iter().flat_map(|allocated| &allocated.networks);
    let of_task = networks.flat_map(|network| network.reserved_ports.iter().chain(&network.dynamic_ports));
    let all = of_group.chain(of_task.map(|port| (&port.label, port.value, 0)));
    all.filter_map(|(label, value, to)| {
        let host = number(value)?;
        let inside = number(to).filter(|_| own).unwrap_or(host);
        Some(AllocatedPort { label: label.clone(), inside, host })
    })
    .collect()
}

fn device(device: &proto::Device) -> AskedDevice {
    AskedDevice {
        source: device.host_path.clone(),
        destination: device.task_path.clone(),
        permissions: device.cgroup_permissions.clone(),
    }
}

/// Whether an earlier start of the task had devices that are missing now. After a restart of the agent, Nomad gives a task that it starts again the
/// variables of its device plugins alone.
fn forgot_devices(task: &proto::TaskConfig, cgroup: &Path) -> bool {
    let suspicious = task.devices.is_empty() && !task.device_env.is_empty();
    // All invocations of the task are in the same cgroup. If the kernel does not tell, the task starts.
    let limited = || bpf::has_device_program(Cgroup::open(cgroup).ok()?.dir_fd()).ok();
    suspicious && limited().unwrap_or_default()
}

/// The log FIFOs, or none: for `logs { disabled = true }` Nomad sends /dev/null. Without its log collector there are no FIFOs, but
/// Nomad sends their paths.
fn logs(task: &proto::TaskConfig, no_collector: bool) -> Logs<'_> {
    match (task.stdout_path.as_str(), task.stderr_path.as_str()) {
        (NO_LOG, NO_LOG) => Logs::Null,
        _ if no_collector => Logs::Own { identifier: identifier(task), task: &task.name },
        (stdout, stderr) => Logs::Fifos { stdout: Path::new(stdout), stderr: Path::new(stderr) },
    }
}

/// By which a task's output is found in the journal: `JOB/GROUP/TASK`. Quotes and control characters would make it another one in
/// a shell or a line.
fn identifier(task: &proto::TaskConfig) -> String {
    let name = [task.job_id.as_str(), &task.task_group_name, &task.name].join("/");
    name.replace(|c: char| c.is_control() || c == '\'', "_")
}

fn limits(
    resources: Option<&proto::Resources>,
    config: &DriverConfig,
    settings: &Settings,
) -> Result<Limits, RpcError> {
    let resources = resources.ok_or(RpcError::Absent("resources"))?;
    let allocated = resources.allocated_resources.as_ref().ok_or(RpcError::Absent("allocated resources"))?;
    let memory = allocated.memory.as_ref().ok_or(RpcError::Absent("memory resources"))?;
    let cpu = allocated.cpu.as_ref().ok_or(RpcError::Absent("cpu resources"))?;
    let cpus = resources.linux_resources.as_ref().map_or("", |linux| linux.cpuset_cpus.as_str());
    let request = ResourceRequest {
        memory_mb: memory.memory_mb,
        memory_max_mb: memory.memory_max_mb,
        cpu_mhz: cpu.cpu_shares,
        cores: CpuSet::from_nomad(cpus).map_err(|error| RpcError::BadValue(error.to_string()))?,
        oom_group: config.oom_group,
    };
    Ok(Limits::plan(&request, settings.mhz_per_core))
}

/// The network namespace that Nomad created for the allocation; none = the host's.
fn network(spec: Option<&NetworkIsolationSpec>) -> Result<Option<PathBuf>, RpcError> {
    let Some(spec) = spec else { return Ok(None) };
    let mode = NetworkIsolationMode::try_from(spec.mode).map_err(|_| {
        RpcError::BadValue(format!(
            "network isolation mode {}, which this driver does not support",
            spec.mode
        ))
    })?;
    let mode = match mode {
        NetworkIsolationMode::Host => NetworkMode::Host,
        NetworkIsolationMode::Group => NetworkMode::Group,
        NetworkIsolationMode::Task => NetworkMode::Task,
        NetworkIsolationMode::None => NetworkMode::None,
    };
    Ok(policy::network(mode, &spec.path).map_err(SpecError::from)?)
}

/// How the task resolves names, where Nomad says so.
fn names(task: &proto::TaskConfig) -> Result<Names, RpcError> {
    let dns = task.dns.as_ref().map_or(Ok(None), |dns| Dns::new(&dns.servers, &dns.searches, &dns.options));
    let network = task.network_isolation_spec.as_ref();
    let hosts = network.and_then(|network| network.hosts_config.as_ref());
    let hosts = hosts.map_or(Ok(None), |hosts| Hosts::new(&hosts.hostname, &hosts.address));
    Ok(Names {
        dns: dns.map_err(RpcError::BadValue)?,
        hosts: hosts.map_err(RpcError::BadValue)?,
        reaches_others: network.is_some_and(|network| network.mode() == NetworkIsolationMode::Group),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::policy::Denied;

    fn network_of(mode: i32, path: &str) -> Result<Option<PathBuf>, RpcError> {
        network(Some(&NetworkIsolationSpec { mode, path: path.into(), ..Default::default() }))
    }

    #[test]
    fn without_a_collector_output_has_the_tasks_name_unless_the_job_wants_none() {
        let task = |stdout: &str| proto::TaskConfig {
            job_id: "it's\nweb".into(),
            task_group_name: "api".into(),
            name: "server".into(),
            stdout_path: stdout.into(),
            stderr_path: stdout.into(),
            ..Default::default()
        };
        let fifos = task("/d/.server.stdout.fifo");
        let Logs::Own { identifier, task: name } = logs(&fifos, true) else {
            panic!("another kind of output")
        };
        assert_eq!((identifier.as_str(), name), ("it_s_web/api/server", "server"));
        assert!(matches!(logs(&fifos, false), Logs::Fifos { .. }));
        assert!(matches!(logs(&task(NO_LOG), true), Logs::Null));
    }

    #[test]
    fn each_network_mode_of_nomad_maps_to_one_of_the_policy() {
        use NetworkIsolationMode::{Group, Host, None as NoNetwork, Task};
        assert_eq!(network(None).unwrap(), None);
        assert_eq!(network_of(Host.into(), "").unwrap(), None);
        for (mode, denied) in [
            (Group, Denied::NoNetworkPath),
            (NoNetwork, Denied::NoNetworkPath),
            (Task, Denied::NetworkOfTask),
        ] {
            let error = network_of(mode.into(), "").unwrap_err();
            assert!(
                matches!(&error, RpcError::Spec(SpecError::Denied(found)) if *found == denied),
                "{error}"
            );
        }
    }

    #[test]
    fn a_mode_that_is_not_known_is_an_error_with_and_without_a_path() {
        for mode in [-1, 4, i32::MAX] {
            for path in ["", "/var/run/netns/a"] {
                let error = network_of(mode, path).unwrap_err();
                assert!(error.to_string().contains(&format!("network isolation mode {mode},")), "{error}");
            }
        }
    }
}
