// The report of a shim: which process the task is, or why there is none. Until exec, the task sends a part of it.
//
// The first byte is the length of a first message, the rest is a second one; if it is odd, the first message carries a
// descriptor.
#![no_main]
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nomad_driver_exec2::shim::report;

/// The sender has closed its end before the receiver begins, so no run waits.
const LIMIT: Duration = Duration::from_secs(1);

static NULL: LazyLock<File> = LazyLock::new(|| File::open("/dev/null").expect("/dev/null"));

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let with_descriptor = first % 2 == 1;
    let (one, two) = rest.split_at(rest.len().min(first.into()));
    let (receiver, sender) = report::pair().expect("a pair of sockets");
    let fds = [NULL.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    for (message, control) in [(one, if with_descriptor { &rights[..] } else { &[] }), (two, &[])] {
        sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(message)], control, MsgFlags::MSG_NOSIGNAL, None).expect("send");
    }
    drop(sender);
    match receiver.wait(LIMIT) {
        Ok(_) => assert!(with_descriptor, "a task without a descriptor of it"),
        Err(report::StartError::TimedOut(_)) => panic!("it waited for a sender that is gone"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
