//! A running command and its caller: signals, the terminal, and the output that is left when the command has ended.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::sync::oneshot;

use crate::cli::say;
use crate::cli::signals::{Meaning, Signals};
use crate::cli::stdio::Stdio;
use crate::cli::terminal::{Terminal, Watch};
use crate::record::run_dir::RUN_DIR;
use crate::sandbox::plan::Root;
use crate::sys;
use crate::sys::signals::Bits;
use crate::task::end::Ended;
use crate::task::events::EventBus;
use crate::task::launch::Launcher;
use crate::task::running::Task;
use crate::task::signal::SignalNumber;
use crate::task::spec::TaskSpec;

/// How the task ended, and whether its output is complete.
pub(super) struct Finished {
    pub(super) ended: Ended,
    pub(super) copied: Copied,
}

/// What happened to the output that was still to be copied when the task had ended.
pub(super) enum Copied {
    All,
    /// Some output is lost: the command must not look successful.
    Failed,
    /// This signal ends `run` before all output is copied.
    Interrupted(i32),
}

/// Supervises the task from start to end.
pub(super) fn supervise(spec: &TaskSpec, ignored: Bits, stdio: Stdio) -> anyhow::Result<Finished> {
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
    state(pid) == Some('T')
}

fn has_ended(pid: i32) -> bool {
    matches!(state(pid), None | Some('Z' | 'X'))
}

/// The state in proc_pid_stat(5); none if there is no such process.
fn state(pid: i32) -> Option<char> {
    sys::stat::field(&std::fs::read(format!("/proc/{pid}/stat")).ok()?, 3)
}
