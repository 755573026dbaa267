//! From the socket to the last answer.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::health_reporter;

use super::connection::OpenToken;
use super::handshake::{self, HostRequest};
use super::listener::Incoming;
use super::services::{Broker, Controller, Stdio};
use super::shutdown::Shutdown;
use super::socket::{SocketError, SocketFile, sweep_dead};
use crate::proto::goplugin::grpc_broker_server::GrpcBrokerServer;
use crate::proto::goplugin::grpc_controller_server::GrpcControllerServer;
use crate::proto::goplugin::grpc_stdio_server::GrpcStdioServer;

/// The name that go-plugin's hosts ask the health service about.
const HEALTH_SERVICE: &str = "plugin";

/// From the begin of a shutdown to the return of [`PluginServer::run`], if the host does not hang up before: time for
/// the answer of the Shutdown call. The host kills after 2 s.
const FAREWELL: Duration = Duration::from_millis(200);

/// Streams that the host opened and gave up before they were looked at; h2 ends the connection at 20, as a defence
/// against strangers. Here the only peer is the agent, and a lost connection looks to it like a dead plugin.
const MAX_RESET_BEFORE_ACCEPT: usize = 4096;

#[derive(Debug, Error)]
pub enum ServeError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("failed to handle {signal}: {source}")]
    Signal { signal: &'static str, source: io::Error },
    #[error("failed to write the handshake line to stdout: {source}; the agent reads it from there")]
    Announce { source: io::Error },
    #[error("failed to point stdout to /dev/null after the handshake: {source}")]
    CloseStdout { source: io::Error },
    #[error("failed to serve on the socket {path}: {source}")]
    Listen { path: String, source: io::Error },
    #[error("the server on the socket {path} ended: {source}")]
    Serve { path: String, source: tonic::transport::Error },
}

/// Does all that go-plugin asks of a plugin: makes the socket, takes care of the signals, tells the host where the socket
/// is, serves `routes` and go-plugin's own services until the shutdown has begun, and removes the socket.
///
/// * SIGTERM begins the shutdown, as the host's Shutdown call does.
/// * SIGINT and SIGHUP are ignored: Ctrl-C or a closed terminal reaches the whole process group of a foreground agent, and
///   it is the agent's part to say what becomes of the plugin. They are caught, not set to SIG_IGN, so that no task
///   inherits it.
/// * Stdout is /dev/null after the handshake line: a stray print of a library cannot disturb the host.
///
/// When it returns, the process must exit, not wait: streams may still be open, and the host kills 2 s after its call.
///
/// # Errors
/// If the socket cannot be made or the host cannot be told. Nothing that happens on a connection is an error here.
pub async fn serve(request: HostRequest, routes: Routes, shutdown: Shutdown) -> Result<(), ServeError> {
    if let Some(versions) = &request.unknown_versions {
        tracing::warn!(?versions, "the host does not list the protocol version of this plugin");
    }
    let server = PluginServer::bind(&request)?;
    handle_signals(&shutdown)?;
    announce(&server.handshake_line())?;
    // Nobody waits for it.
    drop(tokio::task::spawn_blocking(move || sweep_dead(&request.socket_dir)));
    server.run(routes, shutdown).await
}

/// The socket of a plugin, ready to serve. [`serve`] is what a program wants; this is for one that has no host.
#[derive(Debug)]
pub struct PluginServer {
    socket: SocketFile,
    listener: std::os::unix::net::UnixListener,
    wants_multiplex_field: bool,
}

impl PluginServer {
    /// Makes the socket. A host may connect from now on, and is answered when [`run`](Self::run) runs.
    ///
    /// # Errors
    /// If the directory or the socket cannot be made as private as it has to be.
    pub fn bind(request: &HostRequest) -> Result<Self, SocketError> {
        let (socket, listener) = SocketFile::bind(&request.socket_dir, request.socket_group.as_deref())?;
        Ok(Self { socket, listener, wants_multiplex_field: request.wants_multiplex_field })
    }

    /// The line that tells the host where to connect, with its newline.
    #[must_use]
    pub fn handshake_line(&self) -> String {
        handshake::line(self.socket.as_str(), self.wants_multiplex_field)
    }

    #[must_use]
    pub fn socket_path(&self) -> &Path {
        self.socket.path()
    }

    /// Serves `routes` and go-plugin's services. Returns within 200 ms of the begin of the shutdown, with the socket
    /// removed, whatever streams are open.
    ///
    /// # Errors
    /// If the listener cannot be used at all.
    pub async fn run(self, routes: Routes, shutdown: Shutdown) -> Result<(), ServeError> {
        let Self { socket, listener, .. } = self;
        let path = socket.as_str().to_owned();
        let listener = tokio::net::UnixListener::from_std(listener)
            .map_err(|source| ServeError::Listen { path: path.clone(), source })?;
        let (open, all_closed) = mpsc::channel(1);
        let stop = {
            let shutdown = shutdown.clone();
            async move { shutdown.begun().await }
        };
        let incoming = Incoming::new(listener, OpenToken::clone(&open), stop);
        drop(open);

        // No keepalive, no timeouts, no limit of streams: a WaitTask lasts as long as its task, and each has its own.
        Server::builder()
            .http2_max_pending_accept_reset_streams(Some(MAX_RESET_BEFORE_ACCEPT))
            .add_routes(with_goplugin_services(routes, &shutdown).await)
            .serve_with_incoming(incoming)
            .await
            .map_err(|source| ServeError::Serve { path, source })?;

        // First of all, so that no agent finds a socket that nobody listens on.
        drop(socket);
        farewell(all_closed).await;
        Ok(())
    }
}

/// Waits until the host has hung up, which it does as soon as it has the answer, or for [`FAREWELL`].
async fn farewell(mut all_closed: mpsc::Receiver<std::convert::Infallible>) {
    if tokio::time::timeout(FAREWELL, all_closed.recv()).await.is_err() {
        tracing::debug!("the host still has the connection open");
    }
}

async fn with_goplugin_services(routes: Routes, shutdown: &Shutdown) -> Routes {
    let (health, health_server) = health_reporter();
    health.set_service_status(HEALTH_SERVICE, ServingStatus::Serving).await;
    routes
        .add_service(health_server)
        .add_service(GrpcControllerServer::new(Controller { shutdown: shutdown.clone() }))
        .add_service(GrpcBrokerServer::new(Broker { shutdown: shutdown.clone() }))
        .add_service(GrpcStdioServer::new(Stdio { shutdown: shutdown.clone() }))
}

fn handle_signals(shutdown: &Shutdown) -> Result<(), ServeError> {
    let handler = |name, kind| signal(kind).map_err(|source| ServeError::Signal { signal: name, source });
    let mut term = handler("SIGTERM", SignalKind::terminate())?;
    let interrupt = handler("SIGINT", SignalKind::interrupt())?;
    let hangup = handler("SIGHUP", SignalKind::hangup())?;
    tokio::spawn(ignore("SIGINT", interrupt));
    tokio::spawn(ignore("SIGHUP", hangup));
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        if term.recv().await.is_some() {
            tracing::info!("SIGTERM: the plugin ends, its tasks go on");
            shutdown.begin();
        }
    });
    Ok(())
}

async fn ignore(name: &'static str, mut signal: Signal) {
    while signal.recv().await.is_some() {
        tracing::debug!(signal = name, "ignored, the agent decides when the plugin ends");
    }
}

/// Writes the handshake line and gives stdout up.
fn announce(line: &str) -> Result<(), ServeError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(line.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| ServeError::Announce { source })?;
    let null = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .map_err(|source| ServeError::CloseStdout { source })?;
    nix::unistd::dup2_stdout(null).map_err(|errno| ServeError::CloseStdout { source: errno.into() })
}
