//! `run`: the same sandbox without Nomad, through the same code.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::unistd::geteuid;
use tokio::signal::unix::{SignalKind, signal};

use super::{cpu::mhz_per_core, say, scratch::Scratch};
use crate::cgroup::{Cgroup, Limits, ResourceRequest};
use crate::config::{PluginConfig, TaskConfig};
use crate::sandbox::capabilities::CapList;
use crate::sandbox::unveil::Unveil;
use crate::shim::report::StartError;
use crate::task::launch::{LaunchError, Launcher};
use crate::task::notice::Notices;
use crate::task::run_dir::RUN_DIR;
use crate::task::running::{Names, Task};
use crate::task::signal::SignalNumber;
use crate::task::spec::{Logs, Request, TaskSpec};
use crate::users;

/// Exit statuses of a command that could not be run, as shells have them: not found, not executable; and 125, as env(1),
/// for a failure of this program itself.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const FAILED: u8 = 125;

/// Where `run` makes its cgroups: not below Nomad's, which the agent looks after.
const CGROUPS: &str = "nomad-driver-exec2.slice";
/// Nomad's range for dynamic users, of which `run` takes one when no user is named.
const DYNAMIC_USERS: std::ops::Range<u32> = 80_000..90_000;

/// Signals that are passed on to the task. Everything else acts on this program, as on any.
const FORWARDED: [i32; 7] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        nomad-driver-exec2 run -- env\n  \
        nomad-driver-exec2 run --unveil r:/etc/passwd -- cat /etc/passwd\n  \
        nomad-driver-exec2 run --user www-data --unveil r:/srv/www --memory 200 --cpu 500 -- python3 -m http.server\n  \
        nomad-driver-exec2 run --cap-add net_bind_service -- python3 -m http.server 80\n\n\
        The exit status is the command's, or 128 + N if signal N ended it; 125 if the sandbox could not be made, \
        126 if the command may not be executed, 127 if it was not found.")]
pub struct Args {
    /// Grant a path: MODE is any of r (read), w (write), x (execute), c (create); may be repeated
    #[arg(long, value_name = "MODE:PATH")]
    unveil: Vec<Unveil>,
    /// Run as this user: a name, a uid, uid:gid, or nomad-N [default: an unused nomad-N]
    #[arg(long)]
    user: Option<String>,
    /// Limit the memory, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(1..))]
    memory: Option<i64>,
    /// Limit the CPU, in MHz
    #[arg(long, value_name = "MHZ", value_parser = clap::value_parser!(i64).range(1..))]
    cpu: Option<i64>,
    /// Grant a capability, for example net_bind_service; may be repeated
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Start in this directory, absolute or relative to the task's own [default: local]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Grant nothing but what --unveil says: no system paths, not the task's own directories
    #[arg(long)]
    no_defaults: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command and returns its exit status.
pub fn main(args: Args) -> ExitCode {
    match run(&args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("nomad-driver-exec2: {error:#}\n"));
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

fn run(args: &Args) -> anyhow::Result<u8> {
    if !geteuid().is_root() {
        bail!(
            "run needs root: it makes namespaces and becomes another user; try sudo nomad-driver-exec2 run …"
        );
    }
    let id = std::process::id();
    let span = DYNAMIC_USERS.end - DYNAMIC_USERS.start;
    let user = args.user.clone().unwrap_or_else(|| format!("nomad-{}", DYNAMIC_USERS.start + id % span));
    let user = users::lookup(&user)?;
    let scratch = Scratch::new(&user).context("make the task's directories")?;
    let limits = limits(args)?;
    let cgroup = own_cgroup(args, id)?;
    let capabilities = CapList::from_names(&args.cap_add)?;
    let plugin = PluginConfig {
        unveil_defaults: !args.no_defaults,
        unveil_by_task: true,
        allow_caps: capabilities.set(),
        ..PluginConfig::default()
    };
    let (command, rest) = args.command.split_first().context("no command")?;
    let config = TaskConfig {
        command: command.clone(),
        args: rest.to_vec(),
        unveil: args.unveil.clone(),
        oom_score_adj: 0,
        cap_add: capabilities,
        cap_drop: CapList::default(),
        work_dir: args.work_dir.clone(),
        oom_group: false,
    };
    let env = std::env::vars().chain(scratch.variables()).collect();
    let task_id = format!("run-{id}");
    let spec = TaskSpec::new(
        &Request {
            id: &task_id,
            alloc_id: "",
            name: command,
            user,
            env: &env,
            root: scratch.root(),
            logs: Logs::Inherited,
            netns: None,
            cgroup: cgroup.as_ref().map(Cgroup::path),
            limits,
            config: &config,
        },
        &plugin,
    )?;
    let ended = supervise(&spec);
    if let Some(cgroup) = cgroup {
        let slice = cgroup.path().parent().map(Path::to_owned);
        cgroup.remove()?;
        // The slice goes with its last cgroup; another `run` may be in it.
        let _ = slice.map(std::fs::remove_dir);
    }
    ended
}

/// From start to end of the task, with the terminal's signals passed on.
fn supervise(spec: &TaskSpec) -> anyhow::Result<u8> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        // Before the start: a Ctrl-C in between must not leave a task behind.
        let signals = FORWARDED.map(|number| signal(SignalKind::from_raw(number)));
        let launched = Launcher::new(Path::new(RUN_DIR))?.launch(spec)?;
        let names = Names { id: spec.id.clone(), alloc_id: String::new(), name: spec.name.clone() };
        let notices = Notices::default();
        let task = Task::adopt(names, launched, &notices).map_err(|(error, launched)| {
            launched.abandon();
            error
        })?;
        for (number, signals) in FORWARDED.into_iter().zip(signals) {
            forward(number, signals.context("listen for signals")?, Arc::clone(&task));
        }
        let ended = task.wait().await;
        task.forget()?;
        if ended.oom_killed {
            say("nomad-driver-exec2: the command was killed because it used more memory than --memory allows\n");
        }
        Ok(u8::try_from(ended.exit.code).unwrap_or(FAILED))
    })
}

fn forward(number: i32, mut signals: tokio::signal::unix::Signal, task: Arc<Task>) {
    let Some(number) = SignalNumber::new(number) else { return };
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            if let Err(error) = task.signal(number) {
                say(&format!("nomad-driver-exec2: {error}\n"));
            }
        }
    });
}

fn limits(args: &Args) -> anyhow::Result<Limits> {
    let mhz_per_core: Option<NonZeroU64> = match args.cpu {
        Some(_) => {
            Some(mhz_per_core().context("the kernel does not tell how fast this CPU is; leave out --cpu")?)
        }
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

/// A cgroup for the task. Where there is none to be had, the task runs without, unless a limit was asked for.
fn own_cgroup(args: &Args, id: u32) -> anyhow::Result<Option<Cgroup>> {
    let path = Path::new(crate::cgroup::MOUNT_POINT).join(CGROUPS).join(format!("run-{id}.scope"));
    let asked: Vec<&str> = [("memory", args.memory.is_some()), ("cpu", args.cpu.is_some())]
        .into_iter()
        .filter(|(_, asked)| *asked)
        .map(|(name, _)| name)
        .collect();
    let created = match Cgroup::create(&path) {
        Ok(created) => created,
        Err(error) if asked.is_empty() => {
            say(&format!(
                "nomad-driver-exec2: running without a cgroup, so memory and CPU are not limited: {error}\n"
            ));
            return Ok(None);
        }
        Err(error) => bail!("the {} limit cannot be set: {error}", asked.join(" and ")),
    };
    for missing in created.missing {
        if asked.contains(&missing.name) {
            created.cgroup.remove()?;
            bail!("the {} limit cannot be set: {}", missing.name, missing.why);
        }
    }
    Ok(Some(created.cgroup))
}
