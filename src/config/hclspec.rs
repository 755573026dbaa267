//! Builders for the schema messages. The agent evaluates a `config` block against them with hcldec.

use crate::proto::hclspec::{Attr, Default, Literal, Object, Spec, spec::Block};

/// An HCL text.
pub(super) const STRING: &str = "string";
/// An HCL number.
pub(super) const NUMBER: &str = "number";
/// An HCL boolean.
pub(super) const BOOL: &str = "bool";
/// A list of texts.
pub(super) const STRINGS: &str = "list(string)";

/// The whole schema: one attribute for each named spec.
pub(super) fn object(specs: impl IntoIterator<Item = (&'static str, Spec)>) -> Spec {
    let attributes = specs.into_iter().map(|(name, spec)| (name.to_owned(), spec)).collect();
    spec(Block::Object(Object { attributes }))
}

/// `name = value`; null when the HCL does not set it.
pub(super) fn optional(name: &'static str, type_: &str) -> (&'static str, Spec) {
    (name, attr(name, type_, false))
}

/// `name = value`; without it the agent refuses the HCL.
pub(super) fn required(name: &'static str, type_: &str) -> (&'static str, Spec) {
    (name, attr(name, type_, true))
}

/// `name = true` or `false`; `value` when the HCL does not set it.
pub(super) fn flag(name: &'static str, value: bool) -> (&'static str, Spec) {
    default(name, BOOL, value.to_string())
}

/// `name = value`; `value`, an HCL expression, when the HCL does not set it.
pub(super) fn default(name: &'static str, type_: &str, value: String) -> (&'static str, Spec) {
    let literal = spec(Block::Literal(Literal { value }));
    let primary = Some(Box::new(attr(name, type_, false)));
    (name, spec(Block::Default(Box::new(Default { primary, default: Some(Box::new(literal)) }))))
}

fn attr(name: &str, type_: &str, required: bool) -> Spec {
    spec(Block::Attr(Attr { name: name.to_owned(), r#type: type_.to_owned(), required }))
}

fn spec(block: Block) -> Spec {
    Spec { block: Some(block) }
}
