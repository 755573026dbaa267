//! A task's life: its specification ([`spec`]), its start ([`launch`]), what runs ([`running`]). What outlives the plugin is
//! in [`crate::record`].

pub mod blocking;
pub mod dirs;
pub mod end;
pub mod env;
pub mod events;
pub mod id;
pub mod launch;
pub mod lifecycle;
mod oom;
pub mod open_files;
pub mod processes;
pub mod recover;
pub mod running;
pub mod signal;
pub mod spec;
pub mod store;
pub mod uids;
