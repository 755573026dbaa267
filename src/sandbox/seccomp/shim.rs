//! The system calls that a shim makes while its task runs, as data. It answers EPERM to all others: a shim that is killed loses the task's
//! exit status.

use libc::*;

use super::When::{Any, IsNot};
use super::{Call, Program};

/// `PTRACE_DETACH` and `TIOCNOTTY`, which have different types in the C libraries.
const DETACH: u32 = 17;
const GIVE_UP_CONTROL: u32 = 0x5422;
const EXECUTABLE: u32 = PROT_EXEC.cast_unsigned();

/// Waits for children, lets go those that stop, reads the number of OOM kills, writes the exit status.
const WAITS: &[Call] = &[
    call!(SYS_wait4),
    call!(SYS_ptrace).when(&[IsNot(0, DETACH)]),
    call!(SYS_pread64),
    call!(SYS_pwrite64),
    call!(SYS_ioctl).when(&[IsNot(1, GIVE_UP_CONTROL)]),
    call!(SYS_clock_gettime),
    call!(SYS_exit_group),
];

/// What the C library and the standard library do with memory, and at the end of a process or a panic.
const RUNTIME: &[Call] = &[
    call!(SYS_brk),
    call!(SYS_close),
    call!(SYS_exit),
    call!(SYS_fcntl),
    call!(SYS_futex),
    call!(SYS_getpid),
    call!(SYS_gettid),
    call!(SYS_madvise),
    call!(SYS_mmap).when(&[Any(2, EXECUTABLE)]),
    call!(SYS_mprotect).when(&[Any(2, EXECUTABLE)]),
    call!(SYS_mremap),
    call!(SYS_munmap),
    call!(SYS_restart_syscall),
    call!(SYS_rt_sigaction),
    call!(SYS_rt_sigprocmask),
    call!(SYS_rt_sigreturn),
    call!(SYS_sigaltstack),
    call!(SYS_tkill),
    call!(SYS_write),
];

/// Copies output to log files.
const COPIES: &[Call] = &[
    #[cfg(target_arch = "x86_64")]
    call!(SYS_poll),
    call!(SYS_ppoll),
    call!(SYS_read),
    call!(SYS_openat),
    call!(SYS_fchmod),
    call!(SYS_unlinkat),
    call!(SYS_ftruncate),
    call!(SYS_lseek),
];

/// The filter of a shim whose task runs; one that copies its task's output needs more.
pub(crate) fn filter(copies: bool) -> Program {
    let copying = if copies { COPIES } else { &[] };
    Program::only([WAITS, RUNTIME, copying].concat().as_slice())
}

#[cfg(test)]
pub(super) const ALL: [&[Call]; 3] = [WAITS, RUNTIME, COPIES];
