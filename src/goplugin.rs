//! The plugin side of hashicorp/go-plugin, for gRPC over a unix socket.
//!
//! ```text
//! agent                                    plugin
//!   exec, cookie in the environment   →    launched_by()
//!   reads one line of stdout          ←    1|2|unix|PATH|grpc|
//!   connects (HTTP/2, plaintext)      →    the driver's services and go-plugin's own
//!   reads lines of stderr             ←    hclog
//!   GRPCController.Shutdown           →    answer, remove the socket, return from serve()
//! ```
//!
//! Everything here is about the process and its socket; what the plugin does is in `driver`.

pub mod hclog;

mod connection;
mod handshake;
mod listener;
mod log_queue;
mod peer;
mod serve;
mod services;
mod shutdown;
mod socket;

pub use handshake::{HandshakeError, HostRequest, Launch, launched_by};
pub use serve::{PluginServer, ServeError, serve};
pub use shutdown::Shutdown;
pub use socket::SocketError;
