// The records in /run about a task: its shim, the plugin that started it, and how it ended.
//
// `@` in the input stands for the boot id, which a seed cannot contain.
#![no_main]
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use nomad_driver_exec2::shim::exit::MAX_LINE;
use nomad_driver_exec2::record::key::Key;
use nomad_driver_exec2::record::identity::boot_id;
use nomad_driver_exec2::record::run_dir::RunDir;

static BOOT: LazyLock<String> = LazyLock::new(|| boot_id().expect("the boot's id"));
static DIR: LazyLock<RunDir> = LazyLock::new(|| {
    let base = std::env::temp_dir().join(format!("exec2-fuzz-{}", std::process::id()));
    let dir = RunDir::of(&base, Key::new("alloc/task/1").expect("an id"));
    dir.create().expect("a directory");
    dir
});

fuzz_target!(|bytes: &[u8]| {
    let mut text = Vec::new();
    for &byte in bytes {
        if byte == b'@' { text.extend_from_slice(BOOT.as_bytes()) } else { text.push(byte) }
    }
    for name in ["shim", "starting", "answered", "exit"] {
        std::fs::write(DIR.path().join(name), &text).expect("write a record");
    }
    let dir = &*DIR;
    let found = dir.shim();
    assert_eq!((found, found), (dir.starting(), dir.answered()));
    if let Some(process) = found {
        assert!(!dir.is_of_former_boot(), "{process:?}");
        // Any process may be named; it is checked, and hardly ever matches.
        let _ = process.open();
    }
    if let Ok(Some(exit)) = dir.exit() {
        assert!(text.len() <= MAX_LINE && text.starts_with(exit.to_string().trim_end().as_bytes()));
    }
});
