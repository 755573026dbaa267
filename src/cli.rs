//! The command line: `run`, `exec`, `check`, `validate-config`, `--help`, `--version`.

mod check;
mod cpu;
mod environment;
mod exec;
mod free_user;
mod own_cgroup;
mod relay;
mod run;
mod run_id;
mod scratch;
mod signals;
mod stdio;
mod terminal;
mod validate;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Exit status for wrong usage, as in clap and most shell builtins.
const USAGE: u8 = 2;

#[derive(Debug, Parser)]
#[command(
    name = "nomad-driver-exec2",
    version,
    about = "Nomad task driver: runs host programs in a Landlock and cgroups v2 sandbox",
    long_about = "The exec2 task driver for Nomad. The Nomad agent starts this program as a plugin, from its plugin_dir; \
                  the commands below are for operators.",
    after_help = "Agent configuration:\n  plugin \"nomad-driver-exec2\" {\n    config { unveil_by_task = true }\n  }"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a program in the driver's sandbox, without Nomad
    Run(Box<run::Args>),
    /// Run a command in a running task, or list the running tasks
    Exec(exec::Args),
    /// Show whether this host can run the driver's tasks, and what to fix
    Check(check::Args),
    /// Check a plugin configuration before an agent uses it
    ValidateConfig(validate::Args),
}

/// The whole command line, for the generated shell completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command that the arguments select.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = args.into_iter().enumerate().map(|(place, arg)| if place == 1 { long(arg) } else { arg });
    match Cli::try_parse_from(args) {
        Ok(Cli { command: Command::Run(args) }) => run::main(&args),
        Ok(Cli { command: Command::Exec(args) }) => exec::main(&args),
        Ok(Cli { command: Command::Check(args) }) => check::main(&args),
        Ok(Cli { command: Command::ValidateConfig(args) }) => validate::main(&args),
        Err(error) => {
            // If stdout or stderr is closed, the message cannot be shown.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { USAGE } else { 0 })
        }
    }
}

/// The Go driver accepts flags in Go's form: `-version`.
fn long(arg: OsString) -> OsString {
    match arg.to_str() {
        Some(flag @ ("-version" | "-help")) => format!("-{flag}").into(),
        _ => arg,
    }
}

/// Printed if a user starts the plugin manually: what it is and what to type. The exit status is 1, as for every go-plugin
/// plugin that was not started by a host.
pub fn explain() -> ExitCode {
    let text = "This is the exec2 task driver plugin for Nomad. The Nomad agent starts it; put it into the agent's \
                plugin_dir.\n\nTo try it without Nomad:\n  nomad-driver-exec2 check    what this host provides and lacks\n  \
                nomad-driver-exec2 run -- COMMAND    run a program in the sandbox\n  nomad-driver-exec2 --help\n";
    say(text);
    ExitCode::FAILURE
}

/// An error with its causes, each once: the messages of some crates already include their cause.
pub fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes a message to standard error. If that is closed, the message cannot be shown.
fn say(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::users::{LookupError, UserError};

    #[test]
    fn a_cause_appears_once() {
        let source = LookupError::Timeout { program: "getent", seconds: 5 };
        let error = anyhow::Error::from(UserError::Lookup { user: "x".into(), source });
        assert_eq!(causes(&error).matches("not respond within").count(), 1, "{}", causes(&error));
        let missing = std::fs::read("/nonexistent/x").context("failed to read \"x\"").unwrap_err();
        assert_eq!(causes(&missing), "failed to read \"x\": No such file or directory (os error 2)");
    }
}
