// The MessagePack that go-cty generates from a config block; the job's author influences it.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::config::{DriverConfig, PluginConfig};

fuzz_target!(|bytes: &[u8]| {
    for error in [PluginConfig::decode(bytes).err(), DriverConfig::decode(bytes).err()].into_iter().flatten() {
        assert!(!error.to_string().is_empty());
    }
});
