//! The set-up sequence: what the shim prepares as root, and what the task does between clone and exec.
//!
//! Read [`prepare`], [`launch`] and [`become_task`] from top to bottom: each line is a step, and the first that fails
//! ends the start with a [`Failure`] that names it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use landlock::{
    Access as _, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus,
};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, fstat, stat, umask};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{
    Gid, Pid, Uid, dup2_stderr, dup2_stdout, execve, fchdir, fchown, setfsgid, setfsuid, setgroups, setpgid,
    setresgid, setresuid, setsid,
};

use super::SHIM_ID;
use super::report::{Failure, Reporter, Step};
use super::spec::{ShimSpec, Stdio, candidates};
use super::walk::{self, DirId, WalkError};
use crate::sandbox::capabilities::CapSet;
use crate::sandbox::landlock::{HANDLED, REQUIRED, rights};
use crate::sandbox::place::{Missing, NamedBy, Place, Rule};
use crate::sandbox::plan::WorkDir;
use crate::sandbox::unveil;
use crate::sys;
use crate::task::open_files;

/// How long the log FIFOs may lack a reader. Nomad's log collector opens them before it asks for the task, so a reader
/// that is not there has died or is being restarted.
const LOG_READER_WAIT: Duration = Duration::from_secs(5);
/// Pause between two looks for a reader: opening a FIFO offers nothing to wait for but blocking without a bound.
const LOG_READER_PAUSE: Duration = Duration::from_millis(5);
/// File mode creation mask of a task: what a login has, and containers.
const UMASK: Mode = Mode::from_bits_truncate(0o022);
/// What a core dump has by default, core(5): private and shared anonymous memory, ELF headers, private huge pages.
const COREDUMP_FILTER: &str = "0x33";
/// Longest argument or environment entry that execve(2) takes, bytes with the final NUL: MAX_ARG_STRLEN is 32 pages.
const MAX_ARG_STRLEN: usize = 128 * 1024;
/// Exit status of a task that never became one; nobody sees it, the failure is reported.
const NOT_A_TASK: i32 = 127;

type Result<T, E = Failure> = std::result::Result<T, E>;

/// What the task will need, opened while everything is still visible.
#[derive(Debug)]
pub struct Prepared {
    logs: Option<Logs>,
    work_dir: OwnedFd,
    ruleset: RulesetCreated,
}

#[derive(Debug)]
struct Logs {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// In the shim: network namespace, mounts, logs, working directory, Landlock rules.
pub fn prepare(spec: &ShimSpec) -> Result<Prepared> {
    join_network(spec)?;
    separate_mounts()?;
    let logs = open_logs(spec)?;
    let writable = writable(spec);
    let work_dir = open_work_dir(spec, &writable)?;
    let ruleset = build_ruleset(spec, logs.as_ref(), &writable)?;
    lead_session(spec)?;
    Ok(Prepared { logs, work_dir, ruleset })
}

/// The task between its clone and its exec, for which it waits.
#[derive(Debug)]
pub struct Waiting {
    /// In the shim's pid namespace.
    pub pid: Pid,
    gate: PipeWriter,
}

impl Waiting {
    /// Lets the task execute its command. From then on it may do to the shim what the kernel allows.
    pub fn may_exec(mut self) -> Result<()> {
        match self.gate.write_all(b"g") {
            // It has died already, which its end tells.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|error| Failure::io(Step::Session, "the task", &error)),
        }
    }
}

/// Clones the task into its cgroup and hands its pidfd to the plugin.
pub fn launch(
    spec: &ShimSpec,
    prepared: Prepared,
    cgroup: Option<OwnedFd>,
    reporter: &Reporter,
) -> Result<Waiting> {
    let failed = |errno| Failure::new(Step::Clone, "its cgroup", errno);
    let single = sys::clone::SingleThreaded::check()
        .map_err(|error| Failure::io(Step::Clone, "its cgroup", &error))?;
    let (opened, gate) = std::io::pipe().map_err(|error| Failure::io(Step::Session, "the task", &error))?;
    let task = sys::clone::fork(single, cgroup.as_ref().map(AsFd::as_fd), || {
        let failure = match become_task(spec, prepared, opened, reporter) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        reporter.failed(failure);
        NOT_A_TASK
    })
    .map_err(|errno| match errno {
        // clone3(2) has this errno for a cgroup whose cpuset.cpus.effective is empty.
        Errno::ENOSPC => failed(errno).with_note("the cgroup has no CPU: its cpuset.cpus.effective is empty"),
        _ => failed(errno),
    })?;
    reporter
        .task(task.pidfd.as_fd())
        .map_err(|errno| failed(errno).with_note("its pidfd could not be sent"))?;
    Ok(Waiting { pid: task.pid, gate })
}

/// In the shim, before the task's command runs: from here on it only waits. It keeps no right that a bug could use, and an
/// id that no task has.
pub fn drop_privileges() -> Result<()> {
    let caps = |errno| Failure::new(Step::Capabilities, "the shim", errno);
    let user = |errno| Failure::new(Step::User, "of the shim", errno);
    limit_bounding(CapSet::EMPTY)?;
    sys::caps::clear_ambient().map_err(caps)?;
    setgroups(&[]).map_err(user)?;
    let (uid, gid) = (Uid::from_raw(SHIM_ID), Gid::from_raw(SHIM_ID));
    setresgid(gid, gid, gid).map_err(user)?;
    setresuid(uid, uid, uid).map_err(user)?;
    sys::caps::set(sys::caps::Sets::default()).map_err(caps)?;
    // The change of ids has set it to fs.suid_dumpable, proc_sys_fs(5).
    prctl::set_dumpable(false).map_err(user)?;
    prctl::set_no_new_privs().map_err(|errno| Failure::new(Step::NoNewPrivs, "the shim", errno))
}

/// In the shim, when its task must not outlive the process that started it. After the last change of credentials: each
/// clears the setting (PR_SET_PDEATHSIG(2const)).
pub fn die_with_parent(reporter: &Reporter) -> Result<()> {
    let failed = |errno| Failure::new(Step::Session, "the shim", errno);
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed)?;
    // It may have died before.
    if reporter.is_abandoned() { Err(failed(Errno::ESRCH)) } else { Ok(()) }
}

/// In the task, from clone to exec. Everything before `become_user` still runs as root.
fn become_task(
    spec: &ShimSpec,
    prepared: Prepared,
    mut opened: PipeReader,
    reporter: &Reporter,
) -> Result<Infallible> {
    let session = |errno| Failure::new(Step::Session, "the task", errno);
    sys::signals::reset_dispositions();
    sys::signals::ignore(spec.ignored);
    join_session(spec)?;
    sys::signals::unblock_all().map_err(session)?;
    reset_inherited()?;
    set_oom_score_adj(spec)?;
    if let Some(limit) = spec.open_files {
        open_files::take(limit).map_err(|errno| Failure::new(Step::OpenFiles, limit.to_string(), errno))?;
    }
    attach_logs(prepared.logs)?;
    become_user(spec)?;
    enter_work_dir(spec, &prepared.work_dir)?;
    prctl::set_no_new_privs().map_err(|errno| Failure::new(Step::NoNewPrivs, "the task", errno))?;
    restrict(prepared.ruleset)?;
    // The shim is on its way to an id and a state in which this task cannot touch it.
    opened.read_exact(&mut [0]).map_err(|error| Failure::io(Step::Session, "the task", &error))?;
    sys::fd::close_on_exec_from(3).map_err(|errno| Failure::new(Step::CloseFds, "the task", errno))?;
    exec(spec, reporter)
}

/// What would otherwise be as the agent has it; `docs/security.md` lists what is inherited on purpose.
fn reset_inherited() -> Result<()> {
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
    write_proc("/proc/self/coredump_filter", COREDUMP_FILTER)
        .map_err(|error| Failure::io(Step::Inherited, "coredump filter", &error))
}

/// Without CAP_SYS_NICE, or under a filter of system calls, a priority cannot be raised: what is inherited then only takes away.
fn unless_refused(done: nix::Result<()>) -> nix::Result<()> {
    done.or_else(|errno| if matches!(errno, Errno::EACCES | Errno::EPERM) { Ok(()) } else { Err(errno) })
}

fn write_proc(path: &str, value: &str) -> std::io::Result<()> {
    File::options().write(true).open(path).and_then(|mut file| file.write_all(value.as_bytes()))
}

/// As the task's user, so that the kernel judges whether that may enter.
fn enter_work_dir(spec: &ShimSpec, dir: &OwnedFd) -> Result<()> {
    fchdir(dir).map_err(|errno| Failure::new(Step::WorkDir, path_of(&spec.work_dir.place), errno))
}

fn path_of(place: &Place) -> String {
    place.display().display().to_string()
}

/// Opens a place `O_PATH`, with the rights of whoever named it; see [`Place`] for what is followed and what is not.
fn open_place(
    spec: &ShimSpec,
    place: &Place,
    named_by: NamedBy,
    writable: &[DirId],
) -> Result<OwnedFd, WalkError> {
    let proven = match place {
        Place::Beneath { root, .. } if *root == spec.task_root => Some(open_task_root(spec)?),
        _ => None,
    };
    let open = || match (place, &proven) {
        (Place::Host(path), _) => walk::open_path(path, writable),
        (Place::Beneath { path, .. }, Some(root)) => Ok(open_beneath(root, path, OFlag::O_PATH)?),
        (Place::Beneath { root, path }, None) => {
            Ok(open_beneath(&walk::open_path(root, writable)?, path, OFlag::O_PATH)?)
        }
    };
    match named_by {
        NamedBy::Driver => open(),
        NamedBy::Job => as_task(spec, open)?,
        // Root second: on a file server that trusts no root, only the task's user gets in.
        NamedBy::Agent => as_task(spec, open)?.or_else(|_| open()),
    }
}

fn open_task_root(spec: &ShimSpec) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    walk::retry(|| openat2(AT_FDCWD, &spec.task_root, how))
}

fn open_beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    walk::retry(|| openat2(root, path, how))
}

/// Calls `open` with the ids and capabilities that decide about files as the task will have them, setfsuid(2).
fn as_task<T>(spec: &ShimSpec, open: impl FnOnce() -> T) -> nix::Result<T> {
    let own = sys::caps::get()?;
    let effective = spec.granted.bits() & own.permitted;
    // For what is opened as root, a capability decides and no group.
    setgroups(&groups(spec))?;
    set_fs_ids(spec.uid, spec.gid)?;
    sys::caps::set(sys::caps::Sets { effective, ..own })?;
    let opened = open();
    set_fs_ids(0, 0)?;
    sys::caps::set(own)?;
    Ok(opened)
}

/// setfsuid(2) and setfsgid(2) report no error: whether they worked shows when they are asked for an id that there is not.
fn set_fs_ids(uid: u32, gid: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setfsgid(gid);
    setfsuid(uid);
    let set = setfsuid(Uid::from_raw(u32::MAX)) == uid && setfsgid(Gid::from_raw(u32::MAX)) == gid;
    if set { Ok(()) } else { Err(Errno::EPERM) }
}

/// The directories in which this task's rules let tasks create.
fn writable(spec: &ShimSpec) -> Vec<DirId> {
    let creating = spec.rules.iter().filter(|rule| rule.access.create());
    // One that cannot be opened is an error, or nothing, when its rule is made.
    let opened = creating.filter_map(|rule| open_place(spec, &rule.place, rule.named_by, &[]).ok());
    opened.filter_map(|dir| fstat(&dir).ok()).map(|stat| DirId::of(&stat)).collect()
}

fn open_work_dir(spec: &ShimSpec, writable: &[DirId]) -> Result<OwnedFd> {
    let WorkDir { place, named_by } = &spec.work_dir;
    let failed = |errno| Failure::new(Step::WorkDir, path_of(place), errno);
    let dir = open_place(spec, place, *named_by, writable).map_err(|error| match error {
        WalkError::Errno(errno @ Errno::EXDEV) => {
            failed(errno).with_note("it leads out of the task's own directories")
        }
        WalkError::Errno(errno) => failed(errno),
        other => Failure::text(Step::WorkDir, path_of(place), other.to_string()),
    })?;
    match is_directory(&dir).map_err(failed)? {
        true => Ok(dir),
        false => Err(failed(Errno::ENOTDIR)),
    }
}

fn is_directory(place: &OwnedFd) -> nix::Result<bool> {
    let kind = SFlag::from_bits_truncate(fstat(place)?.st_mode) & SFlag::S_IFMT;
    Ok(kind == SFlag::S_IFDIR)
}

fn join_network(spec: &ShimSpec) -> Result<()> {
    let Some(path) = &spec.netns else { return Ok(()) };
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|namespace| setns(namespace, CloneFlags::CLONE_NEWNET))
        .map_err(|errno| Failure::new(Step::NetworkNamespace, path.display().to_string(), errno))
}

/// The shim was cloned into a mount namespace of its own. Mounts of the host still arrive in it (autofs, volumes), its own
/// do not leave it; /proc shows the new pid namespace.
fn separate_mounts() -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|errno| Failure::new(Step::Mount, "/ (slave)", errno))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none)
        .map_err(|errno| Failure::new(Step::Mount, "/proc", errno))?;
    // The working directory of the plugin must not be held by every task.
    std::env::set_current_dir("/").map_err(|error| Failure::io(Step::Mount, "/", &error))
}

fn open_logs(spec: &ShimSpec) -> Result<Option<Logs>> {
    let (stdout, stderr) = match &spec.stdio {
        Stdio::Fifos { stdout, stderr } => (stdout, stderr),
        // The shim has them already.
        Stdio::Null | Stdio::Inherited => return Ok(None),
    };
    Ok(Some(Logs { stdout: open_log(stdout, spec)?, stderr: open_log(stderr, spec)? }))
}

/// Opens a log FIFO for writing, makes sure that it is one, and gives it to the task's user, so that the task can open
/// /dev/stdout again. Everything after the opening goes by descriptor: the name may mean something else by then.
fn open_log(place: &Place, spec: &ShimSpec) -> Result<OwnedFd> {
    let failed = |errno| Failure::new(Step::Log, path_of(place), errno);
    let deadline = Instant::now() + LOG_READER_WAIT;
    let fifo = loop {
        // Without O_NONBLOCK this would hang for ever if nobody reads.
        match open_log_fifo(place, spec) {
            Ok(fifo) => break fifo,
            Err(Errno::ENXIO) if Instant::now() < deadline => std::thread::sleep(LOG_READER_PAUSE),
            Err(Errno::ENXIO) => {
                return Err(failed(Errno::ENXIO).with_note(format!(
                    "nobody reads the log FIFO, waited {} s",
                    LOG_READER_WAIT.as_secs()
                )));
            }
            Err(errno) => return Err(failed(errno)),
        }
    };
    let kind = SFlag::from_bits_truncate(fstat(&fifo).map_err(failed)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFIFO {
        return Err(Failure::text(Step::Log, path_of(place), "this is no FIFO".into()));
    }
    fcntl(&fifo, FcntlArg::F_SETFL(OFlag::O_WRONLY)).map_err(failed)?;
    fchown(&fifo, Some(Uid::from_raw(spec.uid)), Some(Gid::from_raw(spec.gid))).map_err(failed)?;
    Ok(fifo)
}

fn open_log_fifo(place: &Place, spec: &ShimSpec) -> nix::Result<OwnedFd> {
    // A log lies below the task's own directory, and nowhere else.
    let Place::Beneath { root, path } = place else { return Err(Errno::EINVAL) };
    if *root != spec.task_root {
        return Err(Errno::EINVAL);
    }
    open_beneath(&open_task_root(spec)?, path, OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW)
}

fn build_ruleset(spec: &ShimSpec, logs: Option<&Logs>, writable: &[DirId]) -> Result<RulesetCreated> {
    let failed = |error: landlock::RulesetError| Failure::text(Step::Landlock, "ruleset", error.to_string());
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(REQUIRED))
        .map_err(failed)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(HANDLED))
        .map_err(failed)?
        .create()
        .map_err(failed)?;
    for log in logs.iter().flat_map(|logs| [&logs.stdout, &logs.stderr]) {
        let write = rights(unveil::Access::WRITE, false);
        ruleset = ruleset.add_rule(PathBeneath::new(log, write)).map_err(failed)?;
    }
    if let Some(terminal) = spec.terminal {
        // As the log FIFOs: the task can open /dev/stdout again.
        let terminal = sys::terminal::standard(terminal)
            .map_err(|errno| Failure::new(Step::Session, "the terminal", errno))?;
        let read_write = rights(unveil::Access::READ.union(unveil::Access::WRITE), false);
        ruleset = ruleset.add_rule(PathBeneath::new(terminal, read_write)).map_err(failed)?;
    }
    for rule in &spec.rules {
        ruleset = add_rule(ruleset, spec, rule, writable)?;
    }
    Ok(ruleset)
}

fn add_rule(
    ruleset: RulesetCreated,
    spec: &ShimSpec,
    rule: &Rule,
    writable: &[DirId],
) -> Result<RulesetCreated> {
    let opened = open_place(spec, &rule.place, rule.named_by, writable)
        .and_then(|place| Ok((is_directory(&place)?, place)));
    let (directory, place) = match opened {
        Ok(opened) => opened,
        Err(error) if rule.missing == Missing::Skip && is_absent(&error) => return Ok(ruleset),
        Err(error) => return Err(not_unveiled(rule, error)),
    };
    let rights = rights(rule.access, directory);
    if rights.is_empty() {
        // `c` alone on a file: nothing can be created in it.
        return Ok(ruleset);
    }
    ruleset
        .add_rule(PathBeneath::new(place, rights))
        .map_err(|error| Failure::text(Step::Unveil, rule.to_string(), error.to_string()))
}

/// A default that is not there, or behind a symbolic link that a task could have made, is not granted. What an unveil above
/// it grants stays.
fn is_absent(error: &WalkError) -> bool {
    match error {
        WalkError::Errno(errno) => {
            matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV)
        }
        WalkError::Link { .. }
        | WalkError::Elsewhere { .. }
        | WalkError::Writable(_)
        | WalkError::Magic(_) => true,
    }
}

fn not_unveiled(rule: &Rule, error: WalkError) -> Failure {
    let WalkError::Errno(errno) = error else {
        return Failure::text(Step::Unveil, rule.to_string(), error.to_string());
    };
    let failure = Failure::new(Step::Unveil, rule.to_string(), errno);
    match (errno, &rule.place, rule.named_by) {
        (Errno::ELOOP | Errno::EXDEV, Place::Beneath { root, .. }, _) => failure.with_note(format!(
            "symbolic links below {} are not followed: a task could have made them",
            root.display()
        )),
        (Errno::EACCES, _, NamedBy::Job) => {
            failure.with_note("the task's user may not pass through a directory on the way")
        }
        _ => failure,
    }
}

/// With a terminal the shim leads the session, and the task is a process group in it: its parent is then in the same
/// session, without which the kernel would not let the terminal stop it (setpgid(2), orphaned process groups).
fn lead_session(spec: &ShimSpec) -> Result<()> {
    let Some(terminal) = spec.terminal else { return Ok(()) };
    let failed = |errno| Failure::new(Step::Session, "the terminal", errno);
    setsid().map_err(failed)?;
    sys::terminal::take_control(terminal).map_err(failed)
}

/// In the task, while every signal is blocked.
fn join_session(spec: &ShimSpec) -> Result<()> {
    let failed = |errno| Failure::new(Step::Session, "the task", errno);
    let Some(terminal) = spec.terminal else { return setsid().map(drop).map_err(failed) };
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).map_err(failed)?;
    sys::terminal::come_to_foreground(terminal).map_err(failed)
}

fn set_oom_score_adj(spec: &ShimSpec) -> Result<()> {
    let value = spec.oom_score_adj.to_string();
    write_proc("/proc/self/oom_score_adj", &value)
        .map_err(|error| Failure::io(Step::OomScoreAdj, value, &error))
}

fn attach_logs(logs: Option<Logs>) -> Result<()> {
    let Some(Logs { stdout, stderr }) = logs else { return Ok(()) };
    dup2_stdout(&stdout).map_err(|errno| Failure::new(Step::Stdio, "stdout", errno))?;
    dup2_stderr(&stderr).map_err(|errno| Failure::new(Step::Stdio, "stderr", errno))
}

/// Bounding set of root, groups, gid, uid, then exactly the capabilities that were granted.
fn become_user(spec: &ShimSpec) -> Result<()> {
    let caps = |errno| Failure::new(Step::Capabilities, spec.granted.to_string(), errno);
    let user = |errno| Failure::new(Step::User, format!("{}:{}", spec.uid, spec.gid), errno);
    // For everybody else no_new_privs keeps what a file could add to the permitted set. A smaller bounding set would only
    // make the kernel refuse programs with file capabilities, capabilities(7), "capability-dumb binaries".
    if spec.uid == 0 {
        limit_bounding(spec.granted)?;
    }
    setgroups(&groups(spec)).map_err(user)?;
    let gid = Gid::from_raw(spec.gid);
    setresgid(gid, gid, gid).map_err(user)?;
    prctl::set_keepcaps(true).map_err(caps)?;
    let uid = Uid::from_raw(spec.uid);
    setresuid(uid, uid, uid).map_err(user)?;
    prctl::set_keepcaps(false).map_err(caps)?;
    sys::keyring::join_new_session().map_err(|errno| Failure::new(Step::Session, "the keyring", errno))?;
    let granted = spec.granted.bits();
    sys::caps::set(sys::caps::Sets { effective: granted, permitted: granted, inheritable: granted })
        .map_err(caps)?;
    sys::caps::clear_ambient().map_err(caps)?;
    // A root user's programs get what is permitted and in the bounding set; anybody else's need ambient capabilities.
    if spec.uid != 0 {
        spec.granted.iter().try_for_each(|cap| sys::caps::raise_ambient(cap.number())).map_err(caps)?;
    }
    Ok(())
}

fn groups(spec: &ShimSpec) -> Vec<Gid> {
    spec.groups.iter().copied().map(Gid::from_raw).collect()
}

fn limit_bounding(allowed: CapSet) -> Result<()> {
    for number in (0..u64::BITS as u8).filter(|number| allowed.bits() >> number & 1 == 0) {
        match sys::caps::drop_from_bounding(number) {
            Ok(()) => {}
            // The first number that the kernel does not know; there is none above it.
            Err(Errno::EINVAL) => break,
            Err(errno) => {
                return Err(Failure::new(Step::Capabilities, format!("bounding set, {number}"), errno));
            }
        }
    }
    Ok(())
}

fn restrict(ruleset: RulesetCreated) -> Result<()> {
    let status = ruleset
        .restrict_self()
        .map_err(|error| Failure::text(Step::Landlock, "restrict_self", error.to_string()))?;
    match status.ruleset {
        RulesetStatus::NotEnforced => {
            Err(Failure::text(Step::Landlock, "restrict_self", "the kernel does not enforce Landlock".into()))
        }
        _ => Ok(()),
    }
}

/// Tries each place where the command may be, as execvp(3) does.
fn exec(spec: &ShimSpec, reporter: &Reporter) -> Result<Infallible> {
    let c_string = |text: &str| {
        CString::new(text)
            .map_err(|_| Failure::text(Step::Exec, text, "a NUL byte cannot be passed to a program".into()))
    };
    let args: Vec<CString> =
        std::iter::once(&spec.command).chain(&spec.args).map(|arg| c_string(arg)).collect::<Result<_>>()?;
    let env: Vec<CString> = spec.env.iter().map(|entry| c_string(entry)).collect::<Result<_>>()?;
    reporter.about_to_exec().map_err(|errno| Failure::new(Step::Exec, &spec.command, errno))?;
    let mut refused: Option<PathBuf> = None;
    for path in candidates(&spec.command, spec.env("PATH")) {
        let program = CString::new(path.as_os_str().as_bytes()).map_err(|_| not_found(spec))?;
        match execve(&program, &args, &env) {
            Ok(never) => match never {},
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::ENAMETOOLONG) if !spec.command.contains('/') => {}
            // A directory of PATH that may not be entered is not where the command is.
            Err(Errno::EACCES) if spec.command.contains('/') || stat(&path).is_ok() => {
                refused.get_or_insert(path);
            }
            Err(Errno::EACCES) => {}
            Err(errno) => return Err(not_executed(spec, &path, errno)),
        }
    }
    Err(refused.map_or_else(|| not_found(spec), |path| not_executed(spec, &path, Errno::EACCES)))
}

fn not_found(spec: &ShimSpec) -> Failure {
    let failure = Failure::new(Step::Exec, &spec.command, Errno::ENOENT);
    if spec.command.is_empty() {
        return failure.with_note("the command is empty; write the name or the path of a program");
    }
    if spec.command.contains('/') {
        return failure.with_note("the program, or the interpreter that it names, does not exist");
    }
    failure.with_note(format!("not found in PATH={}", spec.env("PATH").unwrap_or(super::spec::DEFAULT_PATH)))
}

fn not_executed(spec: &ShimSpec, path: &Path, errno: Errno) -> Failure {
    let failure = Failure::new(Step::Exec, path.display().to_string(), errno);
    let noexec = || statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_NOEXEC));
    match errno {
        Errno::EACCES if noexec() => failure.with_note(
            "its file system is mounted noexec, as Nomad mounts secrets/: put the program into local/ or alloc/",
        ),
        Errno::EACCES => {
            failure.with_note("it is not executable for the task's user, or not unveiled with x")
        }
        Errno::EPERM => failure.with_note(
            "the file has capabilities, getcap(8), that the task cannot have: remove them with setcap -r, or use a copy",
        ),
        Errno::E2BIG => failure.with_note(too_big(spec)),
        _ => failure,
    }
}

/// What execve(2) calls too big: one argument or variable, or all of them together.
fn too_big(spec: &ShimSpec) -> String {
    let largest =
        spec.env.iter().max_by_key(|entry| entry.len()).filter(|entry| entry.len() >= MAX_ARG_STRLEN);
    if let Some(entry) = largest {
        let name = entry.split('=').next().unwrap_or_default();
        return format!(
            "the environment variable {name:?} has {} bytes, and the kernel takes {MAX_ARG_STRLEN} for each; put the value \
             into a file",
            entry.len()
        );
    }
    if let Some(argument) = spec.args.iter().position(|arg| arg.len() >= MAX_ARG_STRLEN) {
        return format!(
            "args[{argument}] is longer than the {MAX_ARG_STRLEN} bytes that the kernel takes for each"
        );
    }
    let all = spec.args.iter().chain(&spec.env).map(|text| text.len() + 1).sum::<usize>();
    format!("arguments and environment have {all} bytes, more than a quarter of the limit of the stack")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seed that the fuzz target starts from.
    fn spec(env: &[String], args: &[String]) -> ShimSpec {
        let seed = ShimSpec::decode(include_bytes!("../../fuzz/seeds/shim_spec/full")).unwrap();
        ShimSpec { env: env.to_vec(), args: args.to_vec(), ..seed }
    }

    #[test]
    fn what_is_too_big_for_execve_is_named() {
        let long = "x".repeat(MAX_ARG_STRLEN);
        assert!(
            too_big(&spec(&["A=1".into(), format!("SECRET={long}")], &[]))
                .contains("\"SECRET\" has 131079 bytes")
        );
        assert!(too_big(&spec(&[], &["a".into(), long])).starts_with("args[1] is longer"));
        let many = vec!["x".repeat(999); 3000];
        assert!(too_big(&spec(&[], &many)).contains("have 3000000 bytes"));
    }

    #[test]
    fn a_missing_command_says_where_it_was_looked_for() {
        let of = |command: &str| {
            let spec = ShimSpec { command: command.into(), ..spec(&["PATH=/a:/b".into()], &[]) };
            not_found(&spec).to_string()
        };
        assert!(of("web").ends_with("(not found in PATH=/a:/b)"));
        assert!(of("/opt/web").contains("interpreter"));
        assert!(of("").contains("the command is empty"));
    }
}
