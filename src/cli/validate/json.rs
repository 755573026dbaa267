//! JSON in which no key may be repeated.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A JSON value, and the first key that occurs twice in one of its objects; a plain `Value` would silently keep the last one.
pub(super) struct Json {
    pub(super) value: Value,
    pub(super) repeated: Option<String>,
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl JsonVisitor {
    fn scalar<E>(value: impl Into<Value>) -> Result<Json, E> {
        Ok(Json { value: value.into(), repeated: None })
    }
}

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Self::scalar(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Self::scalar(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Json, A::Error> {
        let (mut values, mut repeated) = (Vec::new(), None);
        while let Some(item) = sequence.next_element::<Json>()? {
            values.push(item.value);
            repeated = repeated.or(item.repeated);
        }
        Ok(Json { value: values.into(), repeated })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let (mut values, mut repeated) = (Map::new(), None);
        while let Some((key, item)) = map.next_entry::<String, Json>()? {
            repeated = repeated.or(item.repeated);
            if values.insert(key.clone(), item.value).is_some() {
                repeated = repeated.or(Some(key));
            }
        }
        Ok(Json { value: values.into(), repeated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_json_type_is_decoded_unchanged() {
        let text = r#"{"a": [null, true, -1, 18446744073709551615, 1.5, "x", {"b": {}}]}"#;
        let Json { value, repeated } = serde_json::from_str(text).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(text).unwrap());
        assert_eq!(repeated, None);
    }
}
