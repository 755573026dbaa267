//! A pseudo-terminal for the task, when `run` is started at a terminal.
//!
//! The task never gets the caller's own terminal: it would be in another session, where the kernel provides no job control for
//! it, and it could keep reading the shell's input after Ctrl-Z. It gets a pseudo-terminal, whose master is held here:
//! * If standard input and output are terminals, the caller's terminal is put into raw mode, and every key is forwarded to the
//!   task's. There, Ctrl-C, Ctrl-Z and Ctrl-D act on the foreground job of the task's own session.
//! * In a pipeline (`run … | less`) other programs use the caller's terminal as well: it keeps line editing and echo, and its
//!   signals are forwarded. The task's terminal does neither (`EXTPROC`), but modes that the task sets there, such as no echo
//!   for a password, are set on the caller's terminal; see [`Modes`].
//!
//! When the task is stopped, the caller's terminal is restored and this process stops as well, so that the shell takes over.

pub(super) mod modes;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::{Mode, fchmod};
use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr};
use nix::unistd::{Gid, Uid, fchown, tcgetpgrp};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::relay::OnChange;
use crate::sys::{self, CallError};
use crate::users::User;
use modes::{Modes, is_raw, others_in_group};

/// Interval for checking whether the task was stopped and whether `run` is in the foreground: the kernel reports neither to a
/// process that is not the parent. A fifth of a second is not noticeable.
const LOOK: Duration = Duration::from_millis(200);
/// Interval for checking whether the task has read its last line while the next one waits; the kernel does not report that
/// either.
const LINE_LOOK: Duration = Duration::from_millis(10);
/// Bytes read at once: the longest line that a terminal keeps (N_TTY_BUF_SIZE of the kernel).
const CHUNK: usize = 4096;
/// Mode of the slave: only its owner, the task's user, can open it.
const SLAVE_MODE: Mode = Mode::from_bits_truncate(0o600);

/// The caller's terminal and the task's.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The caller's terminal, opened again: non-blocking for this process only, and independent of the shell's descriptor.
    user: Arc<File>,
    master: Arc<File>,
    /// Whether standard input is the caller's terminal.
    input: bool,
    modes: Arc<Mutex<Modes>>,
    /// Typed input that the task's terminal has not accepted yet.
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

/// Whether to read typed input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    Now,
    /// Once the task has read what it was given.
    Later,
    No,
}

impl Terminal {
    /// Creates a terminal for the task and returns its slave end. `number` is the standard stream that is the caller's
    /// terminal.
    pub(super) fn new(
        number: RawFd,
        input: bool,
        output: bool,
        user: &User,
    ) -> Result<(Self, OwnedFd), CallError> {
        let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let theirs = open(format!("/proc/self/fd/{number}").as_str(), flags, Mode::empty())
            .map_err(CallError::on("open the terminal"))?;
        let (master, slave) =
            sys::terminal::open_pair().map_err(CallError::on("create a pseudo-terminal"))?;
        let (theirs, master) = (Arc::new(File::from(theirs)), Arc::new(File::from(master)));
        let mut modes = Modes::new(Arc::clone(&theirs), Arc::clone(&master));
        modes.whole = input && output && !modes.is_foreign();
        let mut first = tcgetattr(&*theirs).map_err(CallError::on("read the terminal's mode"))?;
        if !modes.whole {
            // The caller's terminal already translates LF to CR LF.
            first.local_flags.insert(LocalFlags::EXTPROC);
            first.output_flags.remove(OutputFlags::OPOST);
            sys::terminal::report_changes(&*master).map_err(CallError::on("set up the pseudo-terminal"))?;
        }
        tcsetattr(&slave, SetArg::TCSANOW, &first).map_err(CallError::on("set up the pseudo-terminal"))?;
        // Read back, because the kernel may have changed it.
        modes.first = tcgetattr(&slave).ok();
        fchown(&slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))
            .and_then(|()| fchmod(&slave, SLAVE_MODE))
            .map_err(CallError::on("give the pseudo-terminal to the task's user"))?;
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

    /// Duplicates of the master, to read the task's output, and of the caller's terminal, to write it; and the callback for
    /// each change that the master reports.
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
            // On failure the task keeps its previous size.
            let _ = sys::terminal::set_size(&*self.master, size);
        }
    }

    /// Forwards a signal of the caller's terminal to the foreground job of the task's terminal, if the kernel can do that.
    pub(super) fn signal(&self, number: i32) -> bool {
        matches!(number, libc::SIGINT | libc::SIGQUIT)
            && sys::terminal::signal_foreground(&*self.master, number).is_ok()
    }

    /// Adapts the mode of the caller's terminal if this process is in the foreground. Call it at the start, when this process
    /// was continued, and periodically.
    pub(super) fn adapt(&mut self) {
        self.modes().adapt();
    }

    /// Restores the caller's terminal.
    pub(super) fn restore(&mut self) {
        self.modes().restore();
    }

    /// After the task has ended, keys such as Ctrl-C act on this process again, so that the user can interrupt a slow end.
    pub(super) fn let_keys_interrupt(&mut self) {
        self.modes().let_keys_interrupt();
    }

    /// Whether the caller's terminal has hung up, so that nothing more can be read or shown.
    pub(super) fn is_hung_up(&self) -> bool {
        self.hung_up
    }

    /// Hangs up the task's terminal as well and signals its foreground job, as the kernel does at the end of a session.
    pub(super) fn hang_up(&self) {
        if !self.modes().is_foreign()
            && let Ok(group) = tcgetpgrp(&*self.master)
            && group.as_raw() > 0
        {
            // A job that has ended needs neither.
            let _ = killpg(group, Signal::SIGHUP).and_then(|()| killpg(group, Signal::SIGCONT));
        }
        // A failure means that the slave is closed.
        let _ = sys::terminal::hang_up(&*self.master);
    }

    /// Whether typed input is for the task. In a pipeline another program may have put the terminal into raw mode for itself;
    /// and a task that does not read the terminal leaves the keys to other programs, unless it has changed the terminal's mode.
    ///
    /// A line is forwarded when the task has read the previous one, so that each of its reads returns one line, as on any
    /// terminal.
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

    /// Whether typed input is waiting to be read.
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

    /// Forwards typed input and returns when the task has to be checked. Dropping the future loses nothing.
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

    /// Reads typed input; true if there was none.
    fn read(&mut self) -> bool {
        // The input may follow a change of mode that is not set on the caller's terminal yet.
        self.adapt();
        let mut buffer = [0; CHUNK];
        match (&*self.user).read(&mut buffer) {
            Ok(0) if is_ready(&self.user, PollFlags::POLLHUP) => self.hung_up = true,
            // Ctrl-D on an empty line, if the terminal edits lines.
            Ok(0) => self.pending.push(self.end_of_file()),
            Ok(read) => self.pending.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.hung_up = true,
        }
        self.write();
        false
    }

    /// Writes typed input to the task's terminal; true if it accepts no more at the moment.
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

    /// The end-of-file character of the task's terminal.
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
    sys::poll::now(&mut fds).is_ok() && fds[0].revents().is_some_and(|found| found.intersects(what))
}
