//! The arguments of this process as others see them, in `/proc/PID/cmdline` and `ps`.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::ptr::{self, NonNull};

use super::clone::SingleThreaded;
use super::stat::field;

/// Fields of proc_pid_stat(5): the addresses of the first byte of the arguments, and of the one behind the last.
const ARG_START: usize = 48;
const ARG_END: usize = 49;

/// The last argument.
#[derive(Debug)]
pub(crate) struct LastArgument {
    first: NonNull<u8>,
    /// With the NUL.
    length: usize,
}

impl LastArgument {
    /// None if it is another one, or if the kernel does not say where it is.
    pub(crate) fn find(_: SingleThreaded, expected: &'static CStr) -> Option<Self> {
        let expected = expected.to_bytes_with_nul();
        let mut stat = Vec::new();
        File::open("/proc/self/stat").and_then(|mut file| file.read_to_end(&mut stat)).ok()?;
        let start: usize = field(&stat, ARG_START)?;
        let end: usize = field(&stat, ARG_END)?;
        if start == 0 || end.checked_sub(start)? < expected.len() {
            return None;
        }
        let first = NonNull::new(ptr::with_exposed_provenance_mut::<u8>(end - expected.len()))?;
        // SAFETY: the kernel has put as many bytes of arguments before `end`, on the stack of the only thread. No reference to them
        // exists: std copies them.
        let found = unsafe { std::slice::from_raw_parts(first.as_ptr(), expected.len()) };
        (found == expected).then_some(Self { first, length: expected.len() })
    }

    /// Replaces it by another one of the same length; one of another length changes nothing.
    pub(crate) fn replace(self, with: &CStr) {
        let with = with.to_bytes_with_nul();
        if with.len() == self.length {
            // SAFETY: `find` has found as many bytes there, on the stack, which can be written. The only thread is here: `Self` is not Send.
            unsafe { self.first.as_ptr().copy_from_nonoverlapping(with.as_ptr(), self.length) };
        }
    }
}
