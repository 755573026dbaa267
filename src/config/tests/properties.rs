//! Any bytes and any values.

use proptest::prelude::*;

use super::*;
use crate::sandbox::unveil::Unveil;

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
