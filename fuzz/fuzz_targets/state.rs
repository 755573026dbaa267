// What a restarted plugin reads: the handle from Nomad, and the exit status that the shim wrote.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::shim::exit::{Exit, MAX_LINE};
use nomad_driver_exec2::record::handle::{DriverState, HANDLE_VERSION};
use nomad_driver_exec2::record::spec::StoredSpec;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(state) = DriverState::decode(HANDLE_VERSION, bytes) {
        let again = state.encode().expect("what was decoded can be encoded");
        assert_eq!(DriverState::decode(HANDLE_VERSION, &again).expect("and decoded again"), state);
    }
    if let Ok(spec) = StoredSpec::decode(bytes) {
        let again = spec.encode().expect("what was decoded can be encoded");
        assert_eq!(StoredSpec::decode(&again).expect("and decoded again"), spec);
    }
    if let Ok(Some(exit)) = Exit::read(bytes) {
        assert!(bytes.len() <= MAX_LINE && bytes.starts_with(exit.to_string().trim_end().as_bytes()));
        assert!((0..=255).contains(&exit.code) && (0..=64).contains(&exit.signal));
    }
});
