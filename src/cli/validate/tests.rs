use serde_json::json;

use super::refusal::{REFUSED, UNREADABLE};
use super::*;

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
    let options = json!({"unveil_by_task": true, "unveil_paths": ["r:/srv/x"], "allow_caps": ["net_raw"]});
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
        (json!({"namespace": [{"dev": {}}, {"dev": {}}]}), "plugin option namespace[\"dev\"] occurs 2 times"),
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
        (agent(json!({PLUGIN: {"config": true}})), "config of plugin \"nomad-driver-exec2\" is a boolean"),
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
        (json!({"namespace": {"prod": true}}), "namespace[\"prod\"] is a boolean; write a block of options"),
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
         allow_root = true\ndenied_host_uids = \"65534\"\ndenied_host_gids = \"65534\"\ndynamic_user_range = \"80000-89999\"\nvolume_idmap = \"auto\"\nproc_hidepid = \"off\"\nseccomp = \"default\"\nallow_seccomp = []\nnamespace = { \"prod\" = { unveil_by_task = true, pids_max = 100 } }\ndisable_log_collection = false\n"
    );
}
