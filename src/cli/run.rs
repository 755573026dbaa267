//! `run`: the same sandbox without Nomad, through the same code.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::unistd::geteuid;
use tokio::signal::unix::{SignalKind, signal};

use super::{cpu::mhz_per_core, free_user, own_cgroup::OwnCgroup, say, scratch::Scratch};
use crate::cgroup::{Cgroup, Limits, ResourceRequest};
use crate::config::{PluginConfig, TaskConfig};
use crate::sandbox::capabilities::{CapList, CapabilityError};
use crate::sandbox::unveil::Unveil;
use crate::shim::report::StartError;
use crate::task::launch::{LaunchError, Launcher};
use crate::task::notice::Notices;
use crate::task::run_dir::RUN_DIR;
use crate::task::running::{Ended, Names, Task};
use crate::task::signal::SignalNumber;
use crate::task::spec::{Logs, Request, TaskSpec};
use crate::users;

/// Exit statuses of a command that could not be run, as shells have them: not found, not executable; and 125, as env(1),
/// for a failure of this program itself.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const FAILED: u8 = 125;

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
    /// Run as this user: a name, a uid, uid:gid, or nomad-N [default: an unused one of nomad-90000 to nomad-99999]
    #[arg(long)]
    user: Option<String>,
    /// Limit the memory, in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(i64).range(1..))]
    memory: Option<i64>,
    /// Limit the CPU, in MHz
    #[arg(long, value_name = "MHZ", value_parser = clap::value_parser!(i64).range(1..))]
    cpu: Option<i64>,
    /// Grant a capability, for example net_bind_service; may be repeated
    #[arg(long, value_name = "CAP", value_parser = capability)]
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
    let capabilities = CapList::from_names(&args.cap_add)?;
    let limits = limits(args)?;
    let user = match &args.user {
        Some(name) => users::lookup(name)?,
        None => free_user::find(id)?,
    };
    let scratch = Scratch::new(&user).context("make the task's directories")?;
    // Dropped before the directories, on every way out.
    let cgroup = OwnCgroup::new(id, &asked(args))?;
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
    let env = environment().chain(scratch.variables()).collect();
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
            cgroup: cgroup.get().map(Cgroup::path),
            limits,
            config: &config,
        },
        &plugin,
    )?;
    let ended = supervise(&spec)?;
    if ended.oom_killed {
        let own = args.memory.is_some() && cgroup.reached_its_limit();
        let why = if own {
            "it used more memory than --memory allows"
        } else {
            "no memory was left on the host, or in a cgroup above its own"
        };
        say(&format!("nomad-driver-exec2: the command was killed because {why}\n"));
    }
    Ok(u8::try_from(ended.exit.code).unwrap_or(FAILED))
}

/// One name of a capability, looked at while the command line is read.
fn capability(name: &str) -> Result<String, CapabilityError> {
    CapList::from_names([name]).map(|_| name.to_owned())
}

/// The caller's environment. Everything on the way to a task is text, so a variable that is none is left out, and named.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| match (name.into_string(), value.into_string()) {
        (Ok(name), Ok(value)) => Some((name, value)),
        (name, _) => {
            let name = name.unwrap_or_else(|name| name.to_string_lossy().into_owned());
            say(&format!(
                "nomad-driver-exec2: left out of the environment, because it is not UTF-8: {name}\n"
            ));
            None
        }
    })
}

/// From start to end of the task, with the terminal's signals passed on.
fn supervise(spec: &TaskSpec) -> anyhow::Result<Ended> {
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
        // What cannot be cleaned up must not hide how the command ended.
        if let Err(error) = task.forget() {
            say(&format!("nomad-driver-exec2: {error}\n"));
        }
        Ok(ended)
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

/// The controllers whose limits were asked for.
fn asked(args: &Args) -> Vec<&'static str> {
    let all = [("memory", args.memory.is_some()), ("cpu", args.cpu.is_some())];
    all.into_iter().filter(|(_, asked)| *asked).map(|(name, _)| name).collect()
}
