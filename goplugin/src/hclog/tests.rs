use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;

/// Runs `events` with the layer and returns the lines, each checked as a host reads it.
fn lines(level: Level, events: impl FnOnce()) -> Vec<Map<String, Value>> {
    let written = Arc::new(Mutex::new(Vec::<Vec<u8>>::new()));
    let sink = Arc::clone(&written);
    let options = Options { module: "exec2", crates: &["plugin"], level, ..Options::default() };
    let layer = HclogLayer::new(options, move |line: &[u8]| sink.lock().unwrap().push(line.to_vec()));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), events);
    let written = written.lock().unwrap();
    written.iter().map(|line| parse(line)).collect()
}

/// One line as bytes → its object, if it keeps the host's rules.
fn parse(line: &[u8]) -> Map<String, Value> {
    assert!(line.len() < 64 * 1024, "{} bytes", line.len());
    let text = std::str::from_utf8(line).unwrap();
    assert!(text.ends_with('\n') && text.lines().count() == 1, "one line: {text:?}");
    let object: Map<String, Value> = serde_json::from_str(text).unwrap();
    for key in ["@level", "@message", "@module", "@timestamp"] {
        assert!(object[key].is_string(), "{key} in {text}");
        // A later key of the same name would win in the host's parser.
        assert_eq!(text.matches(&format!("\"{key}\":")).count(), 1, "{key} in {text}");
    }
    let time = object["@timestamp"].as_str().unwrap();
    let (seconds, fraction) = time.split_once('.').unwrap();
    assert_eq!(seconds.len(), "2026-01-02T03:04:05".len(), "{time}");
    assert!(fraction.len() == 7 && fraction.ends_with('Z'), "six digits: {time}");
    object
}

#[test]
fn a_plain_line() {
    let mut line = Line::new(Level::INFO, SystemTime::UNIX_EPOCH + Duration::from_nanos(1_500_000_999));
    line.message("task started");
    line.field("task", "web");
    assert_eq!(
        line.finish("exec2"),
        "{\"@level\":\"info\",\"@message\":\"task started\",\"@module\":\"exec2\",\
         \"@timestamp\":\"1970-01-01T00:00:01.500000Z\",\"task\":\"web\"}\n"
    );
}

#[test]
fn levels_and_values() {
    let lines = lines(Level::TRACE, || {
        tracing::trace!("t");
        tracing::debug!("d");
        tracing::info!(pid = 4_194_304_u32, delta = -3, ok = true, load = 0.5, nan = f64::NAN, "i {}", 1);
        tracing::warn!(big = u128::MAX, name = "x", list = ?[1, 2], "w");
        let error = io::Error::from_raw_os_error(2);
        tracing::error!(error = &error as &dyn std::error::Error, shown = %error, "e");
    });
    let levels: Vec<_> = lines.iter().map(|line| line["@level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["trace", "debug", "info", "warn", "error"]);
    assert_eq!(lines[2]["@message"], "i 1");
    assert_eq!(lines[2]["@module"], "exec2");
    assert_eq!(lines[2]["pid"], "4194304");
    assert_eq!(lines[2]["delta"], "-3");
    assert_eq!(lines[2]["ok"], true);
    assert_eq!(lines[2]["load"], "0.5");
    assert_eq!(lines[2]["nan"], "NaN");
    assert_eq!(lines[3]["big"], u128::MAX.to_string());
    assert_eq!(lines[3]["name"], "x");
    assert_eq!(lines[3]["list"], "[1, 2]");
    assert_eq!(lines[4]["error"], lines[4]["shown"]);
    assert!(lines[4]["error"].as_str().unwrap().starts_with("No such file"));
}

#[test]
fn fields_cannot_break_the_line() {
    let lines = lines(Level::DEBUG, || {
        tracing::info!(
            "@message" = 1,
            "@level" = true,
            "@timestamp" = 2.5,
            "@module" = "m",
            "ke\"y\n" = "va\"l\\ue\n\u{0}\u{1b}[31m\u{2028}",
            "real"
        );
        tracing::info!(message = 5);
        tracing::info!(message = true);
        tracing::info!(only = "a field");
    });
    assert_eq!(lines[0]["@message"], "real");
    assert_eq!(lines[0]["@level"], "info");
    assert_eq!(lines[0]["@module"], "exec2");
    assert_eq!(lines[0]["_message"], "1");
    assert_eq!(lines[0]["_level"], true);
    assert_eq!(lines[0]["ke\"y\n"], "va\"l\\ue\n\u{0}\u{1b}[31m\u{2028}");
    assert_eq!(lines[1]["@message"], "5");
    assert_eq!(lines[2]["@message"], "true");
    assert_eq!(lines[3]["@message"], "");
    assert_eq!(lines[3]["only"], "a field");
}

#[test]
fn long_lines_are_cut_with_a_mark() {
    // Each byte becomes six, the worst there is.
    let nuls = "\0".repeat(200_000);
    let lines = lines(Level::DEBUG, || {
        tracing::info!(a = nuls, "{nuls}");
        tracing::info!(a = nuls, b = nuls, c = nuls, d = nuls, e = nuls, f = nuls, g = nuls, small = 1, "m");
        tracing::info!(list = ?vec![7_u8; 1_000_000], "m");
    });
    for key in ["@message", "a"] {
        let value = lines[0][key].as_str().unwrap();
        assert!(value.ends_with(CUT) && value.len() > 1000, "{key}: {} bytes", value.len());
    }
    assert!(lines[1]["f"].as_str().unwrap().ends_with(CUT));
    assert!(!lines[1].contains_key("g"));
    assert_eq!(lines[1]["fields_dropped"], true);
    assert_eq!(lines[1]["small"], "1", "what fits is kept");
    assert!(!lines[0].contains_key("fields_dropped"));
    let list = lines[2]["list"].as_str().unwrap();
    assert!(list.starts_with("[7, 7") && list.ends_with(CUT));
}

#[test]
fn filters_by_level_and_target() {
    let lines = lines(Level::DEBUG, || {
        tracing::trace!("own trace");
        tracing::debug!("own debug");
        tracing::info!(target: "h2::codec", "foreign info");
        tracing::warn!(target: "h2::codec", "foreign warn");
        tracing::debug!(target: "plugin", "crate root");
        tracing::debug!(target: "plugin::driver", "module");
        tracing::debug!(target: "plugin_other", "another crate");
    });
    let messages: Vec<_> = lines.iter().map(|line| line["@message"].as_str().unwrap()).collect();
    assert_eq!(messages, ["own debug", "foreign warn", "crate root", "module"]);
}

#[test]
fn at_level_error_foreign_warnings_are_silent_too() {
    let lines = lines(Level::ERROR, || {
        tracing::warn!(target: "h2::codec", "foreign");
        tracing::error!("own");
    });
    assert_eq!(lines.len(), 1);
}

#[test]
fn level_names() {
    assert_eq!(parse_level("TRACE"), Some(Level::TRACE));
    assert_eq!(parse_level(" warn "), Some(Level::WARN));
    assert_eq!(parse_level("verbose"), None);
}

proptest! {
    #[test]
    fn every_string_is_what_serde_reads(text in any::<String>()) {
        let mut out = String::new();
        push_string(&mut out, &text, usize::MAX - 64);
        prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
    }

    #[test]
    fn a_cut_string_is_a_prefix_and_a_mark(text in "[\\PC\0\n\"\\\\é😀]{0,80}", max in CUT.len()..60_usize) {
        let mut out = String::new();
        push_string(&mut out, &text, max);
        prop_assert!(out.len() <= max + 2, "{} of {max}", out.len() - 2);
        let read: String = serde_json::from_str(&out).unwrap();
        if read != text {
            let prefix = read.strip_suffix(CUT).unwrap();
            prop_assert!(text.starts_with(prefix));
        }
    }

    #[test]
    fn capped_is_a_prefix_that_shows_when_it_was_cut(parts in prop::collection::vec(".{0,20}", 0..10), max in 0..40_usize) {
        let whole = parts.concat();
        let mut capped = Capped::new(max);
        for part in &parts {
            if capped.write_str(part).is_err() {
                break;
            }
        }
        prop_assert!(whole.starts_with(&capped.0));
        prop_assert!(capped.0 == whole || capped.0.len() > max);
    }
}
