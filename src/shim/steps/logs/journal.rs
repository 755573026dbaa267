//! The journal as a task's output: sd-daemon's stream protocol. A few lines say whose output it is, everything after them is
//! that output, so the task writes to journald itself and no process is between them.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, connect, shutdown, socket};

/// Where journald accepts streams, systemd-journald.service(8).
pub(crate) const SOCKET: &str = "/run/systemd/journal/stdout";

/// How long journald may be too busy to queue another connection.
const WAIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Priorities of syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Priority {
    Error = 3,
    Info = 6,
}

/// A stream of one priority. None: there is no journald.
pub(super) fn open(
    socket_path: &Path,
    identifier: &str,
    priority: Priority,
) -> Result<Option<OwnedFd>, Errno> {
    let deadline = Instant::now() + WAIT;
    let stream = loop {
        match try_open(socket_path) {
            // Not running, and not started by its socket.
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => return Ok(None),
            Err(Errno::EAGAIN) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            opened => break opened?,
        }
    };
    shutdown(stream.as_raw_fd(), Shutdown::Read)?;
    // Nothing has been written yet, so this does not wait.
    let mut stream = File::from(stream);
    stream
        .write_all(header(identifier, priority).as_bytes())
        .map_err(|error| crate::sys::errno_of(&error))?;
    fcntl(&stream, FcntlArg::F_SETFL(OFlag::O_WRONLY))?;
    Ok(Some(stream.into()))
}

fn try_open(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(stream)
}

/// Identifier, unit (journald knows it by the cgroup), priority, whether `<3>` at the beginning of a line is its priority
/// (sd-daemon(3)), and three times whether it is forwarded.
fn header(identifier: &str, priority: Priority) -> String {
    format!("{identifier}\n\n{}\n1\n0\n0\n0\n", priority as u8)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_stream_says_whose_it_is_and_is_the_tasks_from_there_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        assert!(open(&path, "web/api/server", Priority::Info).unwrap().is_none());
        let journald = UnixListener::bind(&path).unwrap();
        for (priority, number) in [(Priority::Info, "6"), (Priority::Error, "3")] {
            let stream = open(&path, "web/api/server", priority).unwrap().unwrap();
            let flags = OFlag::from_bits_retain(fcntl(&stream, FcntlArg::F_GETFL).unwrap());
            assert!(!flags.contains(OFlag::O_NONBLOCK), "the task's writes wait");
            File::from(stream).write_all(b"hello\n").unwrap();
            let mut all = String::new();
            journald.accept().unwrap().0.read_to_string(&mut all).unwrap();
            assert_eq!(all, format!("web/api/server\n\n{number}\n1\n0\n0\n0\nhello\n"));
        }
        drop(journald);
        assert!(open(&path, "web/api/server", Priority::Info).unwrap().is_none(), "nobody listens");
    }
}
