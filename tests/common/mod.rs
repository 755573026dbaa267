//! A host's end of the plugin socket, as the tests of `goplugin` have it.

#[path = "../../goplugin/tests/host/mod.rs"]
mod host;

pub(crate) use host::*;
