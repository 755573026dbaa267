// A job and the options of an agent: what the plan grants is what the options allow.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::fuzzing::asks;

fuzz_target!(|text: &str| {
    asks(text);
});
