mod golden;
mod properties;

use prost::Message;
use serde_json::{Value as Json, json};

use super::*;
use crate::proto::hclspec::Spec;
use crate::proto::hclspec::spec::Block;
use crate::sandbox::capabilities::CapSet;

pub(super) fn msgpack(json: &Json) -> Vec<u8> {
    rmp_serde::to_vec(json).unwrap()
}

pub(super) fn task(json: Json) -> Result<DriverConfig, ConfigError> {
    let packed = DriverConfig::decode(&msgpack(&json));
    assert_eq!(packed, DriverConfig::decode_json(&json.to_string()), "JSON reads alike");
    packed
}

pub(super) fn plugin(json: Json) -> Result<PluginConfig, ConfigError> {
    let packed = PluginConfig::decode(&msgpack(&json));
    assert_eq!(packed, PluginConfig::decode_json(&json.to_string()), "JSON reads alike");
    packed
}

pub(super) fn task_err(json: Json) -> String {
    task(json).unwrap_err().to_string()
}

pub(super) fn plugin_err(json: Json) -> String {
    plugin(json).unwrap_err().to_string()
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// What go-cty 1.17 marshals for a task with this schema, with the given bytes as `oom_score_adj`: command "python3", args
/// ["-m", "http.server"], unveil ["r:/etc/mime.types"], cap_add null, cap_drop [], work_dir null.
fn go_task(oom_score_adj: &str) -> Result<DriverConfig, ConfigError> {
    DriverConfig::decode(&hex(&format!(
        "87a46172677392a22d6dab687474702e736572766572a76361705f616464c0a86361705f64726f7090a7636f6d6d616e64a7707974686f\
         6e33ad6f6f6d5f73636f72655f61646a{oom_score_adj}a6756e7665696c91b1723a2f6574632f6d696d652e7479706573a8776f726b5f\
         646972c0"
    )))
}

#[test]
fn reads_what_go_cty_writes() {
    let config = go_task("c0").unwrap();
    assert_eq!(config.command, "python3");
    assert_eq!(config.args, ["-m", "http.server"]);
    assert_eq!(config.unveil, ["r:/etc/mime.types".parse().unwrap()]);
    assert_eq!(config.oom_score_adj, 0);
    assert!(config.cap_add.is_empty() && config.cap_drop.is_empty());
    assert_eq!(config.work_dir, None);
    // 500 as go-cty writes it, and in the other forms that a number may take.
    for form in [
        "cd01f4",
        "d101f4",
        "ce000001f4",
        "cf00000000000001f4",
        "cb407f400000000000",
        "ca43fa0000",
        "a3353030",
    ] {
        assert_eq!(go_task(form).unwrap().oom_score_adj, 500, "{form}");
    }
    let err = |form: &str| go_task(form).unwrap_err().to_string();
    assert_eq!(
        err("cb4016000000000000"),
        "task option oom_score_adj 5.5: it is not a whole number; write a whole number from 0 to 1000"
    );
    assert!(err("a3302e31").starts_with("task option oom_score_adj \"0.1\": it is not a whole number"));
    assert!(err("fb").starts_with("task option oom_score_adj -5: it is too small"));
    assert!(err("cb7ff0000000000000").starts_with("task option oom_score_adj inf: it is too large"));
    assert!(
        err("cfffffffffffffffff")
            .starts_with("task option oom_score_adj 18446744073709551615: it is too large")
    );
    assert!(
        err("bf31303030303030303030303030303030303030303030303030303030303030")
            .contains("1000000000000000000000000000000\": it is too large")
    );
    assert_eq!(
        err("d40000"),
        "task option oom_score_adj is an unknown value; write a whole number from 0 to 1000"
    );

    let config = PluginConfig::decode(&hex(
        "84aa616c6c6f775f6361707391b06e65745f62696e645f73657276696365ae756e7665696c5f62795f7461736bc3af756e7665696c5f64\
         656661756c7473c3ac756e7665696c5f706174687391b1723a2f6574632f6d696d652e7479706573",
    ))
    .unwrap();
    assert!(config.unveil_defaults && config.unveil_by_task);
    assert_eq!(config.unveil_paths, ["r:/etc/mime.types".parse().unwrap()]);
    assert_eq!(config.policy().allowed_caps().names(), ["net_bind_service"]);
    let config = PluginConfig::decode(&hex(
        "84aa616c6c6f775f63617073c0ae756e7665696c5f62795f7461736bc2af756e7665696c5f64656661756c7473c3ac756e7665696c5f70\
         61746873c0",
    ));
    assert_eq!(config, Ok(PluginConfig::default()));
}

#[test]
fn defaults_when_nothing_is_set() {
    let defaults = PluginConfig::default();
    assert!(defaults.unveil_defaults && !defaults.unveil_by_task);
    assert!(defaults.unveil_paths.is_empty());
    assert_eq!(defaults.policy().allowed_caps().len(), 11);
    assert_eq!(defaults.dynamic_user_range.to_string(), "80000-89999");
    assert_eq!(PluginConfig::decode(&[]), Ok(defaults.clone()));
    for unset in [
        json!(null),
        json!({}),
        json!({"unveil_defaults": null, "unveil_paths": []}),
        json!({"later": {"x": [1]}}),
    ] {
        assert_eq!(plugin(unset), Ok(defaults.clone()));
    }
    let minimal = task(json!({"command": "env"})).unwrap();
    assert_eq!(minimal.command, "env");
    assert!(minimal.args.is_empty() && minimal.unveil.is_empty() && minimal.work_dir.is_none());
}

#[test]
fn plugin_options() {
    let config = plugin(json!({
        "unveil_defaults": false,
        "unveil_paths": ["r:/etc/ssl", "xr:/opt/a:b/"],
        "unveil_by_task": true,
        "allow_caps": ["CAP_NET_RAW", "chown"],
        "dynamic_user_range": "50000-50999",
    }))
    .unwrap();
    assert!(!config.unveil_defaults && config.unveil_by_task);
    assert_eq!(config.unveil_paths, ["r:/etc/ssl".parse().unwrap(), "rx:/opt/a:b".parse().unwrap()]);
    assert_eq!(config.policy().allowed_caps().names(), ["chown", "net_raw"]);
    assert_eq!(config.dynamic_user_range, "50000-50999".parse().unwrap());
    // An empty list is different from an unset one.
    assert!(plugin(json!({"allow_caps": []})).unwrap().policy().allowed_caps().is_empty());
    assert_eq!(plugin(json!({"allow_caps": ["all"]})).unwrap().policy().allowed_caps(), CapSet::ALL);
}

#[test]
fn plugin_errors_name_option_value_and_form() {
    assert_eq!(
        plugin_err(json!({"unveil_paths": ["r:/a", "q:/etc"]})),
        "plugin option unveil_paths[1] \"q:/etc\": unknown mode letter 'q'; write mode:path with modes r, w, x, c, for \
         example \"r:/etc/ssl\""
    );
    assert_eq!(
        plugin_err(json!({"unveil_by_task": "yes"})),
        "plugin option unveil_by_task is a string; write true or false"
    );
    assert_eq!(
        plugin_err(json!({"unveil_paths": "r:/etc"})),
        "plugin option unveil_paths is a string; write a list of strings"
    );
    assert_eq!(
        plugin_err(json!({"unveil_paths": ["r:/etc", null]})),
        "plugin option unveil_paths[1] is null; write a string"
    );
    assert_eq!(
        plugin_err(json!({"allow_caps": [["chown"]]})),
        "plugin option allow_caps[0] is a list; write a string"
    );
    assert_eq!(
        plugin_err(json!({"allow_caps": [{}]})),
        "plugin option allow_caps[0] is a map; write a string"
    );
    assert!(
        plugin_err(json!({"allow_caps": [7]}))
            .starts_with("plugin option allow_caps[0] \"7\": unknown capability")
    );
    assert!(plugin_err(json!({"allow_caps": ["chown", "netraw"]})).starts_with(
        "plugin option allow_caps[1] \"netraw\": unknown capability; write \"net_raw\" if that was meant"
    ));
}

#[test]
fn task_errors_name_option_value_and_form() {
    for missing in [json!(null), json!({}), json!({"command": null}), json!({"command": ""})] {
        assert_eq!(
            task_err(missing),
            "task option command is missing; write the program to run, for example \"python3\""
        );
    }
    assert_eq!(
        task_err(json!({"command": "a\0b"})),
        "task option command \"a\\0b\": it has a NUL byte; write it without"
    );
    let error = task_err(json!({"command": "a", "args": ["x", "hunter2\0"]}));
    assert_eq!(error, "task option args[1] (value not shown): it has a NUL byte; write it without");
    assert_eq!(task_err(json!({"command": ["sh"]})), "task option command is a list; write a string");
    assert!(
        task_err(json!({"command": "a", "unveil": [":/x"]}))
            .starts_with("task option unveil[0] \":/x\": the mode")
    );
    assert!(
        task_err(json!({"command": "a", "cap_drop": ["?"]}))
            .starts_with("task option cap_drop[0] \"?\": unknown")
    );
    assert_eq!(
        task_err(json!({"command": "a", "oom_score_adj": true})),
        "task option oom_score_adj is a boolean; write a whole number from 0 to 1000"
    );
}

#[test]
fn lists_have_limits() {
    let rules = |count: usize| vec!["r:/etc"; count];
    assert_eq!(plugin(json!({"unveil_paths": rules(1024)})).unwrap().unveil_paths.len(), 1024);
    assert_eq!(
        plugin_err(json!({"unveil_paths": rules(1025)})),
        "plugin option unveil_paths has 1025 elements; write 1024 at most"
    );
    assert_eq!(task(json!({"command": "a", "unveil": rules(1024)})).unwrap().unveil.len(), 1024);
    assert_eq!(
        task_err(json!({"command": "a", "unveil": rules(1025)})),
        "task option unveil has 1025 elements; write 1024 at most"
    );
    for option in ["cap_add", "cap_drop"] {
        assert!(task(json!({"command": "a", option: vec!["chown"; 256]})).is_ok());
        assert!(task_err(json!({"command": "a", option: vec!["chown"; 257]})).contains("write 256 at most"));
    }
    assert!(plugin_err(json!({"allow_caps": vec!["chown"; 257]})).contains("write 256 at most"));
}

#[test]
fn only_errors_of_jobs_mention_variables() {
    let relative = "option unveil[0] \"r:etc\": the path is relative; write an absolute path";
    assert_eq!(
        task_err(json!({"command": "a", "unveil": ["r:etc"]})),
        format!("task {relative}, or ${{NOMAD_TASK_DIR}}/… for a path of the task")
    );
    let error = plugin_err(json!({"unveil_paths": ["r:etc"]}));
    assert!(error.ends_with("the path is relative; write an absolute path"), "{error}");
}

#[test]
fn a_range_of_users_is_checked() {
    assert_eq!(
        plugin_err(json!({"dynamic_user_range": "9-5"})),
        "plugin option dynamic_user_range \"9-5\": it is not a range of uids; write the client's dynamic_user_min and \
         dynamic_user_max, for example \"80000-89999\""
    );
    assert!(
        plugin_err(json!({"dynamic_user_range": 80000})).contains("\"80000\": it is not a range of uids")
    );
}

#[test]
fn capabilities_keep_all_apart() {
    let config = task(json!({"command": "a", "cap_add": ["chown", "ALL"], "cap_drop": ["all"]})).unwrap();
    assert!(config.cap_add.all && config.cap_drop.all);
    assert_eq!(config.cap_add.named.names(), ["chown"]);
    assert!(config.cap_drop.named.is_empty());
}

#[test]
fn work_dirs() {
    let dir = |text: &str| {
        task(json!({"command": "a", "work_dir": text}))
            .map(|c| c.work_dir.map(|d| d.into_os_string().into_string().unwrap()))
    };
    for (text, folded) in [
        ("/srv/app", "/srv/app"),
        ("/srv//app/./", "/srv/app"),
        ("/", "/"),
        ("local/app", "local/app"),
        ("./local/", "local"),
        ("local/../tmp", "tmp"),
        ("local/..", "."),
        (".", "."),
        ("...", "..."),
        (" ", " "),
    ] {
        assert_eq!(dir(text), Ok(Some(folded.to_owned())), "{text}");
    }
    assert_eq!(dir(""), Ok(None));
    for (text, part) in [
        ("..", "leads out of the parent"),
        ("local/../../x", "leads out of the parent"),
        ("../local", "leads out of the parent"),
        ("/srv/../etc", "has a `..`"),
        ("/..", "has a `..`"),
        ("a\0", "NUL"),
    ] {
        let error = dir(text).unwrap_err().to_string();
        assert!(error.starts_with("task option work_dir \"") && error.contains(part), "{error}");
    }
}

#[test]
fn debug_shows_no_argument() {
    let config = task(json!({"command": "a", "args": ["--password=hunter2"]})).unwrap();
    let text = format!("{config:?}");
    assert!(!text.contains("hunter2") && text.contains("args: [(1 not shown)]"), "{text}");
}

/// The attributes of a schema: name, type, required, literal of the default.
fn attributes(spec: &Spec) -> Vec<(String, String, bool, Option<String>)> {
    let Some(Block::Object(object)) = &spec.block else { panic!("{spec:?}") };
    let attr = |spec: &Spec| match &spec.block {
        Some(Block::Attr(attr)) => (attr.name.clone(), attr.r#type.clone(), attr.required),
        other => panic!("{other:?}"),
    };
    let mut attributes: Vec<_> = object
        .attributes
        .iter()
        .map(|(key, spec)| {
            let ((name, type_, required), literal) = match &spec.block {
                Some(Block::Default(default)) => match &default.default.as_ref().unwrap().block {
                    Some(Block::Literal(literal)) => {
                        (attr(default.primary.as_ref().unwrap()), Some(literal.value.clone()))
                    }
                    other => panic!("{other:?}"),
                },
                Some(Block::BlockAttrs(block)) => {
                    ((block.name.clone(), format!("{} block", block.r#type), block.required), None)
                }
                Some(Block::BlockValue(block)) => {
                    ((block.name.clone(), "block".to_owned(), block.required), None)
                }
                Some(Block::BlockMap(block)) => {
                    assert_eq!(block.labels, ["name"]);
                    ((block.name.clone(), "labelled block".to_owned(), false), None)
                }
                _ => (attr(spec), None),
            };
            assert_eq!(*key, name);
            (name, type_, required, literal)
        })
        .collect();
    attributes.sort();
    attributes
}

#[test]
fn schemas_are_those_of_the_documented_options() {
    let row = |name: &str, type_: &str, required, literal: Option<&str>| {
        (name.to_owned(), type_.to_owned(), required, literal.map(str::to_owned))
    };
    let defaults = PluginConfig::options();
    let denied = defaults.iter().find(|row| row.name == "unveil_deny").unwrap().default.clone().unwrap();
    assert!(denied.contains("/etc/shadow"), "{denied}");
    assert_eq!(
        attributes(&PluginConfig::schema()),
        [
            row("abstract_sockets", "string", false, Some("\"own\"")),
            row("allow_caps", "list(string)", false, Some("[\"default\"]")),
            row("allow_root", "bool", false, Some("true")),
            row("allow_seccomp", "list(string)", false, None),
            row("cpu_burst", "number", false, Some("0")),
            row("cpu_hard_limit", "bool", false, Some("true")),
            row("cpu_weight_max", "number", false, Some("0")),
            row("denied_host_gids", "string", false, Some("\"65534\"")),
            row("denied_host_uids", "string", false, Some("\"65534\"")),
            row("disable_log_collection", "bool", false, Some("false")),
            row("dynamic_user_range", "string", false, Some("\"80000-89999\"")),
            row("io_max", "list(string)", false, None),
            row("io_weight", "number", false, Some("100")),
            row("memory_swap", "number", false, Some("0")),
            row("namespace", "labelled block", false, None),
            row("network_policy", "block", false, None),
            row("pids_max", "number", false, Some("8192")),
            row("proc_hidepid", "string", false, Some("\"off\"")),
            row("root", "string", false, Some("\"private\"")),
            row("seccomp", "string", false, Some("\"default\"")),
            row("ulimit", "string block", false, None),
            row("unveil_allow", "list(string)", false, None),
            row("unveil_by_task", "bool", false, Some("false")),
            row("unveil_defaults", "bool", false, Some("true")),
            row("unveil_deny", "list(string)", false, Some(&denied)),
            row("unveil_paths", "list(string)", false, None),
            row("volume_idmap", "string", false, Some("\"auto\"")),
        ]
    );
    assert_eq!(
        attributes(&DriverConfig::schema()),
        [
            row("args", "list(string)", false, None),
            row("cap_add", "list(string)", false, None),
            row("cap_drop", "list(string)", false, None),
            row("command", "string", true, None),
            row("cpu_burst", "number", false, None),
            row("cpu_hard_limit", "bool", false, None),
            row("cpu_weight", "number", false, None),
            row("io_max", "list(string)", false, None),
            row("io_weight", "number", false, None),
            row("memory_high", "number", false, None),
            row("memory_swap", "number", false, None),
            row("network_policy", "block", false, None),
            row("oom_group", "bool", false, None),
            row("oom_score_adj", "number", false, None),
            row("pids_max", "number", false, None),
            row("seccomp", "string", false, None),
            row("seccomp_allow", "list(string)", false, None),
            row("ulimit", "string block", false, None),
            row("unveil", "list(string)", false, None),
            row("volume_idmap", "string", false, None),
            row("work_dir", "string", false, None),
        ]
    );
    let bytes = DriverConfig::schema().encode_to_vec();
    assert_eq!(attributes(&Spec::decode(&bytes[..]).unwrap()), attributes(&DriverConfig::schema()));
}
