//! The plugin as a process, launched like an agent launches it: environment, stdout, stderr, signals, exit.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use goplugin::proto::Empty;
use goplugin::proto::grpc_controller_client::GrpcControllerClient;
use goplugin::proto::grpc_stdio_client::GrpcStdioClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use common::{PATIENCE, connect, health, socket_in};

const SERVING: i32 = 1;

/// The host kills the plugin this long after its Shutdown call.
const HOST_KILLS_AFTER: Duration = Duration::from_secs(2);

/// The variables that every agent sets. The socket is created below `tmp`.
fn launched(program: impl AsRef<std::ffi::OsStr>, tmp: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("NOMAD_PLUGIN_MAGIC_COOKIE", "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255")
        .env("PLUGIN_PROTOCOL_VERSIONS", "2")
        .env("PLUGIN_MIN_PORT", "10000")
        .env("PLUGIN_MAX_PORT", "25000")
        .env("TMPDIR", tmp)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");

struct Plugin {
    tmp: TempDir,
    child: Child,
    stdout: BufReader<ChildStdout>,
    socket: PathBuf,
}

/// The result of a plugin that has exited.
struct Remains {
    exit_code: Option<i32>,
    logs: Vec<Value>,
}

impl Plugin {
    async fn start(with: impl FnOnce(&Path) -> Command) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let mut child = with(tmp.path()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        timeout(PATIENCE, stdout.read_line(&mut line)).await.expect("a handshake line").unwrap();
        let socket = socket_in(&line);
        Self { tmp, child, stdout, socket }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    async fn ping(&self) {
        let channel = connect(&self.socket).await.unwrap();
        assert_eq!(health(&channel, "plugin").await.unwrap(), SERVING);
    }

    async fn remains(mut self) -> Remains {
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().unwrap();
        timeout(PATIENCE, pipe.read_to_string(&mut stderr)).await.expect("stderr ends").unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.expect("the process ends").unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "", "stdout after the handshake");
        let left = std::fs::read_dir(self.tmp.path()).unwrap().count();
        assert_eq!(left, 0, "the socket and its directory are removed");
        Remains { exit_code: status.code(), logs: logs(&stderr) }
    }
}

/// Each line of stderr, parsed like in the agent.
fn logs(stderr: &str) -> Vec<Value> {
    stderr
        .lines()
        .map(|line| {
            let log: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            assert!(log["@level"].is_string() && log["@message"].is_string(), "{line}");
            assert_eq!(log["@module"], "exec2", "{line}");
            log
        })
        .collect()
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[tokio::test]
async fn launch_and_shutdown() {
    let mut plugin = Plugin::start(|tmp| launched(PLUGIN, tmp)).await;
    assert!(plugin.socket.starts_with(plugin.tmp.path()), "{:?}", plugin.socket);
    assert_eq!(mode(&plugin.socket), 0o600);
    assert_eq!(mode(plugin.socket.parent().unwrap()), 0o700);
    // A child that holds the agent's pipe hides the plugin's death from the agent, so the plugin closes the pipe.
    let mut rest = Vec::new();
    timeout(PATIENCE, plugin.stdout.read_to_end(&mut rest)).await.expect("stdout is closed").unwrap();
    assert_eq!(rest, b"");

    let channel = connect(&plugin.socket).await.unwrap();
    let _stdio = GrpcStdioClient::new(channel.clone()).stream_stdio(()).await.unwrap();
    let start = Instant::now();
    GrpcControllerClient::new(channel.clone()).shutdown(Empty {}).await.expect("an answer");
    let remains = plugin.remains().await;
    assert!(start.elapsed() < HOST_KILLS_AFTER, "{:?}", start.elapsed());
    assert_eq!(remains.exit_code, Some(0));
}

#[tokio::test]
async fn signals_of_a_terminal_are_ignored() {
    let plugin = Plugin::start(|tmp| launched(PLUGIN, tmp)).await;
    for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGINT] {
        plugin.signal(signal);
        // An answer after the signal shows that the signal had no effect.
        plugin.ping().await;
    }
    plugin.signal(Signal::SIGTERM);
    let remains = plugin.remains().await;
    assert_eq!(remains.exit_code, Some(0));
    let ignored: Vec<_> = remains.logs.iter().filter_map(|log| log["signal"].as_str()).collect();
    assert!(ignored.contains(&"SIGINT") && ignored.contains(&"SIGHUP"), "{:?}", remains.logs);
}

/// A stopped agent (SIGSTOP, a debugger) does not read the plugin's log.
#[tokio::test]
async fn an_agent_that_does_not_read_the_log_is_still_served() {
    const LINES: usize = 100;
    let plugin = Plugin::start(|tmp| launched(PLUGIN, tmp)).await;
    let pipe = plugin.child.stderr.as_ref().unwrap();
    // One page: less than the log lines need.
    nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    for _ in 0..LINES {
        plugin.signal(Signal::SIGHUP);
        timeout(PATIENCE, plugin.ping()).await.expect("it answers, whether or not its log is read");
    }
    plugin.signal(Signal::SIGTERM);
    let remains = plugin.remains().await;
    assert_eq!(remains.exit_code, Some(0));
    let bytes: usize = remains.logs.iter().map(|log| log.to_string().len()).sum();
    assert!(bytes > 2 * 4096, "all of it comes: {bytes} bytes");
}

#[tokio::test]
async fn sigterm_ends_it_with_a_connection_open() {
    let plugin = Plugin::start(|tmp| launched(PLUGIN, tmp)).await;
    let channel = connect(&plugin.socket).await.unwrap();
    let _stdio = GrpcStdioClient::new(channel.clone()).stream_stdio(()).await.unwrap();
    let start = Instant::now();
    plugin.signal(Signal::SIGTERM);
    let remains = plugin.remains().await;
    assert!(start.elapsed() < HOST_KILLS_AFTER, "{:?}", start.elapsed());
    assert_eq!(remains.exit_code, Some(0));
}

#[tokio::test]
async fn the_socket_directory_of_the_host_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = Plugin::start(|tmp| {
        let mut command = launched(PLUGIN, tmp);
        command.env("PLUGIN_UNIX_SOCKET_DIR", dir.path());
        command
    })
    .await;
    assert!(plugin.socket.starts_with(dir.path()), "{:?}", plugin.socket);
    plugin.signal(Signal::SIGTERM);
    plugin.remains().await;
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// An agent's plugin block may have `args`. The Go driver ignores them, and they must not select a command here.
#[tokio::test]
async fn arguments_of_the_agent_change_nothing() {
    for args in [&["-config=/etc/x"][..], &["check"], &["--version"], &["shim"], &[""]] {
        let plugin = Plugin::start(|tmp| {
            let mut command = launched(PLUGIN, tmp);
            command.args(args);
            command
        })
        .await;
        plugin.ping().await;
        plugin.signal(Signal::SIGTERM);
        assert_eq!(plugin.remains().await.exit_code, Some(0), "{args:?}");
    }
}

/// A killed plugin could not remove its socket; the next one does.
#[tokio::test]
async fn the_socket_of_a_killed_plugin_is_removed() {
    let mut killed = Plugin::start(|tmp| launched(PLUGIN, tmp)).await;
    killed.child.kill().await.unwrap();
    let dead = killed.socket.parent().unwrap();
    assert!(killed.socket.exists());
    // It must be a minute old: a younger socket may belong to a plugin that is starting.
    let file = std::fs::File::open(dead).unwrap();
    file.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
    let shared = killed.tmp.path().to_owned();
    let running = Plugin::start(|_| launched(PLUGIN, &shared)).await;
    let deadline = Instant::now() + PATIENCE;
    while dead.exists() {
        assert!(Instant::now() < deadline, "{dead:?} is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.ping().await;
    running.signal(Signal::SIGTERM);
    running.remains().await;
}

#[tokio::test]
async fn mutual_tls_is_refused_with_a_reason() {
    let tmp = tempfile::tempdir().unwrap();
    let output = launched(PLUGIN, tmp.path())
        .env("PLUGIN_CLIENT_CERT", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----")
        .output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let logs = logs(std::str::from_utf8(&output.stderr).unwrap());
    let last = logs.last().expect("a reason");
    assert_eq!(last["@level"], "error");
    assert!(last.to_string().contains("PLUGIN_CLIENT_CERT"), "{last}");
}

#[tokio::test]
async fn a_bad_socket_directory_is_refused_with_a_reason() {
    let tmp = tempfile::tempdir().unwrap();
    let output = launched(PLUGIN, &tmp.path().join("missing")).output();
    let output = timeout(PATIENCE, output).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let logs = logs(std::str::from_utf8(&output.stderr).unwrap());
    let last = logs.last().expect("a reason").to_string();
    assert!(last.contains("missing") && last.contains("TMPDIR"), "{last}");
}

#[tokio::test]
async fn running_out_of_files_does_not_end_the_listener() {
    // Enough for the runtime and a few connections.
    let plugin = Plugin::start(|tmp| {
        let mut command = launched("/bin/sh", tmp);
        command.args(["-c", "ulimit -n 24 && exec \"$0\"", PLUGIN]);
        command
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(UnixStream::connect(&plugin.socket).await.unwrap());
    }
    // Long enough for the accept loop to reach the limit.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(held);
    plugin.ping().await;
    plugin.signal(Signal::SIGTERM);
    let remains = plugin.remains().await;
    let warnings: Vec<_> = remains.logs.iter().filter(|log| log["@level"] == "warn").collect();
    assert_eq!(warnings.len(), 1, "the limit was met, and said once: {:?}", remains.logs);
    // Compared by number: the texts of the C libraries differ.
    assert!(warnings[0]["error"].as_str().unwrap().contains("os error 24"), "{warnings:?}");
}
