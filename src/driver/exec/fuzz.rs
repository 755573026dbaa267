//! Any record of a session, and any messages of a client.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::LazyLock;

use prost::Message;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::{CAPTURED, Input, Output, Request, Tail, feed};
use crate::record::session::SessionRecord;
use crate::shim::enter::spec::{EnterSpec, SessionStdio};
use crate::shim::spec::ShimSpec;
use crate::sys;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_all().build().expect("a runtime"));

/// A stored record, a specification for the helper process, the output of a check, or messages: each begins with a byte that is its length.
pub fn session(input: &[u8]) {
    if let Ok(record) = SessionRecord::decode(input) {
        let again = record.encode().expect("what was decoded can be encoded");
        assert_eq!(SessionRecord::decode(&again).expect("and decoded again"), record);
    }
    let _ = EnterSpec::decode(input);
    // Of the form that has a seed.
    if let Ok(ShimSpec { user, plan, command, .. }) = ShimSpec::decode(input) {
        let stdio = SessionStdio::Terminal { rows: 24, columns: 80 };
        let spec = EnterSpec { user, plan, rules: None, command, stdio, cgroup: None };
        let again = spec.encode().expect("what was decoded can be encoded");
        assert_eq!(EnterSpec::decode(&again).expect("and decoded again"), spec);
    }
    let Some((&first, rest)) = input.split_first() else { return };
    let mut tail = Tail::default();
    // Long enough to be cut.
    let output = rest.repeat(1 + 2 * CAPTURED / rest.len().max(1));
    output.chunks(1 + 37 * usize::from(first)).for_each(|chunk| tail.push(chunk));
    assert_eq!(tail.0, output[output.len().saturating_sub(CAPTURED)..]);
    stream(messages(input));
}

fn messages(mut input: &[u8]) -> Vec<Request> {
    let mut messages = Vec::new();
    while let Some((&length, rest)) = input.split_first() {
        let (message, rest) = rest.split_at(rest.len().min(length.into()));
        messages.extend(Request::decode(message));
        input = rest;
    }
    messages
}

/// The command reads what was sent until the first message that closes its input, in order, and then the end.
fn stream(requests: Vec<Request>) {
    let mut expected = Vec::new();
    for operation in requests.iter().filter_map(|request| request.stdin.as_ref()) {
        expected.extend_from_slice(&operation.data);
        if operation.close {
            break;
        }
    }
    let found = RUNTIME.block_on(async {
        let (reader, writer) = io::pipe().expect("a pipe");
        let reader = watched(reader.into(), Interest::READABLE);
        let input = Input::Pipe(Some(watched(writer.into(), Interest::WRITABLE)));
        let (_end, ended) = watch::channel(false);
        let mut output = Output::new(&reader, ended);
        let mut found = Vec::new();
        let read = async {
            while let Some(chunk) = output.next().await {
                found.extend(chunk);
            }
        };
        tokio::select! {
            () = read => {}
            () = feed(tokio_stream::iter(requests.into_iter().map(Ok)), input) => panic!("it waited for a client that sends no more"),
        }
        found
    });
    assert_eq!(found, expected);
}

fn watched(fd: OwnedFd, interest: Interest) -> AsyncFd<OwnedFd> {
    sys::fd::set_nonblocking(&fd).expect("a pipe can be non-blocking");
    sys::async_fd::register(fd, interest).map_err(|(_, error)| error).expect("a pipe can be watched")
}
