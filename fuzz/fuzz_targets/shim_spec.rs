// The spec that the shim reads as root.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::shim::spec::ShimSpec;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(spec) = ShimSpec::decode(bytes) {
        let again = spec.encode().expect("what was decoded can be encoded");
        assert_eq!(ShimSpec::decode(&again).expect("and decoded again"), spec);
    }
});
