//! Signal dispositions and masks around clone and exec.

use std::ops::RangeInclusive;

use nix::Result;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// The highest signal number of Linux (`_NSIG` of `asm/signal.h` is 64 on x86-64 and aarch64).
pub(crate) const LAST_SIGNAL: i32 = 64;

/// The kernel's `struct sigaction` as rt_sigaction(2) takes it on x86-64 and aarch64; the libc's own differs.
#[repr(C)]
struct KernelSigaction {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// A set of signals: bit N - 1 is signal N, as in the kernel's own sets.
pub(crate) type Bits = u64;

/// The bit of `signal`, which must be one of 1 to [`LAST_SIGNAL`].
pub(crate) const fn bit(signal: i32) -> Bits {
    1 << (signal - 1)
}

/// The C library's own signals: musl's posix_spawn ignores them in every child, so their disposition is not the caller's choice.
const INTERNAL: RangeInclusive<i32> = 32..=33;

/// Signals that were ignored when this process was started. Call it before a handler is installed.
pub(crate) fn ignored() -> Bits {
    let ignored = (1..=LAST_SIGNAL)
        .filter(|signal| !INTERNAL.contains(signal) && disposition(*signal) == Ok(libc::SIG_IGN));
    let now = ignored.map(bit).fold(0, |set, bit| set | bit);
    let broken_pipe = bit(libc::SIGPIPE);
    if at_start::BROKEN_PIPE_IGNORED.load(std::sync::atomic::Ordering::Relaxed) {
        now | broken_pipe
    } else {
        now & !broken_pipe
    }
}

/// The disposition of SIGPIPE before Rust's runtime, which ignores it in every program, changed it.
mod at_start {
    use std::sync::atomic::{AtomicBool, Ordering};

    pub(super) static BROKEN_PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

    /// The C library runs what is in this section before `main`, and before Rust's runtime.
    // SAFETY: the section holds pointers to functions of the C calling convention that take no argument they use; this one only asks
    // the kernel and writes an atomic, neither of which needs an initialised runtime.
    #[unsafe(link_section = ".init_array")]
    #[used]
    static REMEMBER: extern "C" fn() = remember;

    extern "C" fn remember() {
        let ignored = super::disposition(libc::SIGPIPE) == Ok(libc::SIG_IGN);
        BROKEN_PIPE_IGNORED.store(ignored, Ordering::Relaxed);
    }
}

fn disposition(signal: i32) -> Result<usize> {
    let mut found = KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    let none: *const KernelSigaction = std::ptr::null();
    // SAFETY: the action has the kernel's layout and lives over the call; nothing is changed.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, none, &raw mut found, size_of::<u64>())
    })?;
    Ok(found.handler)
}

/// Ignores each signal of the set, except SIGKILL and SIGSTOP, which cannot be ignored. Async-signal-safe.
pub(crate) fn ignore(set: Bits) {
    let action = KernelSigaction { handler: libc::SIG_IGN, flags: 0, restorer: 0, mask: 0 };
    let none: *mut KernelSigaction = std::ptr::null_mut();
    for signal in (1..=LAST_SIGNAL).filter(|signal| set & bit(*signal) != 0) {
        // SAFETY: the action has the kernel's layout and lives over the call; an ignored signal runs no code of this program.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const action, none, size_of::<u64>());
        }
    }
}

/// Gives one signal its default disposition. Async-signal-safe.
pub(crate) fn reset(signal: i32) {
    let default = KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    let none: *mut KernelSigaction = std::ptr::null_mut();
    // SAFETY: the action has the kernel's layout and lives over the call; the default disposition runs no code of this program.
    unsafe {
        libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, none, size_of::<u64>());
    }
}

/// Sends `signal` to every other process of this process group if `whole_group` is set, then lets it act on this process as if it had
/// no handler. Returns when this process is continued, or at once if the kernel does not stop it (an orphaned process group); never if
/// the signal ends it.
pub(crate) fn act_by_default(signal: i32, whole_group: bool) -> Result<()> {
    let mut before = KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    let action = |handler| KernelSigaction { handler, flags: 0, restorer: 0, mask: 0 };
    let set = |new: &KernelSigaction, old: *mut KernelSigaction| {
        // SAFETY: both actions have the kernel's layout and live over the call; the new one is the default, "ignore", or what the
        // kernel itself has just given as the one that was there.
        Errno::result(unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, std::ptr::from_ref(new), old, size_of::<u64>())
        })
        .map(drop)
    };
    set(&action(libc::SIG_IGN), &raw mut before)?;
    if whole_group {
        // SAFETY: kill takes integers only.
        unsafe { libc::kill(0, signal) };
    }
    set(&action(libc::SIG_DFL), std::ptr::null_mut())?;
    // SAFETY: raise takes an integer; the disposition is the default, which runs no code of this program.
    let raised = Errno::result(unsafe { libc::raise(signal) }).map(drop);
    set(&before, std::ptr::null_mut())?;
    raised
}

/// Gives every signal its default disposition. Async-signal-safe.
///
/// The plugin ignores SIGINT and Rust's runtime SIGPIPE, and ignored signals survive exec: a task must not inherit that. A raw system
/// call, because the libc refuses the two or three real-time signals that it uses itself.
pub(crate) fn reset_dispositions() {
    // SIGKILL and SIGSTOP fail with EINVAL and always have their default.
    (1..=LAST_SIGNAL).for_each(reset);
}

/// Blocks every signal for the calling thread and returns the mask as it was.
pub(crate) fn block_all() -> Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    Ok(before)
}

/// Sets the calling thread's mask.
pub(crate) fn restore(mask: &SigSet) -> Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)
}

/// Unblocks every signal, including those that the libc reserves for itself. Async-signal-safe.
pub(crate) fn unblock_all() -> Result<()> {
    let empty = 0u64;
    let none: *mut u64 = std::ptr::null_mut();
    // SAFETY: the set has the kernel's 8 bytes and lives over the call; a null old set is allowed.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const empty, none, size_of::<u64>())
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_found() {
        // No test of this process uses it.
        let signal = libc::SIGSTKFLT;
        assert_eq!(ignored() & bit(signal), 0);
        ignore(bit(signal) | bit(libc::SIGKILL));
        assert_eq!(ignored() & (bit(signal) | bit(libc::SIGKILL)), bit(signal));
        reset(signal);
        assert_eq!(ignored() & bit(signal), 0);
    }

    #[test]
    fn sigpipe_ignored_by_rust_does_not_count() {
        assert_eq!(disposition(libc::SIGPIPE), Ok(libc::SIG_IGN), "Rust's runtime ignores it");
        assert_eq!(ignored() & bit(libc::SIGPIPE), 0);
    }
}
