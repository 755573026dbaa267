// Texts of the kernel, in which tasks choose names, and short values of Nomad.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::fuzzing::kernel;

fuzz_target!(|bytes: &[u8]| kernel(bytes));
