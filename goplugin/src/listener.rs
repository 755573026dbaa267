//! The accept loop: no error ends it, only the shutdown does. Peers of other PID namespaces are refused here.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;

use crate::connection::{Connection, OpenToken};
use crate::errno;
use crate::peer::{self, Peer};

/// How long to wait after an error such as EMFILE. Long enough not to spin, short enough that a host that reconnects does not
/// notice.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// At most one warning in this time: the cause may last, and is known after the first line.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// What the loop needs of a listener; a test has one that fails.
pub(crate) trait Accept {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>>;
}

impl Accept for UnixListener {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        UnixListener::poll_accept(self, cx).map_ok(|(stream, _peer)| stream)
    }
}

/// Connections that are refused in one poll, at most: a process that connects in a loop must not occupy a thread of the runtime.
const REFUSALS_IN_A_ROW: usize = 32;

/// The connections of a listener, until `stop` completes.
pub(crate) struct Incoming<L> {
    listener: L,
    identify: Identify,
    /// Accepted, but the plugin had no descriptor left to identify the peer.
    unidentified: Option<UnixStream>,
    open: OpenToken,
    /// None when it has completed.
    stop: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    pause: Option<Pin<Box<Sleep>>>,
    warned: Interval,
    refused: Interval,
}

/// Identifies a peer; a test has its own.
type Identify = fn(&UnixStream) -> io::Result<Peer>;

/// Lets one of many through in each [`WARNING_INTERVAL`].
#[derive(Debug, Default)]
struct Interval {
    last: Option<Instant>,
    held_back: u64,
}

impl Interval {
    /// How many were held back since the last one, if it is time for the next.
    fn pass(&mut self) -> Option<u64> {
        if self.last.is_some_and(|at| at.elapsed() < WARNING_INTERVAL) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.held_back))
    }
}

impl<L: Accept> Incoming<L> {
    pub(crate) fn new(listener: L, open: OpenToken, stop: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            listener,
            identify: peer::identify,
            unidentified: None,
            open,
            stop: Some(Box::pin(stop)),
            pause: None,
            warned: Interval::default(),
            refused: Interval::default(),
        }
    }

    fn wait_after(&mut self, error: &io::Error) {
        if self.warned.pass().is_some() {
            tracing::warn!(%error, "failed to accept a connection on the plugin's socket; retrying");
        }
        self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
    }

    /// The connection if its peer may have it; otherwise it is closed, or kept until there is a descriptor to identify the peer with.
    fn admit(&mut self, stream: UnixStream) -> Option<Connection> {
        match (self.identify)(&stream) {
            Ok(Peer::Own) => return Some(Connection::new(stream, self.open.clone())),
            Ok(Peer::Gone) => {
                tracing::debug!("closed a connection to the plugin's socket: its peer has ended")
            }
            Ok(Peer::Foreign) => {
                if let Some(refused_since_last_line) = self.refused.pass() {
                    tracing::warn!(
                        refused_since_last_line,
                        "refused a connection to the plugin's socket from another PID namespace; only processes of the \
                         plugin's own PID namespace, as its host is, may connect"
                    );
                }
            }
            Err(error) if errno::is_transient(&error) => {
                self.unidentified = Some(stream);
                self.wait_after(&error);
            }
            Err(error) => {
                if self.refused.pass().is_some() {
                    tracing::warn!(%error, "refused a connection to the plugin's socket: failed to identify its peer");
                }
            }
        }
        None
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
        for _ in 0..REFUSALS_IN_A_ROW {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            let accepted = match this.unidentified.take() {
                Some(stream) => Ok(stream),
                None => ready!(this.listener.poll_accept(cx)),
            };
            match accepted {
                Ok(stream) => {
                    if let Some(connection) = this.admit(stream) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => this.wait_after(&error),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use nix::errno::Errno;
    use tokio::sync::{mpsc, oneshot};
    use tokio_stream::StreamExt;

    use super::*;

    /// Returns what it was given, last one first, then stays pending.
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
        let connection = incoming.next().await.expect("keeps accepting after errors").unwrap();
        assert_eq!(start.elapsed(), 3 * ACCEPT_PAUSE);

        assert!(tokio::time::timeout(Duration::from_secs(60), incoming.next()).await.is_err());
        stop.send(()).unwrap();
        assert!(incoming.next().await.is_none());
        assert!(incoming.next().await.is_none(), "stays ended");

        drop(incoming);
        assert!(
            tokio::time::timeout(Duration::from_secs(1), all_closed.recv()).await.is_err(),
            "one is open"
        );
        drop(connection);
        assert!(all_closed.recv().await.is_none());
    }

    /// Connections from peers as `identify` sees them: how many are served.
    async fn admitted(count: usize, identify: Identify) -> (usize, Incoming<Scripted>) {
        let pairs: Vec<_> = (0..count).map(|_| UnixStream::pair().unwrap()).collect();
        let (streams, peers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let (open, _all_closed) = mpsc::channel(1);
        let script = streams.into_iter().map(Ok).collect();
        let mut incoming = Incoming::new(Scripted(RefCell::new(script)), open, std::future::pending());
        incoming.identify = identify;
        let mut served = Vec::new();
        while let Ok(Some(Ok(connection))) = tokio::time::timeout(WARNING_INTERVAL / 2, incoming.next()).await
        {
            served.push(connection);
        }
        let open = peers.iter().filter(|peer| peer.try_write(b"x").is_ok()).count();
        assert_eq!(open, served.len(), "what is not served is closed");
        (served.len(), incoming)
    }

    #[tokio::test(start_paused = true)]
    async fn only_peers_of_the_own_namespace_are_served() {
        assert_eq!(admitted(3, |_| Ok(Peer::Own)).await.0, 3);
        assert_eq!(admitted(3, |_| Ok(Peer::Gone)).await.0, 0);
        assert_eq!(admitted(3, |_| Err(Errno::EACCES.into())).await.0, 0, "an unidentified peer is refused");
        let (served, incoming) = admitted(2 * REFUSALS_IN_A_ROW, |_| Ok(Peer::Foreign)).await;
        assert_eq!(served, 0);
        assert_eq!(incoming.refused.held_back, 2 * REFUSALS_IN_A_ROW as u64 - 1, "said once");
        assert!(incoming.listener.0.borrow().is_empty(), "all were looked at");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_is_identified_when_there_is_a_descriptor_for_it() {
        use std::sync::atomic::{AtomicU32, Ordering};
        static LOOKS: AtomicU32 = AtomicU32::new(0);
        let identify = |_: &UnixStream| match LOOKS.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Errno::EMFILE.into()),
            _ => Ok(Peer::Own),
        };
        let start = Instant::now();
        assert_eq!(admitted(1, identify).await.0, 1);
        assert!(start.elapsed() >= ACCEPT_PAUSE && LOOKS.load(Ordering::Relaxed) == 2);
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
