//! Types of options that are maps or blocks.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use super::cty::{Options, Value};
use super::row::Form;
use super::table::{Kind, NULL, Table};
use super::{At, ConfigError};
use crate::quote::quote;

/// Strings by key, `name = { key = "text" }`; empty unless set.
pub(super) struct Map;

impl Kind for Map {
    type Value = BTreeMap<String, String>;
    const FORM: Form = Form::Map;
    const TAKES: &str = "map of strings";

    fn unset(&self) -> Result<Self::Value, &'static str> {
        Ok(BTreeMap::new())
    }

    fn read(&self, at: &At, value: Value) -> Result<Self::Value, ConfigError> {
        entries(at, value)
    }

    fn show(&self, value: &Self::Value) -> String {
        braces(value.iter().map(|(key, text)| (quote(key), quote(text))))
    }
}

/// As [`Map`], but written as a block, `name { key = "text" }`.
pub(super) struct Entries;

impl Kind for Entries {
    type Value = BTreeMap<String, String>;
    const FORM: Form = Form::Entries;
    const TAKES: &str = "block of strings";

    fn unset(&self) -> Result<Self::Value, &'static str> {
        Map.unset()
    }

    fn read(&self, at: &At, value: Value) -> Result<Self::Value, ConfigError> {
        entries(at, value)
    }

    fn show(&self, value: &Self::Value) -> String {
        Map.show(value)
    }
}

/// A block with the options of `T`, at most once.
pub(super) struct Block<T> {
    options: PhantomData<T>,
    /// What is shown if there is none.
    absent: &'static str,
}

impl<T> Block<T> {
    pub(super) const fn new() -> Self {
        Self { options: PhantomData, absent: "{}" }
    }

    /// Without it, another block holds.
    pub(super) const fn over() -> Self {
        Self { options: PhantomData, absent: NULL }
    }
}

impl<T: Table> Kind for Block<T> {
    type Value = Option<T>;
    const FORM: Form = Form::Block(T::rows);
    const TAKES: &str = "block";

    fn unset(&self) -> Result<Option<T>, &'static str> {
        Ok(None)
    }

    fn read(&self, at: &At, value: Value) -> Result<Option<T>, ConfigError> {
        match value {
            Value::Block(values) => {
                T::read(&mut Options::new(at.scope, format!("{}.", at.option), values)).map(Some)
            }
            other => Err(other.wrong_type(at, "a block of options")),
        }
    }

    fn show(&self, value: &Option<T>) -> String {
        match value {
            None => self.absent.to_owned(),
            Some(block) => {
                braces(block.shown().into_iter().map(|(option, value)| (option.to_owned(), value)))
            }
        }
    }
}

/// Blocks with the options of `T` by a Nomad namespace, `name "label" { … }`; empty unless set.
pub(super) struct Labelled<T>(PhantomData<T>);

impl<T> Labelled<T> {
    pub(super) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T: Table> Kind for Labelled<T> {
    type Value = BTreeMap<String, T>;
    const FORM: Form = Form::Labelled(T::rows);
    const TAKES: &str = r#"blocks `"NAME" { … }`"#;

    fn unset(&self) -> Result<Self::Value, &'static str> {
        Ok(BTreeMap::new())
    }

    fn read(&self, at: &At, value: Value) -> Result<Self::Value, ConfigError> {
        let Value::Map(blocks) = value else { return Err(value.wrong_type(at, "blocks with a name each")) };
        let block = |(label, value): (String, Value)| {
            let option = format!("{}[{}]", at.option, quote(&label));
            if !is_namespace(&label) {
                let write = "1 to 128 letters, digits and dashes, without wildcards";
                return Err(at.bad_value(quote(&label), "Nomad has no namespace of this name", write));
            }
            match value {
                Value::Block(values) => {
                    let read = T::read(&mut Options::new(at.scope, format!("{option}."), values))?;
                    Ok((label, read))
                }
                other => Err(other.wrong_type(&At { scope: at.scope, option }, "a block of options")),
            }
        };
        blocks.into_iter().map(block).collect()
    }

    fn show(&self, value: &Self::Value) -> String {
        let set =
            |block: &T| block.shown().into_iter().filter(|(_, value)| value != NULL).collect::<Vec<_>>();
        let shown = |block: &T| braces(set(block).into_iter().map(|(name, value)| (name.to_owned(), value)));
        braces(value.iter().map(|(label, block)| (quote(label), shown(block))))
    }
}

/// What Nomad takes as the name of a namespace. The policy for another name would be of no effect.
fn is_namespace(label: &str) -> bool {
    (1..=128).contains(&label.len()) && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// `{ a = 1, b = 2 }`.
pub(super) fn braces(pairs: impl Iterator<Item = (String, String)>) -> String {
    let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key} = {value}")).collect();
    if pairs.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", pairs.join(", ")) }
}

pub(super) fn entries(at: &At, value: Value) -> Result<BTreeMap<String, String>, ConfigError> {
    let Value::Map(entries) = value else { return Err(value.wrong_type(at, "a map of strings")) };
    let text = |(key, value): (String, Value)| {
        let at = At { scope: at.scope, option: format!("{}[{}]", at.option, quote(&key)) };
        Ok((key, value.text(&at)?))
    };
    entries.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use serde_json::json;

    use super::super::Scope;
    use super::super::kinds::{Capabilities, Flag, Number};
    use super::super::table::{decode, decode_json, options, schema};
    use super::*;
    use crate::proto::hclspec::spec::Block as Node;
    use crate::proto::hclspec::{self, Spec};
    use crate::sandbox::capabilities::CapList;

    options! {
        /// A table with each form of an option.
        #[derive(Clone, PartialEq, Eq)]
        struct Sample {
            /// names for people
            labels: BTreeMap<String, String> = Map,
            /// limits
            ///
            /// A second paragraph is for readers of the code.
            ulimit: BTreeMap<String, String> = Entries,
            /// what the task may reach
            network_policy: Option<Policy> = Block::<Policy>::new(),
        }
    }

    options! {
        #[derive(Clone, PartialEq, Eq)]
        struct Policy {
            /// capabilities, as a list will do
            bind: CapList = Capabilities,
            /// no exceptions
            strict: bool = Flag { default: true },
            /// where it is reported
            log: Option<Log> = Block::<Log>::new(),
        }
    }

    options! {
        #[derive(Clone, PartialEq, Eq)]
        struct Log {
            /// lines a second
            count: i32 = Number { range: 0..=9, default: 5, write: "a whole number from 0 to 9" },
        }
    }

    fn read(json: serde_json::Value) -> Result<Sample, ConfigError> {
        let packed = decode(Scope::Task, &rmp_serde::to_vec(&json).unwrap());
        assert_eq!(packed, decode_json(Scope::Task, &json.to_string()), "JSON reads alike");
        packed
    }

    fn refused(json: serde_json::Value) -> String {
        read(json).unwrap_err().to_string()
    }

    fn shown(sample: &Sample) -> Vec<String> {
        sample.shown().into_iter().map(|(_, value)| value).collect()
    }

    /// What go-cty 1.17 marshals for
    /// `labels = { app = "web", n = 5 }  ulimit { nofile = "1024:4096" nproc = 7 }
    /// network_policy { bind = ["net_raw"] strict = true log { count = 3 } }`.
    const SET: &[u8] = b"\x83\xa6labels\x82\xa3app\xa3web\xa1n\xa15\
        \xaenetwork_policy\x83\xa4bind\x91\xa7net_raw\xa3log\x81\xa5count\x03\xa6strict\xc3\
        \xa6ulimit\x82\xa6nofile\xa91024:4096\xa5nproc\xa17";
    /// The same for `labels = {}  ulimit {}  network_policy {}`.
    const EMPTY: &[u8] =
        b"\x83\xa6labels\x80\xaenetwork_policy\x83\xa4bind\xc0\xa3log\xc0\xa6strict\xc0\xa6ulimit\x80";
    /// The same for no option at all.
    const UNSET: &[u8] = b"\x83\xa6labels\xc0\xaenetwork_policy\xc0\xa6ulimit\xc0";

    #[test]
    fn reads_what_go_cty_writes() {
        let sample: Sample = decode(Scope::Task, SET).unwrap();
        assert_eq!(sample.labels["app"], "web");
        assert_eq!(sample.ulimit["nofile"], "1024:4096");
        let policy = sample.network_policy.as_ref().unwrap();
        assert_eq!((policy.strict, policy.log.as_ref().map(|log| log.count)), (true, Some(3)));
        assert_eq!(
            shown(&sample),
            [
                r#"{ "app" = "web", "n" = "5" }"#,
                r#"{ "nofile" = "1024:4096", "nproc" = "7" }"#,
                r#"{ bind = ["net_raw"], strict = true, log = { count = 3 } }"#,
            ]
        );
        let empty: Sample = decode(Scope::Task, EMPTY).unwrap();
        assert_eq!(shown(&empty), ["{}", "{}", "{ bind = [], strict = true, log = {} }"]);
        for nothing in [UNSET, b"", b"\xc0", b"\x80"] {
            let unset: Sample = decode(Scope::Task, nothing).unwrap();
            assert_eq!(shown(&unset), ["{}", "{}", "{}"]);
        }
        assert!(format!("{sample:?}").starts_with("Sample { labels: { \"app\" = \"web\","), "{sample:?}");
    }

    #[test]
    fn errors_name_the_place_in_a_block() {
        for (json, expected) in [
            (json!({"labels": ["a"]}), "labels is a list; write a map of strings"),
            (json!({"ulimit": "a"}), "ulimit is a string; write a map of strings"),
            (json!({"labels": {"a": null}}), "labels[\"a\"] is null; write a string"),
            (json!({"ulimit": {"a\n": []}}), "ulimit[\"a\\n\"] is a list; write a string"),
            (json!({"ulimit": {"a": {"b": 1}}}), "ulimit[\"a\"] is a map; write a string"),
            (json!({"network_policy": []}), "network_policy is a list; write a block of options"),
            (
                json!({"network_policy": {"bind": {}}}),
                "network_policy.bind is a map; write a list of strings",
            ),
            (json!({"network_policy": {"bind": [[]]}}), "network_policy.bind[0] is a list; write a string"),
            (
                json!({"network_policy": {"log": {"count": 10}}}),
                "network_policy.log.count 10: it is too large; write a whole number from 0 to 9",
            ),
        ] {
            assert_eq!(refused(json), format!("task option {expected}"));
        }
        assert!(read(json!({"network_policy": {"later": [{}]}, "later": {}})).is_ok());
        for (twice, key) in [
            (r#"{"network_policy": {"log": {"count": 1, "count": 1}}}"#, "option network_policy.log.count"),
            (r#"{"ulimit": {"a": "1", "a": "1"}}"#, "entry \"a\""),
        ] {
            let error = decode_json::<Sample>(Scope::Task, twice).unwrap_err().to_string();
            assert!(error.contains(&format!("{key} occurs twice")), "{error}");
        }
    }

    #[test]
    fn a_map_has_a_limit() {
        let map =
            |count: usize| (0..count).map(|i| (i.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>();
        assert!(read(json!({"labels": map(1024)})).is_ok());
        let packed = rmp_serde::to_vec(&json!({"labels": map(1025)})).unwrap();
        let error = decode::<Sample>(Scope::Task, &packed).unwrap_err().to_string();
        assert!(error.ends_with("a map has more than 1024 entries"), "{error}");
        let many = b"\x81\xa6labels\xdf\xff\xff\xff\xff\xa1a\xa1b";
        assert!(matches!(decode::<Sample>(Scope::Task, many), Err(ConfigError::Unreadable { .. })));
    }

    #[test]
    fn the_schema_has_the_blocks() {
        let node = |block| Spec { block: Some(block) };
        let attribute = |name: &str, type_: &str| {
            node(Node::Attr(hclspec::Attr { name: name.into(), r#type: type_.into(), required: false }))
        };
        let object = |specs: Vec<(&str, Spec)>| {
            let attributes = specs.into_iter().map(|(name, spec)| (name.to_owned(), spec)).collect();
            node(Node::Object(hclspec::Object { attributes }))
        };
        let block = |name: &str, nested| {
            let nested = Some(Box::new(nested));
            node(Node::BlockValue(Box::new(hclspec::Block { name: name.into(), required: false, nested })))
        };
        let log = object(vec![("count", attribute("count", "number"))]);
        let policy = object(vec![
            ("bind", attribute("bind", "list(string)")),
            ("strict", attribute("strict", "bool")),
            ("log", block("log", log)),
        ]);
        let entries = hclspec::BlockAttrs { name: "ulimit".into(), r#type: "string".into(), required: false };
        let sample = object(vec![
            ("labels", attribute("labels", "map(string)")),
            ("ulimit", node(Node::BlockAttrs(entries))),
            ("network_policy", block("network_policy", policy)),
        ]);
        assert_eq!(schema(Scope::Task, Sample::rows()), sample);
        assert_eq!(Spec::decode(&sample.encode_to_vec()[..]).unwrap(), sample);
        let summaries: Vec<_> = Sample::rows().iter().map(|row| row.summary).collect();
        assert_eq!(summaries, ["names for people", "limits", "what the task may reach"]);
    }
}
