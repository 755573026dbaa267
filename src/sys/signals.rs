//! Signal dispositions and masks around clone and exec.

use nix::Result;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// The highest signal number of Linux (`_NSIG` of `asm/signal.h` is 64 on x86-64 and aarch64).
pub const LAST_SIGNAL: i32 = 64;

/// The kernel's `struct sigaction` as rt_sigaction(2) takes it on x86-64 and aarch64; the libc's own differs.
#[repr(C)]
struct KernelSigaction {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// Gives every signal its default disposition. Async-signal-safe.
///
/// The plugin ignores SIGINT and Rust's runtime SIGPIPE, and exec keeps what is ignored: a task must not inherit that.
/// It asks the kernel directly, since the libc refuses the two or three real-time signals that it uses itself.
pub fn reset_dispositions() {
    let default = KernelSigaction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    for signal in 1..=LAST_SIGNAL {
        let none: *mut KernelSigaction = std::ptr::null_mut();
        // SAFETY: the action has the kernel's layout and lives over the call; the default disposition runs no code
        // of ours. SIGKILL and SIGSTOP fail with EINVAL, as they should.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, none, size_of::<u64>());
        }
    }
}

/// Blocks every signal for the calling thread and returns the mask as it was.
pub fn block_all() -> Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    Ok(before)
}

/// Sets the calling thread's mask.
pub fn restore(mask: &SigSet) -> Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(mask), None)
}

/// Unblocks every signal, also those that the libc reserves for itself. Async-signal-safe.
pub fn unblock_all() -> Result<()> {
    let empty = 0u64;
    let none: *mut u64 = std::ptr::null_mut();
    // SAFETY: the set has the kernel's 8 bytes and lives over the call; a null old set is allowed.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const empty, none, size_of::<u64>())
    })
    .map(drop)
}
