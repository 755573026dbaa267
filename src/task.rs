//! A task's specification ([`spec`]), start ([`launch`]) and life ([`running`], [`lifecycle`]). State that outlives the plugin is in
//! [`crate::record`].

pub mod blocking;
pub(crate) mod dirs;
mod elsewhere;
pub(crate) mod end;
pub(crate) mod env;
pub mod events;
pub(crate) mod exec;
pub mod id;
pub mod launch;
pub(crate) mod lifecycle;
mod name_files;
pub(crate) mod null;
mod oom;
pub mod open_files;
pub(crate) mod owners;
pub mod processes;
pub(crate) mod recover;
pub mod running;
pub mod signal;
pub mod spec;
pub(crate) mod store;
pub(crate) mod template;
pub(crate) mod uids;
pub(crate) mod user_files;
