//! What a task may do, as plain data.

pub mod capabilities;
pub mod unveil;
