//! Copies a task's output to its log files, in the shim, which is there for each task anyway: no other process is needed, and a
//! restart of the plugin or the agent is not noticed.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::steps::LogFiles;
use crate::sys;

/// Bytes that are read at once: what a pipe takes without waiting, in the smallest case.
const CHUNK: usize = 4096;
/// What a pipe holds unless its size was changed, pipe(7).
const PIPE: usize = 64 * 1024;

/// Both streams of a task.
#[derive(Debug)]
pub(crate) struct Relay {
    streams: [Stream; 2],
    /// Readable when a child has ended or stopped.
    children: SignalFd,
}

/// A pipe that the task writes, until all have closed it.
#[derive(Debug)]
struct Stream {
    pipe: Option<File>,
    files: LogFiles,
}

impl Relay {
    /// SIGCHLD must be blocked.
    pub(crate) fn new(streams: [(OwnedFd, LogFiles); 2]) -> nix::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        let children = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        for (pipe, _) in &streams {
            sys::fd::set_nonblocking(pipe)?;
        }
        let streams = streams.map(|(pipe, files)| Stream { pipe: Some(pipe.into()), files });
        Ok(Self { streams, children })
    }

    /// The memory of the start can then be returned.
    pub(crate) fn leave_arena(&mut self) {
        self.streams.iter_mut().for_each(|stream| stream.files.copy_name());
    }

    /// Copies until a child has ended, and reaps it: as [`sys::wait::any_child`].
    pub(crate) fn any_child(&mut self) -> nix::Result<(Pid, i32)> {
        loop {
            if let Some(ended) = sys::wait::any_child_now()? {
                return Ok(ended);
            }
            let mut fds = vec![PollFd::new(self.children.as_fd(), PollFlags::POLLIN)];
            let pipes = self.streams.iter().filter_map(|stream| stream.pipe.as_ref());
            fds.extend(pipes.map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
            sys::poll::any(&mut fds, None)?;
            for stream in &mut self.streams {
                stream.copy();
            }
            while self.children.read_signal()?.is_some() {}
        }
    }

    /// Copies what the task has written before it ended: as much as a pipe holds, since others may still write.
    pub(crate) fn finish(&mut self) {
        for stream in &mut self.streams {
            for _ in 0..stream.size() / CHUNK {
                if !stream.copy() {
                    break;
                }
            }
        }
    }
}

impl Stream {
    /// Bytes that the pipe can hold. The task may have changed it.
    fn size(&self) -> usize {
        let size = self.pipe.as_ref().and_then(|pipe| fcntl(pipe, FcntlArg::F_GETPIPE_SZ).ok());
        size.and_then(|size| usize::try_from(size).ok()).unwrap_or(PIPE)
    }

    /// Copies one chunk, if there is one.
    fn copy(&mut self) -> bool {
        let Some(pipe) = &mut self.pipe else { return false };
        let mut chunk = [0; CHUNK];
        match pipe.read(&mut chunk) {
            Ok(length @ 1..) => {
                self.files.append(&chunk[..length]);
                true
            }
            Err(error) if is_for_later(&error) => false,
            // All have closed it.
            Ok(_) | Err(_) => {
                self.pipe = None;
                false
            }
        }
    }
}

fn is_for_later(error: &std::io::Error) -> bool {
    matches!(sys::errno_of(error), Errno::EAGAIN | Errno::EINTR)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_a_larger_pipe_holds_at_the_end_is_copied_too() {
        let dir = tempfile::tempdir().unwrap();
        let files =
            |name: &str| LogFiles::create(File::open(dir.path()).unwrap().into(), name.to_owned()).unwrap();
        let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let ((out, task), (err, _)) = (pipe(), pipe());
        let mut task = File::from(task);
        let size = fcntl(&task, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        let mut relay = Relay::new([(out, files("out")), (err, files("err"))]).unwrap();
        task.write_all(&vec![b'x'; usize::try_from(size).unwrap()]).unwrap();
        // It stays open: others may still write.
        relay.finish();
        assert_eq!(std::fs::metadata(dir.path().join("out.0")).unwrap().len(), u64::try_from(size).unwrap());
    }
}
