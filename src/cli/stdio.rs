//! The task's standard input, output and error, in place of the caller's.
//!
//! * A terminal becomes a pseudo-terminal; see [`super::terminal`]. There is only one, for the first stream that is a terminal.
//! * Output to a pipe, a file, a socket or a second terminal goes through a pipe that belongs to the task's user. So the task
//!   can open /dev/stdout again, as under Nomad, without a change to the owner of the caller's pipe or file. The task does not
//!   notice a full disk, so `run` fails instead.
//! * /dev/null is opened again as for every task, see [`crate::task::null`].
//! * Everything else, such as standard input from a pipe or a file, is the caller's own.

use std::io::pipe;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::Context;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, isatty};
use tokio::sync::oneshot;

use super::relay::{Gone, OnChange, Relay};
use super::say;
use super::terminal::Terminal;
use crate::sys;
use crate::task::null;
use crate::users::User;

/// Above the descriptor numbers that the launch assigns in the shim.
const FIRST_SAVED: RawFd = sys::clone::FIRST_FREE_FD;

/// The task's standard streams, ready to be installed.
#[derive(Debug)]
pub(super) struct Stdio {
    /// The caller's own streams.
    own: [OwnedFd; 3],
    /// The replacements; none keeps the caller's own.
    given: [Option<OwnedFd>; 3],
    copies: Vec<(OwnedFd, OwnedFd, Gone, Option<OnChange>)>,
    terminal: Option<Terminal>,
    terminal_number: Option<RawFd>,
}

/// The copying of output while the task runs.
#[derive(Debug)]
pub(super) struct Running {
    relays: Vec<Relay>,
    pub terminal: Option<Terminal>,
}

impl Stdio {
    pub(super) fn new(user: &User) -> anyhow::Result<Self> {
        let stdio = [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()]
            .map(|fd| sys::fd::duplicate_from(fd, FIRST_SAVED));
        let [stdin, stdout, stderr] = stdio;
        let context = "failed to duplicate a standard stream";
        let own = [stdin.context(context)?, stdout.context(context)?, stderr.context(context)?];
        let mut this = Self {
            own,
            given: [None, None, None],
            copies: Vec::new(),
            terminal: None,
            terminal_number: None,
        };
        this.replace_terminals(user)?;
        this.replace_outputs(user)?;
        this.replace_null()?;
        Ok(this)
    }

    /// The sandbox has its own way to the host's /dev/null.
    fn replace_null(&mut self) -> anyhow::Result<()> {
        for (given, own) in self.given.iter_mut().zip(&self.own) {
            if given.is_none() && sys::fd::is_null(own) {
                let flags = fcntl(own, FcntlArg::F_GETFL).context("failed to look at a standard stream")?;
                let mode = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
                *given = Some(null::open(mode).context("failed to open /dev/null")?);
            }
        }
        Ok(())
    }

    fn replace_terminals(&mut self, user: &User) -> anyhow::Result<()> {
        let devices = [0, 1, 2].map(|number| sys::terminal::device(&self.own[number]).ok());
        let first = (0..).zip(devices).find(|(_, device)| device.is_some());
        let Some((number, device)) = first else { return Ok(()) };
        // Output to a second terminal is handled like output to a file.
        let is_terminal = devices.map(|other| other == device);
        let (terminal, slave) = Terminal::new(number, is_terminal[0], is_terminal[1], user)?;
        let (source, target, on_change) =
            terminal.ends().context("failed to duplicate the pseudo-terminal")?;
        self.copies.push((source, target, Gone::Discard, on_change));
        for (given, _) in self.given.iter_mut().zip(is_terminal).filter(|(_, is_terminal)| *is_terminal) {
            *given = Some(slave.try_clone().context("failed to duplicate the pseudo-terminal")?);
        }
        self.terminal = Some(terminal);
        self.terminal_number = Some(number);
        Ok(())
    }

    fn replace_outputs(&mut self, user: &User) -> anyhow::Result<()> {
        let mut made: Option<(FileStat, OwnedFd)> = None;
        for number in [1, 2] {
            let own = &self.own[number];
            let found = fstat(own).context("failed to stat a standard stream")?;
            if self.given[number].is_some() || !is_copied(&found) && !isatty(own).unwrap_or(false) {
                continue;
            }
            let shared = made.as_ref().filter(|(other, _)| is_same(other, &found));
            let given = match shared {
                // `2>&1`: one pipe, which keeps the order.
                Some((_, given)) => given.try_clone().context("failed to duplicate a pipe")?,
                None => {
                    let (source, given) = user_pipe(user).context("failed to create a pipe for the task")?;
                    let target = own.try_clone().context("failed to duplicate a standard stream")?;
                    self.copies.push((source, target, Gone::Close, None));
                    made = Some((found, given.try_clone().context("failed to duplicate a pipe")?));
                    given
                }
            };
            self.given[number] = Some(given);
        }
        Ok(())
    }

    /// The standard stream that becomes the task's controlling terminal.
    pub(super) fn terminal_number(&self) -> Option<RawFd> {
        self.terminal_number
    }

    /// Calls `start` with the task's streams installed, and then starts to copy.
    pub(super) fn during<T>(self, start: impl FnOnce() -> T) -> anyhow::Result<(T, Running)> {
        let Self { own, given, copies, mut terminal, .. } = self;
        let context = "failed to replace a standard stream";
        let streams = |number: usize| given[number].as_ref().unwrap_or(&own[number]).as_fd();
        put_in_place([streams(0), streams(1), streams(2)]).context(context)?;
        let started = start();
        put_in_place([own[0].as_fd(), own[1].as_fd(), own[2].as_fd()]).context(context)?;
        // Otherwise the task's streams would never reach their end.
        drop(given);
        if let Some(terminal) = &mut terminal {
            terminal.adapt();
        }
        let relays = copies
            .into_iter()
            .map(|(source, target, gone, on_change)| Relay::start(source, target, gone, on_change))
            .collect::<Result<_, _>>()
            .context("failed to start a thread that copies output")?;
        Ok((started, Running { relays, terminal }))
    }
}

impl Running {
    /// Copies the remaining output after the task has ended. It runs in its own thread because the reader of the output may
    /// block for any time. The result is whether all output was written.
    pub(super) fn finish(self) -> anyhow::Result<oneshot::Receiver<bool>> {
        let (sender, receiver) = oneshot::channel();
        let finish = move || {
            let mut copied = true;
            for relay in self.relays {
                if let Err(error) = relay.finish() {
                    say(&format!("nomad-driver-exec2: failed to copy the command's output: {error}\n"));
                    copied = false;
                }
            }
            // After a signal the receiver is already closed.
            let _ = sender.send(copied);
        };
        let thread = std::thread::Builder::new().name("finish".into()).spawn(finish);
        thread.context("failed to start the thread that waits for the last output")?;
        Ok(receiver)
    }
}

fn put_in_place([stdin, stdout, stderr]: [BorrowedFd<'_>; 3]) -> nix::Result<()> {
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)
}

/// A pipe that belongs to the task's user; its read end is non-blocking.
fn user_pipe(user: &User) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let (source, given) = pipe()?;
    fcntl(&source, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    fchown(&given, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    // Must not overlap with the numbers of the streams themselves.
    Ok((source.into(), sys::fd::duplicate_from(given.as_fd(), FIRST_SAVED)?))
}

/// A character device that is not a terminal is /dev/null or similar: every user may open it again.
fn is_copied(found: &FileStat) -> bool {
    let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
    matches!(kind, SFlag::S_IFIFO | SFlag::S_IFREG | SFlag::S_IFSOCK)
}

fn is_same(a: &FileStat, b: &FileStat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}
