//! A host's end of the plugin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Connects as go-plugin's client does: plaintext HTTP/2, authority "unused".
pub(crate) async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_path_buf();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://unused").connect_with_connector(connector).await
}

/// What the host's ping sees: the number of the serving status.
pub(crate) async fn health(channel: &Channel, service: &str) -> Result<i32, tonic::Status> {
    let request = HealthCheckRequest { service: service.into() };
    Ok(HealthClient::new(channel.clone()).check(request).await?.into_inner().status)
}

/// The socket's path out of a handshake line, which is checked as the host checks it.
pub(crate) fn socket_in(line: &str) -> PathBuf {
    let fields: Vec<&str> = line.strip_suffix('\n').expect("a whole line").split('|').collect();
    assert_eq!(fields.len(), 6, "{line:?}");
    assert_eq!((fields[0], fields[1], fields[2]), ("1", "2", "unix"), "{line:?}");
    assert_eq!((fields[4], fields[5]), ("grpc", ""), "{line:?}");
    PathBuf::from(fields[3])
}
