//! What follows from the declaration of an option.
//!
//! [`options!`] takes the fields of a config, each with its documentation and its [`Kind`]:
//!
//! ```text
//! options! {
//!     /// What the operator decides.
//!     pub struct PluginConfig {
//!         /// One line, which documentation is proposed from.
//!         ///
//!         /// What a reader of the code needs besides.
//!         pub unveil_by_task: bool = Flag { default: false },
//!     }
//! }
//! ```
//!
//! It makes the plain struct, and the [`Table`] that the schema, the reader, the summary of `validate-config` and the tests of
//! the documentation are made from. `.. NAME` after the last field adds a private one, so that only the module of the
//! declaration can make a value. The config's `Debug` shows each value as HCL, as far as it is no secret.

use super::cty::{Options, Value};
use super::{At, ConfigError, Scope, hclspec};
use crate::proto::hclspec::Spec;

/// One option, as documentation lists it.
#[derive(Debug, Clone)]
pub struct Row {
    pub name: &'static str,
    /// What it is for, in one line.
    pub summary: &'static str,
    pub form: Form,
    /// Its type as people read it, in Markdown.
    pub takes: &'static str,
    /// Its value when it is not set, as HCL; none if it is required.
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
}

/// What a type of options has in common: how the value is written, read and shown.
pub(super) trait Kind {
    type Value;
    const FORM: Form;
    /// [`Row::takes`].
    const TAKES: &'static str;

    /// The value when the option is not set. An error if it has to be: what to write.
    fn unset(&self) -> Result<Self::Value, &'static str>;

    /// The value that is set, which is never nil.
    fn read(&self, at: &At, value: Value) -> Result<Self::Value, ConfigError>;

    /// The value as HCL, without what may be a secret.
    fn show(&self, value: &Self::Value) -> String;
}

/// The options of a config or of a block. [`options!`] implements it.
pub(super) trait Table: Sized {
    fn rows() -> Vec<Row>;

    fn read(options: &mut Options) -> Result<Self, ConfigError>;

    /// Each option with its value as HCL.
    fn shown(&self) -> Vec<(&'static str, String)>;
}

/// Reads a config from Nomad's MessagePack.
pub(super) fn decode<T: Table>(scope: Scope, msgpack: &[u8]) -> Result<T, ConfigError> {
    T::read(&mut Options::from_msgpack(scope, &T::rows(), msgpack)?)
}

/// Reads a config from a JSON object.
pub(super) fn decode_json<T: Table>(scope: Scope, json: &str) -> Result<T, ConfigError> {
    T::read(&mut Options::from_json(scope, &T::rows(), json)?)
}

/// The schema that Nomad evaluates the HCL of a config with.
pub(super) fn schema(scope: Scope, rows: Vec<Row>) -> Spec {
    hclspec::object(rows.into_iter().map(|row| (row.name.to_owned(), spec(scope, row))))
}

/// As in the Go driver, the schema of the plugin's options has their defaults; a job's option that is not set is null.
fn spec(scope: Scope, Row { name, form, default, .. }: Row) -> Spec {
    let required = default.is_none();
    match form {
        Form::Attribute(type_) => match default.filter(|_| scope == Scope::Plugin) {
            // Null and the empty list are the same to the reader.
            Some(value) if value != EMPTY => hclspec::default(name, type_, value),
            _ => hclspec::attribute(name, type_, required),
        },
        Form::Map => hclspec::attribute(name, hclspec::MAP, required),
        Form::Entries => hclspec::entries(name, required),
        Form::Block(rows) => hclspec::block(name, schema(scope, rows()), required),
    }
}

/// A field that only the module of a config can fill in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed;

/// A list without elements, as HCL.
const EMPTY: &str = "[]";

impl Row {
    /// `documentation` are the lines of the field's comment.
    pub(super) fn new<K: Kind>(name: &'static str, documentation: &[&'static str], kind: &K) -> Self {
        Self {
            name,
            summary: documentation.first().map_or("", |line| line.trim()),
            form: K::FORM,
            takes: K::TAKES,
            default: kind.unset().ok().map(|value| kind.show(&value)),
        }
    }
}

macro_rules! options {
    (
        $(#[$attribute:meta])*
        $vis:vis struct $Config:ident {
            $(
                $(#[doc = $line:literal])+
                $field_vis:vis $option:ident: $Value:ty = $kind:expr,
            )+
            $( .. $seal:ident )?
        }
    ) => {
        $(#[$attribute])*
        $vis struct $Config {
            $( $(#[doc = $line])+ $field_vis $option: $Value, )+
            $( $seal: $crate::config::table::Sealed, )?
        }

        impl $crate::config::table::Table for $Config {
            fn rows() -> Vec<$crate::config::Row> {
                vec![$( $crate::config::Row::new(stringify!($option), &[$($line),+], &$kind), )+]
            }

            fn read(options: &mut $crate::config::cty::Options) -> Result<Self, $crate::config::ConfigError> {
                Ok(Self {
                    $( $option: options.read(stringify!($option), &$kind)?, )+
                    $( $seal: $crate::config::table::Sealed, )?
                })
            }

            fn shown(&self) -> Vec<(&'static str, String)> {
                vec![$(
                    (stringify!($option), $crate::config::table::Kind::show(&$kind, &self.$option)),
                )+]
            }
        }

        impl std::fmt::Debug for $Config {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut shown = f.debug_struct(stringify!($Config));
                for (option, value) in $crate::config::table::Table::shown(self) {
                    shown.field(option, &format_args!("{value}"));
                }
                shown.finish()
            }
        }
    };
}
pub(super) use options;
