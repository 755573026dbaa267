//! An accepted connection that is counted for as long as it is open, and that a shortage of memory does not end.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::errno::lacks_memory;

/// Held by every open connection. Nothing is ever sent: the receiver sees the end when the last one is dropped.
pub(crate) type OpenToken = mpsc::Sender<Infallible>;

/// How long to wait before a read or write that met a shortage of memory is retried.
const MEMORY_PAUSE: Duration = Duration::from_millis(50);

/// To a host, the end of the connection is the death of the plugin and of all that the plugin manages. So a read or write for which
/// the kernel has no memory at the moment is retried: one that had moved any byte would have returned their number, read(2), write(2).
#[derive(Debug)]
pub(crate) struct Connection<S = UnixStream> {
    stream: S,
    read_pause: Pause,
    write_pause: Pause,
    _open: OpenToken,
}

type Pause = Option<Pin<Box<Sleep>>>;

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, open: OpenToken) -> Self {
        Self { stream, read_pause: None, write_pause: None, _open: open }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Repeats `attempt` for as long as it fails because of a shortage of memory.
fn patiently<T>(
    pause: &mut Pause,
    cx: &mut Context<'_>,
    mut attempt: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    loop {
        if let Some(waiting) = pause {
            ready!(waiting.as_mut().poll(cx));
            *pause = None;
        }
        match ready!(attempt(cx)) {
            Err(error) if lacks_memory(&error) => *pause = Some(Box::pin(sleep(MEMORY_PAUSE))),
            done => return Poll::Ready(done),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, read_pause, .. } = self.get_mut();
        patiently(read_pause, cx, |cx| Pin::new(&mut *stream).poll_read(cx, buf))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, write_pause, .. } = self.get_mut();
        patiently(write_pause, cx, |cx| Pin::new(&mut *stream).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, write_pause, .. } = self.get_mut();
        patiently(write_pause, cx, |cx| Pin::new(&mut *stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    /// Fails with these, last one first, then reads and takes all it is asked for.
    struct Scripted(Vec<Errno>);

    impl AsyncRead for Scripted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(match self.0.pop() {
                Some(errno) => Err(errno.into()),
                None => {
                    buf.put_slice(b"x");
                    Ok(())
                }
            })
        }
    }

    impl AsyncWrite for Scripted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(self.0.pop().map_or(Ok(buf.len()), |errno| Err(errno.into())))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn connection(script: &[Errno]) -> Connection<Scripted> {
        Connection::new(Scripted(script.to_vec()), mpsc::channel(1).0)
    }

    #[tokio::test(start_paused = true)]
    async fn a_shortage_of_memory_is_waited_out() {
        let script = [Errno::ENOBUFS, Errno::EFAULT, Errno::ENOMEM];
        let start = Instant::now();
        assert_eq!(connection(&script).read_u8().await.unwrap(), b'x');
        assert_eq!(start.elapsed(), 3 * MEMORY_PAUSE);
        assert_eq!(connection(&script).write(b"word").await.unwrap(), 4);
        assert_eq!(start.elapsed(), 6 * MEMORY_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn any_other_error_ends_it_at_once() {
        let start = Instant::now();
        let error = connection(&[Errno::ECONNRESET]).read_u8().await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ECONNRESET as i32));
        let error = connection(&[Errno::EPIPE]).write(b"word").await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EPIPE as i32));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
