//! Derives everything else from the declaration of an option.
//!
//! [`options!`] takes the fields of a config, each with its documentation and its [`Kind`]:
//!
//! ```text
//! options! {
//!     /// What the operator decides.
//!     pub struct PluginConfig {
//!         /// One line, from which documentation is proposed.
//!         ///
//!         /// Further details for readers of the code.
//!         pub unveil_by_task: bool = Flag { default: false },
//!     }
//! }
//! ```
//!
//! It generates the plain struct and the [`Table`], from which the schema, the decoder, the summary of `validate-config` and
//! the tests of the documentation are made. `.. NAME` after the last field adds a private one, so that only the declaring
//! module can create a value. The config's `Debug` shows each value as HCL, except secrets.

use super::cty::{Options, Value};
use super::row::{Form, Row};
use super::{At, ConfigError, Scope, hclspec};
use crate::proto::hclspec::Spec;

/// What options of one type have in common: how the value is written, decoded and shown.
pub(super) trait Kind {
    type Value;
    const FORM: Form;
    /// [`Row::takes`].
    const TAKES: &'static str;

    /// The value if the option is not set, or an error with what to write if it is required.
    fn unset(&self) -> Result<Self::Value, &'static str>;

    /// Decodes a value, which is never nil.
    fn read(&self, at: &At, value: Value) -> Result<Self::Value, ConfigError>;

    /// The value as HCL, without secrets.
    fn show(&self, value: &Self::Value) -> String;
}

/// The options of a config or of a block. [`options!`] implements it.
pub(super) trait Table: Sized {
    fn rows() -> Vec<Row>;

    fn read(options: &mut Options) -> Result<Self, ConfigError>;

    /// Each option with its value as HCL.
    fn shown(&self) -> Vec<(&'static str, String)>;
}

/// The value of an option, or its default if it is not set.
pub(super) fn read<K: Kind>(options: &mut Options, option: &str, kind: &K) -> Result<K::Value, ConfigError> {
    match options.take(option) {
        (at, None) => kind.unset().map_err(|write| at.missing(write)),
        (at, Some(value)) => kind.read(&at, value),
    }
}

/// Decodes a config from Nomad's MessagePack.
pub(super) fn decode<T: Table>(scope: Scope, msgpack: &[u8]) -> Result<T, ConfigError> {
    T::read(&mut Options::from_msgpack(scope, &T::rows(), msgpack)?)
}

/// Decodes a config from a JSON object.
pub(super) fn decode_json<T: Table>(scope: Scope, json: &str) -> Result<T, ConfigError> {
    T::read(&mut Options::from_json(scope, &T::rows(), json)?)
}

/// The schema against which Nomad evaluates the HCL of a config.
pub(super) fn schema(scope: Scope, rows: Vec<Row>) -> Spec {
    hclspec::object(rows.into_iter().map(|row| (row.name.to_owned(), spec(scope, row))))
}

/// As in the Go driver, the schema of the plugin's options has their defaults, and a job's option that is not set is null.
fn spec(scope: Scope, Row { name, form, default, .. }: Row) -> Spec {
    let required = default.is_none();
    match form {
        Form::Attribute(type_) => match default.filter(|_| scope == Scope::Plugin) {
            // To the decoder, null and the empty list are the same.
            Some(value) if value != EMPTY && value != NULL => hclspec::default(name, type_, value),
            _ => hclspec::attribute(name, type_, required),
        },
        Form::Map => hclspec::attribute(name, hclspec::MAP, required),
        Form::Entries => hclspec::entries(name, required),
        Form::Block(rows) => hclspec::block(name, schema(scope, rows()), required),
        Form::Labelled(rows) => hclspec::labelled(name, schema(scope, rows())),
    }
}

/// A private field, so that only the declaring module can create the config.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Sealed;

/// A list without elements, as HCL.
const EMPTY: &str = "[]";

/// No value, as HCL.
pub(super) const NULL: &str = "null";

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
                    $( $option: $crate::config::table::read(options, stringify!($option), &$kind)?, )+
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
