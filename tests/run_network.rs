//! The limits on ports, by the command `run`: each with a control without the limit, in which the same program succeeds.
//!
//! These tests need root and Landlock, as those of `run_verb`, and ABI 4 (Linux 6.7) for TCP, ABI 10 (Linux 7.2) for UDP.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]

#[path = "common/sandbox.rs"]
mod sandbox;

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");

/// Tries what its arguments name, `WAY:PORT`, and prints `ok` or the name of the errno of each.
const TRY: &str = r#"
import errno, socket, sys
MPTCP, FAST_OPEN, FAST_OPEN_CONNECT = 262, 0x20000000, 30
def attempt(way, port):
    there = ("127.0.0.1", port)
    kind = socket.SOCK_DGRAM if way.endswith("_udp") else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind, MPTCP if way.startswith("mptcp") else 0) as one:
        if way in ("bind", "bind_udp", "mptcp_bind"):
            one.bind(there)
        elif way in ("connect", "connect_udp", "mptcp_connect"):
            one.connect(there)
        elif way == "send_udp":
            one.sendto(b"x", there)
        elif way == "fast_open":
            one.sendto(b"x", FAST_OPEN, there)
        elif way == "fast_open_sendmsg":
            one.sendmsg([b"x"], [], FAST_OPEN, there)
        elif way == "fast_open_connect":
            one.setsockopt(socket.IPPROTO_TCP, FAST_OPEN_CONNECT, 1)
            one.connect(there)
            one.send(b"x")
for argument in sys.argv[1:]:
    way, port = argument.split(":")
    try:
        attempt(way, int(port))
        print("ok")
    except OSError as error:
        print(errno.errorcode[error.errno])
"#;

fn landlock_abi() -> u64 {
    let check = Command::new(PLUGIN).args(["check", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    report["landlock_abi"].as_u64().unwrap()
}

/// Whether `run` works here and the kernel has this Landlock ABI; if not, the test reports that it was not run.
fn applies(needed: u64) -> bool {
    let why = sandbox::unavailable(PLUGIN).or_else(|| {
        let abi = landlock_abi();
        (abi < needed).then(|| format!("Landlock ABI {abi} instead of {needed}"))
    });
    let Some(why) = why else { return true };
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    // Not with a macro, whose output the harness captures.
    std::io::stderr().write_all(format!("{name} was not run: {why}\n").as_bytes()).unwrap();
    false
}

/// What a task with these options can do.
fn tries(options: &[&str], ways: &[String]) -> Vec<String> {
    let mut run = Command::new(PLUGIN);
    run.arg("run").args(options).args(["--", "python3", "-c", TRY]).args(ways).stdin(Stdio::null());
    let output = run.output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{options:?}: {err}");
    String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
}

/// A port on which something listens, one on which nothing does, and what keeps the first.
fn server() -> (TcpListener, String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port().to_string();
    let (open, closed) = (port(&listener), port(&free));
    (listener, open, closed)
}

fn at(ways: &[&str], port: &str) -> Vec<String> {
    ways.iter().map(|way| format!("{way}:{port}")).collect()
}

#[test]
fn a_task_binds_only_to_the_ports_that_it_may() {
    if !applies(4) {
        return;
    }
    let (_listener, _, port) = server();
    let ways = [at(&["bind"], &port), at(&["bind"], "0")].concat();
    assert_eq!(tries(&[], &ways), ["ok", "ok"], "without limits");
    assert_eq!(tries(&["--bind", &port], &ways), ["ok", "EACCES"]);
    assert_eq!(tries(&["--bind", "0"], &ways), ["EACCES", "ok"]);
    assert_eq!(tries(&["--bind", "none"], &ways), ["EACCES", "EACCES"]);
    assert_eq!(tries(&["--connect", "none"], &ways), ["ok", "ok"], "the other direction is free");
    let root = ["--user", "root", "--cap-add", "all", "--bind", "none"];
    assert_eq!(tries(&root, &ways), ["EACCES", "EACCES"]);
}

#[test]
fn a_task_connects_only_to_the_ports_that_it_may_whatever_the_way() {
    if !applies(4) {
        return;
    }
    const WAYS: &[&str] =
        &["connect", "fast_open", "fast_open_sendmsg", "fast_open_connect", "mptcp_connect"];
    let (_listener, open, closed) = server();
    let ways = at(WAYS, &open);
    let free = tries(&[], &ways);
    assert_eq!(free[..4], ["ok"; 4], "without limits");
    assert!(["ok", "EPROTONOSUPPORT", "ENOPROTOOPT"].contains(&free[4].as_str()), "{}", free[4]);
    let refused = ["EACCES", "ENOTSUP", "ENOTSUP", "EACCES", "EPROTONOSUPPORT"];
    assert_eq!(tries(&["--connect", &closed], &ways), refused);
    assert_eq!(tries(&["--connect", "none"], &ways), refused);
    assert_eq!(tries(&["--bind", "none"], &at(&["connect"], &open)), ["ok"]);
    assert_eq!(tries(&["--connect", &open], &at(&["connect", "fast_open_connect"], &open)), ["ok", "ok"]);
    // A control of the filter: without it, the kernel lets these pass, if it has them.
    let unconfined = tries(&["--connect", "none", "--seccomp-allow", "tcp_variants"], &ways);
    assert_eq!((unconfined[0].as_str(), unconfined[3].as_str()), ("EACCES", "EACCES"));
    assert_ne!(unconfined[1], "ENOTSUP");
}

#[test]
fn udp_is_limited_by_lists_of_its_own() {
    if !applies(10) {
        return;
    }
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let free = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = |socket: &UdpSocket| socket.local_addr().unwrap().port().to_string();
    let (open, closed) = (port(&server), port(&free));
    drop(free);
    let ways = [at(&["connect_udp", "send_udp"], &open), at(&["bind_udp"], &closed)].concat();
    assert_eq!(tries(&[], &ways), ["ok"; 3], "without limits");
    assert_eq!(tries(&["--connect", "none", "--bind", "none"], &ways), ["ok"; 3], "those of TCP are others");
    assert_eq!(tries(&["--connect-udp", "none"], &ways), ["EACCES", "EACCES", "ok"]);
    assert_eq!(tries(&["--connect-udp", &open], &ways), ["ok"; 3]);
    assert_eq!(
        tries(&["--bind-udp", "none"], &ways),
        ["ok", "ok", "EACCES"],
        "sending needs no port of its own"
    );
    assert_eq!(tries(&["--bind-udp", &closed], &ways), ["ok"; 3]);
}

#[test]
fn a_limit_that_the_kernel_lacks_is_an_error() {
    if !applies(1) || landlock_abi() >= 10 {
        return;
    }
    let output = Command::new(PLUGIN).args(["run", "--connect-udp", "53", "--", "true"]).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        err.contains(
            "network_policy.connect_udp cannot be enforced here: it needs Landlock ABI 10 (Linux 7.2)"
        ),
        "{err}"
    );
}

/// Connects to an abstract socket, after it has made it if there is a second argument.
const ABSTRACT: &str = r#"
import errno, socket, sys
name = "\0" + sys.argv[1]
kind = socket.SOCK_DGRAM if name.endswith("-datagram") else socket.SOCK_STREAM
server = socket.socket(socket.AF_UNIX, kind)
if len(sys.argv) > 2:
    server.bind(name)
    if kind == socket.SOCK_STREAM:
        server.listen()
try:
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(name) if kind == socket.SOCK_STREAM else client.sendto(b"x", name)
    print("ok")
except OSError as error:
    print(errno.errorcode[error.errno])
"#;

#[test]
fn a_task_in_the_hosts_network_connects_to_abstract_sockets_of_its_own_only() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
    if !applies(6) {
        return;
    }
    let name = format!("exec2-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    UnixStream::connect_addr(&address).expect("it is there");
    let datagram = format!("{name}-datagram");
    let address = SocketAddr::from_abstract_name(&datagram).unwrap();
    let _receiver = UnixDatagram::bind_addr(&address).unwrap();
    UnixDatagram::unbound().unwrap().send_to_addr(b"x", &address).expect("it is there");
    let of = |options: &[&str], args: &[&str]| {
        let mut run = Command::new(PLUGIN);
        run.arg("run").args(options).args(["--", "python3", "-c", ABSTRACT]).args(args).stdin(Stdio::null());
        let output = run.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for user in [&[][..], &["--user", "root", "--cap-add", "all"]] {
        assert_eq!(of(user, &[&name]), "EPERM", "{user:?}");
        assert_eq!(of(user, &[&datagram]), "EPERM", "{user:?}");
        assert_eq!(of(user, &[&format!("own-{datagram}"), "make"]), "ok", "{user:?}");
        assert_eq!(of(user, &[&format!("{name}-own"), "make"]), "ok", "{user:?}");
    }
}
