//! A task's life: what it is to be ([`spec`]), its start ([`launch`]), what runs ([`running`]), what survives a restart of
//! the plugin ([`state`], [`run_dir`], [`identity`]).

pub mod dirs;
pub mod env;
pub mod id;
pub mod identity;
pub mod launch;
pub mod notice;
pub mod open_files;
pub mod recover;
pub mod run_dir;
pub mod running;
pub mod signal;
pub mod spec;
pub mod state;
pub mod store;
pub mod sweep;
pub mod uids;
