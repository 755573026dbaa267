//! From the socket to the last response.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::health_reporter;

use crate::connection::OpenToken;
use crate::handshake::{HostRequest, Plugin};
use crate::listener::Incoming;
use crate::proto::grpc_broker_server::GrpcBrokerServer;
use crate::proto::grpc_controller_server::GrpcControllerServer;
use crate::proto::grpc_stdio_server::GrpcStdioServer;
use crate::services::{Broker, Controller, Stdio};
use crate::socket::{SocketError, SocketFile, sweep_dead};

/// The name that go-plugin's hosts ask the health service about.
const HEALTH_SERVICE: &str = "plugin";

/// Between the shutdown and the return of [`PluginServer::run`], unless the host hangs up before: time for the response to the
/// Shutdown call. The host kills after 2 s.
const FAREWELL: Duration = Duration::from_millis(200);

/// Streams that the host opened and reset before they were accepted; h2 ends the connection at 20, as a defence against strangers. Here
/// the only peer is the host, and to it a lost connection is a dead plugin.
const MAX_RESET_BEFORE_ACCEPT: usize = 4096;

/// Why the plugin serves no longer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A signal handler cannot be installed.
    #[error("failed to handle {signal}: {reason}")]
    Signal {
        /// Its name.
        signal: &'static str,
        /// The kernel's.
        reason: io::Error,
    },
    /// The host cannot read the handshake line.
    #[error("failed to write the handshake line to stdout, where the host reads it: {0}")]
    Announce(io::Error),
    /// Stdout cannot be replaced.
    #[error("failed to point stdout to /dev/null after the handshake: {0}")]
    CloseStdout(io::Error),
    /// The listener cannot be used.
    #[error("failed to serve on the socket {path}: {reason}")]
    Listen {
        /// Of the socket.
        path: String,
        /// The runtime's.
        reason: io::Error,
    },
    /// The HTTP/2 server ended by itself.
    #[error("failed to keep serving on the socket {path}: {source}")]
    Serve {
        /// Of the socket.
        path: String,
        /// The server's.
        source: tonic::transport::Error,
    },
}

/// Does everything that go-plugin asks of a plugin: makes the socket, handles the signals, writes the handshake line, serves `routes`
/// and go-plugin's own services until `shutdown` is cancelled, and removes the socket.
///
/// * SIGTERM cancels `shutdown`, as the host's Shutdown call does.
/// * SIGINT and SIGHUP are ignored: Ctrl-C or a closed terminal reaches the whole process group of a host in the foreground, and the
///   host decides when the plugin ends. They are caught, not set to SIG_IGN, which child processes would inherit.
/// * Stdout is `/dev/null` after the handshake line, so that no `print!` disturbs the host.
/// * Sockets that killed plugins of the same name left in the directory are removed, from a minute after they were made.
///
/// It needs a tokio runtime with IO and time. When it returns, the process must exit and not wait for anything: streams may still be
/// open, and the host kills 2 s after its call.
///
/// # Errors
/// If the socket cannot be made or the handshake line cannot be written. Errors of single connections are not returned.
pub async fn serve(
    plugin: &Plugin,
    request: HostRequest,
    routes: Routes,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    if let Some(versions) = &request.unknown_versions {
        tracing::warn!(
            ?versions,
            plugin = plugin.protocol_version,
            "the host does not list the protocol version of this plugin"
        );
    }
    let server = PluginServer::bind(plugin, &request)?;
    handle_signals(&shutdown)?;
    announce(server.handshake_line())?;
    let name = plugin.name;
    // Nothing depends on its end.
    drop(tokio::task::spawn_blocking(move || sweep_dead(&request.socket_dir, name)));
    server.run(routes, shutdown).await
}

/// The socket of a plugin, ready to serve. Programs call [`serve`]; this is for tests, which have no host.
#[derive(Debug)]
pub struct PluginServer {
    socket: SocketFile,
    listener: std::os::unix::net::UnixListener,
    line: String,
}

impl PluginServer {
    /// Makes the socket. Hosts can connect from now on, and get responses from [`run`](Self::run) on.
    ///
    /// # Errors
    /// If the directory or the socket cannot be made, or cannot be made private.
    pub fn bind(plugin: &Plugin, request: &HostRequest) -> Result<Self, SocketError> {
        let (socket, listener) =
            SocketFile::bind(&request.socket_dir, plugin.name, request.socket_group.as_deref())?;
        let line = plugin.handshake_line(socket.as_str(), request.wants_multiplex_field);
        Ok(Self { socket, listener, line })
    }

    /// The line that tells the host where to connect, with its newline.
    #[must_use]
    pub fn handshake_line(&self) -> &str {
        &self.line
    }

    /// Where a host connects.
    #[must_use]
    pub fn socket_path(&self) -> &Path {
        self.socket.path()
    }

    /// Serves `routes` and go-plugin's services. Returns within 200 ms after `shutdown` is cancelled, with the socket removed, even if
    /// streams are open.
    ///
    /// # Errors
    /// If the listener cannot be used at all.
    pub async fn run(self, routes: Routes, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Self { socket, listener, .. } = self;
        let path = socket.as_str().to_owned();
        let listener = tokio::net::UnixListener::from_std(listener)
            .map_err(|reason| ServeError::Listen { path: path.clone(), reason })?;
        let (open, all_closed) = mpsc::channel(1);
        let incoming = Incoming::new(listener, OpenToken::clone(&open), shutdown.clone().cancelled_owned());
        drop(open);

        // No keepalive, no timeouts, no limit of streams: a call may last for weeks, and there may be thousands.
        Server::builder()
            .http2_max_pending_accept_reset_streams(Some(MAX_RESET_BEFORE_ACCEPT))
            .add_routes(with_goplugin_services(routes, &shutdown).await)
            .serve_with_incoming(incoming)
            .await
            .map_err(|source| ServeError::Serve { path, source })?;

        // First, so that no host finds a socket without a listener.
        drop(socket);
        farewell(all_closed).await;
        Ok(())
    }
}

/// Waits until the host has hung up, which it does on the response, or for [`FAREWELL`].
async fn farewell(mut all_closed: mpsc::Receiver<std::convert::Infallible>) {
    if tokio::time::timeout(FAREWELL, all_closed.recv()).await.is_err() {
        tracing::debug!("the host still has the connection open");
    }
}

async fn with_goplugin_services(routes: Routes, shutdown: &CancellationToken) -> Routes {
    let (health, health_server) = health_reporter();
    health.set_service_status(HEALTH_SERVICE, ServingStatus::Serving).await;
    routes
        .add_service(health_server)
        .add_service(GrpcControllerServer::new(Controller { shutdown: shutdown.clone() }))
        .add_service(GrpcBrokerServer::new(Broker { shutdown: shutdown.clone() }))
        .add_service(GrpcStdioServer::new(Stdio { shutdown: shutdown.clone() }))
}

fn handle_signals(shutdown: &CancellationToken) -> Result<(), ServeError> {
    let handler = |name, kind| signal(kind).map_err(|reason| ServeError::Signal { signal: name, reason });
    let mut term = handler("SIGTERM", SignalKind::terminate())?;
    let interrupt = handler("SIGINT", SignalKind::interrupt())?;
    let hangup = handler("SIGHUP", SignalKind::hangup())?;
    tokio::spawn(ignore("SIGINT", interrupt));
    tokio::spawn(ignore("SIGHUP", hangup));
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        if term.recv().await.is_some() {
            tracing::info!("SIGTERM: shutting the plugin down");
            shutdown.cancel();
        }
    });
    Ok(())
}

async fn ignore(name: &'static str, mut signal: Signal) {
    while signal.recv().await.is_some() {
        tracing::debug!(signal = name, "ignored a signal: the host decides when the plugin ends");
    }
}

/// Writes the handshake line and replaces stdout.
fn announce(line: &str) -> Result<(), ServeError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).map_err(ServeError::Announce)?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").map_err(ServeError::CloseStdout)?;
    nix::unistd::dup2_stdout(null).map_err(|errno| ServeError::CloseStdout(errno.into()))
}
