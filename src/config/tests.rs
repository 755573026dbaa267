use proptest::prelude::*;
use prost::Message;
use serde_json::{Value as Json, json};

use super::*;
use crate::proto::hclspec::Spec;
use crate::proto::hclspec::spec::Block;
use crate::sandbox::capabilities::CapSet;
use crate::sandbox::unveil::Unveil;

fn msgpack(json: &Json) -> Vec<u8> {
    rmp_serde::to_vec(json).unwrap()
}

fn task(json: Json) -> Result<DriverConfig, ConfigError> {
    let packed = DriverConfig::decode(&msgpack(&json));
    assert_eq!(packed, DriverConfig::decode_json(&json.to_string()), "JSON reads alike");
    packed
}

fn plugin(json: Json) -> Result<PluginConfig, ConfigError> {
    let packed = PluginConfig::decode(&msgpack(&json));
    assert_eq!(packed, PluginConfig::decode_json(&json.to_string()), "JSON reads alike");
    packed
}

fn task_err(json: Json) -> String {
    task(json).unwrap_err().to_string()
}

fn plugin_err(json: Json) -> String {
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
    assert_eq!(config.allow_caps.names(), ["net_bind_service"]);
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
    assert_eq!(defaults.allow_caps.names(), ["kill", "net_bind_service"]);
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
    assert_eq!(config.allow_caps.names(), ["chown", "net_raw"]);
    assert_eq!(config.dynamic_user_range, "50000-50999".parse().unwrap());
    // An empty list is different from an unset one.
    assert!(plugin(json!({"allow_caps": []})).unwrap().allow_caps.is_empty());
    assert_eq!(plugin(json!({"allow_caps": ["all"]})).unwrap().allow_caps, CapSet::ALL);
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

/// The host in tests/pluginhost shows the same for go-cty.
#[test]
fn values_convert_as_in_go_cty() {
    for (form, value) in
        [(json!("true"), true), (json!("1"), true), (json!("false"), false), (json!("0"), false)]
    {
        assert_eq!(plugin(json!({"unveil_by_task": form})).unwrap().unveil_by_task, value, "{form}");
    }
    for form in [json!(1), json!(0), json!("yes"), json!("True"), json!(" true"), json!("")] {
        let error = plugin_err(json!({"unveil_by_task": form}));
        assert!(error.ends_with("; write true or false"), "{form}: {error}");
    }
    let args = json!([7, -1, u64::MAX, 1.5, 1e3, true, "a"]);
    let config = task(json!({"command": 5.0, "args": args})).unwrap();
    assert_eq!(config.command, "5");
    assert_eq!(config.args, ["7", "-1", "18446744073709551615", "1.5", "1000", "true", "a"]);
}

#[test]
fn numbers_in_every_form() {
    let number = |json: Json| task(json!({"command": "a", "oom_score_adj": json})).map(|c| c.oom_score_adj);
    for (form, value) in [
        (json!(0), 0),
        (json!(-0.0), 0),
        (json!(1000), 1000),
        (json!(5.0), 5),
        (json!("5"), 5),
        (json!("5.0"), 5),
        (json!("1e3"), 1000),
        (json!("+7"), 7),
    ] {
        assert_eq!(number(form.clone()), Ok(value), "{form}");
    }
    for form in [
        json!(-1),
        json!(1001),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.5),
        json!(""),
        json!("x"),
        json!("NaN"),
        json!("inf"),
        json!("-inf"),
        json!("5 "),
        json!("0x5"),
        json!("1e999"),
        json!([5]),
        json!({}),
    ] {
        assert!(number(form.clone()).is_err(), "{form}");
    }
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

#[test]
fn bin_is_read_as_text() {
    let mut bytes = vec![0x82, 0xc4, 7];
    bytes.extend(b"command\xc4\x03envx");
    bytes.pop();
    bytes.extend(b"\xa4args\x91\xc5\x00\x01z");
    let config = DriverConfig::decode(&bytes).unwrap();
    assert_eq!((config.command.as_str(), config.args), ("env", vec!["z".to_owned()]));
    let error = DriverConfig::decode(b"\x81\xa7command\xa1\xff").unwrap_err().to_string();
    assert_eq!(error, "task option command is a string that is not UTF-8; write a string");
}

#[test]
fn damaged_bytes_are_refused_with_a_reason() {
    let whole = msgpack(&json!({"command": "env", "args": ["a"]}));
    for end in 1..whole.len() {
        let error = DriverConfig::decode(&whole[..end]).unwrap_err();
        assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
    }
    let mut trailing = whole.clone();
    trailing.extend([0xc0, 0xc0]);
    assert_eq!(
        DriverConfig::decode(&trailing).unwrap_err().to_string(),
        "failed to decode the task config: 2 bytes follow the map"
    );
    let error = DriverConfig::decode(b"\x82\xa7command\xa1a\xa7command\xa1b").unwrap_err().to_string();
    assert!(error.ends_with("option command occurs twice"), "{error}");
    let error = DriverConfig::decode(b"\x81\x01\xa1a").unwrap_err().to_string();
    assert!(error.ends_with("the name of an option is a number, not a string"), "{error}");
    for other in [&b"\x90"[..], b"\xa1x", b"\x01", b"\xc3", b"\xd4\x00\x00", b"\xc1"] {
        let error = PluginConfig::decode(other).unwrap_err();
        assert!(matches!(error, ConfigError::Unreadable { scope: Scope::Plugin, .. }), "{error}");
    }
    assert!(PluginConfig::decode_json("{} x").is_err());
    assert!(PluginConfig::decode_json("").is_err());
}

#[test]
fn hostile_lengths_and_depths_are_refused() {
    // Length prefixes of 4 GiB without the bytes.
    for body in [
        &b"\xdd\xff\xff\xff\xff"[..],
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x00",
    ] {
        for key in [&b"\x81\xa4args"[..], b"\x81\xa5other"] {
            let error = DriverConfig::decode(&[key, body].concat()).unwrap_err();
            assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
        }
    }
    assert!(DriverConfig::decode(b"\xdf\xff\xff\xff\xff").is_err());
    // Nesting, in a known and in an unknown option.
    for key in [&b"\x81\xa4args"[..], b"\x81\xa5other"] {
        let error = DriverConfig::decode(&[key, &[0x91; 1 << 20]].concat()).unwrap_err().to_string();
        assert!(error.ends_with("depth limit exceeded"), "{error}");
    }
    // More elements than any command accepts.
    let mut many = b"\x81\xa4args\xdd\x00\x10\x00\x00".to_vec();
    many.resize(many.len() + (1 << 20), 0xc0);
    let error = DriverConfig::decode(&many).unwrap_err().to_string();
    assert!(error.ends_with("a list has more than 262144 elements"), "{error}");
    let error = PluginConfig::decode(&vec![0xc0; (8 << 20) + 1]).unwrap_err().to_string();
    assert!(error.ends_with("it has 8388609 bytes, more than 8388608"), "{error}");
}

#[test]
fn long_values_are_shortened_in_errors() {
    let error = task_err(json!({"command": "a", "unveil": ["q".repeat(1 << 20)]}));
    assert!(error.len() < 500 && error.contains("… (1048576 bytes)"), "{error}");
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
            row("allow_caps", "list(string)", false, Some("[\"kill\", \"net_bind_service\"]")),
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

#[test]
fn a_namespace_has_its_own_policy() {
    let config = plugin(json!({
        "pids_max": 7, "unveil_by_task": true, "allow_root": false,
        "namespace": {"prod": {"unveil_by_task": false, "unveil_allow": ["r:/srv"], "ulimit": {"nofile": "100"}}, "dev": {}},
    }))
    .unwrap();
    let prod = config.policy_in("prod");
    assert!(!prod.unveil_by_task && !prod.allow_root);
    assert_eq!((prod.pids_max, prod.unveil_allow.len(), prod.ulimit.len()), (7, 1, 1));
    for other in ["dev", "default", "", "prod "] {
        let policy = config.policy_in(other);
        assert!(
            policy.unveil_by_task && policy.unveil_allow.is_empty() && policy.ulimit.is_empty(),
            "{other}"
        );
    }
    let error = plugin_err(json!({"namespace": {"prod": {"allow_caps": ["net_rwa"]}}}));
    assert!(error.starts_with("plugin option namespace[\"prod\"].allow_caps[0] \"net_rwa\""), "{error}");
    assert!(
        plugin_err(json!({"namespace": ["prod"]}))
            .starts_with("plugin option namespace is a list; write blocks")
    );
}

#[test]
fn a_policy_for_a_name_that_no_namespace_can_have_is_refused() {
    for name in ["", "*", "prod-*", "a b", "a/b", "ä", &"x".repeat(129)] {
        let error = plugin_err(json!({"namespace": {name: {}}}));
        assert!(error.contains("without wildcards"), "{error}");
    }
    assert!(plugin(json!({"namespace": {"Prod-1": {}, "default": {}}})).is_ok());
}

#[test]
fn a_capability_of_one_namespace_can_change_owners_for_all() {
    let trusts = |config: serde_json::Value| plugin(config).unwrap().trusts_owner();
    assert!(trusts(json!({"namespace": {"dev": {"pids_max": 7}}})));
    assert!(!trusts(json!({"namespace": {"dev": {"allow_caps": ["chown"]}}})));
    assert!(!trusts(json!({"allow_caps": ["chown"], "namespace": {"dev": {"allow_caps": []}}})));
}

#[test]
fn default_stands_for_the_default_list_of_denied_paths() {
    let denied = |list: serde_json::Value| plugin(json!({"unveil_deny": list})).unwrap().unveil_deny;
    let default = PluginConfig::default().unveil_deny;
    assert_eq!(denied(json!(["default"])), default);
    assert_eq!(denied(json!(["/srv//private/", "default"])).len(), default.len() + 1);
    assert!(denied(json!(["/srv//private/"])).contains(&"/srv/private".into()));
    assert!(denied(json!([])).is_empty());
    for (path, problem) in [
        ("/", "everything"),
        ("/proc/kcore", "of its own"),
        ("/a/../b", "`..`"),
        ("Default", "not an absolute path"),
    ] {
        assert!(plugin_err(json!({"unveil_deny": [path]})).contains(problem), "{path}");
    }
}

/// Schemas and messages that operators and jobs rely on: `config TAB form TAB input [TAB outcome]`.
const GOLDEN: &str = include_str!("golden.tsv");
/// If set, the test writes the file again, with lines for options that have none.
const WRITE: &str = "EXEC2_WRITE_GOLDEN";

fn outcome<T>(result: Result<T, ConfigError>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("error: {error}"),
    }
}

/// The golden lines of a config, made by the present code.
fn golden<T>(
    config: &str,
    rows: &[Row],
    schema: &Spec,
    msgpack: impl Fn(&[u8]) -> Result<T, ConfigError>,
    json: impl Fn(&str) -> Result<T, ConfigError>,
) -> String {
    let mut lines = vec![format!("{config}\tschema\t{}", to_hex(&schema.encode_to_vec()))];
    let inputs: Vec<Vec<&str>> = GOLDEN.lines().map(|line| line.split('\t').collect()).collect();
    let mine = inputs.iter().filter(|fields| fields[0] == config);
    lines.extend(mine.filter_map(|fields| match fields[1..] {
        ["json", text, _] => Some(format!("{config}\tjson\t{text}\t{}", outcome(json(text)))),
        ["msgpack", bytes, _] => {
            Some(format!("{config}\tmsgpack\t{bytes}\t{}", outcome(msgpack(&hex(bytes)))))
        }
        _ => None,
    }));
    // The values with which each plugin option was tried.
    let key = "{\"unveil_defaults\":";
    let values: Vec<&str> =
        inputs.iter().filter_map(|fields| fields.get(2)?.strip_prefix(key)?.strip_suffix('}')).collect();
    let command = if config == "task" { "\"command\":\"env\"," } else { "" };
    for row in rows.iter().filter(|row| !is_golden(config, row.name)) {
        lines.extend(values.iter().map(|value| {
            let text = format!("{{{command}\"{}\":{value}}}", row.name);
            format!("{config}\tjson\t{text}\t{}", outcome(json(&text)))
        }));
    }
    lines.join("\n") + "\n"
}

/// Whether an option of this config has lines.
fn is_golden(config: &str, option: &str) -> bool {
    let option = format!("\"{option}\":");
    GOLDEN.lines().any(|line| line.starts_with(&format!("{config}\tjson\t")) && line.contains(&option))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn schemas_and_messages_are_stable() {
    fn check<T>(
        line: &str,
        schema: Spec,
        msgpack: impl Fn(&[u8]) -> Result<T, ConfigError>,
        json: impl Fn(&str) -> Result<T, ConfigError>,
    ) {
        match line.split('\t').collect::<Vec<_>>()[1..] {
            // The order of a map's entries is undefined on the wire.
            ["schema", bytes] => {
                assert_eq!(Spec::decode(&hex(bytes)[..]).unwrap(), schema);
                assert_eq!(bytes.len() / 2, schema.encoded_len());
            }
            ["json", text, expected] => assert_eq!(outcome(json(text)), expected, "{line}"),
            ["msgpack", bytes, expected] => assert_eq!(outcome(msgpack(&hex(bytes))), expected, "{line}"),
            _ => panic!("{line}"),
        }
    }
    if std::env::var_os(WRITE).is_some() {
        let plugin = (PluginConfig::schema(), PluginConfig::options());
        let task = (DriverConfig::schema(), DriverConfig::options());
        let plugin = golden("plugin", &plugin.1, &plugin.0, PluginConfig::decode, PluginConfig::decode_json);
        let task = golden("task", &task.1, &task.0, DriverConfig::decode, DriverConfig::decode_json);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/golden.tsv");
        return std::fs::write(path, plugin + &task).unwrap();
    }
    // Every option is there.
    for (config, rows) in [("plugin", PluginConfig::options()), ("task", DriverConfig::options())] {
        for row in rows {
            assert!(is_golden(config, row.name), "{config}, {}: see {WRITE}", row.name);
        }
    }
    for line in GOLDEN.lines() {
        match line.split('\t').next() {
            Some("plugin") => {
                check(line, PluginConfig::schema(), PluginConfig::decode, PluginConfig::decode_json);
            }
            Some("task") => {
                check(line, DriverConfig::schema(), DriverConfig::decode, DriverConfig::decode_json)
            }
            _ => panic!("{line}"),
        }
    }
}

proptest! {
    #[test]
    fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = DriverConfig::decode(&bytes);
        let _ = PluginConfig::decode(&bytes);
    }

    #[test]
    fn decoding_never_panics_near_valid_bytes(
        tail in proptest::collection::vec(any::<u8>(), 0..60),
        key in prop::sample::select(vec!["command", "args", "unveil", "oom_score_adj", "cap_add", "work_dir", "x"]),
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        let mut bytes = vec![0x82, 0xa0 | key.len() as u8];
        bytes.extend(key.bytes());
        bytes.extend(&tail);
        let _ = DriverConfig::decode(&bytes);
        let mut bytes = msgpack(&json!({"command": "env", "args": ["a", "b"], "oom_score_adj": 5, "unveil": ["r:/x"]}));
        let at = flip.0.index(bytes.len());
        bytes[at] = flip.1;
        let _ = DriverConfig::decode(&bytes);
    }

    #[test]
    fn valid_task_configs_round_trip(
        command in "[^\0]{1,20}",
        args in proptest::collection::vec("[^\0]{0,20}", 0..5),
        unveil in proptest::collection::vec("[rwxc]{1,4}:(/[a-z:]{1,5}){1,3}", 0..4),
        oom_score_adj in 0i32..=1000,
        cap_add in any::<u64>(),
    ) {
        let cap_add = CapSet::from_bits(cap_add);
        let config = task(json!({
            "command": command, "args": args, "unveil": unveil, "oom_score_adj": oom_score_adj,
            "cap_add": cap_add.names(), "cap_drop": null, "work_dir": null,
        }))?;
        prop_assert_eq!(config.command, command);
        prop_assert_eq!(config.args, args);
        prop_assert_eq!(config.oom_score_adj, oom_score_adj);
        prop_assert_eq!(config.cap_add.named, cap_add);
        let rules: Vec<_> = unveil.iter().map(|rule| rule.parse::<Unveil>().unwrap()).collect();
        prop_assert_eq!(config.unveil, rules);
    }

    #[test]
    fn a_number_reads_alike_in_every_form(number in -2000i32..3000) {
        let read = |json: Json| task(json!({"command": "a", "oom_score_adj": json})).map(|c| c.oom_score_adj).ok();
        let expected = (0..=1000).contains(&number).then_some(number);
        for form in [json!(number), json!(f64::from(number)), json!(number.to_string()), json!(format!("{number}.0"))] {
            prop_assert_eq!(read(form), expected);
        }
    }

    #[test]
    fn work_dir_never_keeps_a_parent_component(text in "(/|[.]{1,2}|a|/){0,8}") {
        if let Ok(DriverConfig { work_dir: Some(dir), .. }) = task(json!({"command": "a", "work_dir": text})) {
            prop_assert!(dir.components().all(|c| c != std::path::Component::ParentDir));
            prop_assert_eq!(dir.is_absolute(), text.starts_with('/'));
        }
    }
}
