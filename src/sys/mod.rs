//! (in progress)

pub mod async_fd;
pub mod landlock;
