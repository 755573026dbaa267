//! The operator's options: `plugin "nomad-driver-exec2" { config { … } }`.

use super::cty::Options;
use super::{ConfigError, Scope, capabilities, hclspec, unveils};
use crate::proto::hclspec::Spec;
use crate::quote::quote;
use crate::sandbox::capabilities::{CapSet, Capability, hcl};
use crate::sandbox::unveil::Unveil;
use crate::users::DynamicRange;

const UNVEIL_DEFAULTS: &str = "unveil_defaults";
const UNVEIL_PATHS: &str = "unveil_paths";
const UNVEIL_BY_TASK: &str = "unveil_by_task";
const ALLOW_CAPS: &str = "allow_caps";
const DYNAMIC_USER_RANGE: &str = "dynamic_user_range";

/// What jobs may ask for unless the operator says otherwise. Of the Go driver's 13 these are the two that leave nothing on
/// the host and reach nothing of it: a port below 1024, and signals to the task's own processes of another user (its PID
/// namespace has no others).
const ALLOWED: [Capability; 2] = [Capability::KILL, Capability::NET_BIND_SERVICE];

/// What the operator decides for all tasks of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// `unveil_defaults`: grant every task the usual system paths and its own directories. True unless set.
    pub unveil_defaults: bool,
    /// `unveil_paths`: granted to every task. None unless set.
    pub unveil_paths: Vec<Unveil>,
    /// `unveil_by_task`: a job may grant itself paths of the host. False unless set.
    pub unveil_by_task: bool,
    /// `allow_caps`: the capabilities that a job may ask for. `kill` and `net_bind_service` unless set.
    pub allow_caps: CapSet,
    /// `dynamic_user_range`: the uids that Nomad assigns to tasks without a user. No job may name one outside of it.
    pub dynamic_user_range: DynamicRange,
}

impl Default for PluginConfig {
    fn default() -> Self {
        Self {
            unveil_defaults: true,
            unveil_paths: Vec::new(),
            unveil_by_task: false,
            allow_caps: ALLOWED.into_iter().collect(),
            dynamic_user_range: DynamicRange::default(),
        }
    }
}

impl PluginConfig {
    /// The names of all options.
    pub const OPTIONS: &[&str] =
        &[UNVEIL_DEFAULTS, UNVEIL_PATHS, UNVEIL_BY_TASK, ALLOW_CAPS, DYNAMIC_USER_RANGE];

    /// The schema for BasePlugin.ConfigSchema.
    pub fn schema() -> Spec {
        let defaults = Self::default();
        hclspec::object([
            hclspec::flag(UNVEIL_DEFAULTS, defaults.unveil_defaults),
            hclspec::optional(UNVEIL_PATHS, hclspec::STRINGS),
            hclspec::flag(UNVEIL_BY_TASK, defaults.unveil_by_task),
            hclspec::default(ALLOW_CAPS, hclspec::STRINGS, hcl(defaults.allow_caps)),
            hclspec::default(
                DYNAMIC_USER_RANGE,
                hclspec::STRING,
                quote(&defaults.dynamic_user_range.to_string()),
            ),
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
            allow_caps: match options.texts_if_set(ALLOW_CAPS)? {
                Some(names) => capabilities(scope, ALLOW_CAPS, &names)?.set(),
                None => defaults.allow_caps,
            },
            dynamic_user_range: match options.text(DYNAMIC_USER_RANGE)? {
                Some(text) => range(&text)?,
                None => defaults.dynamic_user_range,
            },
        })
    }
}

fn range(text: &str) -> Result<DynamicRange, ConfigError> {
    text.parse().map_err(|_| ConfigError::Value {
        scope: Scope::Plugin,
        option: DYNAMIC_USER_RANGE.to_owned(),
        value: quote(text),
        problem: "it is not a range of uids",
        write: r#"the client's dynamic_user_min and dynamic_user_max, for example "80000-89999""#,
    })
}
