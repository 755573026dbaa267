//! Errors that are not about the call that returned them.

use std::io;

use nix::errno::Errno;

fn is_one_of(error: &io::Error, errnos: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|raw| errnos.contains(&Errno::from_raw(raw)))
}

/// Whether this process or the machine has no descriptor or memory left, so that the call may succeed later.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    is_one_of(error, &[Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM])
}

/// Whether a read or write met a shortage of memory. EFAULT: the process's own memory could not be made present, which the kernel does
/// not call ENOMEM; no pointer is wrong.
pub(crate) fn lacks_memory(error: &io::Error) -> bool {
    is_one_of(error, &[Errno::ENOMEM, Errno::ENOBUFS, Errno::EFAULT])
}
