//! The options of operators and jobs: the schemas for Nomad, and the configs that it sends back.
//!
//! Nomad evaluates the HCL of a `config` block against the schema and sends the result as MessagePack. A decoded config is
//! complete and valid in itself: defaults are filled in, rules are parsed. Whether the host supports it is decided later.
//!
//! [`plugin`] and [`task`] declare the options, [`kinds`] has the types that options share, [`table`] derives everything else
//! from a declaration. A new option is one declaration, and rows of the documentation that `tests/packaging.rs` asks for.

#[cfg_attr(
    not(test),
    allow(dead_code, reason = "no option is a single block of options yet; the tests have some")
)]
mod blocks;
mod cty;
mod hclspec;
mod kinds;
mod namespace;
mod network;
mod plugin;
mod row;
mod table;
mod task;
#[cfg(test)]
mod tests;

use std::fmt;

pub use namespace::NamespaceConfig;
pub use plugin::{PluginConfig, RootKind};
pub use row::{Form, Row};
pub use task::DriverConfig;

use crate::quote::quote;
use crate::sandbox::capabilities::UnknownCapability;
use crate::sandbox::unveil::UnveilError;

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

/// Why a config is refused. Every message names the option, repeats the value (except for `args`, which may hold a secret) and
/// says what to write.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The bytes are not a map of options.
    #[error("failed to decode the {scope} config: {reason}")]
    Unreadable {
        /// The config.
        scope: Scope,
        /// What is wrong, and where if the decoder knows it.
        reason: String,
    },
    /// A required option is absent.
    #[error("{scope} option {option} is missing; write {write}")]
    Missing {
        /// The config.
        scope: Scope,
        /// The option.
        option: String,
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
        /// The type that was found.
        found: &'static str,
        /// What to write.
        write: &'static str,
    },
    /// A value of the right type that is not allowed.
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
        /// What to write.
        write: &'static str,
    },
    /// A list with too many elements.
    #[error("{scope} option {option} has {length} elements; write {most} at most")]
    Length {
        /// The config.
        scope: Scope,
        /// The option.
        option: String,
        /// Its number of elements.
        length: usize,
        /// The highest allowed number.
        most: usize,
    },
    /// A string that is not an unveil rule.
    #[error("{scope} option {option} {error}{}", or_of_the_task(*.scope, .error))]
    Unveil {
        /// The config.
        scope: Scope,
        /// The option with the index.
        option: String,
        /// Repeats the rule.
        error: UnveilError,
    },
    /// A string that is not a capability.
    #[error("{scope} option {option} {error}")]
    Capability {
        /// The config.
        scope: Scope,
        /// The option with the index.
        option: String,
        /// Repeats the name.
        error: UnknownCapability,
    },
}

/// Nomad replaces `${…}` only in a job.
fn or_of_the_task(scope: Scope, error: &UnveilError) -> &'static str {
    match (scope, error) {
        (Scope::Task, UnveilError::RelativePath(_)) => ", or ${NOMAD_TASK_DIR}/… for a path of the task",
        _ => "",
    }
}

/// An option as error messages name it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct At {
    scope: Scope,
    /// With the block that it is in and the index in a list: `unveil[2]`, `network_policy.bind`.
    option: String,
}

impl At {
    /// An element of a list option: `args[2]`.
    fn element(&self, index: usize) -> Self {
        Self { scope: self.scope, option: format!("{}[{index}]", self.option) }
    }

    /// The option is required and not set.
    fn missing(&self, write: &'static str) -> ConfigError {
        ConfigError::Missing { scope: self.scope, option: self.option.clone(), write }
    }

    /// The option has the right type and an invalid value.
    fn bad_value(&self, value: String, problem: &'static str, write: &'static str) -> ConfigError {
        ConfigError::Value { scope: self.scope, option: self.option.clone(), value, problem, write }
    }

    /// Refuses a list that is longer than any reasonable use of it.
    fn at_most(&self, length: usize, most: usize) -> Result<(), ConfigError> {
        if length <= most {
            return Ok(());
        }
        Err(ConfigError::Length { scope: self.scope, option: self.option.clone(), length, most })
    }

    /// Refuses a NUL byte, which ends a C string early; paths and arguments cannot contain it.
    fn without_nul(&self, text: &str, show: bool) -> Result<(), ConfigError> {
        if !text.contains('\0') {
            return Ok(());
        }
        let shown = if show { quote(text) } else { "(value not shown)".to_owned() };
        Err(self.bad_value(shown, "it has a NUL byte", "it without"))
    }
}
