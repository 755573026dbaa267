//! The set-up sequence: what the shim prepares as root, and what the task does between clone and exec.
//!
//! Read [`prepare`], [`launch`] and [`become_task`] from top to bottom: each line is a step, and the first that fails
//! ends the start with a [`Failure`] that names it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use landlock::{
    Access as _, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, OpenHow, ResolveFlag, fcntl, open, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{
    Gid, Pid, Uid, dup2_stderr, dup2_stdout, execve, fchdir, fchown, setgroups, setpgid, setresgid,
    setresuid, setsid,
};

use super::report::{Failure, Reporter, Step};
use super::spec::{ShimSpec, Stdio, candidates};
use crate::sandbox::capabilities::CapSet;
use crate::sandbox::landlock::{HANDLED, REQUIRED, rights};
use crate::sandbox::place::{Missing, Place, Rule};
use crate::sandbox::unveil;
use crate::sys;
use crate::task::open_files;

/// How long the log FIFOs may lack a reader. Nomad's log collector opens them before it asks for the task, so a reader
/// that is not there has died or is being restarted.
const LOG_READER_WAIT: Duration = Duration::from_secs(5);
/// Pause between two looks for a reader: opening a FIFO offers nothing to wait for but blocking without a bound.
const LOG_READER_PAUSE: Duration = Duration::from_millis(5);
/// Tries of an openat2(2) that met a concurrent rename (EAGAIN).
const OPEN_TRIES: u32 = 16;
/// Exit status of a task that never became one; nobody sees it, the failure is reported.
const NOT_A_TASK: i32 = 127;

/// `PIPEFS_MAGIC` of `linux/magic.h`.
const PIPE_FS_MAGIC: FsType = FsType(0x5049_5045);

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
    let work_dir = open_at(&spec.work_dir, OFlag::O_PATH | OFlag::O_DIRECTORY)
        .map_err(|errno| Failure::new(Step::WorkDir, path_of(&spec.work_dir), errno))?;
    let ruleset = build_ruleset(spec, logs.as_ref())?;
    lead_session(spec)?;
    Ok(Prepared { logs, work_dir, ruleset })
}

/// Clones the task into its cgroup and hands its pidfd to the plugin. Returns its pid in the shim's namespace.
pub fn launch(
    spec: &ShimSpec,
    prepared: Prepared,
    cgroup: Option<OwnedFd>,
    reporter: &Reporter,
) -> Result<Pid> {
    let single = sys::clone::SingleThreaded::check()
        .map_err(|error| Failure::io(Step::Clone, "its cgroup", &error))?;
    let task = sys::clone::fork(single, cgroup.as_ref().map(AsFd::as_fd), || {
        let failure = match become_task(spec, prepared) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        reporter.failed(&failure);
        NOT_A_TASK
    })
    .map_err(|errno| Failure::new(Step::Clone, "its cgroup", errno))?;
    reporter.task(task.pidfd.as_fd()).map_err(|errno| {
        Failure::new(Step::Clone, "its cgroup", errno).with_note("its pidfd could not be sent")
    })?;
    Ok(task.pid)
}

/// In the shim, once the task runs: from here on it only waits, and keeps no right that a bug could use.
pub fn drop_privileges() -> Result<()> {
    let failed = |errno| Failure::new(Step::Capabilities, "the shim", errno);
    limit_bounding(CapSet::EMPTY)?;
    sys::caps::clear_ambient().map_err(failed)?;
    sys::caps::set(sys::caps::Sets::default()).map_err(failed)?;
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
fn become_task(spec: &ShimSpec, prepared: Prepared) -> Result<Infallible> {
    sys::signals::reset_dispositions();
    sys::signals::ignore(spec.ignored);
    join_session(spec)?;
    sys::signals::unblock_all().map_err(|errno| Failure::new(Step::Session, "the task", errno))?;
    set_oom_score_adj(spec)?;
    if let Some(limit) = spec.open_files {
        open_files::take(limit).map_err(|errno| Failure::new(Step::OpenFiles, limit.to_string(), errno))?;
    }
    attach_logs(prepared.logs)?;
    fchdir(&prepared.work_dir)
        .map_err(|errno| Failure::new(Step::WorkDir, path_of(&spec.work_dir), errno))?;
    become_user(spec)?;
    prctl::set_no_new_privs().map_err(|errno| Failure::new(Step::NoNewPrivs, "the task", errno))?;
    restrict(prepared.ruleset)?;
    sys::fd::close_on_exec_from(3).map_err(|errno| Failure::new(Step::CloseFds, "the task", errno))?;
    exec(spec)
}

fn path_of(place: &Place) -> String {
    place.display().display().to_string()
}

/// Opens a place close-on-exec; see [`Place`] for what is followed and what is not.
fn open_at(place: &Place, flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC;
    let (root, path) = match place {
        Place::Host(path) => return open(path, flags, Mode::empty()),
        Place::Beneath { root, path } => (root, path),
    };
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how =
        OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    for _ in 1..OPEN_TRIES {
        match openat2(&root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            opened => return opened,
        }
    }
    openat2(&root, path, how)
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
        match open_at(place, OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW) {
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

fn build_ruleset(spec: &ShimSpec, logs: Option<&Logs>) -> Result<RulesetCreated> {
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
        ruleset = add_rule(ruleset, rule)?;
    }
    Ok(ruleset)
}

fn add_rule(ruleset: RulesetCreated, rule: &Rule) -> Result<RulesetCreated> {
    let opened = open_at(&rule.place, OFlag::O_PATH).and_then(|place| {
        Ok((fstat(&place)?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits(), place))
    });
    let (directory, place) = match opened {
        Ok(opened) => opened,
        // A default that is not there, or that is a symbolic link below a place where tasks may make some: the right is not
        // given. What the unveil above it grants stays.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV)
            if rule.missing == Missing::Skip =>
        {
            return Ok(ruleset);
        }
        Err(errno) => {
            let failure = Failure::new(Step::Unveil, rule.to_string(), errno);
            return Err(match (errno, &rule.place) {
                (Errno::ELOOP | Errno::EXDEV, Place::Beneath { root, .. }) => failure.with_note(format!(
                    "symbolic links below {} are not followed: a task could have made them",
                    root.display()
                )),
                _ => failure,
            });
        }
    };
    let rights = rights(rule.access, directory);
    if rights.is_empty() {
        // `c` alone on a file: nothing can be created in it.
        return Ok(ruleset);
    }
    if fstatfs(&place).is_ok_and(|found| found.filesystem_type() == PIPE_FS_MAGIC) {
        // A pipe (`/dev/stdout`) is on no mounted file system: Landlock lets it pass, and refuses rules for it.
        return Ok(ruleset);
    }
    ruleset
        .add_rule(PathBeneath::new(place, rights))
        .map_err(|error| Failure::text(Step::Unveil, rule.to_string(), error.to_string()))
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
    let value = spec.oom_score_adj;
    File::options()
        .write(true)
        .open("/proc/self/oom_score_adj")
        .and_then(|mut file| file.write_all(value.to_string().as_bytes()))
        .map_err(|error| Failure::io(Step::OomScoreAdj, value.to_string(), &error))
}

fn attach_logs(logs: Option<Logs>) -> Result<()> {
    let Some(Logs { stdout, stderr }) = logs else { return Ok(()) };
    dup2_stdout(&stdout).map_err(|errno| Failure::new(Step::Stdio, "stdout", errno))?;
    dup2_stderr(&stderr).map_err(|errno| Failure::new(Step::Stdio, "stderr", errno))
}

/// Bounding set, groups, gid, uid, then exactly the capabilities that were granted.
fn become_user(spec: &ShimSpec) -> Result<()> {
    let caps = |errno| Failure::new(Step::Capabilities, spec.granted.to_string(), errno);
    let user = |errno| Failure::new(Step::User, format!("{}:{}", spec.uid, spec.gid), errno);
    limit_bounding(spec.granted)?;
    setgroups(&[]).map_err(user)?;
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
fn exec(spec: &ShimSpec) -> Result<Infallible> {
    let c_string = |text: &str| {
        CString::new(text)
            .map_err(|_| Failure::text(Step::Exec, text, "a NUL byte cannot be passed to a program".into()))
    };
    let args: Vec<CString> =
        std::iter::once(&spec.command).chain(&spec.args).map(|arg| c_string(arg)).collect::<Result<_>>()?;
    let env: Vec<CString> = spec.env.iter().map(|entry| c_string(entry)).collect::<Result<_>>()?;
    let mut refused: Option<(PathBuf, Errno)> = None;
    for path in candidates(&spec.command, spec.env("PATH")) {
        let program = c_string(&path.to_string_lossy())?;
        match execve(&program, &args, &env) {
            Ok(never) => match never {},
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno @ Errno::EACCES) => {
                refused.get_or_insert((path, errno));
            }
            Err(errno) => return Err(Failure::new(Step::Exec, path.display().to_string(), errno)),
        }
    }
    Err(match refused {
        Some((path, errno)) => Failure::new(Step::Exec, path.display().to_string(), errno)
            .with_note("it is not executable for the task's user, or not unveiled with x"),
        None if spec.command.contains('/') => Failure::new(Step::Exec, &spec.command, Errno::ENOENT)
            .with_note("the program, or the interpreter that it names, does not exist"),
        None => Failure::new(Step::Exec, &spec.command, Errno::ENOENT).with_note(format!(
            "not found in PATH={}",
            spec.env("PATH").unwrap_or(super::spec::DEFAULT_PATH)
        )),
    })
}
