//! Copies the task's output to the caller's output.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};

use crate::sys::poll;

/// Bytes copied at once: the capacity of a pipe, pipe(7).
const CHUNK: usize = 64 * 1024;

/// Called for each change of the terminal that its master reports, in order with the output.
pub(super) struct OnChange(pub Box<dyn FnMut(u8) + Send>);

impl std::fmt::Debug for OnChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnChange")
    }
}

/// What to do when the target accepts no more output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gone {
    /// Close the source: the writer gets SIGPIPE, as if it wrote to the target itself.
    Close,
    /// Keep reading and discard the data: a pseudo-terminal that is not read blocks its writers.
    Discard,
}

/// A thread that copies until the source ends, the target accepts no more, or [`Relay::finish`] is called and the source is
/// empty.
#[derive(Debug)]
pub(super) struct Relay {
    thread: JoinHandle<io::Result<()>>,
    /// Closed when the source has no writers any more.
    running: OwnedFd,
}

impl Relay {
    /// `source` must be non-blocking. With `on_change` it is the master of a pseudo-terminal that reports changes.
    pub(super) fn start(
        source: OwnedFd,
        target: OwnedFd,
        gone: Gone,
        on_change: Option<OnChange>,
    ) -> io::Result<Self> {
        let (stop, running) = io::pipe()?;
        let (source, target, stop) = (source.into(), Some(target.into()), stop.into());
        let copy = Copy { source, target, gone, on_change, stop };
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || copy.run())?;
        Ok(Self { thread, running: running.into() })
    }

    /// Copies the remaining data and returns the error of the target, if any.
    pub(super) fn finish(self) -> io::Result<()> {
        drop(self.running);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the copying thread panicked")))
    }
}

struct Copy {
    source: File,
    /// None once it is closed.
    target: Option<File>,
    gone: Gone,
    on_change: Option<OnChange>,
    stop: OwnedFd,
}

/// Why the source has to be read.
enum Wake {
    Readable,
    /// The source has no writers any more.
    Stopped,
    /// The target has no readers any more.
    TargetGone,
}

impl Copy {
    fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let stopped = match self.wait()? {
                Wake::TargetGone if self.gone == Gone::Close => return Ok(()),
                Wake::TargetGone => {
                    self.target = None;
                    continue;
                }
                Wake::Stopped => true,
                Wake::Readable => false,
            };
            match self.source.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    let output = self.output(&buffer[..read]);
                    self.write(output)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && stopped => return Ok(()),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // Reading the master fails with EIO when the slave is closed.
                Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// The output among the bytes read. A master that reports changes puts a 0 before output, or sends only the change.
    fn output<'a>(&mut self, read: &'a [u8]) -> &'a [u8] {
        match (&mut self.on_change, read) {
            (None, output) | (Some(_), [0, output @ ..]) => output,
            (Some(on_change), [change, ..]) => {
                (on_change.0)(*change);
                &[]
            }
            (Some(_), []) => &[],
        }
    }

    fn wait(&self) -> io::Result<Wake> {
        let mut fds = vec![
            PollFd::new(self.source.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.stop.as_fd(), PollFlags::empty()),
        ];
        fds.extend(self.target.iter().map(|target| PollFd::new(target.as_fd(), PollFlags::empty())));
        poll::any(&mut fds, None)?;
        let is_set = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(true));
        Ok(match (is_set(1), is_set(2)) {
            (_, true) => Wake::TargetGone,
            (true, false) => Wake::Stopped,
            (false, false) => Wake::Readable,
        })
    }

    /// Writes all of the data, even if another process has made the target non-blocking.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(target) = &mut self.target
            && !bytes.is_empty()
        {
            match target.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_writable(target)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // `wait` detects this as well.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(_) if self.gone == Gone::Discard => self.target = None,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn wait_writable(target: &File) -> io::Result<()> {
    poll::any(&mut [PollFd::new(target.as_fd(), PollFlags::POLLOUT)], None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::pipe;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    fn source() -> (OwnedFd, io::PipeWriter) {
        let (source, writer) = pipe().unwrap();
        fcntl(&source, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (source.into(), writer)
    }

    #[test]
    fn all_is_copied_before_the_end() {
        let (source, mut writer) = source();
        let (mut reader, target) = pipe().unwrap();
        let relay = Relay::start(source, target.into(), Gone::Close, None).unwrap();
        let text = vec![b'x'; 10 * CHUNK + 1];
        let copied = std::thread::spawn(move || {
            let mut copied = Vec::new();
            reader.read_to_end(&mut copied).unwrap();
            copied
        });
        writer.write_all(&text).unwrap();
        // The writer stays open, as in a process that received the descriptor over a socket.
        relay.finish().unwrap();
        assert_eq!(copied.join().unwrap().len(), text.len());
        // A process that another test is starting has all descriptors until its exec.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let error = loop {
            match writer.write(b"x") {
                Err(error) => break error,
                Ok(_) => assert!(std::time::Instant::now() < deadline, "the source is still open"),
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_target_without_a_reader_closes_the_source() {
        let (source, mut writer) = source();
        let (reader, target) = pipe().unwrap();
        let relay = Relay::start(source, target.into(), Gone::Close, None).unwrap();
        drop(reader);
        // `wait` notices it without a write.
        while writer.write(b"x").is_ok() {}
        relay.finish().unwrap();
    }

    #[test]
    fn a_pseudo_terminal_is_read_without_a_target() {
        let (source, mut writer) = source();
        let (reader, target) = pipe().unwrap();
        drop(reader);
        let relay = Relay::start(source, target.into(), Gone::Discard, None).unwrap();
        writer.write_all(&vec![b'x'; 5 * CHUNK]).unwrap();
        relay.finish().unwrap();
    }

    #[test]
    fn a_change_is_handed_over_and_not_copied() {
        let (source, mut writer) = source();
        let (mut reader, target) = pipe().unwrap();
        let (sender, changes) = std::sync::mpsc::channel();
        let on_change = OnChange(Box::new(move |change| sender.send(change).unwrap()));
        let relay = Relay::start(source, target.into(), Gone::Discard, Some(on_change)).unwrap();
        writer.write_all(&[64]).unwrap();
        assert_eq!(changes.recv().unwrap(), 64);
        writer.write_all(b"\0text").unwrap();
        relay.finish().unwrap();
        let mut copied = String::new();
        reader.read_to_string(&mut copied).unwrap();
        assert_eq!(copied, "text");
    }

    #[test]
    fn a_target_that_is_full_is_an_error() {
        let (source, mut writer) = source();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let relay = Relay::start(source, full.into(), Gone::Close, None).unwrap();
        writer.write_all(b"x").unwrap();
        let error = relay.finish().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ENOSPC as i32));
    }

    #[test]
    fn a_target_that_blocks_is_waited_for() {
        let (source, mut writer) = source();
        let (mut reader, target) = pipe().unwrap();
        fcntl(&target, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let relay = Relay::start(source, target.into(), Gone::Close, None).unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&vec![b'x'; 5 * CHUNK]).unwrap());
        let mut copied = vec![0; 5 * CHUNK];
        reader.read_exact(&mut copied).unwrap();
        writing.join().unwrap();
        relay.finish().unwrap();
    }
}
