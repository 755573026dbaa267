//! Tests without a harness, whose program is also the shim of the tasks that they start: the launcher executes the running file.

use std::process::ExitCode;

use nomad_driver_exec2::shim;

use super::sandbox;

/// A name, and what panics if the test fails.
pub(crate) type Test = (&'static str, fn());

/// What the launcher has started this program as; none: a test.
pub(crate) fn of_launcher() -> Option<ExitCode> {
    match std::env::args().nth(1)?.as_str() {
        "shim" => Some(shim::main()),
        "idle" => Some(shim::idle()),
        "template" => Some(shim::template::main()),
        _ => None,
    }
}

/// Runs the tests whose names have all arguments in them, each after `before`. They need root and Landlock: without these they report
/// that they were not run.
pub(crate) fn run(plugin: &str, tests: &[Test], before: fn()) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let others = ["--list", "--ignored"].iter().any(|other| args.iter().any(|arg| arg == other));
    let wanted = |name: &str| args.iter().all(|arg| arg.starts_with('-') || name.contains(arg.as_str()));
    for (name, test) in tests.iter().filter(|(name, _)| !others && wanted(name)) {
        match sandbox::unavailable(plugin) {
            Some(why) => println!("test {name} ... was not run: {why}"),
            None => {
                before();
                test();
                println!("test {name} ... ok");
            }
        }
    }
    ExitCode::SUCCESS
}
