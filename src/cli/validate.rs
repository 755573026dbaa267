//! `validate-config`: checks whether the agent and the plugin would accept a configuration.
//!
//! The options are decoded by the same code as those from Nomad. What Nomad itself refuses before it calls the plugin (an
//! unknown option, a second block) is refused as well. The host is not checked: the file may be for another one.

mod agent;
mod json;
mod options;
mod refusal;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Map, Value};

use agent::{AGENT_KEYS, options_of_agent};
use json::Json;
use options::{known, with_plain_blocks};
use refusal::{Refusal, kind};

use super::say;
use crate::config::PluginConfig;
use crate::sys;

/// The label of the plugin's block: the file name of its binary.
const PLUGIN: &str = env!("CARGO_PKG_NAME");
/// An agent's whole configuration is a few KiB.
const FILE_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "FILE holds either the options alone, or an agent's configuration in JSON form, such as NixOS' \
                        /etc/nomad.json, with\n  \
                        {\"plugin\": {\"nomad-driver-exec2\": {\"config\": {\"unveil_by_task\": true}}}}\n\n\
                        The exit status is 0 if the configuration is valid, 1 if the agent or the plugin would refuse it, \
                        2 if it cannot be read."
)]
pub(super) struct Args {
    /// A JSON file, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Reads the file and reports what is wrong with it.
pub(super) fn main(args: &Args) -> ExitCode {
    let shown = args.file.display();
    match read(&args.file).and_then(|text| validate(&text)) {
        Ok(config) => match io::stdout().lock().write_all(summary(&config).as_bytes()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                say(&format!("failed to write to standard output: {e}\n"));
                ExitCode::FAILURE
            }
            _ => ExitCode::SUCCESS,
        },
        Err(refusal) => {
            say(&format!("{PLUGIN}: {shown}: {refusal}\n"));
            ExitCode::from(refusal.status())
        }
    }
}

fn read(file: &Path) -> Result<String, Refusal> {
    let source: Box<dyn Read> =
        if file == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(file)?) };
    let bytes = sys::read::bounded(source, FILE_BYTES_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => Refusal::Size,
        _ => Refusal::Read(error),
    })?;
    Ok(String::from_utf8(bytes)?)
}

/// The configuration that the plugin would get, from either form of the text.
fn validate(text: &str) -> Result<PluginConfig, Refusal> {
    let Json { value: top, repeated } = serde_json::from_str(text)?;
    if let Some(key) = repeated {
        return Err(Refusal::Repeated { key });
    }
    let Value::Object(top) = top else { return Err(Refusal::Top(kind(&top))) };
    if !top.contains_key("plugin") {
        if top.keys().any(|key| AGENT_KEYS.contains(&key.as_str())) {
            return Err(Refusal::NoBlock);
        }
        return decode(&top);
    }
    options_of_agent(&top)?.map_or_else(|| Ok(PluginConfig::default()), decode)
}

fn decode(options: &Map<String, Value>) -> Result<PluginConfig, Refusal> {
    let options = with_plain_blocks("plugin option ", options, &PluginConfig::options())?;
    known(&options)?;
    Ok(PluginConfig::decode_json(&Value::from(options).to_string())?)
}

/// The effective configuration with defaults filled in, so that an option in the wrong place is noticed.
fn summary(config: &PluginConfig) -> String {
    format!("valid\n{}", config.to_hcl())
}

#[cfg(test)]
mod tests;
