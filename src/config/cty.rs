//! Decodes the result of an HCL evaluation: a map in go-cty's MessagePack form.
//!
//! Every attribute of the schema is present; an unset one is nil. A number is an integer, a float, or its decimal text if
//! neither holds it exactly. Decoding is lenient where the sender's library may vary (`bin` for `str`, missing keys, unknown
//! keys) and strict where a value would be lost: duplicate keys, trailing bytes and nil elements are errors. Job authors
//! influence the bytes, so depth and length have limits, and no allocation trusts a length prefix.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserializer;
use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::row::{Form, Row};
use super::{At, ConfigError, Scope};
use crate::quote::quote;

/// The largest config in bytes. Longer than any `args` that execve(2) takes (6 MiB, three quarters of the
/// kernel's default stack limit).
const CONFIG_BYTES_MAX: usize = 8 << 20;

/// The most elements of one list. More than execve(2) takes as arguments under its usual limit of 2 MiB, at 10
/// bytes (a pointer, a character, a NUL) each. An element may be one byte here but takes 32 in memory.
const LIST_ITEMS_MAX: usize = 1 << 18;

/// The most entries of one map, which holds names that people choose: limits, labels, tags.
const MAP_ENTRIES_MAX: usize = 1 << 10;

/// How deep unknown options may nest. Known ones are three levels deep: a list in a block.
const DEPTH_MAX: usize = 16;

/// The values that a config or a block sets, by option name.
type Values = BTreeMap<&'static str, Value>;

/// The options of a config or of a block, before they are checked.
#[derive(Debug)]
pub(super) struct Options {
    scope: Scope,
    /// Prefix of option names in messages: empty, or the block and a dot.
    prefix: String,
    values: Values,
}

/// A decoded value, as far as any option can use it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(String),
    /// The elements are never lists or maps.
    List(Vec<Value>),
    /// Of an option that takes a map. The values are never lists or maps, but blocks if it is a labelled block.
    Map(BTreeMap<String, Value>),
    /// Of an option that is a block.
    Block(Values),
    /// Something that no option accepts, as messages call it.
    Other(&'static str),
}

impl Value {
    /// The type as messages call it.
    fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Uint(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) | Self::Block(_) => "a map",
            Self::Other(kind) => kind,
        }
    }

    /// A boolean, or a string that go-cty converts to one: an agent's configuration in JSON may have either.
    pub(super) fn flag(self, at: &At) -> Result<bool, ConfigError> {
        match self {
            Self::Bool(flag) => Ok(flag),
            Self::Text(text) if text == "true" || text == "1" => Ok(true),
            Self::Text(text) if text == "false" || text == "0" => Ok(false),
            other => Err(other.wrong_type(at, "true or false")),
        }
    }

    /// A string, or a boolean or a number, which go-cty converts to one.
    pub(super) fn text(self, at: &At) -> Result<String, ConfigError> {
        match self {
            Self::Text(text) => Ok(text),
            Self::Bool(flag) => Ok(flag.to_string()),
            Self::Int(number) => Ok(number.to_string()),
            Self::Uint(number) => Ok(number.to_string()),
            Self::Float(number) if number.is_finite() => Ok(number.to_string()),
            other => Err(other.wrong_type(at, "a string")),
        }
    }

    /// A list of strings.
    pub(super) fn texts(self, at: &At) -> Result<Vec<String>, ConfigError> {
        match self {
            Self::List(items) => {
                items.into_iter().enumerate().map(|(i, item)| item.text(&at.element(i))).collect()
            }
            other => Err(other.wrong_type(at, "a list of strings")),
        }
    }

    /// A whole number within `range`. `write` describes the range in words.
    pub(super) fn whole_number(
        self,
        at: &At,
        range: &RangeInclusive<i32>,
        write: &'static str,
    ) -> Result<i32, ConfigError> {
        // A float holds every i32 exactly; a number that it does not hold exactly is out of range.
        let (number, shown) = match &self {
            Self::Int(n) => (*n as f64, n.to_string()),
            Self::Uint(n) => (*n as f64, n.to_string()),
            Self::Float(n) => (*n, n.to_string()),
            Self::Text(text) => (text.parse().unwrap_or(f64::NAN), quote(text)),
            other => return Err(other.wrong_type(at, write)),
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
            #[expect(clippy::cast_possible_truncation, reason = "it is a whole number in a range of i32")]
            return Ok(number as i32);
        };
        Err(at.bad_value(shown, problem, write))
    }

    pub(super) fn wrong_type(&self, at: &At, write: &'static str) -> ConfigError {
        ConfigError::Type { scope: at.scope, option: at.option.clone(), found: self.kind(), write }
    }
}

impl Options {
    /// Decodes MessagePack. Empty input is a config without options: Nomad sends it when the agent has no `config` block for
    /// the plugin.
    pub(super) fn from_msgpack(scope: Scope, rows: &[Row], bytes: &[u8]) -> Result<Self, ConfigError> {
        let unreadable = |reason: String| ConfigError::Unreadable { scope, reason };
        if bytes.len() > CONFIG_BYTES_MAX {
            return Err(unreadable(format!("it has {} bytes, more than {CONFIG_BYTES_MAX}", bytes.len())));
        }
        if bytes.is_empty() {
            return Ok(Self::new(scope, String::new(), Values::new()));
        }
        let mut reader = rmp_serde::Deserializer::new(bytes);
        reader.set_max_depth(DEPTH_MAX);
        let values =
            reader.deserialize_any(OptionsVisitor::of_config(rows)).map_err(|e| unreadable(e.to_string()))?;
        match reader.get_ref().len() {
            0 => Ok(Self::new(scope, String::new(), values)),
            rest => Err(unreadable(format!("{rest} bytes follow the map"))),
        }
    }

    /// Decodes the same options from a JSON object.
    pub(super) fn from_json(scope: Scope, rows: &[Row], json: &str) -> Result<Self, ConfigError> {
        let mut reader = serde_json::Deserializer::from_str(json);
        reader
            .deserialize_any(OptionsVisitor::of_config(rows))
            .and_then(|values| reader.end().map(|()| Self::new(scope, String::new(), values)))
            .map_err(|e| ConfigError::Unreadable { scope, reason: e.to_string() })
    }

    pub(super) fn new(scope: Scope, prefix: String, values: Values) -> Self {
        Self { scope, prefix, values }
    }

    /// The place of an option, and its value if it is set.
    pub(super) fn take(&mut self, option: &str) -> (At, Option<Value>) {
        let at = At { scope: self.scope, option: format!("{}{option}", self.prefix) };
        (at, self.values.remove(option).filter(|value| *value != Value::Nil))
    }
}

/// Decodes the map of a config or of a block. It knows the options, so that nothing else is kept.
struct OptionsVisitor<'a> {
    rows: &'a [Row],
    /// Prefix of option names in messages.
    prefix: &'a str,
}

impl<'a> OptionsVisitor<'a> {
    fn of_config(rows: &'a [Row]) -> Self {
        Self { rows, prefix: "" }
    }
}

impl<'de> Visitor<'de> for OptionsVisitor<'_> {
    type Value = Values;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of options")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Values, E> {
        Ok(Values::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Values, A::Error> {
        let mut values = Values::new();
        while let Some(key) = name(&mut map, "an option")? {
            let Some(row) = self.rows.iter().find(|row| row.name == key) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = match row.form {
                Form::Attribute(_) => map.next_value_seed(ValueSeed(Shape::List)),
                Form::Map | Form::Entries => map.next_value_seed(ValueSeed(Shape::Map)),
                Form::Block(rows) => {
                    let prefix = &format!("{}{key}.", self.prefix);
                    map.next_value_seed(ValueSeed(Shape::Block { rows: &rows(), prefix }))
                }
                Form::Labelled(rows) => {
                    let prefix = &format!("{}{key}.", self.prefix);
                    map.next_value_seed(ValueSeed(Shape::Labelled { rows: &rows(), prefix }))
                }
            }?;
            // There is no way to know which of the two was meant.
            if values.insert(row.name, value).is_some() {
                return Err(de::Error::custom(format!("option {}{key} occurs twice", self.prefix)));
            }
        }
        Ok(values)
    }
}

/// The next key of a map, which is the name of `what`.
fn name<'de, A: MapAccess<'de>>(map: &mut A, what: &str) -> Result<Option<String>, A::Error> {
    match map.next_key_seed(ValueSeed(Shape::Scalar))? {
        None => Ok(None),
        Some(Value::Text(name)) => Ok(Some(name)),
        Some(other) => {
            let message = format!("the name of {what} is {}, not a string", other.kind());
            Err(de::Error::custom(message))
        }
    }
}

/// As much of a value as its position allows; the rest is skipped.
#[derive(Clone, Copy)]
enum Shape<'a> {
    Scalar,
    /// A scalar, or a list of them.
    List,
    /// A map of scalars.
    Map,
    /// A map of these options.
    Block {
        rows: &'a [Row],
        prefix: &'a str,
    },
    /// A map of such maps.
    Labelled {
        rows: &'a [Row],
        prefix: &'a str,
    },
}

/// Decodes one value.
#[derive(Clone, Copy)]
struct ValueSeed<'a>(Shape<'a>);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
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
        if !matches!(self.0, Shape::List) {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Value::Other("a list"));
        }
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(ValueSeed(Shape::Scalar))? {
            if items.len() == LIST_ITEMS_MAX {
                return Err(de::Error::custom(format!("a list has more than {LIST_ITEMS_MAX} elements")));
            }
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match self.0 {
            Shape::Scalar | Shape::List => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Other("a map"))
            }
            Shape::Map => entries(map, Shape::Scalar).map(Value::Map),
            Shape::Labelled { rows, prefix } => entries(map, Shape::Block { rows, prefix }).map(Value::Map),
            Shape::Block { rows, prefix } => OptionsVisitor { rows, prefix }.visit_map(map).map(Value::Block),
        }
    }

    /// MessagePack's extension types; go-cty writes one for an unknown value.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(IgnoredAny)?;
        Ok(Value::Other("an unknown value"))
    }
}

/// Decodes a map whose keys the author of the config chooses.
fn entries<'de, A: MapAccess<'de>>(mut map: A, of: Shape<'_>) -> Result<BTreeMap<String, Value>, A::Error> {
    let mut entries = BTreeMap::new();
    while let Some(key) = name(&mut map, "an entry")? {
        let value = map.next_value_seed(ValueSeed(of))?;
        if entries.len() == MAP_ENTRIES_MAX {
            return Err(de::Error::custom(format!("a map has more than {MAP_ENTRIES_MAX} entries")));
        }
        if entries.insert(key.clone(), value).is_some() {
            return Err(de::Error::custom(format!("entry {} occurs twice", quote(&key))));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests;
