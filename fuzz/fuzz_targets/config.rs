// The MessagePack that go-cty makes of a config block; a job's author chooses some of it.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::config::{DriverConfig, PluginConfig};

fuzz_target!(|bytes: &[u8]| {
    for error in [PluginConfig::decode(bytes).err(), DriverConfig::decode(bytes).err()].into_iter().flatten() {
        assert!(!error.to_string().is_empty());
    }
});
