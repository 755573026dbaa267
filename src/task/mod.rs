//! (in progress)

pub mod signal;
