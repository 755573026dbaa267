//! A task's life: its specification ([`spec`]), its start ([`launch`]), what runs ([`running`]). What outlives the plugin is
//! in [`crate::record`].

pub mod dirs;
pub mod env;
pub mod launch;
pub mod notice;
pub mod open_files;
pub mod recover;
pub mod running;
pub mod signal;
pub mod spec;
pub mod store;
pub mod uids;
