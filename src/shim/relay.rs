//! Copies a task's output to its log files, in the shim, which is there for each task anyway: no other process is needed, and a
//! restart of the plugin or the agent is not noticed.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::steps::LogFiles;
use crate::sys;

/// Bytes that are read at once: what a pipe takes without waiting, in the smallest case.
const CHUNK: usize = 4096;
/// Most chunks of a stream that are copied after the task has ended: what a pipe holds, pipe(7).
const LAST_CHUNKS: usize = 64 * 1024 / CHUNK;

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

    /// Copies what the task has written before it ended.
    pub(crate) fn finish(&mut self) {
        for stream in &mut self.streams {
            for _ in 0..LAST_CHUNKS {
                if !stream.copy() {
                    break;
                }
            }
        }
    }
}

impl Stream {
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
