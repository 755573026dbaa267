//! What this process is to be, decided before any thread exists: the plugin, `shim`, or a verb for people.

use std::process::ExitCode;

use nomad_driver_exec2::task::blocking::MAX_BLOCKING;
use nomad_driver_exec2::task::open_files;
use nomad_driver_exec2::{cli, driver, goplugin, shim};

/// Threads that serve RPCs; what blocks (starts, lookups) runs on others, made when needed.
const WORKERS: usize = 2;

/// Stack of each thread, bytes; 24 KiB is what they have been seen to use, and what they decode has bounded depth. Below the
/// size of a huge page: Linux puts one behind Rust's default of 2 MiB where it happens to lie right, and the plugin then has
/// three times the memory.
const THREAD_STACK: usize = 512 * 1024;

fn main() -> ExitCode {
    // The agent's cookie first: a plugin block may have `args`, which mean nothing to this driver, but must not turn the
    // plugin into something else. The shim has no environment at all.
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
    // Open streams and waiting RPCs must not hold the exit up.
    runtime.shutdown_background();
    Ok(served?)
}
