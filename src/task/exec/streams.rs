//! Non-blocking reads and writes of a session's pipes and terminal.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::termios::{SpecialCharacterIndices, tcgetattr};
use nix::unistd::{read, write};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::coop::consume_budget;

/// Most bytes of one read. They are on the stack until it is known how many there are: an idle session has no buffer.
const CHUNK: usize = 32 * 1024;

/// Ctrl-D, the usual end-of-file character.
const END_OF_FILE: u8 = 4;

/// Most bytes that are read once the session has ended: what a pipe holds whose size a user without privileges has changed
/// (`/proc/sys/fs/pipe-max-size`, pipe(7)).
const LAST: usize = 1 << 20;

/// What the command of a session writes.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    source: &'a AsyncFd<OwnedFd>,
    ended: watch::Receiver<bool>,
    /// What may still be read once the session has ended.
    left: usize,
}

impl<'a> Output<'a> {
    pub(crate) fn new(source: &'a AsyncFd<OwnedFd>, ended: watch::Receiver<bool>) -> Self {
        Self { source, ended, left: LAST }
    }

    /// The next bytes; none at the end. Once the session has `ended` nothing more can be written by it, so what is there is all: another
    /// process of the task may hold the other end open, and write, for as long as it likes.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            // A source that is never empty must not keep others from this thread.
            consume_budget().await;
            if *self.ended.borrow_and_update() {
                let chunk = read_chunk(self.source.get_ref()).ok().flatten()?;
                self.left = self.left.checked_sub(chunk.len())?;
                return Some(chunk);
            }
            let ready = tokio::select! {
                ready = self.source.readable() => ready,
                changed = self.ended.changed() => match changed {
                    Ok(()) => continue,
                    // The session was dropped.
                    Err(_) => return None,
                },
            };
            match ready.ok()?.try_io(|source| read_chunk(source.get_ref())) {
                Ok(chunk) => return chunk.ok().flatten(),
                Err(_would_block) => {}
            }
        }
    }
}

/// None at the end, which for the master of a terminal is EIO: no process has the slave open.
fn read_chunk(source: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = [0; CHUNK];
    loop {
        match read(source, &mut buffer) {
            Ok(0) | Err(Errno::EIO) => return Ok(None),
            Ok(length) => return Ok(Some(buffer[..length].to_vec())),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Writes everything. EPIPE: nobody reads it any more.
pub(crate) async fn write_all(target: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = target.writable().await?.try_io(|target| Ok(write(target.get_ref(), bytes)?));
        match written {
            Ok(Ok(length)) => bytes = &bytes[length..],
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// The character that means the end of the input to a program that reads the terminal line by line.
pub(crate) fn end_of_file(master: &AsyncFd<OwnedFd>) -> u8 {
    tcgetattr(master.get_ref())
        .map_or(END_OF_FILE, |modes| modes.control_chars[SpecialCharacterIndices::VEOF as usize])
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
    use std::time::Duration;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::unistd::pipe2;
    use tokio::io::Interest;
    use tokio::time::timeout;

    use super::*;
    use crate::sys;

    fn watched(fd: impl Into<OwnedFd>, interest: Interest) -> AsyncFd<OwnedFd> {
        let fd = fd.into();
        sys::fd::set_nonblocking(&fd).unwrap();
        sys::async_fd::register(fd, interest).unwrap()
    }

    fn source() -> (AsyncFd<OwnedFd>, PipeWriter) {
        let (reader, writer) = pipe().unwrap();
        (watched(reader, Interest::READABLE), writer)
    }

    fn target() -> (PipeReader, AsyncFd<OwnedFd>) {
        let (reader, writer) = pipe().unwrap();
        (reader, watched(writer, Interest::WRITABLE))
    }

    #[tokio::test]
    async fn all_is_read_and_then_the_end() {
        let (source, mut writer) = source();
        let (_end, ended) = watch::channel(false);
        let mut output = Output::new(&source, ended);
        writer.write_all(b"one").unwrap();
        assert_eq!(output.next().await.unwrap(), b"one");
        let idle = timeout(Duration::from_millis(20), output.next()).await;
        assert!(idle.is_err(), "{idle:?}");
        writer.write_all(b"two").unwrap();
        drop(writer);
        assert_eq!(output.next().await.unwrap(), b"two");
        assert_eq!(output.next().await, None);
    }

    #[tokio::test]
    async fn a_pipe_that_stays_open_after_the_end_is_read_to_what_is_there() {
        let (source, mut writer) = source();
        let (end, ended) = watch::channel(false);
        let size = 3 * CHUNK / 2;
        writer.write_all(&vec![b'x'; size]).unwrap();
        end.send_replace(true);
        assert_eq!(count(&mut Output::new(&source, ended)).await, size);
        drop(writer);
    }

    async fn count(output: &mut Output<'_>) -> usize {
        let mut read = 0;
        while let Some(chunk) = output.next().await {
            read += chunk.len();
        }
        read
    }

    #[tokio::test]
    async fn what_others_write_after_the_end_is_not_read_for_ever() {
        let (source, writer) = source();
        let (end, ended) = watch::channel(true);
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let mut writer = writer.try_clone().unwrap();
                std::thread::spawn(move || while writer.write_all(&[b'x'; 4096]).is_ok() {})
            })
            .collect();
        assert!(count(&mut Output::new(&source, ended)).await <= LAST);
        drop((end, source));
        for writer in writers {
            // EPIPE ends it.
            writer.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_full_pipe_does_not_keep_the_thread() {
        // Each write is a packet, and each packet a read: pipe(2), O_DIRECT.
        let flags = OFlag::O_DIRECT | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let (reader, writer) = pipe2(flags).unwrap();
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(1 << 20)).unwrap();
        let mut packets = 0;
        while write(&writer, b"x") == Ok(1) {
            packets += 1;
        }
        let source = sys::async_fd::register(reader, Interest::READABLE).unwrap();
        drop(source.readable().await.unwrap());
        let (_end, ended) = watch::channel(false);
        let mut output = Output::new(&source, ended);
        let mut read = 0;
        let reading = async {
            while output.next().await.is_some() {
                read += 1;
            }
        };
        tokio::select! {
            biased;
            () = reading => {}
            () = std::future::ready(()) => {}
        }
        assert!(0 < read && read < packets, "{read} of {packets} at once");
    }

    #[tokio::test]
    async fn the_end_interrupts_a_wait_for_more() {
        let (source, _writer) = source();
        let (end, ended) = watch::channel(false);
        let next = tokio::spawn(async move { Output::new(&source, ended).next().await });
        end.send_replace(true);
        assert_eq!(next.await.unwrap(), None);
    }

    #[tokio::test]
    async fn more_than_a_pipe_takes_waits_for_its_reader_and_a_closed_one_is_an_error() {
        let (mut reader, target) = target();
        let size = 1 << 20;
        let copy = std::thread::spawn(move || {
            let mut bytes = vec![0; size];
            reader.read_exact(&mut bytes).unwrap();
            bytes
        });
        let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        write_all(&target, &bytes).await.unwrap();
        assert_eq!(copy.join().unwrap(), bytes);
        let closed = write_all(&target, b"x").await.unwrap_err();
        assert_eq!(closed.kind(), io::ErrorKind::BrokenPipe);
    }
}
