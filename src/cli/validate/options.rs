//! The plugin's options: the forms of their blocks, and their names.

use serde_json::{Map, Value};

use super::refusal::Refusal;
use crate::config::{Form, PluginConfig, Row};
use crate::quote::quote;

/// The options with an object for each block, as the decoder takes them. In HCL's JSON form it may be a list of objects, at each level.
pub(super) fn with_plain_blocks(
    place: &str,
    options: &Map<String, Value>,
    rows: &[Row],
) -> Result<Map<String, Value>, Refusal> {
    let plain = |(option, value): (&String, &Value)| {
        let place = format!("{place}{option}");
        let value = match rows.iter().find(|row| row.name == option).map(|row| row.form) {
            Some(Form::Block(rows)) => plain_block(&place, value, &rows()),
            Some(Form::Entries) => plain_block(&place, value, &[]),
            Some(Form::Labelled(rows)) => plain_blocks(&place, value, &rows()),
            Some(Form::Attribute(_) | Form::Map) | None => Ok(value.clone()),
        };
        Ok((option.clone(), value?))
    };
    options.iter().map(plain).collect()
}

fn plain_block(place: &str, value: &Value, rows: &[Row]) -> Result<Value, Refusal> {
    match all_objects(value).as_deref() {
        None => Ok(value.clone()),
        Some([]) => Ok(Value::Null),
        Some([one]) => with_plain_blocks(&format!("{place}."), one, rows).map(Value::from),
        Some(more) => Err(Refusal::Twice { place: place.to_owned(), count: more.len() }),
    }
}

fn plain_blocks(place: &str, value: &Value, rows: &[Row]) -> Result<Value, Refusal> {
    let Some(objects) = all_objects(value) else { return Ok(value.clone()) };
    let mut blocks = Map::new();
    for (label, block) in objects.into_iter().flatten() {
        let place = format!("{place}[{}]", quote(label));
        if blocks.insert(label.clone(), plain_block(&place, block, rows)?).is_some() {
            return Err(Refusal::Twice { place, count: 2 });
        }
    }
    Ok(blocks.into())
}

/// The objects that a value is, or is a list of.
fn all_objects(value: &Value) -> Option<Vec<&Map<String, Value>>> {
    match value {
        Value::Object(one) => Some(vec![one]),
        Value::Array(list) => list.iter().map(Value::as_object).collect(),
        _ => None,
    }
}

/// Nomad refuses an option that the plugin's schema does not have.
pub(super) fn known(options: &Map<String, Value>) -> Result<(), Refusal> {
    known_in("", options, &PluginConfig::options())
}

fn known_in(place: &str, options: &Map<String, Value>, rows: &[Row]) -> Result<(), Refusal> {
    for (option, value) in options {
        let Some(row) = rows.iter().find(|row| row.name == option) else {
            let known = rows.iter().map(|row| row.name).collect();
            return Err(Refusal::Unknown { place: place.to_owned(), option: option.clone(), known });
        };
        if let (Form::Block(nested), Some(options)) = (row.form, value.as_object()) {
            known_in(&format!("{place}{option}."), options, &nested())?;
        }
        if let (Form::Labelled(rows), Some(blocks)) = (row.form, value.as_object()) {
            for (label, block) in blocks {
                let place = format!("{place}{option}[{}].", quote(label));
                block.as_object().map_or(Ok(()), |block| known_in(&place, block, &rows()))?;
            }
        }
    }
    Ok(())
}
