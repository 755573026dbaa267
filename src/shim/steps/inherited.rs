//! Attributes that a process inherits from its parent, reset for the task.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use super::Result;
use super::mounts::PROC;
use crate::sandbox::rlimits::{self, Rlimit};
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;
use crate::sys::{self, mount};

/// File mode creation mask of a task: the usual one of logins and containers.
const UMASK: Mode = Mode::from_bits_truncate(0o022);
/// What a core dump has by default, core(5): private and shared anonymous memory, ELF headers, private huge pages.
const COREDUMP_FILTER: &str = "0x33";

/// Resets what the task would inherit from the agent; `docs/security.md` lists what is inherited on purpose.
pub(crate) fn reset_inherited() -> Result<()> {
    let set = |what: &'static str, done: nix::Result<()>| {
        done.map_err(|errno| Failure::new(Step::Inherited, what, errno))
    };
    umask(UMASK);
    set("nice value", unless_refused(sys::attributes::reset_nice()))?;
    set("I/O priority", unless_refused(sys::attributes::reset_io_priority()))?;
    set("scheduling policy", unless_refused(sys::attributes::reset_scheduler()))?;
    set("CPU affinity", sys::attributes::reset_affinity())?;
    set("personality", sys::attributes::reset_personality())?;
    set("timer slack", sys::attributes::reset_timers_and_pages())?;
    set("memory policy", unless_refused(sys::attributes::reset_memory_policy()))?;
    set("securebits", sys::attributes::reset_securebits())?;
    write_proc("coredump_filter", COREDUMP_FILTER)
        .map_err(|error| Failure::io(Step::Inherited, "coredump filter", &error))
}

/// Always written: the agent's own value is often -1000.
pub(crate) fn set_oom_score_adj(spec: &ShimSpec) -> Result<()> {
    let value = spec.plan.oom_score_adj.to_string();
    write_proc("oom_score_adj", &value).map_err(|error| Failure::io(Step::OomScoreAdj, value, &error))
}

/// The soft limit that the plugin was started with: its own is higher, and programs that use select(2) need a low one.
pub(crate) fn limit_open_files(spec: &ShimSpec) -> Result<()> {
    let Some(soft) = spec.plan.rlimits.open_files else { return Ok(()) };
    getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard))
        .map_err(|errno| Failure::new(Step::OpenFiles, soft.to_string(), errno))
}

/// Raises the hard limits that `ulimit` has above the agent's: while this process has CAP_SYS_RESOURCE.
pub(crate) fn raise_limits(spec: &ShimSpec) -> Result<()> {
    each_limit(spec, |resource, limit| {
        let (soft, hard) = getrlimit(resource)?;
        if hard < limit.hard.0 { setrlimit(resource, soft, limit.hard.0) } else { Ok(()) }
    })
}

/// The limits of `ulimit`. The last step before exec: a low one must not fail the steps before.
pub(crate) fn set_limits(spec: &ShimSpec) -> Result<()> {
    each_limit(spec, |resource, limit| setrlimit(resource, limit.soft.0, limit.hard.0))
}

fn each_limit(spec: &ShimSpec, set: impl Fn(Resource, &Rlimit) -> nix::Result<()>) -> Result<()> {
    for (name, limit) in &spec.plan.rlimits.asked {
        let set = rlimits::resource(name).map_or(Err(Errno::EINVAL), |resource| set(resource, limit));
        set.map_err(|errno| {
            let failure = Failure::new(Step::Rlimit, format!("{name} = {limit}"), errno);
            match errno {
                Errno::EPERM => failure
                    .with_note("it is above the agent's hard limit, which takes CAP_SYS_RESOURCE to raise"),
                _ => failure,
            }
        })?;
    }
    Ok(())
}

/// Without CAP_SYS_NICE, or under a system call filter, a priority cannot be raised; an inherited low priority is harmless.
fn unless_refused(done: nix::Result<()>) -> nix::Result<()> {
    done.or_else(|errno| if matches!(errno, Errno::EACCES | Errno::EPERM) { Ok(()) } else { Err(errno) })
}

/// Writes to a file of /proc/self. In a session that may be read-only, see [`super::seal_proc`]: then by a copy of the mount.
fn write_proc(name: &str, value: &str) -> std::io::Result<()> {
    let path = Path::new("self").join(name);
    let file = match open(&Path::new(PROC).join(&path), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::EROFS) => {
            let copy = mount::copy(AT_FDCWD, Path::new(PROC), false)?;
            mount::make_writable(&copy)?;
            openat(&copy, &path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        }
        opened => opened,
    }?;
    File::from(file).write_all(value.as_bytes())
}
