//! A pseudo-terminal for the task, when `run` is typed at a terminal.
//!
//! The task never gets the caller's own terminal: it would be in another session, for which the kernel has no job control
//! there, and could go on reading what is typed at the shell after Ctrl-Z. It gets one of its own, whose master is here:
//! * If standard input and output are terminals, the caller's is put into raw mode, and every key goes to the task's. That one
//!   makes Ctrl-C, Ctrl-Z and Ctrl-D of it, for the foreground job of the task's own session.
//! * In a pipeline (`run … | less`) the caller's terminal belongs to others as well: it makes the lines and the echo, and its
//!   signals are passed on. The task's terminal does nothing of that (`EXTPROC`), but what the task sets there, such as no
//!   echo for a password, is set at the caller's; see [`Modes`].
//!
//! When the task is stopped, the caller's terminal is restored and this process stops, too, so that the shell takes over.

mod modes;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr};
use nix::unistd::{Gid, Uid, fchown, tcgetpgrp};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::relay::OnChange;
use crate::sys;
use crate::users::User;
use modes::{Modes, is_raw, others_in_group};

/// How often to look whether the task has been stopped, and whether `run` has come to the foreground: the kernel tells
/// neither to a process that is not the parent. A person does not notice a fifth of a second.
const LOOK: Duration = Duration::from_millis(200);
/// How often to look whether the task has read its last line, while the next one waits: nothing tells that either.
const LINE_LOOK: Duration = Duration::from_millis(10);
/// What is read at once: the most that a terminal keeps of a line (N_TTY_BUF_SIZE of the kernel).
const CHUNK: usize = 4096;
/// Mode of the slave: its owner is the task's user, and nobody else can open it.
const SLAVE_MODE: Mode = Mode::from_bits_truncate(0o600);

/// The caller's terminal and the task's.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The caller's, opened again: non-blocking for us alone, and independent of the shell's own descriptor.
    user: Arc<File>,
    master: Arc<File>,
    /// Whether standard input is the caller's terminal.
    input: bool,
    modes: Arc<Mutex<Modes>>,
    /// Typed, but not taken by the task's terminal yet.
    pending: Vec<u8>,
    hung_up: bool,
}

/// The terminal registered with the runtime.
#[derive(Debug)]
pub(super) struct Watch {
    user: AsyncFd<OwnedFd>,
    master: AsyncFd<OwnedFd>,
    looks: Interval,
}

/// Whether to read what is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    Now,
    /// When the task has read what it has.
    Later,
    No,
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
        let (theirs, master) = (Arc::new(File::from(theirs)), Arc::new(File::from(master)));
        let mut modes = Modes::new(Arc::clone(&theirs), Arc::clone(&master));
        modes.whole = input && output && !modes.is_foreign();
        let mut first = tcgetattr(&*theirs).map_err(failed("read the terminal's mode"))?;
        if !modes.whole {
            // The caller's terminal makes CR LF of LF already.
            first.local_flags.insert(LocalFlags::EXTPROC);
            first.output_flags.remove(OutputFlags::OPOST);
            sys::terminal::report_changes(&*master).map_err(failed("set up the pseudo-terminal"))?;
        }
        tcsetattr(&slave, SetArg::TCSANOW, &first).map_err(failed("set up the pseudo-terminal"))?;
        // As the kernel has taken it.
        modes.first = tcgetattr(&slave).ok();
        fchown(&slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))
            .and_then(|()| fchmod(&slave, SLAVE_MODE))
            .map_err(failed("give the pseudo-terminal to the task's user"))?;
        let terminal = Self {
            user: theirs,
            master,
            input,
            modes: Arc::new(Mutex::new(modes)),
            pending: Vec::new(),
            hung_up: false,
        };
        terminal.resize();
        Ok((terminal, slave))
    }

    /// Copies of the master, to read the task's output from, and of the caller's terminal, to write it to; and what to call
    /// with each change that the master reports.
    pub(super) fn ends(&self) -> io::Result<(OwnedFd, OwnedFd, Option<OnChange>)> {
        let modes = Arc::clone(&self.modes);
        let on_change = OnChange(Box::new(move |change| lock(&modes).on_change(change)));
        Ok((
            self.master.as_fd().try_clone_to_owned()?,
            self.user.as_fd().try_clone_to_owned()?,
            (!self.modes().whole).then_some(on_change),
        ))
    }

    fn modes(&self) -> MutexGuard<'_, Modes> {
        lock(&self.modes)
    }

    /// Gives the task's terminal the size of the caller's.
    pub(super) fn resize(&self) {
        if let Ok(size) = sys::terminal::size(&*self.user) {
            // Without it the task has the size that it had.
            let _ = sys::terminal::set_size(&*self.master, &size);
        }
    }

    /// Passes a signal of the caller's terminal on to the foreground job of the task's, where the kernel can.
    pub(super) fn signal(&self, number: i32) -> bool {
        matches!(number, libc::SIGINT | libc::SIGQUIT)
            && sys::terminal::signal_foreground(&*self.master, number).is_ok()
    }

    /// To be called at the start, when this process was continued, and from time to time: adapts the mode of the caller's
    /// terminal, if this process is in the foreground of it.
    pub(super) fn adapt(&mut self) {
        self.modes().adapt();
    }

    /// Gives the caller's terminal back as it was.
    pub(super) fn restore(&mut self) {
        self.modes().restore();
    }

    /// Once the task has ended, keys such as Ctrl-C are for this process, so that a slow end can be cut short.
    pub(super) fn let_keys_interrupt(&mut self) {
        self.modes().let_keys_interrupt();
    }

    /// Whether the caller's terminal has hung up, so that there is nothing more to read or to show.
    pub(super) fn is_hung_up(&self) -> bool {
        self.hung_up
    }

    /// Hangs up the task's terminal as well, and tells its foreground job, as the kernel does at the end of a session.
    pub(super) fn hang_up(&self) {
        if !self.modes().is_foreign()
            && let Ok(group) = tcgetpgrp(&*self.master)
            && group.as_raw() > 0
        {
            // A job that has ended needs neither.
            let _ = killpg(group, Signal::SIGHUP).and_then(|()| killpg(group, Signal::SIGCONT));
        }
        // Where it fails, the slave has been closed.
        let _ = sys::terminal::hang_up(&*self.master);
    }

    /// Whether what is typed is for the task. In a pipeline another program may have made the terminal raw for itself, and one
    /// that is no reader of the terminal leaves the keys to the others, unless it has changed how the terminal works.
    ///
    /// A line is passed on when the task has read the one before, so that each of its reads gets one, as from any terminal.
    fn reads(&self) -> Reads {
        let modes = self.modes();
        if self.hung_up || !self.pending.is_empty() || !modes.is_in_foreground() {
            return Reads::No;
        }
        let wanted = modes.is_changed()
            || !is_raw(self.user.as_fd()) && (self.input || self.is_typed() && !others_in_group());
        if !wanted {
            return Reads::No;
        }
        if modes.whole
            || is_raw(self.master.as_fd())
            || !sys::terminal::unread(&*self.master).is_ok_and(|n| n > 0)
        {
            return Reads::Now;
        }
        if self.is_typed() { Reads::Later } else { Reads::Now }
    }

    /// Whether something was typed that has not been read.
    fn is_typed(&self) -> bool {
        is_ready(&self.user, PollFlags::POLLIN)
    }

    pub(super) fn watch(&self) -> io::Result<Watch> {
        let register = |file: &Arc<File>, interest| {
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
        while !self.hung_up {
            let reads = self.reads();
            tokio::select! {
                _ = watch.looks.tick() => {
                    self.hung_up = is_ready(&self.user, PollFlags::POLLHUP);
                    return;
                }
                () = sleep(LINE_LOOK), if reads == Reads::Later => {}
                ready = watch.user.readable(), if reads == Reads::Now => match ready {
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
        // It may have been typed after a change that is not set at the caller's terminal yet.
        self.adapt();
        let mut buffer = [0; CHUNK];
        match (&*self.user).read(&mut buffer) {
            Ok(0) if is_ready(&self.user, PollFlags::POLLHUP) => self.hung_up = true,
            // Ctrl-D on an empty line, where the terminal makes lines.
            Ok(0) => self.pending.push(self.end_of_file()),
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
            match (&*self.master).write(&self.pending) {
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
        tcgetattr(&*self.master)
            .map_or(DEFAULT, |modes| modes.control_chars[SpecialCharacterIndices::VEOF as usize])
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.modes().close();
    }
}

fn lock(modes: &Mutex<Modes>) -> MutexGuard<'_, Modes> {
    modes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_ready(file: &File, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(file.as_fd(), what)];
    poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|found| found.intersects(what))
}
