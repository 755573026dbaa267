//! The operator's options: `plugin "nomad-driver-exec2" { config { … } }`.

use super::cty::Options;
use super::{ConfigError, Scope, capabilities, hclspec, unveils};
use crate::proto::hclspec::Spec;
use crate::sandbox::capabilities::CapSet;
use crate::sandbox::unveil::Unveil;

const UNVEIL_DEFAULTS: &str = "unveil_defaults";
const UNVEIL_PATHS: &str = "unveil_paths";
const UNVEIL_BY_TASK: &str = "unveil_by_task";
const ALLOW_CAPS: &str = "allow_caps";

/// What the operator decides for all tasks of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// `unveil_defaults`: grant every task the usual system paths and its own directories. True unless set.
    pub unveil_defaults: bool,
    /// `unveil_paths`: granted to every task. None unless set.
    pub unveil_paths: Vec<Unveil>,
    /// `unveil_by_task`: a job may grant itself paths of the host. False unless set.
    pub unveil_by_task: bool,
    /// `allow_caps`: the capabilities that a job may ask for. None unless set.
    pub allow_caps: CapSet,
}

impl Default for PluginConfig {
    fn default() -> Self {
        Self {
            unveil_defaults: true,
            unveil_paths: Vec::new(),
            unveil_by_task: false,
            allow_caps: CapSet::EMPTY,
        }
    }
}

impl PluginConfig {
    /// The names of all options.
    pub const OPTIONS: &[&str] = &[UNVEIL_DEFAULTS, UNVEIL_PATHS, UNVEIL_BY_TASK, ALLOW_CAPS];

    /// The schema for BasePlugin.ConfigSchema.
    pub fn schema() -> Spec {
        let defaults = Self::default();
        hclspec::object([
            hclspec::flag(UNVEIL_DEFAULTS, defaults.unveil_defaults),
            hclspec::optional(UNVEIL_PATHS, hclspec::STRINGS),
            hclspec::flag(UNVEIL_BY_TASK, defaults.unveil_by_task),
            hclspec::optional(ALLOW_CAPS, hclspec::STRINGS),
        ])
    }

    /// Reads `msgpack_config` of BasePlugin.SetConfig. No bytes mean that nothing is set.
    pub fn decode(msgpack: &[u8]) -> Result<Self, ConfigError> {
        Self::from_options(Options::from_msgpack(Scope::Plugin, Self::OPTIONS, msgpack)?)
    }

    /// Reads the same options from a JSON object.
    pub fn decode_json(json: &str) -> Result<Self, ConfigError> {
        Self::from_options(Options::from_json(Scope::Plugin, Self::OPTIONS, json)?)
    }

    fn from_options(mut options: Options) -> Result<Self, ConfigError> {
        let defaults = Self::default();
        let scope = Scope::Plugin;
        Ok(Self {
            unveil_defaults: options.flag(UNVEIL_DEFAULTS)?.unwrap_or(defaults.unveil_defaults),
            unveil_paths: unveils(scope, UNVEIL_PATHS, &options.texts(UNVEIL_PATHS)?)?,
            unveil_by_task: options.flag(UNVEIL_BY_TASK)?.unwrap_or(defaults.unveil_by_task),
            allow_caps: capabilities(scope, ALLOW_CAPS, &options.texts(ALLOW_CAPS)?)?.set(),
        })
    }
}
