//! Why a configuration is refused.

use std::io;

use serde_json::Value;

use super::{FILE_BYTES_MAX, PLUGIN};
use crate::config::ConfigError;
use crate::quote::quote;

/// The file was read, and the plugin or Nomad would refuse its contents.
pub(super) const REFUSED: u8 = 1;
/// The file cannot be read or is not JSON, so nothing is known about the configuration. The same status as for wrong usage.
pub(super) const UNREADABLE: u8 = 2;

/// How similar a known option must be to be suggested instead of an unknown one (Jaro-Winkler, 0 to 1).
const SIMILAR: f64 = 0.8;

#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("failed to read the file: {0}")]
    Read(#[from] io::Error),
    #[error("the file has more than {FILE_BYTES_MAX} bytes; name a file with the agent's configuration")]
    Size,
    #[error("not JSON: {0}")]
    Utf8(#[from] std::string::FromUtf8Error),
    #[error("not JSON: {0}; an HCL configuration has to be written as JSON for this command")]
    Json(#[from] serde_json::Error),
    #[error(
        "the top level is {0}; write an object, either the plugin's options or an agent's configuration with `plugin`"
    )]
    Top(&'static str),
    #[error(
        "no block for the plugin: Nomad starts only plugins that have one; write \
         {{\"plugin\": {{\"{PLUGIN}\": {{\"config\": {{}}}}}}}}"
    )]
    NoBlock,
    #[error("{place} is {found}; write an object")]
    Shape { place: String, found: &'static str },
    #[error("{place} occurs {count} times; write it once")]
    Twice { place: String, count: usize },
    #[error("{} occurs twice in one object; write it once", quote(key))]
    Repeated { key: String },
    #[error("{place} has {}, which Nomad does not accept; write config, and args if needed", quote(key))]
    Key { place: String, key: String },
    #[error("plugin option {place}{} is unknown; {}", named(place, option), instead(option, known))]
    Unknown { place: String, option: String, known: Vec<&'static str> },
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Refusal {
    pub(super) fn status(&self) -> u8 {
        match self {
            Self::Read(_) | Self::Size | Self::Utf8(_) | Self::Json(_) => UNREADABLE,
            _ => REFUSED,
        }
    }
}

/// In a block, the place is quoted already.
fn named(place: &str, option: &str) -> String {
    if place.is_empty() { quote(option) } else { option.to_owned() }
}

fn instead(option: &str, known: &[&str]) -> String {
    let score = |known: &&&str| strsim::jaro_winkler(option, known);
    let best = known.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
    match best.filter(|known| score(known) >= SIMILAR) {
        Some(known) => format!("did you mean {known}?"),
        None => format!("write one of {}", known.join(", ")),
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
