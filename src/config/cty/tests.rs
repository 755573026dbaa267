use serde_json::{Value as Json, json};

use crate::config::tests::{msgpack, plugin, plugin_err, task, task_err};
use crate::config::{ConfigError, DriverConfig, PluginConfig, Scope};

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
