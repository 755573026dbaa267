//! Schemas and messages stay as they are, for every option.

use prost::Message;

use super::*;

/// Schemas and messages that operators and jobs rely on: `config TAB form TAB input [TAB outcome]`.
const GOLDEN: &str = include_str!("../golden.tsv");
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
