//! A pseudo-terminal for the task, when `run` is typed at a terminal.
//!
//! The task never gets the caller's own terminal: it would be in another session, for which the kernel has no job control
//! there, and could go on reading what is typed at the shell after Ctrl-Z. It gets one of its own, whose master is here:
//! * If standard input and output are terminals, the caller's is put into raw mode, and every key goes to the task's. That one
//!   makes Ctrl-C, Ctrl-Z and Ctrl-D of it, for the foreground job of the task's own session.
//! * In a pipeline (`run … | less`) the caller's terminal belongs to others as well: it stays as it is, and its signals are
//!   passed on, until the task makes its own terminal raw (an editor).
//!
//! When the task is stopped, the caller's terminal is restored and this process stops, too, so that the shell takes over.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{
    InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr,
    tcsetattr,
};
use nix::unistd::{Gid, Uid, fchown, getpgrp, tcgetpgrp};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::sys;
use crate::users::User;

/// How often to look whether the task has been stopped, and whether `run` has come to the foreground: the kernel tells
/// neither to a process that is not the parent. A person does not notice a fifth of a second.
const LOOK: Duration = Duration::from_millis(200);
/// What is read at once: the most that a terminal keeps of a line (N_TTY_BUF_SIZE of the kernel).
const CHUNK: usize = 4096;
/// Mode of the slave: its owner is the task's user, and nobody else can open it.
const SLAVE_MODE: Mode = Mode::from_bits_truncate(0o600);

/// The caller's terminal and the task's.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The caller's, opened again: non-blocking for us alone, and independent of the shell's own descriptor.
    user: File,
    master: File,
    /// Whether standard input is the caller's terminal, and whether standard output is.
    input: bool,
    output: bool,
    /// How the caller's terminal was before it was made raw.
    before: Option<Termios>,
    /// Typed, but not taken by the task's terminal yet.
    pending: Vec<u8>,
    /// The caller's terminal has hung up.
    hung_up: bool,
}

/// The terminal registered with the runtime.
#[derive(Debug)]
pub(super) struct Watch {
    user: AsyncFd<OwnedFd>,
    master: AsyncFd<OwnedFd>,
    looks: Interval,
}

/// A step of the pseudo-terminal could not be made.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}: {}", .errno.desc())]
pub(super) struct TerminalError {
    action: &'static str,
    errno: Errno,
}

fn failed(action: &'static str) -> impl FnOnce(Errno) -> TerminalError {
    move |errno| TerminalError { action, errno }
}

impl Terminal {
    /// A terminal for the task, and its slave end. `number` is the standard stream that is the caller's terminal.
    pub(super) fn new(
        number: RawFd,
        input: bool,
        output: bool,
        user: &User,
    ) -> Result<(Self, OwnedFd), TerminalError> {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let theirs = open(format!("/proc/self/fd/{number}").as_str(), flags, Mode::empty())
            .map_err(failed("open the terminal"))?;
        let (master, slave) = sys::terminal::open_pair().map_err(failed("make a pseudo-terminal"))?;
        let mut modes = tcgetattr(&theirs).map_err(failed("read the terminal's mode"))?;
        if !(input && output) {
            // The caller's terminal echoes and makes CR LF of LF already.
            modes.local_flags.remove(LocalFlags::ECHO);
            modes.output_flags.remove(OutputFlags::OPOST);
        }
        tcsetattr(&slave, SetArg::TCSANOW, &modes).map_err(failed("set up the pseudo-terminal"))?;
        fchown(&slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))
            .and_then(|()| fchmod(&slave, SLAVE_MODE))
            .map_err(failed("give the pseudo-terminal to the task's user"))?;
        let terminal = Self {
            user: theirs.into(),
            master: master.into(),
            input,
            output,
            before: None,
            pending: Vec::new(),
            hung_up: false,
        };
        terminal.resize();
        Ok((terminal, slave))
    }

    /// Copies of the master, to read the task's output from, and of the caller's terminal, to write it to.
    pub(super) fn ends(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.master.as_fd().try_clone_to_owned()?, self.user.as_fd().try_clone_to_owned()?))
    }

    /// Gives the task's terminal the size of the caller's.
    pub(super) fn resize(&self) {
        if let Ok(size) = sys::terminal::size(&self.user) {
            // Without it the task has the size that it had.
            let _ = sys::terminal::set_size(&self.master, &size);
        }
    }

    /// Passes a signal of the caller's terminal on to the foreground job of the task's, where the kernel can.
    pub(super) fn signal(&self, number: i32) -> bool {
        matches!(number, libc::SIGINT | libc::SIGQUIT)
            && sys::terminal::signal_foreground(&self.master, number).is_ok()
    }

    /// To be called at the start, when this process was continued, and from time to time: adapts the mode of the caller's
    /// terminal, if this process is in the foreground of it.
    pub(super) fn adapt(&mut self) {
        let wanted = self.input && self.output || self.is_raw_for_the_task();
        if wanted && self.before.is_none() && self.is_in_foreground() {
            self.make_raw();
        } else if !wanted && self.before.is_some() {
            self.restore();
        }
    }

    fn make_raw(&mut self) {
        let Ok(before) = tcgetattr(&self.user) else { return };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        if !(self.input && self.output) {
            raw.output_flags = before.output_flags;
            // Ctrl-C still ends the whole pipeline, unless the task wants it as a key.
            let wanted = tcgetattr(&self.master).map_or(before.local_flags, |modes| modes.local_flags);
            raw.local_flags.insert(LocalFlags::ISIG & before.local_flags & wanted);
        }
        raw.input_flags.insert(InputFlags::IUTF8 & before.input_flags);
        if tcsetattr(&self.user, SetArg::TCSANOW, &raw).is_ok() {
            self.before = Some(before);
        }
    }

    /// Gives the caller's terminal back as it was. Not from the background: the shell has set its own mode already, and the
    /// kernel would stop this process.
    pub(super) fn restore(&mut self) {
        if let Some(before) = self.before.take()
            && self.is_in_foreground()
        {
            let _ = tcsetattr(&self.user, SetArg::TCSANOW, &before);
        }
    }

    /// True also for a terminal that is not the controlling one: it has no job control for this process.
    fn is_in_foreground(&self) -> bool {
        match tcgetpgrp(&self.user) {
            Ok(group) => group == getpgrp(),
            Err(errno) => errno == Errno::ENOTTY,
        }
    }

    /// Whether the task reads its terminal key by key. The mode of a slave can be read from its master.
    fn is_raw_for_the_task(&self) -> bool {
        is_raw(self.master.as_fd())
    }

    /// Whether what is typed is for the task. In a pipeline another program may have made the terminal raw for itself.
    fn reads(&self) -> bool {
        let ours = self.before.is_some() || self.input && !is_raw(self.user.as_fd());
        ours && !self.hung_up && self.pending.is_empty() && self.is_in_foreground()
    }

    pub(super) fn watch(&self) -> io::Result<Watch> {
        let register = |file: &File, interest| {
            sys::async_fd::register(file.as_fd().try_clone_to_owned()?, interest).map_err(|(_, error)| error)
        };
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Watch {
            user: register(&self.user, Interest::READABLE)?,
            master: register(&self.master, Interest::WRITABLE)?,
            looks,
        })
    }

    /// Passes on what is typed. Returns when it is time to look after the task. Nothing is lost if it is dropped meanwhile.
    pub(super) async fn pass_on(&mut self, watch: &mut Watch) {
        loop {
            let reads = self.reads();
            tokio::select! {
                _ = watch.looks.tick() => return,
                ready = watch.user.readable(), if reads => match ready {
                    Ok(mut ready) => if self.read() { ready.clear_ready() },
                    Err(_) => self.hung_up = true,
                },
                ready = watch.master.writable(), if !self.pending.is_empty() => match ready {
                    Ok(mut ready) => if self.write() { ready.clear_ready() },
                    Err(_) => self.hung_up = true,
                },
            }
        }
    }

    /// Takes what was typed; true if there was nothing.
    fn read(&mut self) -> bool {
        let mut buffer = [0; CHUNK];
        match self.user.read(&mut buffer) {
            // Ctrl-D on an empty line, where the terminal still makes lines; else it has hung up.
            Ok(0) if self.before.is_none() => self.pending.push(self.end_of_file()),
            Ok(0) => self.hung_up = true,
            Ok(read) => self.pending.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.hung_up = true,
        }
        self.write();
        false
    }

    /// Gives the task's terminal what was typed; true if it takes no more at the moment.
    fn write(&mut self) -> bool {
        while !self.pending.is_empty() {
            match self.master.write(&self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.pending.clear(),
            }
        }
        false
    }

    /// The key that ends the input, of the task's terminal.
    fn end_of_file(&self) -> u8 {
        /// Ctrl-D.
        const DEFAULT: u8 = 4;
        tcgetattr(&self.master)
            .map_or(DEFAULT, |modes| modes.control_chars[SpecialCharacterIndices::VEOF as usize])
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

fn is_raw(terminal: BorrowedFd<'_>) -> bool {
    tcgetattr(terminal).is_ok_and(|modes| !modes.local_flags.contains(LocalFlags::ICANON))
}
