//! poll(2) with a deadline.

use std::os::fd::AsFd;
use std::time::Instant;

use nix::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until `fd` is readable, has ended (a pidfd), or has hung up; false at the deadline. Signals do not end the wait.
pub(crate) fn readable(fd: impl AsFd, deadline: Instant) -> Result<bool> {
    any(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], Some(deadline))
}

/// Whether one of `fds` has an event now.
pub(crate) fn now(fds: &mut [PollFd<'_>]) -> Result<bool> {
    Ok(poll(fds, PollTimeout::ZERO)? > 0)
}

/// Waits until one of `fds` has an event; false at the deadline. Signals do not end the wait.
pub(crate) fn any(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(fds, timeout.unwrap_or(PollTimeout::NONE)) {
            // The timeout is rounded down to milliseconds.
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_waits_for_input_an_end_or_the_deadline() {
        let (reader, mut writer) = pipe().unwrap();
        let start = Instant::now();
        assert_eq!(readable(&reader, start + Duration::from_millis(30)), Ok(false));
        assert!(start.elapsed() >= Duration::from_millis(30));
        writer.write_all(b"x").unwrap();
        assert_eq!(readable(&reader, start), Ok(true), "a deadline in the past does not hide what is there");
        let (reader, writer) = pipe().unwrap();
        drop(writer);
        assert_eq!(readable(&reader, Instant::now() + Duration::from_secs(20)), Ok(true));
    }

    #[test]
    fn a_look_and_a_wait_without_deadline_name_the_descriptor() {
        let ((empty, _open), (full, mut writer)) = (pipe().unwrap(), pipe().unwrap());
        let of = |reader| PollFd::new(reader, PollFlags::POLLIN);
        assert_eq!(now(&mut [of(empty.as_fd())]), Ok(false));
        writer.write_all(b"x").unwrap();
        let mut fds = [of(empty.as_fd()), of(full.as_fd())];
        assert_eq!(now(&mut fds), Ok(true));
        assert_eq!(any(&mut fds, None), Ok(true));
        assert_eq!(fds.map(|fd| fd.any().unwrap()), [false, true]);
    }
}
