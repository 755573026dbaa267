//! What a task may do, as plain data: made and tested without root, executed by the shim.

pub mod capabilities;
pub mod defaults;
pub mod landlock;
pub mod place;
pub mod plan;
pub mod unveil;
