//! The mode of the caller's terminal before and while the task runs.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::termios::{
    FlushArg, InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcflush,
    tcgetattr, tcsetattr,
};
use nix::unistd::{getpgrp, tcgetpgrp};

use crate::sys;

/// The modes of the caller's terminal. Shared with the thread that copies the output: a mode that the task sets before it
/// prints a prompt is set here before the prompt appears, so that a password is not echoed.
#[derive(Debug)]
pub(in crate::cli) struct Modes {
    user: Arc<File>,
    master: Arc<File>,
    /// Whether only the task uses the caller's terminal: raw mode, and every key is forwarded.
    pub whole: bool,
    /// The initial mode of the task's terminal; none = unknown, and nothing is changed.
    pub first: Option<Termios>,
    /// The original mode of the caller's terminal.
    before: Option<Termios>,
    /// The task's mode that is set on the caller's terminal.
    followed: Option<Termios>,
    access: Access,
    closed: bool,
}

/// What this process may do with the caller's terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Read and set modes while its process group is in the foreground.
    Controlling,
    /// The same at any time: the terminal belongs to no session, so there is no job control.
    NoSession,
    /// Output only: the terminal belongs to another session (`setsid run`).
    Foreign,
}

impl Modes {
    pub(in crate::cli) fn new(user: Arc<File>, master: Arc<File>) -> Self {
        let access = match tcgetpgrp(&*user) {
            Err(Errno::ENOTTY) if has_session(&user) => Access::Foreign,
            Err(Errno::ENOTTY) => Access::NoSession,
            _ => Access::Controlling,
        };
        Self { user, master, whole: false, first: None, before: None, followed: None, access, closed: false }
    }

    pub(in crate::cli) fn is_foreign(&self) -> bool {
        self.access == Access::Foreign
    }

    pub(in crate::cli) fn is_in_foreground(&self) -> bool {
        match self.access {
            Access::Controlling => tcgetpgrp(&*self.user) == Ok(getpgrp()),
            Access::NoSession => true,
            Access::Foreign => false,
        }
    }

    /// Whether the caller's terminal has the mode that the task wants.
    pub(in crate::cli) fn is_changed(&self) -> bool {
        self.before.is_some()
    }

    /// Sets the task's mode on the caller's terminal if this process is in the foreground.
    pub(in crate::cli) fn adapt(&mut self) {
        if self.closed || !self.is_in_foreground() {
            return;
        }
        if !self.whole {
            self.follow();
        } else if self.before.is_none()
            && let Ok(before) = tcgetattr(&*self.user)
        {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            raw.input_flags.insert(InputFlags::IUTF8 & before.input_flags);
            self.set(before, &raw);
        }
    }

    /// Handles a change that the task's terminal has reported, as a byte of TIOCPKT(2const).
    pub(in crate::cli) fn on_change(&mut self, change: u8) {
        /// The task has discarded typed-ahead input, as a program that asks for a password does.
        const FLUSHED: u8 = 1;
        if change & FLUSHED != 0 && !self.closed && self.is_in_foreground() {
            let _ = tcflush(&*self.user, FlushArg::TCIFLUSH);
        }
        self.adapt();
    }

    fn follow(&mut self) {
        // The modes of a slave can be read and set on its master.
        let (Some(first), Ok(mut wanted)) = (&self.first, tcgetattr(&*self.master)) else { return };
        if !wanted.local_flags.contains(LocalFlags::EXTPROC) {
            // It would echo a second time and report no more changes.
            wanted.local_flags.insert(LocalFlags::EXTPROC);
            let _ = tcsetattr(&*self.master, SetArg::TCSANOW, &wanted);
        }
        if is_alike(first, &wanted) {
            return self.restore();
        }
        if self.followed.as_ref().is_some_and(|followed| is_alike(followed, &wanted)) {
            return;
        }
        let Some(before) = self.before.take().or_else(|| tcgetattr(&*self.user).ok()) else { return };
        // The output flags stay: other programs of the pipeline write to the terminal, too.
        let mut modes = before.clone();
        modes.input_flags = wanted.input_flags;
        modes.local_flags = wanted.local_flags - LocalFlags::EXTPROC;
        modes.control_chars = wanted.control_chars;
        // The task's own terminal applies VMIN and VTIME.
        modes.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        modes.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        self.set(before, &modes);
        self.followed = Some(wanted);
    }

    fn set(&mut self, before: Termios, modes: &Termios) {
        if tcsetattr(&*self.user, SetArg::TCSANOW, modes).is_ok() {
            self.before = Some(before);
        }
    }

    /// Restores the caller's terminal. Not from the background: the shell has already set its own mode, and the kernel would
    /// stop this process.
    pub(in crate::cli) fn restore(&mut self) {
        self.followed = None;
        if let Some(before) = self.before.take()
            && self.is_in_foreground()
        {
            let _ = tcsetattr(&*self.user, SetArg::TCSANOW, &before);
        }
    }

    /// Restores the terminal for the last time.
    pub(in crate::cli) fn close(&mut self) {
        self.restore();
        self.closed = true;
    }

    /// If keys generate no signals, they do from now on.
    pub(in crate::cli) fn let_keys_interrupt(&mut self) {
        if self.before.is_some()
            && self.is_in_foreground()
            && let Ok(mut modes) = tcgetattr(&*self.user)
        {
            modes.local_flags.insert(LocalFlags::ISIG);
            let _ = tcsetattr(&*self.user, SetArg::TCSANOW, &modes);
        }
    }
}

/// Whether both modes read and echo in the same way.
fn is_alike(a: &Termios, b: &Termios) -> bool {
    let of = |modes: &Termios| (modes.input_flags, modes.local_flags, modes.control_chars);
    of(a) == of(b)
}

pub(in crate::cli) fn is_raw(terminal: BorrowedFd<'_>) -> bool {
    tcgetattr(terminal).is_ok_and(|modes| !modes.local_flags.contains(LocalFlags::ICANON))
}

/// Whether the terminal is the controlling terminal of any process.
fn has_session(terminal: &File) -> bool {
    let Ok(device) = sys::terminal::device(terminal.as_fd()) else { return true };
    // In the format of proc_pid_stat(5).
    let device = device.cast_signed().to_string();
    any_process(|_, [_, _, _, _, tty]| tty == device)
}

/// Whether another process is in this process group, as in a pipeline.
pub(in crate::cli) fn others_in_group() -> bool {
    let (own, group) = (std::process::id().to_string(), getpgrp().to_string());
    any_process(|pid, [_, _, of, ..]| of == group && pid != own)
}

/// Whether `is` returns true for any process, given its id, state, parent, group, session and terminal: proc_pid_stat(5).
fn any_process(is: impl Fn(&str, [&str; 5]) -> bool) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc") else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.starts_with(|c: char| c.is_ascii_digit())) else {
            return false;
        };
        let Ok(stat) = std::fs::read(entry.path().join("stat")) else { return false };
        let Some(mut fields) = sys::stat::after_name(&stat) else { return false };
        let fields = std::array::from_fn(|_| fields.next().unwrap_or_default());
        is(pid, fields)
    })
}
