//! A task's life: what it is to be ([`spec`]), its start ([`launch`]), what runs ([`running`]), what survives a restart of
//! the plugin ([`state`], [`run_dir`], [`identity`]).

pub(crate) mod dirs;
pub(crate) mod env;
pub mod id;
pub mod identity;
pub mod launch;
pub mod notice;
pub mod open_files;
pub(crate) mod recover;
pub mod run_dir;
pub mod running;
pub mod signal;
pub mod spec;
pub mod state;
pub(crate) mod store;
pub(crate) mod sweep;
pub(crate) mod uids;
