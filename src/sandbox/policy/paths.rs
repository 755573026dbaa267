//! Paths: the rules for what was unveiled, what no rule may grant, and the working directory.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Ask, Denied, Host, Policy};
use crate::sandbox::defaults::{DEFAULTS, SOCKETS};
use crate::sandbox::landlock::SOCKETS_ABI;
use crate::sandbox::place::{Missing, NamedBy, Place, Rule};
use crate::sandbox::plan::WorkDir;
use crate::sandbox::unveil::Access;
use crate::sandbox::volume::Volume;

const R: Access = Access::READ;
const RX: Access = Access::READ.union(Access::EXECUTE);
const RWXC: Access = R.union(Access::WRITE).union(Access::EXECUTE).union(Access::CREATE);

/// The directories of allocations in the agent's data_dir, unless its options alloc_dir and alloc_mounts_dir say otherwise.
const ALLOCS: &str = "alloc";
const ALLOC_MOUNTS: &str = "alloc_mounts";

/// What the agent keeps in its data_dir, beside the directories of allocations.
const OF_NOMAD: [&str; 2] = ["client", "server"];

/// Links to the directory of whichever process looks, proc(5).
const PROC_SELF: [&str; 2] = ["/proc/self", "/proc/thread-self"];

/// Names below such a directory that are links, or directories of links, to what the process has open.
const MAGIC: [&str; 6] = ["root", "cwd", "exe", "fd", "map_files", "ns"];

/// Links into /proc/self/fd, each to a descriptor of whichever process looks. A task may use its own in any case: standard
/// input is /dev/null, and the pipes of output and error are granted for writing.
const OWN_STREAMS: [&str; 4] = ["/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd"];

impl Policy<'_> {
    /// The rules, the task's own directories first. Paths that a task could have tampered with are opened from above.
    pub(super) fn rules(&self, ask: &Ask<'_>, host: &Host<'_>) -> Result<Vec<Rule>, Denied> {
        let writable: Vec<&Path> = self.writable(ask, host.task_dir).collect();
        // What a root of its own has needs no list: the template knows it.
        let listed = self.unveil_defaults && !self.own_root;
        let mut rules = if listed { default_rules(host, &writable) } else { Vec::new() };
        let by_agent = self.unveil_paths.iter().map(|unveil| (NamedBy::Agent, unveil));
        let by_job = ask.unveil.iter().map(|unveil| (NamedBy::Job, unveil));
        for (named_by, unveil) in by_agent.chain(by_job) {
            if OWN_STREAMS.iter().any(|stream| unveil.path.starts_with(stream)) {
                continue;
            }
            if let Some(below) = PROC_SELF.iter().find_map(|link| unveil.path.strip_prefix(link).ok()) {
                if MAGIC.iter().any(|name| below.starts_with(name)) {
                    return Err(Denied::MagicLink(unveil.clone()));
                }
                if !self.grants_proc(ask, unveil.access) {
                    return Err(Denied::ProcSelf(unveil.clone()));
                }
                continue;
            }
            rules.push(Rule {
                access: unveil.access,
                place: Place::of(&unveil.path, writable.iter().copied()),
                named_by,
                missing: Missing::Fail,
            });
        }
        Ok(rules)
    }

    pub(super) fn work_dir(
        &self,
        ask: &Ask<'_>,
        task_dir: &Path,
        volumes: &[Volume],
    ) -> Result<WorkDir, Denied> {
        let path = task_dir.join(ask.work_dir.unwrap_or(Path::new("local")));
        let in_volume = volumes.iter().any(|volume| path.starts_with(&volume.path));
        let allowed = self.unveil_allow.iter().any(|unveil| path.starts_with(&unveil.path));
        if !in_volume && !allowed && !path.starts_with(task_dir) && !self.unveil_by_task {
            return Err(Denied::WorkDir(path));
        }
        Ok(WorkDir {
            place: Place::of(&path, self.writable(ask, task_dir)),
            named_by: if ask.work_dir.is_some() { NamedBy::Job } else { NamedBy::Driver },
        })
    }

    /// What no rule may grant: the agent's list, what Nomad keeps of other tasks and of itself, and the driver's records. Those of Nomad's directories
    /// are found from the allocation's, with Nomad's names for the others: the agent does not tell a driver its data_dir.
    pub(super) fn denied_paths(&self, host: &Host<'_>) -> Vec<PathBuf> {
        let mut denied = self.unveil_deny.to_vec();
        let Some((alloc_dir, records)) = host.kept else { return denied };
        let Some(allocs) = alloc_dir.parent() else { return denied };
        let mounts = host.task_dir.parent();
        denied.extend([Some(records), Some(allocs), mounts].into_iter().flatten().map(Path::to_owned));
        // An operator may have put one of them elsewhere, where the names beside it are not Nomad's.
        let beside = |dir: Option<&Path>, name| {
            dir.filter(|dir| dir.ends_with(name)).and_then(Path::parent).map(Path::to_owned)
        };
        let data = BTreeSet::from([beside(Some(allocs), ALLOCS), beside(mounts, ALLOC_MOUNTS)]);
        denied.extend(data.into_iter().flatten().flat_map(|data| OF_NOMAD.map(|name| data.join(name))));
        denied.retain(|path| path.parent().is_some());
        denied
    }

    /// The sockets of the host that come with the default unveils. A kernel that cannot deny others needs no list.
    pub(super) fn sockets(&self, host: &Host<'_>, denied: &[PathBuf]) -> Vec<PathBuf> {
        if !self.unveil_defaults || (host.landlock_abi)() < SOCKETS_ABI {
            return Vec::new();
        }
        let apart = |path: &Path| !denied.iter().any(|d| path.starts_with(d) || d.starts_with(path));
        SOCKETS.iter().map(PathBuf::from).filter(|path| apart(path)).collect()
    }

    /// The directories in which tasks can create and rename, as far as they are known here: the task's own, and those of the
    /// agent's and this job's rules. What another job was unveiled, or what the host's permissions let others write, is
    /// not known.
    fn writable<'a>(&'a self, ask: &'a Ask<'_>, task_dir: &'a Path) -> impl Iterator<Item = &'a Path> {
        let unveils = self.unveil_paths.iter().chain(ask.unveil);
        unveils.filter(|unveil| unveil.access.create()).map(|unveil| unveil.path.as_path()).chain([task_dir])
    }

    /// Whether another rule grants this access to the whole of /proc.
    fn grants_proc(&self, ask: &Ask<'_>, access: Access) -> bool {
        let proc = Path::new("/proc");
        let default = DEFAULTS.iter().find(|default| self.unveil_defaults && Path::new(default.path) == proc);
        let asked = self.unveil_paths.iter().chain(ask.unveil);
        let granted = asked
            .filter(|unveil| proc.starts_with(&unveil.path))
            .fold(default.map_or(Access::NONE, |default| default.mode), |all, unveil| all | unveil.access);
        granted.contains(access)
    }
}

/// The task's own directories, its cgroup, and the default paths.
fn default_rules(host: &Host<'_>, writable: &[&Path]) -> Vec<Rule> {
    let rule = |access, place, missing| Rule { access, place, named_by: NamedBy::Driver, missing };
    let own = |access, path: &str| rule(access, Place::beneath(host.task_dir, path), Missing::Fail);
    let mut rules = Vec::from(["local", "alloc", "secrets", "tmp"].map(|directory| own(RWXC, directory)));
    rules.push(own(RX, "alloc/logs"));
    // So that runtimes (Go, the JVM) size themselves by the task's limits, not by the host.
    rules.extend(host.cgroup.map(|cgroup| rule(R, Place::host(cgroup), Missing::Skip)));
    rules.extend(DEFAULTS.iter().flat_map(|default| {
        let place = |path: &PathBuf| Place::of(path, writable.iter().copied());
        default.paths().into_iter().map(move |path| rule(default.mode, place(&path), Missing::Skip))
    }));
    rules
}

#[cfg(test)]
mod tests;
