//! What a process inherits from its parent besides files and memory, set to the values of a freshly booted system.

use std::num::NonZeroU64;

use nix::Result;
use nix::errno::Errno;
use nix::sys::personality::{self, Persona};
use rustix::process::setpriority_process;
use rustix::thread::{
    CapabilitiesSecureBits, capabilities_secure_bits, disable_transparent_huge_pages,
    set_capabilities_secure_bits, set_current_timer_slack,
};

use super::nix_errno;

/// `IOPRIO_WHO_PROCESS` of `linux/ioprio.h`.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_NONE` with level 0, ioprio_set(2): by the nice value.
const IOPRIO_NONE: libc::c_int = 0;
/// CPUs of an affinity mask: `CONFIG_NR_CPUS` is at most 8192; bits without a CPU are ignored.
const CPUS: usize = 8192;
/// The kernel's own timer slack, ns: PR_SET_TIMERSLACK of prctl(2).
const TIMER_SLACK: Option<NonZeroU64> = NonZeroU64::new(50_000);
/// `MPOL_DEFAULT` of `linux/mempolicy.h`.
const MPOL_DEFAULT: libc::c_int = 0;

/// Nice value 0, getpriority(2). EACCES: it is above 0, and CAP_SYS_NICE is missing.
pub(crate) fn reset_nice() -> Result<()> {
    setpriority_process(None, 0).map_err(nix_errno)
}

/// No I/O class of its own. ENOSYS: the kernel has no block devices.
pub(crate) fn reset_io_priority() -> Result<()> {
    // SAFETY: ioprio_set takes integers only.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_NONE) };
    or_absent(Errno::result(done))
}

/// The scheduling policy SCHED_OTHER, sched_setscheduler(2).
pub(crate) fn reset_scheduler() -> Result<()> {
    let priority: libc::c_int = 0;
    // SAFETY: the kernel reads one struct sched_param, which is one int.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const priority) };
    Errno::result(done).map(drop)
}

/// Every CPU that the cgroup allows, sched_setaffinity(2).
pub(crate) fn reset_affinity() -> Result<()> {
    let all = [u8::MAX; CPUS / u8::BITS as usize];
    // SAFETY: the kernel reads no more than the length given, which is that of the array.
    let done = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, all.len(), all.as_ptr()) };
    Errno::result(done).map(drop)
}

/// The execution domain of Linux without flags, such as a fixed address space layout: personality(2).
pub(crate) fn reset_personality() -> Result<()> {
    personality::set(Persona::empty()).map(drop)
}

/// Timer slack, and transparent huge pages as the host has them: prctl(2).
pub(crate) fn reset_timers_and_pages() -> Result<()> {
    set_current_timer_slack(TIMER_SLACK).map_err(nix_errno)?;
    disable_transparent_huge_pages(false).map_err(nix_errno)
}

/// Memory from any node, set_mempolicy(2). ENOSYS: the kernel has no NUMA.
pub(crate) fn reset_memory_policy() -> Result<()> {
    let no_nodes: *const libc::c_ulong = std::ptr::null();
    // SAFETY: with a null mask the kernel reads nothing.
    or_absent(Errno::result(unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_DEFAULT, no_nodes, 0) }))
}

/// The securebits of capabilities(7), all off. EPERM: one is locked, or CAP_SETPCAP is missing.
pub(crate) fn reset_securebits() -> Result<()> {
    // An error is a bit that rustix does not know.
    if capabilities_secure_bits() == Ok(CapabilitiesSecureBits::empty()) {
        return Ok(());
    }
    set_capabilities_secure_bits(CapabilitiesSecureBits::empty()).map_err(nix_errno)
}

fn or_absent(done: Result<libc::c_long>) -> Result<()> {
    match done {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
