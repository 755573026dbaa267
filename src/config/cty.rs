//! Reads the outcome of an HCL evaluation: a map in go-cty's MessagePack form.
//!
//! Every attribute of the schema is present, and one that was not set is nil. A number is an integer, a float, or its
//! decimal text when neither holds it exactly. Reading is lenient where the sender's library may vary (`bin` for
//! `str`, missing keys, unknown keys) and strict where a value would be lost: duplicate keys, trailing bytes and nil
//! elements are errors. A job author can choose the bytes to some degree, so depth and length have limits, and
//! nothing is allocated on the word of a length prefix.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserializer;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{ConfigError, Scope, element};
use crate::quote::quote;

/// The largest config in bytes. Longer than any `args` that execve(2) takes (6 MiB, three quarters of the
/// kernel's default stack limit).
const CONFIG_BYTES_MAX: usize = 8 << 20;

/// The most elements of one list. More than execve(2) takes as arguments under its usual limit of 2 MiB, at 10
/// bytes (a pointer, a character, a NUL) each. An element may be one byte here but takes 32 in memory.
const LIST_ITEMS_MAX: usize = 1 << 18;

/// How deep unknown options may nest. Known ones are two levels deep.
const DEPTH_MAX: usize = 16;

/// The options of a config, before they are checked.
#[derive(Debug)]
pub(super) struct Options {
    scope: Scope,
    values: BTreeMap<&'static str, Value>,
}

/// As much of a value as any option can use.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(String),
    /// The elements are never lists.
    List(Vec<Value>),
    /// Something that no option takes, as messages call it.
    Other(&'static str),
}

impl Value {
    /// What messages call it.
    fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Uint(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }
}

impl Options {
    /// Reads MessagePack. No bytes at all are a config without options: Nomad sends them when the agent has no
    /// `config` block for the plugin.
    pub(super) fn from_msgpack(
        scope: Scope,
        known: &'static [&'static str],
        bytes: &[u8],
    ) -> Result<Self, ConfigError> {
        let unreadable = |reason: String| ConfigError::Unreadable { scope, reason };
        if bytes.len() > CONFIG_BYTES_MAX {
            return Err(unreadable(format!("it has {} bytes, more than {CONFIG_BYTES_MAX}", bytes.len())));
        }
        if bytes.is_empty() {
            return Ok(Self { scope, values: BTreeMap::new() });
        }
        let mut reader = rmp_serde::Deserializer::new(bytes);
        reader.set_max_depth(DEPTH_MAX);
        let values = reader.deserialize_any(OptionsVisitor(known)).map_err(|e| unreadable(e.to_string()))?;
        match reader.get_ref().len() {
            0 => Ok(Self { scope, values }),
            rest => Err(unreadable(format!("{rest} bytes follow the map"))),
        }
    }

    /// Reads the same options from a JSON object.
    pub(super) fn from_json(
        scope: Scope,
        known: &'static [&'static str],
        json: &str,
    ) -> Result<Self, ConfigError> {
        let mut reader = serde_json::Deserializer::from_str(json);
        reader
            .deserialize_any(OptionsVisitor(known))
            .and_then(|values| reader.end().map(|()| Self { scope, values }))
            .map_err(|e| ConfigError::Unreadable { scope, reason: e.to_string() })
    }

    /// A boolean option, if it is set.
    pub(super) fn flag(&mut self, option: &'static str) -> Result<Option<bool>, ConfigError> {
        match self.take(option) {
            Value::Nil => Ok(None),
            Value::Bool(flag) => Ok(Some(flag)),
            other => Err(self.wrong_type(option, &other, "true or false")),
        }
    }

    /// A text option, if it is set.
    pub(super) fn text(&mut self, option: &'static str) -> Result<Option<String>, ConfigError> {
        match self.take(option) {
            Value::Nil => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            other => Err(self.wrong_type(option, &other, "a string")),
        }
    }

    /// A list of texts; empty if it is not set.
    pub(super) fn texts(&mut self, option: &'static str) -> Result<Vec<String>, ConfigError> {
        self.texts_if_set(option).map(Option::unwrap_or_default)
    }

    /// A list of texts, if it is set.
    pub(super) fn texts_if_set(&mut self, option: &'static str) -> Result<Option<Vec<String>>, ConfigError> {
        match self.take(option) {
            Value::Nil => Ok(None),
            Value::List(items) => items
                .into_iter()
                .enumerate()
                .map(|(i, item)| match item {
                    Value::Text(text) => Ok(text),
                    other => Err(self.wrong_type(element(option, i), &other, "a string")),
                })
                .collect::<Result<_, _>>()
                .map(Some),
            other => Err(self.wrong_type(option, &other, "a list of strings")),
        }
    }

    /// A whole number within `range`, if it is set. `write` says the range in words.
    pub(super) fn whole_number(
        &mut self,
        option: &'static str,
        range: RangeInclusive<i32>,
        write: &'static str,
    ) -> Result<Option<i32>, ConfigError> {
        let value = self.take(option);
        // A float holds every i32; what it cannot hold exactly is out of any range.
        let (number, shown) = match &value {
            Value::Nil => return Ok(None),
            Value::Int(n) => (*n as f64, n.to_string()),
            Value::Uint(n) => (*n as f64, n.to_string()),
            Value::Float(n) => (*n, n.to_string()),
            Value::Text(text) => (text.parse().unwrap_or(f64::NAN), quote(text)),
            other => return Err(self.wrong_type(option, other, write)),
        };
        let problem = if number.is_nan() {
            "it is not a number"
        } else if number < f64::from(*range.start()) {
            "it is too small"
        } else if number > f64::from(*range.end()) {
            "it is too large"
        } else if number.fract() != 0.0 {
            "it is not a whole number"
        } else {
            return Ok(Some(number as i32));
        };
        Err(ConfigError::Value { scope: self.scope, option: option.to_owned(), value: shown, problem, write })
    }

    fn take(&mut self, option: &'static str) -> Value {
        self.values.remove(option).unwrap_or(Value::Nil)
    }

    fn wrong_type(&self, option: impl Into<String>, found: &Value, write: &'static str) -> ConfigError {
        ConfigError::Type { scope: self.scope, option: option.into(), found: found.kind(), write }
    }
}

/// Reads the outer map. Knows the names of the options, so that nothing else is kept.
struct OptionsVisitor(&'static [&'static str]);

impl<'de> Visitor<'de> for OptionsVisitor {
    type Value = BTreeMap<&'static str, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of options")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = BTreeMap::new();
        while let Some(key) = map.next_key_seed(ValueSeed { lists: false })? {
            let known = match &key {
                Value::Text(key) => self.0.iter().copied().find(|option| option == key),
                other => {
                    let message = format!("the name of an option is {}, not a string", other.kind());
                    return Err(de::Error::custom(message));
                }
            };
            match known {
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(option) => {
                    let value = map.next_value_seed(ValueSeed { lists: true })?;
                    // Which of two the operator meant, nobody can know.
                    if values.insert(option, value).is_some() {
                        return Err(de::Error::custom(format!("option {option} occurs twice")));
                    }
                }
            }
        }
        Ok(values)
    }
}

/// Reads one value, a list only if `lists`. What no option can use is read past and not kept.
#[derive(Clone, Copy)]
struct ValueSeed {
    lists: bool,
}

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nil)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Int(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Uint(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(match str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.to_owned()),
            Err(_) => Value::Other("a string that is not UTF-8"),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        if !self.lists {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Value::Other("a list"));
        }
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(Self { lists: false })? {
            if items.len() == LIST_ITEMS_MAX {
                return Err(de::Error::custom(format!("a list has more than {LIST_ITEMS_MAX} elements")));
            }
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other("a map"))
    }

    /// MessagePack's extension types; go-cty writes one for a value that is not known yet.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(IgnoredAny)?;
        Ok(Value::Other("not known yet"))
    }
}
