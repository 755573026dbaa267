//! Builders for the schema messages, against which the agent evaluates a `config` block with hcldec.

use crate::proto::hclspec::spec::Block as Node;
use crate::proto::hclspec::{Attr, Block, BlockAttrs, BlockMap, Default, Literal, Object, Spec};

/// An HCL string.
pub(super) const STRING: &str = "string";
/// An HCL number.
pub(super) const NUMBER: &str = "number";
/// An HCL boolean.
pub(super) const BOOL: &str = "bool";
/// A list of strings.
pub(super) const STRINGS: &str = "list(string)";

/// A map of strings.
pub(super) const MAP: &str = "map(string)";

/// The schema of a config or of a block: a spec for each option.
pub(super) fn object(specs: impl IntoIterator<Item = (String, Spec)>) -> Spec {
    spec(Node::Object(Object { attributes: specs.into_iter().collect() }))
}

/// `name = value`; null if the HCL does not set it.
pub(super) fn attribute(name: &str, type_: &str, required: bool) -> Spec {
    spec(Node::Attr(Attr { name: name.to_owned(), r#type: type_.to_owned(), required }))
}

/// `name = value`; `value`, an HCL expression, if the HCL does not set it.
pub(super) fn default(name: &str, type_: &str, value: String) -> Spec {
    let literal = spec(Node::Literal(Literal { value }));
    let primary = Some(Box::new(attribute(name, type_, false)));
    spec(Node::Default(Box::new(Default { primary, default: Some(Box::new(literal)) })))
}

/// `name { key = "text" }` with any keys; null if the HCL has no such block.
pub(super) fn entries(name: &str, required: bool) -> Spec {
    spec(Node::BlockAttrs(BlockAttrs { name: name.to_owned(), r#type: STRING.to_owned(), required }))
}

/// `name { … }` at most once, with the options of `nested`; null if the HCL has no such block.
pub(super) fn block(name: &str, nested: Spec, required: bool) -> Spec {
    let nested = Some(Box::new(nested));
    spec(Node::BlockValue(Box::new(Block { name: name.to_owned(), required, nested })))
}

/// `name "label" { … }` with the options of `nested`, once for each label; an empty map if the HCL has no such block.
pub(super) fn labelled(name: &str, nested: Spec) -> Spec {
    let nested = Some(Box::new(nested));
    spec(Node::BlockMap(Box::new(BlockMap {
        name: name.to_owned(),
        labels: vec!["name".to_owned()],
        nested,
    })))
}

fn spec(block: Node) -> Spec {
    Spec { block: Some(block) }
}
