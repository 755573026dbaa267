//! Low descriptor numbers, kept for what children get.
//!
//! A child has a table of descriptors that is as large as the parent's highest number demands, for its whole life: with 500 tasks, 16 KiB
//! of kernel memory for each shim, and the time to copy and to close all of it for each start. So [`super::clone::spawn`] lets the kernel copy
//! only what is below [`COPIED`], where it puts the child's descriptors before.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::Result;
use rustix::io::{DupFlags, dup3};

use super::clone::FIRST_FREE_FD;
use super::fd::duplicate_from;

/// `NR_OPEN_DEFAULT` of `linux/fdtable.h`: a table of this size is part of the process's `struct files_struct`.
pub(super) const COPIED: RawFd = 64;
/// The program, the report, the three standard descriptors, those from number 3 up to [`FIRST_FREE_FD`], and a last one that stands for
/// the others while they are not in use.
const COUNT: usize = 2 + 3 + 13 + 1;

static SLOTS: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Takes the numbers, with copies of any descriptor. To be called before this process has many. If too few low numbers are free, or the
/// process may have no more descriptors, none are taken, and children get large tables.
pub(crate) fn reserve(any: BorrowedFd<'_>) {
    let mut slots = lock();
    if slots.is_empty()
        && let Ok(taken) = (0..COUNT).map(|_| duplicate_from(any, FIRST_FREE_FD)).collect::<Result<Vec<_>>>()
        && taken.iter().all(|slot| slot.as_raw_fd() < COPIED)
    {
        *slots = taken;
    }
}

fn lock() -> MutexGuard<'static, Vec<OwnedFd>> {
    SLOTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies of descriptors with low numbers, for one child at a time.
pub(super) struct Placed {
    slots: MutexGuard<'static, Vec<OwnedFd>>,
    used: usize,
}

impl Placed {
    /// None: there are too few numbers.
    pub(super) fn new<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>) -> Option<Self> {
        let mut placed = Self { slots: lock(), used: 0 };
        for fd in fds {
            let (_, unused) = placed.slots.split_last_mut()?;
            let slot = unused.get_mut(placed.used)?;
            placed.used += 1;
            dup3(fd, slot, DupFlags::CLOEXEC).ok()?;
        }
        Some(placed)
    }

    /// In the order of [`Self::new`].
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.slots.iter().take(self.used).map(AsFd::as_fd)
    }
}

impl Drop for Placed {
    /// A copy that stayed would keep the socket or the pipe open.
    fn drop(&mut self) {
        if let Some((last, used)) = self.slots.split_last_mut() {
            for slot in used.iter_mut().take(self.used) {
                // It fails only for numbers that are not open.
                let _ = dup3(&*last, slot, DupFlags::CLOEXEC);
            }
        }
    }
}
