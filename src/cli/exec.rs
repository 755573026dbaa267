//! `exec`: a command in a running task, without Nomad, by the same code as alloc exec.

mod find;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::relay::{Gone, Relay};
use super::signals::{Meaning, Signals};
use super::terminal::modes::Modes;
use super::{causes, say};
use crate::cgroup::{Cgroup, Owner};
use crate::record::run_dir::RUN_DIR;
use crate::shim::exit::Exit;
use crate::shim::report::SessionEnd;
use crate::sys;
use crate::task::exec::{NotRun, Session, Target, Wanted, Wiring};
use crate::task::launch::Launcher;
use find::Found;

/// Exit status for a failure of this program, as in `run`.
const FAILED: u8 = 125;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
        nomad-driver-exec2 exec\n  \
        nomad-driver-exec2 exec web -- ps aux\n  \
        nomad-driver-exec2 exec 7a3c/web -- bash\n\n\
        The command has the user, the root, the limits and the environment of the task. It gets a terminal if standard input and \
        output are one. Everything that it has started ends with it.\n\n\
        The exit status is the command's, or 128 + N if signal N ended it; 125 if there is no such task, 126 if the command could \
        not be run, 127 if it was not found.")]
pub(super) struct Args {
    /// The task: its name, its id, or ALLOC or ALLOC/TASK with the beginning of the allocation's id; without it, list all
    #[arg(value_name = "TASK")]
    task: Option<String>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command and returns its exit status.
pub(super) fn main(args: &Args) -> ExitCode {
    match exec(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("nomad-driver-exec2: {}\n", causes(&error)));
            ExitCode::from(FAILED)
        }
    }
}

fn exec(args: &Args) -> anyhow::Result<u8> {
    if !geteuid().is_root() {
        bail!("exec needs root: it enters the namespaces of a task; try sudo nomad-driver-exec2 exec …");
    }
    let launcher = Launcher::new(Path::new(RUN_DIR))?;
    let tasks = find::running(launcher.entries());
    let Some(name) = &args.task else {
        if !args.command.is_empty() {
            bail!("the task is missing; write its name before --\n{}", find::table(&tasks));
        }
        return list(&tasks);
    };
    if args.command.is_empty() {
        bail!("the command is missing; write it after --");
    }
    let command = args.command.iter().map(|arg| {
        let text = arg.clone().into_string();
        text.map_err(|arg| anyhow::anyhow!("{arg:?} is not UTF-8, which tasks do not support"))
    });
    let command = command.collect::<anyhow::Result<_>>()?;
    let target = target(find::choose(tasks, name)?)?;
    let at_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let wiring = match at_terminal {
        true => {
            Wiring::Terminal { term: std::env::var("TERM").ok(), size: sys::terminal::size(io::stdin()).ok() }
        }
        false => Wiring::Pipes,
    };
    // If SIGCHLD is ignored, the exit statuses of children are lost.
    sys::signals::reset(libc::SIGCHLD);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before there is a session, whose terminal may have the same number.
        let terminal = at_terminal.then(Terminal::open).transpose().context("failed to open the terminal")?;
        let session = launcher.enter(target, &Wanted { command, wiring })?;
        match attend(session, terminal).await {
            Ok(ended) => Ok(u8::try_from(Exit::from_wait_status(ended.status).code).unwrap_or(FAILED)),
            Err(Stopped::NotRun(error)) => {
                say(&format!("nomad-driver-exec2: {error}\n"));
                Ok(u8::try_from(error.code()).unwrap_or(FAILED))
            }
            Err(Stopped::System(error)) => Err(error.into()),
        }
    })
}

fn list(tasks: &[Found]) -> anyhow::Result<u8> {
    use io::Write;
    let text = if tasks.is_empty() {
        "No task of this driver is running on this host.\n".to_owned()
    } else {
        find::table(tasks)
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to list the tasks")
        }
        _ => Ok(0),
    }
}

fn target(found: Found) -> anyhow::Result<Target> {
    let Found { run_dir, spec } = found;
    let shim = run_dir.shim().map(|shim| shim.open()).transpose()?.flatten();
    let shim = shim.context("the task has ended; a command can only be run in a running task")?;
    let cgroup = spec.plan.resources.cgroup.as_deref().map(Cgroup::open).transpose()?.map(Arc::new);
    Ok(Target { shim, run_dir, cgroup, owner: Owner::Cli, turn: None })
}

/// Why the session was given up.
#[derive(Debug)]
enum Stopped {
    NotRun(NotRun),
    System(io::Error),
}

impl From<NotRun> for Stopped {
    fn from(error: NotRun) -> Self {
        Self::NotRun(error)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// Connects a session with the caller until it ends.
async fn attend(mut session: Session, terminal: Option<Terminal>) -> Result<SessionEnd, Stopped> {
    let mut signals = Signals::listen(sys::signals::ignored())?;
    let started = session.started().await;
    signals.start_has_ended();
    let mut connected = Connected::new(&mut session, started?, terminal)?;
    let ended = loop {
        tokio::select! {
            ended = session.ended() => break ended,
            number = signals.next() => connected.on_signal(number),
        }
    };
    let mut copied = connected.finish();
    loop {
        tokio::select! {
            done = &mut copied => {
                done.unwrap_or_else(|_| Err(io::Error::other("the copying thread panicked")))?;
                return Ok(ended?);
            }
            number = signals.next() => connected.on_signal(number),
        }
    }
}

/// The caller's terminal.
struct Terminal {
    /// Opened again, so that only this process does not wait for it.
    file: Arc<File>,
    modes: Modes,
}

impl Terminal {
    fn open() -> io::Result<Self> {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = Arc::new(File::from(open("/proc/self/fd/0", flags, Mode::empty())?));
        // All keys are for the session, so the mode of its terminal does not matter.
        let mut modes = Modes::new(Arc::clone(&file), Arc::clone(&file));
        modes.whole = true;
        Ok(Self { file, modes })
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.modes.close();
    }
}

/// The threads that copy, and the two terminals.
struct Connected {
    outputs: Vec<Relay>,
    /// Not waited for: the caller's input may never end.
    _input: Relay,
    terminals: Option<(Terminal, OwnedFd)>,
}

impl Connected {
    fn new(
        session: &mut Session,
        master: Option<AsyncFd<OwnedFd>>,
        terminal: Option<Terminal>,
    ) -> io::Result<Self> {
        let copy = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
        let Some((mut terminal, master)) = terminal.zip(master.map(AsyncFd::into_inner)) else {
            let ends = session.take_ends();
            let (Some(stdin), Some(stdout), Some(stderr)) = (ends.stdin, ends.stdout, ends.stderr) else {
                return Err(io::ErrorKind::NotConnected.into());
            };
            let input = Relay::start(copy(&io::stdin())?, stdin.into_inner(), Gone::Close, None)?;
            let outputs = vec![
                Relay::start(stdout.into_inner(), copy(&io::stdout())?, Gone::Close, None)?,
                Relay::start(stderr.into_inner(), copy(&io::stderr())?, Gone::Close, None)?,
            ];
            return Ok(Self { outputs, _input: input, terminals: None });
        };
        terminal.modes.adapt();
        let outputs = vec![Relay::start(copy(&master)?, copy(&terminal.file)?, Gone::Discard, None)?];
        let input = Relay::start(copy(&terminal.file)?, copy(&master)?, Gone::Close, None)?;
        let this = Self { outputs, _input: input, terminals: Some((terminal, master)) };
        this.resize();
        Ok(this)
    }

    fn resize(&self) {
        if let Some((terminal, master)) = &self.terminals
            && let Ok(size) = sys::terminal::size(&*terminal.file)
        {
            // On failure the session keeps its previous size.
            let _ = sys::terminal::set_size(master, size);
        }
    }

    /// Copies what is left of the output, in a thread of its own: its reader may block for any time.
    fn finish(&mut self) -> oneshot::Receiver<io::Result<()>> {
        let (sender, receiver) = oneshot::channel();
        let outputs = std::mem::take(&mut self.outputs);
        std::thread::spawn(move || {
            let copied: Vec<_> = outputs.into_iter().map(Relay::finish).collect();
            // After a signal the receiver is closed.
            let _ = sender.send(copied.into_iter().collect());
        });
        receiver
    }

    fn on_signal(&mut self, number: i32) {
        match Meaning::of(number) {
            Meaning::Forward if number == libc::SIGWINCH => {}
            Meaning::Continue => {}
            Meaning::Forward | Meaning::Stop | Meaning::End => {
                if let Some((terminal, _)) = &mut self.terminals {
                    terminal.modes.restore();
                }
                // If it ends this process, the helper ends the session.
                let _ = sys::signals::act_by_default(number, false);
            }
        }
        if let Some((terminal, _)) = &mut self.terminals {
            terminal.modes.adapt();
        }
        self.resize();
    }
}
