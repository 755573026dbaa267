//! Tests that need a process with one thread, which the usual harness does not provide.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nomad_driver_exec2::sys::clone::{SingleThreaded, fork};
use nomad_driver_exec2::sys::fd::inherited;

/// The exit status of a child that runs `body`.
fn status_of(body: impl FnOnce() -> i32) -> WaitStatus {
    let child = fork(SingleThreaded::check().unwrap(), None, body).unwrap();
    waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap()
}

/// A panic that unwinds out of the child would run the rest of this program a second time.
fn a_panic_in_a_child_ends_the_child() {
    let parent = std::process::id();
    let panicking = status_of(|| {
        std::panic::set_hook(Box::new(|_| ()));
        panic!("on purpose")
    });
    assert_eq!(std::process::id(), parent, "this is the child");
    assert!(matches!(panicking, WaitStatus::Exited(_, 127)), "{panicking:?}");
    let ordinary = status_of(|| 7);
    assert!(matches!(ordinary, WaitStatus::Exited(_, 7)), "{ordinary:?}");
}

fn inherited_descriptors_are_claimed_once() {
    // Open descriptors here were inherited from the caller of this test.
    inherited::<4>(3).unwrap();
    assert_eq!(inherited::<4>(3).unwrap_err(), Errno::EBUSY);
}

fn main() {
    let tests: [(&str, fn()); 2] = [
        ("a_panic_in_a_child_ends_the_child", a_panic_in_a_child_ends_the_child),
        ("inherited_descriptors_are_claimed_once", inherited_descriptors_are_claimed_once),
    ];
    for (name, test) in tests {
        test();
        println!("test {name} ... ok");
    }
    println!("\ntest result: ok. {} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out", tests.len());
}
