//! Decoders with random input: no input panics, and what is decoded means the same when it is encoded again. The targets of
//! fuzz/ run the same checks for longer; the other decoders have such tests in their modules.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]

use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send};
use nomad_driver_exec2::record::key::Key;
use nomad_driver_exec2::record::run_dir::RunDir;
use nomad_driver_exec2::shim::report::{self, StartError};
use nomad_driver_exec2::shim::spec::ShimSpec;
use proptest::prelude::*;

/// A whole spec in the form that the plugin sends to a shim.
const SPEC: &[u8] = include_bytes!("../fuzz/seeds/shim_spec/full");
/// The sender has closed its end before the receiver begins, so no test waits.
const LIMIT: Duration = Duration::from_secs(1);

fn decode_spec(bytes: &[u8]) -> Option<ShimSpec> {
    let spec = ShimSpec::decode(bytes).ok()?;
    assert_eq!(ShimSpec::decode(&spec.encode().unwrap()).unwrap(), spec);
    Some(spec)
}

/// How the plugin reads these messages from a shim, without a descriptor.
fn report(messages: &[Vec<u8>]) -> StartError {
    let (receiver, sender) = report::pair().unwrap();
    for message in messages {
        send(sender.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL).unwrap();
    }
    drop(sender);
    receiver.wait(LIMIT).unwrap_err()
}

#[test]
fn the_seed_is_a_spec() {
    decode_spec(SPEC).unwrap();
}

#[test]
fn a_message_of_the_shim_is_decoded() {
    let failed = b"\x81\xa6Failed\x94\xa6Unveil\xa8r:/srv/x\x02\xc0".to_vec();
    assert_eq!(report(&[failed]).to_string(), "unveil \"r:/srv/x\": No such file or directory");
    assert!(
        matches!(report(&[b"\xa4Task".to_vec()]), StartError::Socket(_)),
        "a task without its descriptor"
    );
    assert!(matches!(report(&[]), StartError::ShimDied));
}

proptest! {
    #[test]
    fn no_spec_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        decode_spec(&bytes);
    }

    #[test]
    fn no_damaged_spec_panics(
        damage in proptest::collection::vec((0..SPEC.len(), any::<u8>()), 1..8),
        length in 0..=SPEC.len(),
    ) {
        let mut bytes = SPEC.to_vec();
        for (at, byte) in damage {
            bytes[at] = byte;
        }
        decode_spec(&bytes);
        decode_spec(&bytes[..length]);
    }

    #[test]
    fn no_message_of_a_shim_panics(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..4),
    ) {
        let error = report(&messages);
        prop_assert!(!matches!(error, StartError::TimedOut(_)));
        prop_assert!(!error.to_string().is_empty());
    }

    #[test]
    fn no_record_panics(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "\\{\"boot_id\":\".{0,9}\",\"pid\":-?[0-9]{1,12},\"start_time\":[0-9]{1,22}\\}".prop_map(String::into_bytes),
        ],
    ) {
        let base = tempfile::tempdir().unwrap();
        let dir = RunDir::of(&base.path().join("run"), Key::new("a/web/1").unwrap());
        dir.create().unwrap();
        for name in ["shim", "starting", "answered", "exit"] {
            std::fs::write(dir.path().join(name), &bytes).unwrap();
        }
        // No record is of the current boot.
        prop_assert_eq!((dir.shim(), dir.starting(), dir.answered()), (None, None, None));
        prop_assert!(!matches!(dir.exit(), Ok(Some(_))));
        let _ = dir.is_of_former_boot();
    }
}
