//! The plugin side of go-plugin, spoken to over its socket inside one process.

// Here a step that fails is a test that fails.
#![allow(clippy::unwrap_used)]

mod host;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use goplugin::proto::grpc_broker_client::GrpcBrokerClient;
use goplugin::proto::grpc_controller_client::GrpcControllerClient;
use goplugin::proto::grpc_stdio_client::GrpcStdioClient;
use goplugin::proto::{ConnInfo, Empty};
use goplugin::{CancellationToken, HostRequest, Plugin, PluginServer, ServeError, hclog};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use host::{PATIENCE, connect, health, socket_in};

/// Long enough to see that something does not happen.
const A_WHILE: Duration = Duration::from_millis(300);

const SERVING: i32 = 1;

const PLUGIN: Plugin =
    Plugin { name: "greeter", cookie_key: "GREETER_PLUGIN", cookie_value: "6f0c1d", protocol_version: 2 };

/// The service of the example, as the plugin's own part.
#[allow(unreachable_pub, missing_debug_implementations, reason = "generated code")]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/greeter.rs"));
}

struct Named;

#[tonic::async_trait]
impl pb::greeter_server::Greeter for Named {
    async fn greet(&self, request: Request<pb::GreetRequest>) -> Result<Response<pb::GreetResponse>, Status> {
        Ok(Response::new(pb::GreetResponse { text: request.into_inner().name }))
    }
}

/// A running plugin and the directory of its socket.
struct Running {
    parent: TempDir,
    line: String,
    socket: PathBuf,
    shutdown: CancellationToken,
    run: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    fn start() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let request = HostRequest {
            socket_dir: parent.path().to_path_buf(),
            socket_group: None,
            wants_multiplex_field: false,
            unknown_versions: None,
        };
        let server = PluginServer::bind(&PLUGIN, &request).unwrap();
        let (line, socket) = (server.handshake_line().to_owned(), server.socket_path().to_path_buf());
        let shutdown = CancellationToken::new();
        let routes = Routes::new(pb::greeter_server::GreeterServer::new(Named));
        let run = tokio::spawn(server.run(routes, shutdown.clone()));
        Self { parent, line, socket, shutdown, run }
    }

    async fn connect(&self) -> Channel {
        connect(&self.socket).await.unwrap()
    }

    /// Waits for the end of the server.
    async fn ended(self) {
        timeout(PATIENCE, self.run).await.expect("run() returns").unwrap().unwrap();
        assert_empty(self.parent.path());
    }
}

fn assert_empty(dir: &Path) {
    let left: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test]
async fn the_line_names_a_private_socket() {
    let plugin = Running::start();
    assert_eq!(socket_in(&plugin.line), plugin.socket);
    assert_eq!(mode(&plugin.socket), 0o600);
    assert_eq!(mode(plugin.socket.parent().unwrap()), 0o700);
    assert!(plugin.socket.starts_with(plugin.parent.path()));
}

#[tokio::test]
async fn health_and_the_routes_are_served() {
    let plugin = Running::start();
    let channel = plugin.connect().await;
    assert_eq!(health(&channel, "plugin").await.unwrap(), SERVING);
    assert_eq!(health(&channel, "no such service").await.unwrap_err().code(), Code::NotFound);
    let mut client = pb::greeter_client::GreeterClient::new(channel);
    let greeted = client.greet(pb::GreetRequest { name: "Ada".into() }).await.unwrap();
    assert_eq!(greeted.into_inner().text, "Ada");
}

#[tokio::test]
async fn stdio_and_broker_stay_open() {
    let plugin = Running::start();
    let channel = plugin.connect().await;
    let mut stdio = GrpcStdioClient::new(channel.clone()).stream_stdio(()).await.unwrap().into_inner();
    let (offers, offered) = mpsc::channel(1);
    let mut broker = GrpcBrokerClient::new(channel.clone())
        .start_stream(ReceiverStream::new(offered))
        .await
        .unwrap()
        .into_inner();
    assert!(timeout(A_WHILE, stdio.message()).await.is_err(), "idle, not ended");
    offers.send(ConnInfo { service_id: 7, ..Default::default() }).await.unwrap();
    assert!(timeout(A_WHILE, broker.message()).await.is_err(), "idle, also after an offer");

    // The host closes its half.
    drop(offers);
    assert!(timeout(PATIENCE, broker.message()).await.unwrap().unwrap().is_none());
    assert!(timeout(A_WHILE, stdio.message()).await.is_err(), "the other one stays open");
}

#[tokio::test]
async fn more_streams_than_hypers_default() {
    // hyper allows 200 by itself; two a task are less than a big node needs.
    let plugin = Running::start();
    let channel = plugin.connect().await;
    let mut streams = Vec::new();
    for n in 0..500 {
        let call = timeout(PATIENCE, GrpcStdioClient::new(channel.clone()).stream_stdio(())).await;
        streams.push(call.unwrap_or_else(|_| panic!("stream {n} waits for another one to end")).unwrap());
    }
    assert_eq!(health(&channel, "plugin").await.unwrap(), SERVING);
    assert_eq!(streams.len(), 500);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_open_streams() {
    let plugin = Running::start();
    let channel = plugin.connect().await;
    let mut stdio = GrpcStdioClient::new(channel.clone()).stream_stdio(()).await.unwrap().into_inner();
    let (_offers, offered) = mpsc::channel::<ConnInfo>(1);
    let mut broker = GrpcBrokerClient::new(channel.clone())
        .start_stream(ReceiverStream::new(offered))
        .await
        .unwrap()
        .into_inner();
    // Nothing ends this one by itself.
    let mut watch = HealthClient::new(channel.clone())
        .watch(HealthCheckRequest { service: "plugin".into() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, SERVING);

    let socket = plugin.socket.clone();
    let shutdown = plugin.shutdown.clone();
    let start = Instant::now();
    GrpcControllerClient::new(channel.clone()).shutdown(Empty {}).await.expect("an answer");
    assert!(shutdown.is_cancelled(), "the plugin can see it");
    assert!(timeout(PATIENCE, stdio.message()).await.unwrap().unwrap().is_none(), "a clean end");
    assert!(timeout(PATIENCE, broker.message()).await.unwrap().unwrap().is_none(), "a clean end");
    plugin.ended().await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(timeout(A_WHILE, watch.message()).await.is_err(), "was open all the time");

    let error = UnixStream::connect(&socket).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn shutdown_is_quick_when_the_host_hangs_up() {
    // Nomad starts a plugin three times before it uses it, so each unnecessary wait counts three times.
    let mut fastest = PATIENCE;
    for _ in 0..5 {
        let plugin = Running::start();
        let channel = plugin.connect().await;
        let start = Instant::now();
        GrpcControllerClient::new(channel.clone()).shutdown(Empty {}).await.unwrap();
        drop(channel);
        plugin.ended().await;
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest < Duration::from_millis(150), "{fastest:?}: waits in spite of a closed connection");
}

#[tokio::test]
async fn shutdown_without_any_connection() {
    let plugin = Running::start();
    plugin.shutdown.cancel();
    plugin.ended().await;
}

#[tokio::test]
async fn probes_and_garbage_disturb_no_other_connection() {
    let plugin = Running::start();
    let before = plugin.connect().await;
    for _ in 0..50 {
        drop(UnixStream::connect(&plugin.socket).await.unwrap());
    }
    let mut garbage = UnixStream::connect(&plugin.socket).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    drop(garbage);

    assert_eq!(health(&before, "plugin").await.unwrap(), SERVING);
    let after = plugin.connect().await;
    assert_eq!(health(&after, "plugin").await.unwrap(), SERVING);
    assert!(!plugin.run.is_finished());
}

/// Where the test of the PID namespaces finds the socket when it runs itself once more.
const SOCKET_OF_PARENT: &str = "GOPLUGIN_TEST_SOCKET";

/// Runs `the_socket_answers_only_its_own_pid_namespace` in a child process; says whether it was served.
fn served_in_child(socket: &Path, own_namespace: bool) -> bool {
    let socket = socket.to_owned();
    let child = move || {
        if !own_namespace {
            // Of this thread's children.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).unwrap();
        }
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_socket_answers_only_its_own_pid_namespace", "--nocapture"])
            .env(SOCKET_OF_PARENT, socket)
            .output()
            .unwrap()
    };
    let child = std::thread::spawn(child).join().unwrap();
    let stdout = String::from_utf8_lossy(&child.stdout);
    match (stdout.contains("peer: served"), stdout.contains("peer: refused")) {
        (true, false) => true,
        (false, true) => false,
        _ => panic!("the child came to no result: {child:?}"),
    }
}

/// A container is another PID namespace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_answers_only_its_own_pid_namespace() {
    if let Some(socket) = std::env::var_os(SOCKET_OF_PARENT) {
        let served = match connect(Path::new(&socket)).await {
            Ok(channel) => health(&channel, "plugin").await.is_ok(),
            Err(_) => false,
        };
        say(if served { "peer: served" } else { "peer: refused" });
        return;
    }
    let plugin = Running::start();
    let before = plugin.connect().await;
    assert!(served_in_child(&plugin.socket, true), "another process of the own namespace");
    if nix::unistd::geteuid().is_root() {
        assert!(!served_in_child(&plugin.socket, false), "a process of another namespace");
    } else {
        say("not applicable without root: a process of another PID namespace");
    }
    assert_eq!(health(&before, "plugin").await.unwrap(), SERVING, "other connections are unaffected");
    assert_eq!(health(&plugin.connect().await, "plugin").await.unwrap(), SERVING);
}

/// For the parent process and for the output of the tests.
fn say(text: &str) {
    use std::io::Write as _;
    std::io::stdout().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// An HTTP/2 frame (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[tokio::test]
async fn calls_given_up_at_once_do_not_end_the_connection() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    const ACK: u8 = 1;
    const END_HEADERS: u8 = 4;
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    // POST, http, / out of HPACK's static table (RFC 7541, appendix A).
    const REQUEST: [u8; 3] = [0x83, 0x86, 0x84];

    let plugin = Running::start();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    for n in 0..1000 {
        bytes.extend(frame(HEADERS, END_HEADERS, 2 * n + 1, &REQUEST));
        bytes.extend(frame(RST_STREAM, 0, 2 * n + 1, &CANCEL));
    }
    bytes.extend(frame(PING, 0, 0, b"alive?!?"));
    let (mut from, mut to) = UnixStream::connect(&plugin.socket).await.unwrap().into_split();
    let writer = tokio::spawn(async move {
        to.write_all(&bytes).await.unwrap();
        to
    });

    loop {
        let mut head = [0; 9];
        timeout(PATIENCE, from.read_exact(&mut head)).await.unwrap().expect("the connection is open");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        from.read_exact(&mut payload).await.unwrap();
        assert_ne!(head[3], GOAWAY, "{}", String::from_utf8_lossy(&payload));
        if (head[3], head[4]) == (PING, ACK) {
            assert_eq!(payload, b"alive?!?");
            break;
        }
    }
    drop(writer.await.unwrap());
}

/// A panic must reach the host as a line that it can parse. The test runs itself once more and looks at its stderr.
#[test]
fn a_panic_is_a_line_for_the_host() {
    const IN_CHILD: &str = "GOPLUGIN_TEST_PANICS";
    if std::env::var_os(IN_CHILD).is_some() {
        hclog::init(hclog::Options { module: PLUGIN.name, ..Default::default() });
        let worker = std::thread::Builder::new().name("wor\"ker".into());
        let end = worker.spawn(|| panic!("first line\nsecond \"line\"")).unwrap().join();
        end.unwrap_err();
        tracing::error!("after the panic");
        hclog::flush();
        return;
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_panic_is_a_line_for_the_host", "--nocapture"])
        .env(IN_CHILD, "1")
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    let stderr = String::from_utf8(child.stderr).unwrap();
    let lines: Vec<serde_json::Value> =
        stderr.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert_eq!(lines[0]["@level"], "error");
    assert_eq!(lines[0]["@message"], "panic: first line\nsecond \"line\"");
    assert_eq!(lines[0]["@module"], "greeter");
    assert_eq!(lines[0]["thread"], "wor\"ker");
    assert!(lines[0]["location"].as_str().unwrap().starts_with("goplugin/tests/server.rs:"), "{stderr}");
    assert_eq!(lines[1]["@message"], "after the panic");
}
