//! `run`: the driver's sandbox without Nomad, by the same code.

mod args;
mod attendant;
mod request;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use nix::unistd::geteuid;

use attendant::{Copied, Finished, supervise};
use request::{ask, asked, command, limits, policy, ports};

use super::own_cgroup::{self, OwnCgroup};
use super::run_id::{self, RunId};
use super::scratch::{self, Base, Scratch};
use super::stdio::Stdio;
use super::{causes, environment, free_user, say};
use crate::cgroup::Cgroup;
use crate::config::{PluginConfig, RootKind};
use crate::record::run_dir::RUN_DIR;
use crate::sandbox::capabilities::CapList;
use crate::sandbox::names::Names;
use crate::sandbox::network::Lists;
use crate::sandbox::place::{Missing, NamedBy, Place, Rule};
use crate::sandbox::policy::Ask;
use crate::sandbox::unveil::Access;
use crate::shim::report::StartError;
use crate::shim::spec::{Foreground, TaskDirs};
use crate::sys;
use crate::task::end::Ended;
use crate::task::id::TaskId;
use crate::task::launch::LaunchError;
use crate::task::spec::{Logs, Request, TaskSpec};
use crate::users::{self, User};

pub(super) use args::Args;

/// Exit statuses for a command that could not be run, as in shells: not found, not executable; and 125, as in env(1), for a
/// failure of this program.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const FAILED: u8 = 125;

/// Where a task with a root of its own sees its directories.
const TASK_DIR: &str = "/task";

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
