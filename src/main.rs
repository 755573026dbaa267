//! Decides what this process runs, before any thread exists: the plugin, the shim, or a command of the command line.

use std::process::ExitCode;

use nomad_driver_exec2::task::blocking::MAX_BLOCKING;
use nomad_driver_exec2::task::open_files;
use nomad_driver_exec2::{cli, driver, goplugin, shim};

/// Threads that serve RPCs. Blocking work (task starts, user lookups) runs on other threads, which are created when needed.
const WORKERS: usize = 2;

/// Stack size of each thread in bytes. Measured use is 24 KiB, and decoding has a bounded depth. The size is below that of a
/// huge page: Linux may back Rust's default of 2 MiB with huge pages, which triples the plugin's memory.
const THREAD_STACK: usize = 512 * 1024;

fn main() -> ExitCode {
    // Check the agent's cookie first: a plugin block may have `args`, which this driver does not use and which must not select
    // another mode. The shim's environment is empty.
    if goplugin::launched_by() == goplugin::Launch::Host {
        return plugin();
    }
    match std::env::args_os().nth(1) {
        Some(verb) if verb == "shim" => shim::main(),
        Some(_) => cli::main(std::env::args_os()),
        None => cli::explain(),
    }
}

fn plugin() -> ExitCode {
    let status = match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = cli::causes(&error), "the plugin ends");
            ExitCode::FAILURE
        }
    };
    goplugin::hclog::flush();
    status
}

fn serve() -> anyhow::Result<()> {
    goplugin::hclog::init();
    if let Err(errno) = open_files::raise() {
        tracing::warn!(error = errno.desc(), "raise the limit of open files");
    }
    let request = goplugin::HostRequest::from_env()?;
    let driver = driver::Driver::new()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(MAX_BLOCKING)
        .thread_stack_size(THREAD_STACK)
        .enable_all()
        .build()?;
    let shutdown = goplugin::Shutdown::new();
    let served = runtime.block_on(goplugin::serve(request, driver.routes(), shutdown));
    // Open streams and waiting RPCs must not delay the exit.
    runtime.shutdown_background();
    Ok(served?)
}
