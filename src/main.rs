//! Decides what this process runs, before any thread exists: the plugin, the shim, or a command of the command line.

use std::process::ExitCode;

use goplugin::{CancellationToken, HostRequest, Launch, Plugin, hclog};
use nomad_driver_exec2::task::blocking::MAX_BLOCKING;
use nomad_driver_exec2::task::open_files;
use nomad_driver_exec2::{cli, driver, shim};

/// What Nomad expects of a driver plugin: its cookie, and version 2 of its protocol, which is gRPC (since Nomad 0.9).
const PLUGIN: Plugin = Plugin {
    name: driver::NAME,
    cookie_key: "NOMAD_PLUGIN_MAGIC_COOKIE",
    cookie_value: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
    protocol_version: 2,
};

/// The agent filters by its own `log_level`, so it gets everything that may be of use.
const LOG: hclog::Options = hclog::Options {
    module: driver::NAME,
    crates: &["nomad_driver_exec2"],
    level_key: Some("NOMAD_DRIVER_EXEC2_LOG_LEVEL"),
    level: tracing::Level::DEBUG,
};

/// Threads that serve RPCs. Blocking work (task starts, user lookups) runs on other threads, which are created when needed.
const WORKERS: usize = 2;

/// Stack size of each thread in bytes. Measured use is 24 KiB, and decoding has a bounded depth. The size is below that of a
/// huge page: Linux may back Rust's default of 2 MiB with huge pages, which triples the plugin's memory.
const THREAD_STACK: usize = 512 * 1024;

fn main() -> ExitCode {
    // Check the agent's cookie first: a plugin block may have `args`, which this driver does not use and which must not select
    // another mode. The shim's environment is empty.
    if PLUGIN.launched_by() == Launch::Host {
        return plugin();
    }
    match std::env::args_os().nth(1) {
        Some(verb) if verb == "shim" => shim::main(),
        Some(verb) if verb == "idle" => shim::idle(),
        Some(verb) if verb == "enter" => shim::enter::main(),
        Some(verb) if verb == "template" => shim::template::main(),
        Some(_) => cli::main(std::env::args_os()),
        None => cli::explain(),
    }
}

fn plugin() -> ExitCode {
    let status = match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = cli::causes(&error), "failed to serve; the plugin exits");
            ExitCode::FAILURE
        }
    };
    hclog::flush();
    status
}

fn serve() -> anyhow::Result<()> {
    hclog::init(LOG);
    if let Err(errno) = open_files::raise() {
        tracing::warn!(error = errno.desc(), "failed to raise the limit of open files");
    }
    let request = HostRequest::from_env(&PLUGIN)?;
    let driver = driver::Driver::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(MAX_BLOCKING)
        .thread_stack_size(THREAD_STACK)
        .enable_all()
        .build()?;
    let served =
        runtime.block_on(goplugin::serve(&PLUGIN, request, driver.routes(), CancellationToken::new()));
    // Open streams and waiting RPCs must not delay the exit.
    runtime.shutdown_background();
    Ok(served?)
}
