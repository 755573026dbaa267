// Any text as an unveil rule of an agent's configuration or a job.
#![no_main]
use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::sandbox::unveil::Unveil;

fuzz_target!(|text: &str| {
    let Ok(rule) = text.parse::<Unveil>() else { return };
    // The text for readers means the same.
    assert_eq!(rule.to_string().parse::<Unveil>().as_ref(), Ok(&rule), "{text:?}");
});
