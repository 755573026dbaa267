//! Filters of system calls: seccomp(2).

use nix::Result;
use nix::errno::Errno;

/// An instruction of the classic BPF, `struct sock_filter` of `linux/filter.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub code: u16,
    pub if_true: u8,
    pub if_false: u8,
    pub value: u32,
}

/// `struct sock_fprog` of `linux/filter.h`.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Filters all further system calls of this process, which must have no_new_privs, and of its children.
///
/// The mitigations of CPU speculation stay as they are: before Linux 5.16 a filter changed them unless asked not to.
pub(crate) fn filter(program: &[Instruction]) -> Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: the kernel reads the program and its instructions during the call.
    let filtered = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            &raw const program,
        )
    };
    Errno::result(filtered).map(drop)
}

/// Whether the kernel has filters that can answer with an errno. ENOSYS, EINVAL: it was built without.
pub(crate) fn probe() -> Result<()> {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads the one number during the call.
    let available =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    Errno::result(available).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_the_form_of_the_kernel() {
        assert_eq!((size_of::<Instruction>(), align_of::<Instruction>()), (8, 4));
        assert_eq!(size_of::<Program>(), size_of::<libc::sock_fprog>());
        assert_eq!(
            std::mem::offset_of!(Program, instructions),
            std::mem::offset_of!(libc::sock_fprog, filter)
        );
    }

    #[test]
    fn a_program_that_the_kernel_cannot_run_is_refused() {
        // Nothing changes for the tests: the program does not end in an answer.
        let load = Instruction { code: 0x20, if_true: 0, if_false: 0, value: 0 };
        assert!(filter(&[load]).is_err());
        assert_eq!(filter(&vec![load; 1 << 16]), Err(Errno::EINVAL));
    }
}
