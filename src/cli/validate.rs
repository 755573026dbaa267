//! `validate-config`: checks whether the agent and the plugin would accept a configuration.
//!
//! The options are decoded by the same code as those from Nomad. What Nomad itself refuses before it calls the plugin (an
//! unknown option, a second block) is refused as well. The host is not checked: the file may be for another one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::say;
use crate::config::{ConfigError, Form, PluginConfig, Row};
use crate::quote::quote;
use crate::sys;

/// The file was read, and the plugin or Nomad would refuse its contents.
const REFUSED: u8 = 1;
/// The file cannot be read or is not JSON, so nothing is known about the configuration. The same status as for wrong usage.
const UNREADABLE: u8 = 2;

/// The label of the plugin's block: the file name of its binary.
const PLUGIN: &str = env!("CARGO_PKG_NAME");
/// An agent's whole configuration is a few KiB.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Top-level keys of an agent's configuration beside `plugin`. None of them is an option of the plugin.
const AGENT_KEYS: [&str; 40] = [
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
/// How similar a known option must be to be suggested instead of an unknown one (Jaro-Winkler, 0 to 1).
const SIMILAR: f64 = 0.8;

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

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
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
    fn status(&self) -> u8 {
        match self {
            Self::Read(_) | Self::Size | Self::Utf8(_) | Self::Json(_) => UNREADABLE,
            _ => REFUSED,
        }
    }
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

/// The options with an object for each block, as the decoder takes them. In HCL's JSON form it may be a list of objects, at each level.
fn with_plain_blocks(
    place: &str,
    options: &Map<String, Value>,
    rows: &[Row],
) -> Result<Map<String, Value>, Refusal> {
    let plain = |(option, value): (&String, &Value)| {
        let place = format!("{place}{option}");
        let value = match rows.iter().find(|row| row.name == option).map(|row| row.form) {
            Some(Form::Block(rows)) => plain_block(&place, value, &rows()),
            Some(Form::Entries) => plain_block(&place, value, &[]),
            Some(Form::Labelled(rows)) => plain_blocks(&place, value, &rows()),
            Some(Form::Attribute(_) | Form::Map) | None => Ok(value.clone()),
        };
        Ok((option.clone(), value?))
    };
    options.iter().map(plain).collect()
}

fn plain_block(place: &str, value: &Value, rows: &[Row]) -> Result<Value, Refusal> {
    match all_objects(value).as_deref() {
        None => Ok(value.clone()),
        Some([]) => Ok(Value::Null),
        Some([one]) => with_plain_blocks(&format!("{place}."), one, rows).map(Value::from),
        Some(more) => Err(Refusal::Twice { place: place.to_owned(), count: more.len() }),
    }
}

fn plain_blocks(place: &str, value: &Value, rows: &[Row]) -> Result<Value, Refusal> {
    let Some(objects) = all_objects(value) else { return Ok(value.clone()) };
    let mut blocks = Map::new();
    for (label, block) in objects.into_iter().flatten() {
        let place = format!("{place}[{}]", quote(label));
        if blocks.insert(label.clone(), plain_block(&place, block, rows)?).is_some() {
            return Err(Refusal::Twice { place, count: 2 });
        }
    }
    Ok(blocks.into())
}

/// The objects that a value is, or is a list of.
fn all_objects(value: &Value) -> Option<Vec<&Map<String, Value>>> {
    match value {
        Value::Object(one) => Some(vec![one]),
        Value::Array(list) => list.iter().map(Value::as_object).collect(),
        _ => None,
    }
}

/// A JSON value, and the first key that occurs twice in one of its objects; a plain `Value` would silently keep the last one.
struct Json {
    value: Value,
    repeated: Option<String>,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl JsonVisitor {
    fn scalar<E>(value: impl Into<Value>) -> Result<Json, E> {
        Ok(Json { value: value.into(), repeated: None })
    }
}

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Self::scalar(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Json, A::Error> {
        let (mut values, mut repeated) = (Vec::new(), None);
        while let Some(item) = sequence.next_element::<Json>()? {
            values.push(item.value);
            repeated = repeated.or(item.repeated);
        }
        Ok(Json { value: values.into(), repeated })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let (mut values, mut repeated) = (Map::new(), None);
        while let Some((key, item)) = map.next_entry::<String, Json>()? {
            repeated = repeated.or(item.repeated);
            if values.insert(key.clone(), item.value).is_some() {
                repeated = repeated.or(Some(key));
            }
        }
        Ok(Json { value: values.into(), repeated })
    }
}

/// The plugin's `config` in an agent's configuration. In HCL's JSON form a block is an object or a list of objects, at each
/// level. None if the block has no `config`.
fn options_of_agent(agent: &Map<String, Value>) -> Result<Option<&Map<String, Value>>, Refusal> {
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

/// Nomad refuses an option that the plugin's schema does not have.
fn known(options: &Map<String, Value>) -> Result<(), Refusal> {
    known_in("", options, &PluginConfig::options())
}

fn known_in(place: &str, options: &Map<String, Value>, rows: &[Row]) -> Result<(), Refusal> {
    for (option, value) in options {
        let Some(row) = rows.iter().find(|row| row.name == option) else {
            let known = rows.iter().map(|row| row.name).collect();
            return Err(Refusal::Unknown { place: place.to_owned(), option: option.clone(), known });
        };
        if let (Form::Block(nested), Some(options)) = (row.form, value.as_object()) {
            known_in(&format!("{place}{option}."), options, &nested())?;
        }
        if let (Form::Labelled(rows), Some(blocks)) = (row.form, value.as_object()) {
            for (label, block) in blocks {
                let place = format!("{place}{option}[{}].", quote(label));
                block.as_object().map_or(Ok(()), |block| known_in(&place, block, &rows()))?;
            }
        }
    }
    Ok(())
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

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The effective configuration with defaults filled in, so that an option in the wrong place is noticed.
fn summary(config: &PluginConfig) -> String {
    format!("valid\n{}", config.to_hcl())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ok(json: Value) -> PluginConfig {
        validate(&json.to_string()).unwrap()
    }

    fn refused(json: Value) -> String {
        let refusal = validate(&json.to_string()).unwrap_err();
        assert_eq!(refusal.status(), REFUSED);
        refusal.to_string()
    }

    fn agent(plugin: Value) -> Value {
        json!({"data_dir": "/var/lib/nomad", "client": {"enabled": true}, "plugin": plugin})
    }

    #[test]
    fn a_file_that_is_too_large_or_not_text_is_unreadable() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"{\xff}").unwrap();
        let refusal = read(file.path()).unwrap_err();
        assert!(matches!(refusal, Refusal::Utf8(_)), "{refusal}");
        assert_eq!(refusal.status(), UNREADABLE);
        file.as_file().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(matches!(read(file.path()), Err(Refusal::Size)));
    }

    #[test]
    fn options_alone_and_every_shape_of_an_agents_configuration_read_alike() {
        let options =
            json!({"unveil_by_task": true, "unveil_paths": ["r:/srv/x"], "allow_caps": ["net_raw"]});
        let wanted = ok(options.clone());
        assert!(wanted.unveil_by_task && wanted.unveil_defaults);
        let block = json!({"config": options});
        let other = json!({"config": {"volumes": {"enabled": true}}});
        for plugin in [
            json!({PLUGIN: block}),
            json!([{PLUGIN: block}]),
            json!({PLUGIN: [block]}),
            json!([{PLUGIN: [{"config": [block["config"]]}]}]),
            json!({"docker": other, PLUGIN: block}),
            json!([{"docker": [other]}, {PLUGIN: block}]),
            json!({PLUGIN: {"args": [], "config": block["config"]}}),
        ] {
            assert_eq!(ok(agent(plugin.clone())), wanted, "{plugin}");
        }
    }

    #[test]
    fn blocks_are_objects_or_lists_of_them() {
        let wanted = ok(json!({
            "ulimit": {"nofile": "100"}, "network_policy": {"bind": ["80"]},
            "namespace": {"dev": {}, "prod": {"pids_max": 7, "network_policy": {"bind": []}}},
        }));
        assert_eq!(wanted.policy_in("prod").pids_max, 7);
        let prod = json!([{"pids_max": 7, "network_policy": [{"bind": []}]}]);
        for namespace in [
            json!({"dev": [{}], "prod": prod}),
            json!([{"dev": {}, "prod": prod}]),
            json!([{"dev": {}}, {"prod": prod}]),
        ] {
            let lists = json!({"ulimit": [{"nofile": "100"}], "network_policy": [{"bind": ["80"]}], "namespace": namespace});
            assert_eq!(ok(lists), wanted, "{namespace}");
        }
        assert_eq!(ok(json!({"namespace": [], "network_policy": []})), PluginConfig::default());
        for (json, message) in [
            (
                json!({"namespace": [{"dev": {}}, {"dev": {}}]}),
                "plugin option namespace[\"dev\"] occurs 2 times",
            ),
            (json!({"network_policy": [{}, {}]}), "plugin option network_policy occurs 2 times"),
            (json!({"namespace": [{"dev": [{"pids_mx": 7}]}]}), "did you mean pids_max?"),
            (json!({"namespace": [{"dev": {}}, "prod"]}), "namespace is a list; write blocks"),
        ] {
            let refusal = refused(json.clone());
            assert!(refusal.contains(message), "{json}: {refusal}");
        }
    }

    #[test]
    fn values_that_nomad_converts_are_accepted() {
        for json in [
            json!({"unveil_by_task": "true", "unveil_defaults": "0"}),
            agent(json!({PLUGIN: {"config": {"unveil_by_task": "1", "unveil_defaults": "false"}}})),
        ] {
            let config = ok(json);
            assert!(config.unveil_by_task && !config.unveil_defaults);
        }
    }

    #[test]
    fn nothing_set_is_the_default() {
        for json in [
            json!({}),
            json!({"unveil_paths": null}),
            agent(json!({PLUGIN: {}})),
            agent(json!({PLUGIN: {"config": {}}})),
        ] {
            assert_eq!(ok(json), PluginConfig::default());
        }
    }

    #[test]
    fn refusals_name_the_place_and_what_to_write() {
        let cases = [
            (json!([]), "the top level is a list; write an object"),
            (agent(json!({})), "no block for the plugin"),
            (agent(json!({"docker": {}})), "\"config\": {}}}}"),
            (agent(json!({"exec2": {"config": {}}})), "no block for the plugin"),
            (json!({"data_dir": "/var/lib/nomad", "client": {"enabled": true}}), "no block for the plugin"),
            (json!({"server": {}, "unveil_by_task": true}), "no block for the plugin"),
            (agent(json!("x")), "plugin is a string; write an object"),
            (agent(json!({PLUGIN: [{}, {}]})), "plugin \"nomad-driver-exec2\" occurs 2 times"),
            (agent(json!([{PLUGIN: {}}, {PLUGIN: {}}])), "occurs 2 times; write it once"),
            (
                agent(json!({PLUGIN: {"config": [{}, {}]}})),
                "config of plugin \"nomad-driver-exec2\" occurs 2 times",
            ),
            (
                agent(json!({PLUGIN: {"config": true}})),
                "config of plugin \"nomad-driver-exec2\" is a boolean",
            ),
            (
                agent(json!({PLUGIN: {"unveil_by_task": true}})),
                "has \"unveil_by_task\", which Nomad does not accept",
            ),
            (json!({"unveil_path": []}), "\"unveil_path\" is unknown; did you mean unveil_paths?"),
            (
                json!({"network_policy": {"bnd": []}}),
                "plugin option network_policy.bnd is unknown; did you mean bind?",
            ),
            (
                json!({"x": 1}),
                "write one of root, unveil_defaults, unveil_paths, unveil_by_task, unveil_allow, unveil_deny, allow_caps, ulimit",
            ),
            (agent(json!({PLUGIN: {"config": {"allow_cap": []}}})), "did you mean allow_caps?"),
            (
                json!({"namespace": {"prod": {"unveil_path": []}}}),
                "plugin option namespace[\"prod\"].unveil_path is unknown; did you mean unveil_paths?",
            ),
            (
                json!({"namespace": {"prod": {"root": "host"}}}),
                "namespace[\"prod\"].root is unknown; write one of unveil_paths, ",
            ),
            (
                json!({"namespace": {"prod": {"pids_max": -1}}}),
                "namespace[\"prod\"].pids_max -1: it is too small",
            ),
            (
                json!({"namespace": {"prod": true}}),
                "namespace[\"prod\"] is a boolean; write a block of options",
            ),
            (json!({"unveil_deny": ["etc"]}), "unveil_deny[0] \"etc\": it is not an absolute path"),
            (json!({"unveil_by_task": "yes"}), "unveil_by_task is a string; write true or false"),
            (json!({"unveil_paths": ["z:/srv"]}), "unveil_paths[0]"),
            (json!({"unveil_paths": ["r:srv"]}), "unveil_paths[0]"),
            (json!({"allow_caps": ["net_rwa"]}), "allow_caps[0]"),
            (json!({"dynamic_user_range": "80000"}), "dynamic_user_range \"80000\": it is not a range"),
        ];
        for (json, wanted) in cases {
            let message = refused(json.clone());
            assert!(message.contains(wanted), "{json}: {message}");
        }
    }

    #[test]
    fn duplicates_are_refused_in_both_forms() {
        let options = r#"{"unveil_by_task": true, "unveil_by_task": false}"#;
        for (text, key) in [
            (options.to_owned(), "unveil_by_task"),
            (format!(r#"{{"plugin": {{"{PLUGIN}": {{"config": {options}}}}}}}"#), "unveil_by_task"),
            (format!(r#"{{"plugin": [{{"{PLUGIN}": [{{"config": [{options}]}}]}}]}}"#), "unveil_by_task"),
            (format!(r#"{{"plugin": {{"{PLUGIN}": {{}}}}, "plugin": {{}}}}"#), "plugin"),
        ] {
            let refusal = validate(&text).unwrap_err();
            assert_eq!(refusal.status(), REFUSED, "{text}");
            let wanted = format!("{key:?} occurs twice in one object");
            assert!(refusal.to_string().contains(&wanted), "{text}: {refusal}");
        }
    }

    #[test]
    fn every_json_type_is_decoded_unchanged() {
        let text = r#"{"a": [null, true, -1, 18446744073709551615, 1.5, "x", {"b": {}}]}"#;
        let Json { value, repeated } = serde_json::from_str(text).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(repeated, None);
    }

    #[test]
    fn unreadable_input_has_its_own_status() {
        let hcl = validate("plugin \"nomad-driver-exec2\" {}").unwrap_err();
        assert_eq!(hcl.status(), UNREADABLE);
        assert!(hcl.to_string().contains("HCL"), "{hcl}");
        assert_eq!(validate("").unwrap_err().status(), UNREADABLE);
        let absent = read(Path::new("/nonexistent/nomad.json")).unwrap_err();
        assert_eq!(absent.status(), UNREADABLE);
        assert!(absent.to_string().contains("No such file"), "{absent}");
    }

    #[test]
    fn the_summary_shows_the_effective_options() {
        let config = ok(json!({
            "unveil_paths": ["rx:/opt/bin"], "allow_caps": ["CAP_NET_RAW"], "unveil_deny": ["/srv/private"],
            "namespace": {"prod": {"unveil_by_task": true, "pids_max": 100}},
        }));
        assert_eq!(
            summary(&config),
            "valid\nroot = \"private\"\nunveil_defaults = true\nunveil_paths = [\"rx:/opt/bin\"]\n\
             unveil_by_task = false\nunveil_allow = []\nunveil_deny = [\"/srv/private\"]\nallow_caps = [\"net_raw\"]\nulimit = {}\npids_max = 8192\nmemory_swap = 0\ncpu_hard_limit = true\nnetwork_policy = {}\nabstract_sockets = \"own\"\ncpu_weight_max = 0\ncpu_burst = 0\nio_weight = 100\nio_max = []\n\
             allow_root = true\ndenied_host_uids = \"65534\"\ndenied_host_gids = \"65534\"\ndynamic_user_range = \"80000-89999\"\nvolume_idmap = \"auto\"\nseccomp = \"default\"\nallow_seccomp = []\nnamespace = { \"prod\" = { unveil_by_task = true, pids_max = 100, network_policy = {} } }\ndisable_log_collection = false\n"
        );
    }
}
