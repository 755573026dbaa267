//! poll(2) with a deadline.

use std::os::fd::AsFd;
use std::time::Instant;

use nix::Result;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until `fd` is readable, has ended (a pidfd), or has hung up; false at the deadline. Signals do not end the wait.
pub(crate) fn readable(fd: impl AsFd, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            // The timeout is rounded down to milliseconds.
            Ok(0) if left.is_zero() => return Ok(false),
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
}
