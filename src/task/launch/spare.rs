//! Shims that were started before there is a task for them.
//!
//! A fifth of a start is the clone and the exec of the shim. So after a start the plugin makes the shim of the next one, while nobody waits.
//! It ends with the plugin, because then its report socket does; it has no record, so no other plugin takes it for a task's; and a start
//! without it, or with one that has died, takes as long as the first one.

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::LaunchError;
use super::shim::{Kind, NewShim};

/// How many wait, each with 130 KiB of private memory. A start that closely follows another one makes its shim as it goes.
const SPARES: usize = 1;

#[derive(Debug, Default)]
pub(super) struct Spares {
    state: Mutex<State>,
    /// Locked while one is made.
    work: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// That of the last task that was started; none: a shim of its kind may not wait.
    wanted: Option<Kind>,
    waiting: Vec<(Kind, NewShim)>,
}

impl Spares {
    /// One that fits, if there is any.
    pub(super) fn take(&self, kind: &Kind) -> Option<NewShim> {
        let waiting = &mut self.state().waiting;
        let found = waiting.iter().position(|(its, shim)| its == kind && shim.runs())?;
        Some(waiting.swap_remove(found).1)
    }

    /// The next task will probably need the same kind as this one.
    pub(super) fn expect(&self, kind: Kind) {
        self.state().wanted = kind.may_wait().then_some(kind);
    }

    /// Makes what is missing, and ends what fits no longer. Blocks for about a millisecond.
    pub(super) fn make(&self, program: BorrowedFd<'_>) -> Result<(), LaunchError> {
        let _work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let (wanted, unfit, mut count) = {
            let mut state = self.state();
            let wanted = state.wanted.clone();
            let unfit: Vec<_> = state
                .waiting
                .extract_if(.., |(kind, shim)| wanted.as_ref() != Some(kind) || !shim.runs())
                .collect();
            (wanted, unfit, state.waiting.len())
        };
        // Without the lock: starts must not wait for it.
        drop(unfit);
        let Some(kind) = wanted else { return Ok(()) };
        while count < SPARES {
            let shim = NewShim::spawn_spare(program, &kind)?;
            self.state().waiting.push((kind.clone(), shim));
            count += 1;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
