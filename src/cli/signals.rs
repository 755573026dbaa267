//! The signals that `run` handles, as one stream.

use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::sys;
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

/// How long a signal waits for the end of the start before it has its default action. A start takes milliseconds, but one that
/// hangs must not keep the user from ending it.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// The signals that arrive after [`Signals::listen`]. They are received in a thread of their own, because the start blocks the
/// thread of [`Signals::next`].
#[derive(Debug)]
pub(super) struct Signals {
    numbers: mpsc::UnboundedReceiver<i32>,
    started: watch::Sender<bool>,
}

impl Signals {
    /// Handles every signal of the lists except those in `ignored`, which the caller (nohup, a shell that runs this in the
    /// background) has disabled on purpose.
    pub(super) fn listen(ignored: Bits) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (sender, arrived) = mpsc::unbounded_channel();
        let guard = runtime.enter();
        for number in taken(ignored) {
            let mut signal = signal(SignalKind::from_raw(number))?;
            let sender = sender.clone();
            tokio::spawn(
                async move { while signal.recv().await.is_some() && sender.send(number).is_ok() {} },
            );
        }
        drop(guard);
        let (sender, numbers) = mpsc::unbounded_channel();
        let (started, watching) = watch::channel(false);
        let deliver = move || runtime.block_on(deliver(arrived, watching, sender));
        std::thread::Builder::new().name("signals".into()).spawn(deliver)?;
        Ok(Self { numbers, started })
    }

    /// To be called when the start has ended: from now on all signals are for [`Signals::next`].
    pub(super) fn start_has_ended(&self) {
        self.started.send_replace(true);
    }

    /// The number of the next signal.
    pub(super) async fn next(&mut self) -> i32 {
        match self.numbers.recv().await {
            Some(number) => number,
            // All signals are ignored.
            None => std::future::pending().await,
        }
    }
}

/// Passes on what arrives, unless the start takes too long. Ends with the receiver.
async fn deliver(
    mut arrived: mpsc::UnboundedReceiver<i32>,
    mut started: watch::Receiver<bool>,
    sender: mpsc::UnboundedSender<i32>,
) {
    while let Some(number) = arrived.recv().await {
        match timeout(START_PATIENCE, started.wait_for(|started| *started)).await {
            Ok(_) if sender.send(number).is_err() => return,
            Ok(_) => {}
            // If that ends this process, the kernel ends what has been started.
            Err(_) => drop(sys::signals::act_by_default(number, false)),
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
