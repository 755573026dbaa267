//! What a process inherits of its parent beside files and memory, set to what a process of a fresh system has.

use nix::Result;
use nix::errno::Errno;

/// `IOPRIO_WHO_PROCESS` of `linux/ioprio.h`.
const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// `IOPRIO_CLASS_NONE` with level 0, ioprio_set(2): by the nice value.
const IOPRIO_NONE: libc::c_int = 0;
/// CPUs of an affinity mask: `CONFIG_NR_CPUS` is at most 8192; what there is no CPU for is ignored.
const CPUS: usize = 8192;
/// The kernel's own timer slack, ns: PR_SET_TIMERSLACK of prctl(2).
const TIMER_SLACK: libc::c_ulong = 50_000;
/// `PER_LINUX` of `linux/personality.h`, without any flag.
const PER_LINUX: libc::c_ulong = 0;
/// `MPOL_DEFAULT` of `linux/mempolicy.h`.
const MPOL_DEFAULT: libc::c_int = 0;

/// Nice value 0, getpriority(2). EACCES: it is above 0, and CAP_SYS_NICE is missing.
pub(crate) fn reset_nice() -> Result<()> {
    // SAFETY: setpriority takes integers only.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS as _, 0, 0) }).map(drop)
}

/// No I/O class of its own. A kernel without block devices has no such call.
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
    // SAFETY: personality takes an integer only.
    Errno::result(unsafe { libc::personality(PER_LINUX) }).map(drop)
}

/// Timer slack, and transparent huge pages as the host has them: prctl(2).
pub(crate) fn reset_timers_and_pages() -> Result<()> {
    // SAFETY: these prctls take integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK, 0, 0, 0) })?;
    // SAFETY: as above.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0) }).map(drop)
}

/// Memory from any node, set_mempolicy(2). A kernel without NUMA has no such call.
pub(crate) fn reset_memory_policy() -> Result<()> {
    let no_nodes: *const libc::c_ulong = std::ptr::null();
    // SAFETY: with a null mask the kernel reads nothing.
    or_absent(Errno::result(unsafe { libc::syscall(libc::SYS_set_mempolicy, MPOL_DEFAULT, no_nodes, 0) }))
}

/// The securebits of capabilities(7), all off. EPERM: one is locked, or CAP_SETPCAP is missing.
pub(crate) fn reset_securebits() -> Result<()> {
    // SAFETY: this prctl takes nothing.
    if Errno::result(unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) })? == 0 {
        return Ok(());
    }
    // SAFETY: this prctl takes an integer only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, 0, 0, 0, 0) }).map(drop)
}

fn or_absent(done: Result<libc::c_long>) -> Result<()> {
    match done {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno),
    }
}
