// The records of a session, and the messages of its client.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::fuzzing::session;

fuzz_target!(|bytes: &[u8]| session(bytes));
