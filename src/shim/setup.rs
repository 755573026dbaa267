//! The set-up sequence: what the shim prepares as root, and what the task does between clone and exec.
//!
//! Read [`prepare`], [`launch`] and [`become_task`] from top to bottom: each line is a step, and the first that fails
//! ends the start with a [`Failure`] that names it.

use std::convert::Infallible;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use landlock::RulesetCreated;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::Pid;

use super::relay::Relay;
use super::report::{Failure, Reporter, Step};
use super::spec::ShimSpec;
use super::steps::{self, Copies, Logs, Result, RootNamespaces};
use crate::cgroup;
use crate::sandbox::place::Place;
use crate::sandbox::root::RootRule;
use crate::sandbox::seccomp::Program;
use crate::sys;

/// Exit status of a task that could not start; it is not read, since the failure is reported.
const NOT_A_TASK: i32 = 127;

/// What the task needs, opened before Landlock hides the rest.
#[derive(Debug)]
pub(super) struct Prepared {
    logs: Option<Logs>,
    /// None: it is entered by its path, in the task's own root.
    work_dir: Option<OwnedFd>,
    ruleset: RulesetCreated,
    filter: Option<Program>,
    /// Those of the task's own root.
    rules: Option<Vec<RootRule>>,
    seals_proc: bool,
    copies: Option<Copies>,
}

impl Prepared {
    pub(super) fn take_rules(&mut self) -> Option<Vec<RootRule>> {
        self.rules.take()
    }

    pub(super) fn take_relay(&mut self) -> Result<Option<Relay>> {
        let relay = self.copies.take().map(Relay::new).transpose();
        relay.map_err(|errno| Failure::new(Step::Log, "pipe", errno))
    }
}

/// In the shim: network namespace, logs, root, working directory, Landlock rules.
pub(super) fn prepare(
    spec: &ShimSpec,
    namespaces: Option<RootNamespaces>,
    single: sys::clone::SingleThreaded,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Prepared> {
    steps::join_network(spec)?;
    let (logs, copies, work_dir, ruleset, rules, seals_proc);
    if let Some((root, namespaces)) = spec.root.as_ref().zip(namespaces) {
        steps::set_hostname(root)?;
        (logs, copies) = steps::open_logs(spec)?;
        let writable = steps::writable(spec);
        let in_volume = spec.plan.is_in_volume(&spec.plan.work_dir.place.display());
        if matches!(spec.plan.work_dir.place, Place::Host(_)) && !in_volume {
            // The root has it even if nothing there is unveiled; but a name that is wrong, or closed to the task, is an error.
            steps::open_work_dir(spec, &writable)?;
        }
        let found = steps::enter_root(spec, root, namespaces, &writable, single, cgroup)?;
        // The others will be the task's log.
        steps::name_null_streams(0..=if logs.is_some() { 0 } else { 2 });
        work_dir = None;
        ruleset = steps::build_root_ruleset(spec, logs.as_ref(), &found)?;
        seals_proc = steps::seals_proc(spec, &found);
        rules = Some(found);
    } else {
        steps::separate_mounts(spec)?;
        (logs, copies) = steps::open_logs(spec)?;
        let writable = steps::writable(spec);
        work_dir = Some(steps::open_work_dir(spec, &writable)?);
        ruleset = steps::build_ruleset(spec, logs.as_ref(), &writable)?;
        (rules, seals_proc) = (None, false);
    }
    steps::lead_session(spec)?;
    let filter = spec.plan.seccomp.program();
    Ok(Prepared { logs, work_dir, ruleset, filter, rules, seals_proc, copies })
}

/// The task between its clone and its exec, for which it waits.
#[derive(Debug)]
pub(super) struct Waiting {
    /// In the shim's pid namespace.
    pub pid: Pid,
    gate: PipeWriter,
}

impl Waiting {
    /// Lets the task execute its command. The shim must have dropped its privileges before.
    pub(super) fn may_exec(mut self) -> Result<()> {
        match self.gate.write_all(b"g") {
            // It is dead; its exit status says why.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|error| Failure::io(Step::Session, "the task", &error)),
        }
    }
}

/// Clones the task into its cgroup and hands its pidfd to the plugin.
pub(super) fn launch(
    spec: &ShimSpec,
    prepared: Prepared,
    cgroup: Option<OwnedFd>,
    reporter: &Reporter,
    single: sys::clone::SingleThreaded,
) -> Result<Waiting> {
    let failed = |errno| Failure::new(Step::Clone, "its cgroup", errno);
    // Moved into it below if it was used before: see `was_used`.
    let (before, fresh) = match cgroup.as_ref().map(AsFd::as_fd) {
        Some(cgroup) if cgroup::was_used(cgroup) => (Some(cgroup), None),
        fresh => (None, fresh),
    };
    let (opened, gate) = std::io::pipe().map_err(|error| Failure::io(Step::Session, "the task", &error))?;
    let task = sys::clone::fork(single, fresh, || {
        let failure = match become_task(spec, prepared, opened, reporter) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        reporter.failed(failure);
        NOT_A_TASK
    })
    .and_then(|task| before.map_or(Ok(()), |cgroup| cgroup::enter(cgroup, task.pid.as_raw())).map(|()| task))
    .map_err(|errno| match errno {
        // clone3(2) and cgroup.procs have this errno for a cgroup whose cpuset.cpus.effective is empty.
        Errno::ENOSPC => failed(errno).with_note("the cgroup has no CPU: its cpuset.cpus.effective is empty"),
        _ => failed(errno),
    })?;
    reporter
        .task(task.pidfd.as_fd())
        .map_err(|errno| failed(errno).with_note("its pidfd could not be sent"))?;
    Ok(Waiting { pid: task.pid, gate })
}

/// In the task, from clone to exec. Everything before `become_user` still runs as root.
fn become_task(
    spec: &ShimSpec,
    prepared: Prepared,
    mut opened: PipeReader,
    reporter: &Reporter,
) -> Result<Infallible> {
    let session = |errno| Failure::new(Step::Session, "the task", errno);
    // The shim has given every signal its default.
    sys::signals::ignore(spec.command.foreground.map_or(0, |foreground| foreground.ignored));
    steps::join_session(spec)?;
    sys::signals::unblock_all().map_err(session)?;
    let Prepared { logs, work_dir, ruleset, filter, seals_proc, .. } = prepared;
    confine(spec, seals_proc, logs, work_dir, ruleset, filter.as_ref())?;
    // Waits until the shim has an id and a state in which this task cannot affect it.
    opened.read_exact(&mut [0]).map_err(|error| Failure::io(Step::Session, "the task", &error))?;
    run(spec, reporter)
}

/// Whatever runs in a task, its own command or that of a session, becomes what the plan says.
pub(super) fn confine(
    spec: &ShimSpec,
    seals_proc: bool,
    logs: Option<Logs>,
    work_dir: Option<OwnedFd>,
    ruleset: RulesetCreated,
    filter: Option<&Program>,
) -> Result<()> {
    steps::reset_inherited()?;
    steps::set_oom_score_adj(spec)?;
    if seals_proc {
        steps::seal_proc()?;
    }
    steps::limit_open_files(spec)?;
    steps::raise_limits(spec)?;
    steps::attach_logs(logs)?;
    steps::become_user(spec)?;
    // Until exec, no process of the task's user may look into this one.
    steps::hide()?;
    steps::enter_work_dir(spec, work_dir.as_ref())?;
    prctl::set_no_new_privs().map_err(|errno| Failure::new(Step::NoNewPrivs, "the task", errno))?;
    steps::restrict(ruleset)?;
    // It allows the calls that are left, and the kernel needs as long for it as the shim needs to get ready.
    steps::filter(filter)
}

/// The last steps.
pub(super) fn run(spec: &ShimSpec, reporter: &Reporter) -> Result<Infallible> {
    sys::fd::close_on_exec_from(3).map_err(|errno| Failure::new(Step::CloseFds, "the task", errno))?;
    steps::set_limits(spec)?;
    steps::exec(&spec.command, reporter)
}
