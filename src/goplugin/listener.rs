//! The accept loop: no error ends it, only the shutdown does.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;

use super::connection::{Connection, OpenToken};

/// How long to wait after an error such as EMFILE. Long enough not to spin, short enough that an agent which re-attaches
/// does not notice.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// At most one warning in this time: the trouble may last, and its reason is known after the first line.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// What the loop needs of a listener; a test has one that fails.
pub(super) trait Accept {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>>;
}

impl Accept for UnixListener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        UnixListener::poll_accept(self, cx).map_ok(|(stream, _peer)| stream)
    }
}

/// The connections of a listener, until `stop` completes.
pub(super) struct Incoming<L> {
    listener: L,
    open: OpenToken,
    /// None when it has completed.
    stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    pause: Option<Pin<Box<Sleep>>>,
    warned: Option<Instant>,
}

impl<L: Accept> Incoming<L> {
    pub(super) fn new(listener: L, open: OpenToken, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { listener, open, stop: Some(Box::pin(stop)), pause: None, warned: None }
    }

    fn warn(&mut self, error: &io::Error) {
        if self.warned.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL) {
            self.warned = Some(Instant::now());
            tracing::warn!(%error, "cannot accept a connection on the plugin's socket, trying again");
        }
    }
}

impl<L: Accept + Unpin> Stream for Incoming<L> {
    type Item = Result<Connection, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(stop) = &mut this.stop else { return Poll::Ready(None) };
        if stop.as_mut().poll(cx).is_ready() {
            this.stop = None;
            return Poll::Ready(None);
        }
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            match ready!(this.listener.poll_accept(cx)) {
                Ok(stream) => return Poll::Ready(Some(Ok(Connection::new(stream, this.open.clone())))),
                Err(error) => {
                    this.warn(&error);
                    this.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use nix::errno::Errno;
    use tokio::sync::{mpsc, oneshot};
    use tokio_stream::StreamExt;

    use super::*;

    /// Answers with what it was given, last one first, then waits for ever.
    struct Scripted(RefCell<Vec<io::Result<UnixStream>>>);

    impl Accept for Scripted {
        fn poll_accept(&self, _cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
            self.0.borrow_mut().pop().map_or(Poll::Pending, Poll::Ready)
        }
    }

    fn error(errno: Errno) -> io::Result<UnixStream> {
        Err(errno.into())
    }

    #[tokio::test(start_paused = true)]
    async fn errors_pause_and_never_end_it() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        let (open, mut all_closed) = mpsc::channel(1);
        let script = vec![Ok(stream), error(Errno::ECONNABORTED), error(Errno::ENOMEM), error(Errno::EMFILE)];
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        let mut incoming = Incoming::new(Scripted(RefCell::new(script)), open, stopped);

        let start = Instant::now();
        let connection = incoming.next().await.expect("goes on after errors").unwrap();
        assert_eq!(start.elapsed(), 3 * ACCEPT_PAUSE);

        assert!(tokio::time::timeout(Duration::from_secs(60), incoming.next()).await.is_err());
        stop.send(()).unwrap();
        assert!(incoming.next().await.is_none());
        assert!(incoming.next().await.is_none(), "stays at its end");

        drop(incoming);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), all_closed.recv()).await.is_err(),
            "one is open"
        );
        drop(connection);
        assert!(all_closed.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn stops_in_the_middle_of_a_pause() {
        let (open, _all_closed) = mpsc::channel(1);
        let script = std::iter::repeat_with(|| error(Errno::EMFILE)).take(1000).collect();
        let stop = tokio::time::sleep(Duration::from_millis(120));
        let start = Instant::now();
        let mut incoming = Incoming::new(Scripted(RefCell::new(script)), open, stop);
        assert!(incoming.next().await.is_none());
        assert_eq!(start.elapsed(), Duration::from_millis(120));
        assert_eq!(incoming.listener.0.borrow().len(), 1000 - 3, "0, 50 and 100 ms");
    }
}
