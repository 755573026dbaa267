//! `run`: the driver's sandbox without Nomad, by the same code.

use std::convert::Infallible;
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use nix::unistd::geteuid;
use tokio::sync::oneshot;

use super::cpu::mhz_per_core;
use super::own_cgroup::{self, OwnCgroup};
use super::run_id::{self, RunId};
use super::scratch::{self, Base, Scratch};
use super::signals::{Meaning, Signals};
use super::stdio::Stdio;
use super::terminal::{Terminal, Watch};
use super::{causes, environment, free_user, say};
use crate::cgroup::{Cgroup, Limits, ResourceRequest};
use crate::config::{PluginConfig, RootKind};
use crate::record::run_dir::RUN_DIR;
use crate::sandbox::capabilities::{CapList, CapSet, UnknownCapability};
use crate::sandbox::device::AskedDevice;
use crate::sandbox::names::Names;
use crate::sandbox::network::{Lists, PortName};
use crate::sandbox::place::{Missing, NamedBy, Place, Rule};
use crate::sandbox::plan::Root;
use crate::sandbox::policy::{Ask, Policy};
use crate::sandbox::rlimits::{self, Rlimit, Rlimits};
use crate::sandbox::seccomp::{Allowed, GROUPS, GroupSet, Profile};
use crate::sandbox::unveil::{Access, Unveil};
use crate::sandbox::volume::AskedVolume;
use crate::shim::report::StartError;
use crate::shim::spec::{Foreground, TaskDirs};
use crate::sys;
use crate::sys::signals::Bits;
use crate::task::end::Ended;
use crate::task::events::EventBus;
use crate::task::id::TaskId;
use crate::task::launch::{LaunchError, Launcher};
use crate::task::running::Task;
use crate::task::signal::SignalNumber;
use crate::task::spec::{Logs, Request, TaskSpec};
use crate::users::{self, IdRanges, User};

/// Exit statuses for a command that could not be run, as in shells: not found, not executable; and 125, as in env(1), for a
/// failure of this program.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const FAILED: u8 = 125;

/// Where a task with a root of its own sees its directories.
const TASK_DIR: &str = "/task";

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        nomad-driver-exec2 run -- env\n  \
        nomad-driver-exec2 run --unveil r:/var/log -- ls /var/log\n  \
        nomad-driver-exec2 run --user www-data --unveil r:/srv/www --work-dir /srv/www --memory 200 -- python3 -m http.server\n  \
        nomad-driver-exec2 run --cap-add net_bind_service -- python3 -m http.server 80\n\n\
        The exit status is the command's, or 128 + N if signal N ended it; 125 if the sandbox could not be set up or the output of a successful command was lost, \
        126 if the command is not executable, 127 if it was not found.")]
pub(super) struct Args {
    /// Grant an absolute path: MODES are any of r (read), w (write), x (execute, with r), c (create); may be repeated
    #[arg(long, value_name = "MODES:PATH")]
    unveil: Vec<Unveil>,
    /// Mount a file or directory of the host at another path, read-only with :ro; may be repeated
    #[arg(long, value_name = "SOURCE:DESTINATION[:ro]", value_parser = volume)]
    volume: Vec<AskedVolume>,
    /// Give the command a device of the host, at another path below /dev or with fewer of the permissions rwm; may be repeated
    #[arg(long, value_name = "SOURCE[:PATH[:PERMISSIONS]]", value_parser = device)]
    device: Vec<AskedDevice>,
    /// Run as this user: a name, a uid, uid:gid, or nomad-N [default: an unused one of nomad-90000 to nomad-99999]
    #[arg(long)]
    user: Option<String>,
    /// Limit the memory, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(1..))]
    memory: Option<i64>,
    /// Limit the CPU, in MHz
    #[arg(long, value_name = "MHZ", value_parser = clap::value_parser!(i64).range(1..))]
    cpu: Option<i64>,
    /// Limit the command's processes, getrlimit(2), for example nofile=1024:4096; may be repeated
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = ulimit)]
    ulimit: Vec<(String, Rlimit)>,
    /// Let the command bind only to this TCP port or range, for example 8000-8010; may be repeated; none: to no port
    #[arg(long, value_name = "PORT", value_parser = port)]
    bind: Option<Vec<Option<PortName>>>,
    /// Let the command connect only to this TCP port or range; may be repeated; none: to no port
    #[arg(long, value_name = "PORT", value_parser = port)]
    connect: Option<Vec<Option<PortName>>>,
    /// Let the command bind only to this UDP port or range; may be repeated; none: to no port
    #[arg(long, value_name = "PORT", value_parser = port)]
    bind_udp: Option<Vec<Option<PortName>>>,
    /// Let the command send only to this UDP port or range; may be repeated; none: to no port
    #[arg(long, value_name = "PORT", value_parser = port)]
    connect_udp: Option<Vec<Option<PortName>>>,
    /// Grant a capability, for example net_bind_service; may be repeated
    #[arg(long, value_name = "CAP", value_parser = capability)]
    cap_add: Vec<String>,
    /// Which system calls the command may make: all but those of some groups, or all
    #[arg(long, value_name = "PROFILE", default_value = "default")]
    seccomp: Profile,
    /// Allow a group of system calls, for example io_uring; may be repeated
    #[arg(long, value_name = "GROUP", value_parser = seccomp_group())]
    seccomp_allow: Vec<GroupSet>,
    /// Set a variable, or pass on the caller's variable of this name; may be repeated [default: PATH, TERM, LANG, LC_*, TZ]
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Start in this directory, absolute or relative to the task's own [default: local]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Root directory of the task: private, with nothing in it but what is unveiled, or the host's
    #[arg(long, value_name = "ROOT", default_value = "private")]
    root: RootKind,
    /// Grant only the paths of --unveil: no system paths, not even the task's own directories
    #[arg(long)]
    no_defaults: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command and returns its exit status.
pub(super) fn main(args: &Args) -> ExitCode {
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("nomad-driver-exec2: {}\n", causes(&error)));
            ExitCode::from(status_of(&error))
        }
    }
}

fn status_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<LaunchError>() {
        Some(LaunchError::Start(StartError::Failed(failure))) => match failure.exec_errno() {
            Some(nix::errno::Errno::ENOENT) => NOT_FOUND,
            Some(_) => NOT_EXECUTABLE,
            None => FAILED,
        },
        _ => FAILED,
    }
}

fn require_root() -> anyhow::Result<()> {
    if !geteuid().is_root() {
        bail!(
            "run needs root: it creates namespaces and changes its user; try sudo nomad-driver-exec2 run …"
        );
    }
    Ok(())
}

fn run(args: &Args) -> anyhow::Result<u8> {
    require_root()?;
    let ignored = sys::signals::ignored();
    // If SIGCHLD is ignored, the exit statuses of children are lost.
    sys::signals::reset(libc::SIGCHLD);
    let id = RunId::own().context("failed to identify this process")?;
    let (command, rest) = command(args)?;
    let capabilities = CapList::from_names(&args.cap_add)?;
    let asked_env = environment::asked(&args.env, |name| std::env::var_os(name))?;
    let limits = limits(args)?;
    let user = match &args.user {
        Some(name) => users::lookup(name)?,
        None => free_user::find(id.seed())?,
    };
    sweep();
    let scratch = match args.root {
        RootKind::Private => None,
        RootKind::Host => Some(scratch(&user)?),
    };
    let task_dir = scratch.as_ref().map_or(Path::new(TASK_DIR), Scratch::root).to_owned();
    // Dropped before the directories on every return path.
    let cgroup = OwnCgroup::new(id, &asked(args))?;
    let plugin = PluginConfig::default();
    let ulimit = args.ulimit.iter().cloned().collect();
    let policy = policy(args, capabilities.set(), &plugin, &ulimit);
    let ports = [&args.bind, &args.connect, &args.bind_udp, &args.connect_udp]
        .map(|names| names.as_deref().map(ports));
    let ask = Ask {
        ulimit: &ulimit,
        ..ask(args, capabilities, Lists([0, 1, 2, 3].map(|right: usize| ports[right].as_deref())))
    };
    let mut env = environment::of_command(&asked_env, std::env::vars_os());
    env.extend(scratch::variables(&task_dir));
    let stdio = Stdio::new(&user)?;
    let terminal = stdio.terminal_number();
    let request = Request {
        id: TaskId::new(id.to_string(), "", &command)?,
        user,
        program: &command,
        args: &rest,
        env: &env,
        root: &task_dir,
        dirs: TaskDirs::Scratch,
        logs: Logs::Inherited(Foreground { ignored, terminal }),
        network: None,
        names: Names::default(),
        ports: &[],
        cgroup: cgroup.get().map(Cgroup::path),
        limits,
        ask,
    };
    let mut spec = TaskSpec::new(request, &policy)?;
    environment::check(&asked_env, &spec)?;
    spec.plan.landlock.rules.extend(terminal.map(|_| own_terminal()));
    let Finished { ended, copied } = supervise(&spec, ignored, stdio)?;
    if ended.is_oom_killed() {
        say_why_killed(args.memory.is_some() && cgroup.reached_its_limit());
    }
    Ok(status_of_end(ended, copied, || drop((cgroup, scratch))))
}

/// What the options ask for.
fn ask<'a>(args: &'a Args, cap_add: CapList, network: Lists<'a>) -> Ask<'a> {
    Ask {
        unveil: &args.unveil,
        cap_add,
        work_dir: args.work_dir.as_deref(),
        volumes: &args.volume,
        devices: &args.device,
        network,
        seccomp: Some(args.seccomp),
        seccomp_allow: args.seccomp_allow.iter().copied().collect(),
        ..Ask::default()
    }
}

static NO_IDS: IdRanges = IdRanges::NONE;

/// Who calls this is root, and decides.
fn policy<'a>(args: &Args, allow_caps: CapSet, plugin: &'a PluginConfig, ulimit: &'a Rlimits) -> Policy<'a> {
    Policy {
        own_root: args.root == RootKind::Private,
        unveil_defaults: !args.no_defaults,
        unveil_by_task: true,
        unveil_allow: &[],
        unveil_deny: &[],
        allow_caps,
        ulimit,
        pids_max: 0,
        memory_swap: -1,
        denied_uids: &NO_IDS,
        denied_gids: &NO_IDS,
        allow_seccomp: Allowed::EVERYTHING,
        ..plugin.policy()
    }
}

/// `clean_up` is for the case that a signal ends this process.
fn status_of_end(ended: Ended, copied: Copied, clean_up: impl FnOnce()) -> u8 {
    match copied {
        Copied::Interrupted(number) => {
            clean_up();
            let _ = sys::signals::act_by_default(number, false);
            FAILED
        }
        Copied::Failed if ended.exit.code == 0 => FAILED,
        Copied::All | Copied::Failed => u8::try_from(ended.exit.code).unwrap_or(FAILED),
    }
}

/// `own`: the OOM killer acted because the command reached its own limit.
fn say_why_killed(own: bool) {
    let why = if own {
        "it used more memory than --memory allows"
    } else {
        "the host, or a cgroup above its own, was out of memory"
    };
    say(&format!("nomad-driver-exec2: the command was killed because {why}\n"));
}

/// Checks the name of one capability while the command line is parsed.
fn capability(name: &str) -> Result<String, UnknownCapability> {
    CapList::from_names([name]).map(|_| name.to_owned())
}

/// Reads the name of one group of system calls.
fn seccomp_group() -> impl TypedValueParser<Value = GroupSet> {
    let names = GROUPS.iter().map(|group| PossibleValue::new(group.name).help(group.why));
    PossibleValuesParser::new(names).map(|name| GroupSet::named(&name).unwrap_or_default())
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

/// Reads `SOURCE[:PATH[:PERMISSIONS]]`. What the parts may be is decided later, as for a job.
fn device(text: &str) -> Result<AskedDevice, Infallible> {
    let mut parts = text.splitn(3, ':');
    let source = parts.next().unwrap_or_default();
    Ok(AskedDevice {
        source: source.to_owned(),
        destination: parts.next().filter(|path| !path.is_empty()).unwrap_or(source).to_owned(),
        permissions: parts.next().unwrap_or("rwm").to_owned(),
    })
}

/// Reads `PORT`, `PORT-PORT` or `none`.
fn port(text: &str) -> Result<Option<PortName>, String> {
    let name = match text {
        "none" => return Ok(None),
        text => text.parse(),
    };
    match name {
        Ok(name @ PortName::Range(..)) => Ok(Some(name)),
        _ => Err("write a port from 0 to 65535, a range such as 8000-8010, or none".to_owned()),
    }
}

/// The ports of one option.
fn ports(names: &[Option<PortName>]) -> Vec<PortName> {
    names.iter().flatten().cloned().collect()
}

/// Reads `NAME=SOFT[:HARD]`.
fn ulimit(text: &str) -> Result<(String, Rlimit), String> {
    let (name, limit) = text.split_once('=').ok_or("write NAME=VALUE or NAME=SOFT:HARD")?;
    let limit = rlimits::parse(name, limit);
    Ok((
        name.to_owned(),
        limit.map_err(|malformed| format!("{}; write {}", malformed.problem, malformed.write))?,
    ))
}

/// Reads `SOURCE:DESTINATION[:ro]`.
fn volume(text: &str) -> Result<AskedVolume, String> {
    let (paths, read_only) = match text.strip_suffix(":ro") {
        Some(paths) => (paths, true),
        None => (text, false),
    };
    let (source, destination) = paths
        .split_once(':')
        .filter(|(_, destination)| !destination.contains(':'))
        .filter(|both| [both.0, both.1].iter().all(|path| is_plain(Path::new(path))))
        .ok_or(
            "write SOURCE:DESTINATION or SOURCE:DESTINATION:ro, with two absolute paths without `..`; for a destination in the command's own \
             directory, for example /task/local/data",
        )?;
    Ok(AskedVolume {
        source: source.to_owned(),
        destination: destination.to_owned(),
        read_only,
        propagation: "private".to_owned(),
        selinux_label: String::new(),
    })
}

/// The command and its arguments, which must be text: a task's spec holds only text.
fn command(args: &Args) -> anyhow::Result<(String, Vec<String>)> {
    let text = |(place, arg): (usize, &OsString)| {
        arg.clone().into_string().map_err(|arg| {
            let what = if place == 0 { "the command".to_owned() } else { format!("argument {place}") };
            anyhow::anyhow!("{what} {arg:?} is not UTF-8, which tasks do not support; pass a directory or a shell pattern instead")
        })
    };
    let mut all = args.command.iter().enumerate().map(text);
    let command = all.next().context("the command is missing; write it after --")??;
    Ok((command, all.collect::<Result<_, _>>()?))
}

/// Grants /dev/tty, which is the terminal that the task gets.
fn own_terminal() -> Rule {
    Rule {
        access: Access::READ | Access::WRITE,
        place: Place::host("/dev/tty"),
        named_by: NamedBy::Driver,
        missing: Missing::Skip,
    }
}

/// Removes what killed `run`s left behind. Their tasks have already ended.
fn sweep() {
    run_id::sweep(Path::new(RUN_DIR));
    own_cgroup::sweep();
}

/// The task's directories on the host. Those of earlier `run`s that were killed are removed.
fn scratch(user: &User) -> anyhow::Result<Scratch> {
    let base = Base::find(std::env::var_os("TMPDIR"))?;
    scratch::sweep(&base);
    Ok(Scratch::new(&base, user)?)
}

/// How the task ended, and whether its output is complete.
struct Finished {
    ended: Ended,
    copied: Copied,
}

/// What happened to the output that was still to be copied when the task had ended.
enum Copied {
    All,
    /// Some output is lost: the command must not look successful.
    Failed,
    /// This signal ends `run` before all output is copied.
    Interrupted(i32),
}

/// Supervises the task from start to end.
fn supervise(spec: &TaskSpec, ignored: Bits, stdio: Stdio) -> anyhow::Result<Finished> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(async {
        let launcher = Launcher::new(Path::new(RUN_DIR))?;
        // Before the start, so that no signal is lost to the command once it runs.
        let signals = Signals::listen(ignored).context("failed to listen for signals")?;
        let (launched, mut running) = stdio.during(|| {
            let launched = launcher.launch(spec);
            signals.start_has_ended();
            launched
        })?;
        let launched = launched.context("failed to start the command")?;
        if matches!(spec.plan.root, Root::Private { defaults: true }) {
            // No plugin need run on this host, and a long task is to see a new resolv.conf.
            launcher.keep_copies();
        }
        let task =
            Task::adopt(spec.id.clone(), launched, &EventBus::default()).map_err(|(error, launched)| {
                launched.abandon();
                error
            })?;
        let mut attendant = Attendant::new(Arc::clone(&task), signals, running.terminal.take())?;
        let ended = attendant.until_the_end().await;
        // The terminal keeps the task's mode until the last line is copied.
        let copied = attendant.until_copied(running.finish()?).await;
        drop(attendant);
        // A failed cleanup must not hide how the command ended.
        if let Err(error) = task.forget() {
            say(&format!("nomad-driver-exec2: {error}\n"));
        }
        Ok(Finished { ended, copied })
    })
}

/// Connects a running task with the caller of `run`.
struct Attendant {
    task: Arc<Task>,
    signals: Signals,
    terminal: Option<(Terminal, Watch)>,
    /// A signal that arrived after the command had ended, but before its end was reported here.
    late: Option<i32>,
}

impl Attendant {
    fn new(task: Arc<Task>, signals: Signals, terminal: Option<Terminal>) -> anyhow::Result<Self> {
        let watched = |terminal: Terminal| terminal.watch().map(|watch| (terminal, watch));
        let terminal = terminal.map(watched).transpose().context("failed to watch the terminal")?;
        if let Some((terminal, _)) = &terminal {
            // The caller's terminal may have been resized during the start.
            terminal.resize();
        }
        Ok(Self { task, signals, terminal, late: None })
    }

    async fn until_the_end(&mut self) -> Ended {
        loop {
            let terminal = self.terminal.as_mut();
            tokio::select! {
                ended = self.task.wait() => return ended,
                number = self.signals.next() => self.on_signal(number),
                () = pass_on(terminal) => {
                    if let Some((terminal, _)) = self.terminal.take_if(|(terminal, _)| terminal.is_hung_up()) {
                        terminal.hang_up();
                    }
                    self.adapt_terminal();
                    if self.task.process.is_some_and(|process| is_stopped(process.pid)) {
                        // Ctrl-Z at the task's own terminal: stop the whole job of the caller's shell.
                        self.suspend(libc::SIGTSTP, true);
                    }
                }
            }
        }
    }

    /// Waits until the remaining output is copied. The command has ended, so signals are for `run` itself.
    async fn until_copied(&mut self, mut finished: oneshot::Receiver<bool>) -> Copied {
        if let Some((terminal, _)) = &mut self.terminal {
            terminal.let_keys_interrupt();
        }
        loop {
            let number = match self.late.take() {
                Some(late) => late,
                None => tokio::select! {
                    copied = &mut finished => {
                        return if copied == Ok(true) { Copied::All } else { Copied::Failed };
                    }
                    number = self.signals.next() => number,
                },
            };
            match Meaning::of(number) {
                Meaning::Stop => {
                    self.restore_terminal();
                    let _ = sys::signals::act_by_default(number, false);
                }
                Meaning::Forward if number == libc::SIGWINCH => {}
                Meaning::Continue => {}
                Meaning::Forward | Meaning::End => return Copied::Interrupted(number),
            }
        }
    }

    fn on_signal(&mut self, number: i32) {
        match Meaning::of(number) {
            Meaning::Stop => self.suspend(number, false),
            Meaning::End => {
                // Closed, not only restored: the thread that copies the output would set the task's mode again.
                drop(self.terminal.take());
                // The kernel kills the task when this process ends.
                let _ = sys::signals::act_by_default(number, false);
            }
            Meaning::Continue => self.resume(),
            Meaning::Forward => self.forward(number),
        }
    }

    fn forward(&mut self, number: i32) {
        match &self.terminal {
            Some((terminal, _)) if number == libc::SIGWINCH => terminal.resize(),
            _ if self.task.process.is_none_or(|process| has_ended(process.pid)) => self.late = Some(number),
            Some((terminal, _)) if terminal.signal(number) => {}
            _ => self.signal(number),
        }
    }

    fn signal(&self, number: i32) {
        let Some(number) = SignalNumber::new(number) else { return };
        if let Err(error) = self.task.signal(number) {
            say(&format!("nomad-driver-exec2: {error}\n"));
        }
    }

    /// Stops the task and then this process, so that the caller's shell gets control; returns when it is continued.
    fn suspend(&mut self, signal: i32, whole_group: bool) {
        self.signal(libc::SIGSTOP);
        self.restore_terminal();
        if let Err(errno) = sys::signals::act_by_default(signal, whole_group) {
            say(&format!("nomad-driver-exec2: failed to stop: {}\n", errno.desc()));
        }
        self.resume();
    }

    fn resume(&mut self) {
        if let Some((terminal, _)) = &mut self.terminal {
            terminal.resize();
            terminal.adapt();
        }
        self.signal(libc::SIGCONT);
    }

    fn adapt_terminal(&mut self) {
        if let Some((terminal, _)) = &mut self.terminal {
            terminal.adapt();
        }
    }

    fn restore_terminal(&mut self) {
        if let Some((terminal, _)) = &mut self.terminal {
            terminal.restore();
        }
    }
}

/// Forwards typed input until the task has to be checked; never returns without a terminal.
async fn pass_on(terminal: Option<&mut (Terminal, Watch)>) {
    match terminal {
        Some((terminal, watch)) => terminal.pass_on(watch).await,
        None => std::future::pending().await,
    }
}

/// Whether the process was stopped by a signal: state T in proc_pid_stat(5).
fn is_stopped(pid: i32) -> bool {
    state(pid) == Some(b'T')
}

fn has_ended(pid: i32) -> bool {
    matches!(state(pid), None | Some(b'Z' | b'X'))
}

/// The state in proc_pid_stat(5); none if there is no such process.
fn state(pid: i32) -> Option<u8> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command name in parentheses, which may hold any bytes.
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    stat.get(name_ends + 2).copied()
}

fn limits(args: &Args) -> anyhow::Result<Limits> {
    let mhz_per_core: Option<NonZeroU64> = match args.cpu {
        Some(_) => Some(
            mhz_per_core().context("the kernel does not report the speed of this CPU; leave out --cpu")?,
        ),
        None => None,
    };
    let asked = Limits::plan(
        &ResourceRequest {
            memory_mb: args.memory.unwrap_or(0),
            memory_max_mb: 0,
            cpu_mhz: args.cpu.unwrap_or(0),
            cores: None,
            oom_group: false,
        },
        mhz_per_core,
    );
    let none = Limits::UNLIMITED;
    Ok(Limits {
        memory_max: if args.memory.is_some() { asked.memory_max } else { none.memory_max },
        cpu_max: if args.cpu.is_some() { asked.cpu_max } else { none.cpu_max },
        ..none
    })
}

/// The controllers that the requested limits need.
fn asked(args: &Args) -> Vec<&'static str> {
    let all = [("memory", args.memory.is_some()), ("cpu", args.cpu.is_some())];
    all.into_iter().filter(|(_, asked)| *asked).map(|(name, _)| name).collect()
}
