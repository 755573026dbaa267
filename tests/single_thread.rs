//! Tests that need a process with one thread, which the usual harness does not provide.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nomad_driver_exec2::sys::arena::Arena;
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

fn blocks_of_an_arena_outlive_it() {
    let single = SingleThreaded::check().unwrap();
    let before = String::from("before");
    let arena = Arena::open(single).expect("the first one");
    let mut grown: Vec<usize> = Vec::new();
    let mut others = Vec::new();
    for number in 0..1000 {
        grown.push(number);
        others.push(vec![0_u8; number % 64]);
        if number % 3 == 0 {
            others.swap_remove(number / 3);
        }
    }
    let larger = vec![7_u8; 2 << 20];
    assert!(Arena::open(single).is_none(), "there is one");
    drop((before, arena));
    assert!(Arena::open(single).is_none(), "its blocks are in use");
    assert!(grown.iter().copied().eq(0..1000));
    assert!(others.iter().flatten().all(|byte| *byte == 0), "a block that was in use before is zeroed");
    assert!(larger.iter().all(|byte| *byte == 7), "what is too large comes from elsewhere");
    drop((grown, others));
    drop(Arena::open(single).expect("the former one is gone"));
}

fn inherited_descriptors_are_claimed_once() {
    // Open descriptors here were inherited from the caller of this test.
    inherited::<4>(3).unwrap();
    assert_eq!(inherited::<4>(3).unwrap_err(), Errno::EBUSY);
}

fn main() {
    let tests: [(&str, fn()); 3] = [
        ("blocks_of_an_arena_outlive_it", blocks_of_an_arena_outlive_it),
        ("a_panic_in_a_child_ends_the_child", a_panic_in_a_child_ends_the_child),
        ("inherited_descriptors_are_claimed_once", inherited_descriptors_are_claimed_once),
    ];
    for (name, test) in tests {
        test();
        println!("test {name} ... ok");
    }
    println!("\ntest result: ok. {} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out", tests.len());
}
