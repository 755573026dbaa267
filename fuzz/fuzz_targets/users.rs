// The user of a job, and the user database of the host.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::fuzzing::users;

fuzz_target!(|bytes: &[u8]| users(bytes));
