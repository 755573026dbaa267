//! The signals that `run` handles, as one stream.

use std::io;
use std::ops::RangeInclusive;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::sys::signals::{Bits, bit};

/// Forwarded to the task.
const FORWARDED: [i32; 7] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];
/// Stop the task and then this process.
const STOPPING: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
/// End this process, which first restores the terminal, like the real-time signals; the task ends with it. SIGSEGV, SIGFPE and
/// SIGILL are missing: their handler would return to the faulting instruction. For SIGBUS, Rust's own handler runs first and
/// lets a real fault end the process.
const ENDING: [i32; 12] = [
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
    libc::SIGBUS,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGSTKFLT,
];

/// What a signal means for `run`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Forward,
    Stop,
    Continue,
    End,
}

impl Meaning {
    pub(super) fn of(number: i32) -> Self {
        match number {
            libc::SIGCONT => Self::Continue,
            _ if STOPPING.contains(&number) => Self::Stop,
            _ if ENDING.contains(&number) || real_time().contains(&number) => Self::End,
            _ => Self::Forward,
        }
    }
}

/// The signals that arrive after [`Signals::listen`].
#[derive(Debug)]
pub(super) struct Signals(mpsc::UnboundedReceiver<i32>);

impl Signals {
    /// Handles every signal of the lists except those in `ignored`, which the caller (nohup, a shell that runs this in the
    /// background) has disabled on purpose. Needs a runtime.
    pub(super) fn listen(ignored: Bits) -> io::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for number in taken(ignored) {
            let mut arrived = signal(SignalKind::from_raw(number))?;
            let sender = sender.clone();
            tokio::spawn(
                async move { while arrived.recv().await.is_some() && sender.send(number).is_ok() {} },
            );
        }
        Ok(Self(receiver))
    }

    /// The number of the next signal.
    pub(super) async fn next(&mut self) -> i32 {
        match self.0.recv().await {
            Some(number) => number,
            // All signals are ignored.
            None => std::future::pending().await,
        }
    }
}

fn taken(ignored: Bits) -> impl Iterator<Item = i32> {
    let all = FORWARDED.into_iter().chain(STOPPING).chain(ENDING).chain(real_time()).chain([libc::SIGCONT]);
    all.filter(move |number| ignored & bit(*number) == 0)
}

/// signal(7), without those that the C library uses itself.
fn real_time() -> RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_not_taken() {
        let ignored = bit(libc::SIGHUP) | bit(libc::SIGTSTP);
        let taken: Vec<i32> = taken(ignored).collect();
        assert!(!taken.contains(&libc::SIGHUP) && !taken.contains(&libc::SIGTSTP));
        assert!(taken.contains(&libc::SIGINT) && taken.contains(&libc::SIGCONT));
        assert!(taken.contains(&libc::SIGABRT) && taken.contains(&libc::SIGRTMAX()));
    }

    #[test]
    fn each_signal_has_one_meaning() {
        assert!(FORWARDED.iter().all(|number| Meaning::of(*number) == Meaning::Forward));
        assert!(STOPPING.iter().all(|number| Meaning::of(*number) == Meaning::Stop));
        assert!(ENDING.into_iter().chain(real_time()).all(|number| Meaning::of(number) == Meaning::End));
        assert_eq!(Meaning::of(libc::SIGCONT), Meaning::Continue);
    }
}
