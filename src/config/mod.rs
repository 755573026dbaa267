//! What an operator and a job may set: the schemas that Nomad gets, and the configs that it sends back.
//!
//! Nomad evaluates the HCL of a `config` block against the schema and sends the outcome as MessagePack. A decoded
//! config is complete and valid in itself: defaults are filled in, rules are parsed. Whether the host can do it is
//! decided later.

mod cty;
mod hclspec;
mod plugin;
mod task;
#[cfg(test)]
mod tests;

use std::fmt;

pub use plugin::PluginConfig;
pub use task::{OOM_SCORE_ADJ_RANGE, TaskConfig};

use crate::quote::quote;
use crate::sandbox::capabilities::{CapList, CapabilityError};
use crate::sandbox::unveil::{Unveil, UnveilError};

/// Which of the two configs an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `plugin "nomad-driver-exec2" { config { … } }` in the agent's configuration.
    Plugin,
    /// `task { config { … } }` in a job.
    Task,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plugin => "plugin",
            Self::Task => "task",
        })
    }
}

/// Why a config is refused. Every message names the option, repeats the value (but for `args`, which may hold a
/// secret) and says what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The bytes are no map of options.
    #[error("{scope} config: cannot read it as a map of options: {reason}")]
    Unreadable {
        /// The config.
        scope: Scope,
        /// What is wrong, and where the reader knows it.
        reason: String,
    },
    /// A required option is absent.
    #[error("{scope} option {option} is missing; write {write}")]
    Missing {
        /// The config.
        scope: Scope,
        /// The option.
        option: &'static str,
        /// An example.
        write: &'static str,
    },
    /// A value of another type.
    #[error("{scope} option {option} is {found}; write {write}")]
    Type {
        /// The config.
        scope: Scope,
        /// The option, with the index in a list.
        option: String,
        /// What it is.
        found: &'static str,
        /// What it has to be.
        write: &'static str,
    },
    /// A value of the right type that cannot be used.
    #[error("{scope} option {option} {value}: {problem}; write {write}")]
    Value {
        /// The config.
        scope: Scope,
        /// The option, with the index in a list.
        option: String,
        /// The value as shown to people.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
        /// What it has to be.
        write: &'static str,
    },
    /// A list with too many elements.
    #[error("{scope} option {option} has {length} elements; write {most} at most")]
    Length {
        /// The config.
        scope: Scope,
        /// The option.
        option: &'static str,
        /// How many it has.
        length: usize,
        /// How many it may have.
        most: usize,
    },
    /// A text that is no unveil rule.
    #[error("{scope} option {option} {error}")]
    Unveil {
        /// The config.
        scope: Scope,
        /// The option with the index.
        option: String,
        /// Repeats the rule.
        error: UnveilError,
    },
    /// A text that is no capability.
    #[error("{scope} option {option} {error}")]
    Capability {
        /// The config.
        scope: Scope,
        /// The option with the index.
        option: String,
        /// Repeats the name.
        error: CapabilityError,
    },
}

/// Most rules of one list. Each costs an open and a Landlock rule at every start, and the list is repeated in events that
/// Nomad's servers keep.
const UNVEILS_MAX: usize = 1024;

/// Most names in a list of capabilities: there are 41, each with a few spellings.
const CAPABILITIES_MAX: usize = 256;

/// Refuses a list that is longer than any use of it.
fn at_most(scope: Scope, option: &'static str, length: usize, most: usize) -> Result<(), ConfigError> {
    if length <= most { Ok(()) } else { Err(ConfigError::Length { scope, option, length, most }) }
}

/// Unveil rules of a list option; an error names the element.
fn unveils(scope: Scope, option: &'static str, rules: &[String]) -> Result<Vec<Unveil>, ConfigError> {
    at_most(scope, option, rules.len(), UNVEILS_MAX)?;
    rules
        .iter()
        .enumerate()
        .map(|(i, rule)| {
            rule.parse().map_err(|error| ConfigError::Unveil { scope, option: element(option, i), error })
        })
        .collect()
}

/// Capabilities of a list option; an error names the element.
fn capabilities(scope: Scope, option: &'static str, names: &[String]) -> Result<CapList, ConfigError> {
    at_most(scope, option, names.len(), CAPABILITIES_MAX)?;
    names.iter().enumerate().try_fold(CapList::default(), |list, (i, name)| {
        let one = CapList::from_names([name]).map_err(|error| ConfigError::Capability {
            scope,
            option: element(option, i),
            error,
        })?;
        Ok(CapList { named: list.named.union(one.named), all: list.all || one.all })
    })
}

/// An element of a list option as messages name it, `args[2]`.
fn element(option: &str, index: usize) -> String {
    format!("{option}[{index}]")
}

/// Refuses a NUL byte, which ends a C string early and which no path or argument can carry.
fn without_nul(scope: Scope, option: &str, text: &str, show: bool) -> Result<(), ConfigError> {
    if !text.contains('\0') {
        return Ok(());
    }
    Err(ConfigError::Value {
        scope,
        option: option.to_owned(),
        value: if show { quote(text) } else { "(value not shown)".to_owned() },
        problem: "it has a NUL byte",
        write: "it without",
    })
}
