//! The plugin's block in an agent's configuration.

use serde_json::{Map, Value};

use super::PLUGIN;
use super::refusal::{Refusal, kind};

/// Top-level keys of an agent's configuration beside `plugin`. None of them is an option of the plugin.
pub(super) const AGENT_KEYS: [&str; 40] = [
    "acl",
    "addresses",
    "advertise",
    "audit",
    "autopilot",
    "bind_addr",
    "client",
    "consul",
    "data_dir",
    "datacenter",
    "disable_anonymous_signature",
    "disable_update_check",
    "enable_debug",
    "enable_syslog",
    "eventlog",
    "http_api_response_headers",
    "keyring",
    "leave_on_interrupt",
    "leave_on_terminate",
    "limits",
    "log_file",
    "log_include_location",
    "log_json",
    "log_level",
    "log_rotate_bytes",
    "log_rotate_duration",
    "log_rotate_max_files",
    "name",
    "plugin_dir",
    "ports",
    "region",
    "reporting",
    "rpc",
    "sentinel",
    "server",
    "syslog_facility",
    "telemetry",
    "tls",
    "ui",
    "vault",
];

/// The plugin's `config` in an agent's configuration. In HCL's JSON form a block is an object or a list of objects, at each
/// level. None if the block has no `config`.
pub(super) fn options_of_agent(agent: &Map<String, Value>) -> Result<Option<&Map<String, Value>>, Refusal> {
    let plugins = objects("plugin", agent.get("plugin"))?;
    let place = format!("plugin {PLUGIN:?}");
    let mut blocks = Vec::new();
    for plugin in plugins {
        blocks.extend(objects(&place, plugin.get(PLUGIN))?);
    }
    let block = match blocks[..] {
        [] => return Err(Refusal::NoBlock),
        [one] => one,
        _ => return Err(Refusal::Twice { place, count: blocks.len() }),
    };
    if let Some(key) = block.keys().find(|key| !["config", "args"].contains(&key.as_str())) {
        return Err(Refusal::Key { place, key: key.clone() });
    }
    let place = format!("config of {place}");
    match objects(&place, block.get("config"))?[..] {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        ref more => Err(Refusal::Twice { place, count: more.len() }),
    }
}

/// The objects of a block, none if it is absent.
fn objects<'a>(place: &str, value: Option<&'a Value>) -> Result<Vec<&'a Map<String, Value>>, Refusal> {
    let wrong = |value: &Value| Refusal::Shape { place: place.to_owned(), found: kind(value) };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Object(one)) => Ok(vec![one]),
        Some(Value::Array(list)) => {
            list.iter().map(|item| item.as_object().ok_or_else(|| wrong(item))).collect()
        }
        Some(other) => Err(wrong(other)),
    }
}
