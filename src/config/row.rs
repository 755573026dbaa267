//! An option as the documentation and the decoder see it.

/// One option, as the documentation lists it.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    /// Its purpose in one line.
    pub summary: &'static str,
    pub form: Form,
    /// Its type for readers, in Markdown.
    pub takes: &'static str,
    /// Its default as HCL; none if it is required.
    pub default: Option<String>,
}

/// How an option is written.
#[derive(Debug, Clone, Copy)]
pub enum Form {
    /// `name = value`, of this HCL type.
    Attribute(&'static str),
    /// `name = { key = "text" }`.
    Map,
    /// `name { key = "text" }`: a map, written as a block.
    Entries,
    /// `name { … }` with options of its own.
    Block(fn() -> Vec<Row>),
    /// `name "label" { … }`, once for each label.
    Labelled(fn() -> Vec<Row>),
}
