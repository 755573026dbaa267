//! The errors of system calls: on a path, and on anything else.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// A system call on a path failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to {op} {path:?}: {}", .errno.desc())]
pub struct IoError {
    /// What was tried: a verb, or a verb and its object.
    pub op: &'static str,
    pub path: PathBuf,
    pub errno: Errno,
}

impl IoError {
    pub(crate) fn new(op: &'static str, path: impl Into<PathBuf>, error: impl Into<io::Error>) -> Self {
        Self { op, path: path.into(), errno: errno_of(&error.into()) }
    }

    /// For `map_err`.
    pub(crate) fn on<E: Into<io::Error>>(
        op: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::new(op, path, error)
    }
}

/// A system call that is about no path failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("failed to {op}: {}", .errno.desc())]
pub struct CallError {
    /// What was tried: a verb and its object.
    pub op: &'static str,
    pub errno: Errno,
}

impl CallError {
    pub(crate) fn new(op: &'static str, error: impl Into<io::Error>) -> Self {
        Self { op, errno: errno_of(&error.into()) }
    }

    /// For `map_err`.
    pub(crate) fn on<E: Into<io::Error>>(op: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::new(op, error)
    }
}

/// The errno of an `io::Error`. EFBIG: [`super::read::bounded`] refused the file. EIO: the error has no errno.
pub(crate) fn errno_of(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        Some(raw) => Errno::from_raw(raw),
        None if error.kind() == io::ErrorKind::FileTooLarge => Errno::EFBIG,
        None => Errno::EIO,
    }
}

/// Whether a call failed because this process or the host has no descriptor or memory left, so that it may succeed later.
pub(crate) fn is_transient(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_operation_path_and_cause() {
        let error = IoError::new("open", "/x y", Errno::ENOENT);
        assert_eq!(error.to_string(), "failed to open \"/x y\": No such file or directory");
        let error = CallError::new("make a socket", Errno::EMFILE);
        assert_eq!(error.to_string(), "failed to make a socket: Too many open files");
    }

    #[test]
    fn an_error_without_errno_has_the_nearest() {
        let large = super::super::read::bounded(io::repeat(0), 3).unwrap_err();
        assert_eq!(errno_of(&large), Errno::EFBIG);
        assert_eq!(errno_of(&io::Error::other("x")), Errno::EIO);
        assert_eq!(errno_of(&io::Error::from_raw_os_error(libc::EMFILE)), Errno::EMFILE);
    }
}
