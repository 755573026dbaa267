//! The plugin side of HashiCorp's [go-plugin], for gRPC services over a unix socket.
//!
//! A go-plugin *host* starts a *plugin* as a child process and calls its gRPC services. This crate is everything that go-plugin asks of
//! the plugin besides its own services:
//!
//! ```text
//! host                                     plugin
//!   exec, cookie in the environment   →    Plugin::launched_by()
//!   reads one line of stdout          ←    1|VERSION|unix|PATH|grpc|
//!   connects (HTTP/2, plaintext)      →    the plugin's services and go-plugin's own
//!   reads lines of stderr             ←    hclog
//!   GRPCController.Shutdown           →    answer, remove the socket, return from serve()
//! ```
//!
//! ```no_run
//! # async fn run(routes: tonic::service::Routes) -> Result<(), Box<dyn std::error::Error>> {
//! use goplugin::{CancellationToken, HostRequest, Launch, Plugin};
//!
//! const PLUGIN: Plugin = Plugin {
//!     name: "greeter",
//!     cookie_key: "GREETER_PLUGIN",
//!     cookie_value: "6f0c1d",
//!     protocol_version: 1,
//! };
//!
//! if PLUGIN.launched_by() == Launch::Person {
//!     return Err("this is a plugin: its host starts it".into());
//! }
//! goplugin::hclog::init(goplugin::hclog::Options { module: PLUGIN.name, ..Default::default() });
//! let request = HostRequest::from_env(&PLUGIN)?;
//! goplugin::serve(&PLUGIN, request, routes, CancellationToken::new()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is supported
//!
//! * Linux, protocol `grpc`, network `unix`, and one application protocol version.
//! * `GRPCController`, `GRPCStdio` and `GRPCBroker`, and `grpc.health.v1.Health`. Stdio stays open and is always empty, because stdout is
//!   `/dev/null` after the handshake. Brokered connections that a host offers are ignored.
//! * Mutual TLS and multiplexing are not supported: the first is refused with a text, the second is declined in the handshake line.
//!
//! # Who may connect
//!
//! The socket lies in a directory that only the plugin's user and root can enter, and the members of `PLUGIN_UNIX_SOCKET_GROUP` if the
//! host names one. Besides, only processes of the plugin's own PID namespace are served: a container, root included, is not.
//!
//! [go-plugin]: https://github.com/hashicorp/go-plugin
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    warn(
        missing_docs,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::missing_errors_doc
    )
)]

pub mod hclog;
pub mod proto;

mod connection;
mod errno;
mod group;
mod handshake;
mod listener;
mod log_queue;
mod peer;
mod serve;
mod services;
mod socket;

pub use handshake::{HandshakeError, HostRequest, Launch, Plugin};
pub use serve::{PluginServer, ServeError, serve};
pub use socket::SocketError;
/// Ends [`serve`]: cancelled by the host's Shutdown call and by SIGTERM, or by the plugin itself.
pub use tokio_util::sync::CancellationToken;
