// The DNS settings of a job, and the files of the host that they complete.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::fuzzing::names;

fuzz_target!(|text: &str| names(text));
