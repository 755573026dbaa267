// Whatever an agent's configuration or a job has for an unveil rule.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::sandbox::unveil::Unveil;

fuzz_target!(|text: &str| {
    let Ok(rule) = text.parse::<Unveil>() else { return };
    // What is shown to people means the same.
    assert_eq!(rule.to_string().parse::<Unveil>().as_ref(), Ok(&rule), "{text:?}");
});
