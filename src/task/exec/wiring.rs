//! Standard input, output and error of a session's command.

use std::io::pipe;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::ExecError;
use crate::sys::{self, CallError};

/// Where standard input, output and error of the command lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wiring {
    /// A pipe for each.
    Pipes,
    /// Input from /dev/null, and one pipe for output and error: their order is kept.
    Merged,
    /// A terminal, of this type and size if they are known.
    Terminal { term: Option<String>, size: Option<Winsize> },
}

/// This process's ends of the command's standard input, output and error.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    pub stdin: Option<AsyncFd<OwnedFd>>,
    pub stdout: Option<AsyncFd<OwnedFd>>,
    pub stderr: Option<AsyncFd<OwnedFd>>,
}

impl Ends {
    /// The ends, and what the helper starts with as its descriptors 0, 1 and 2.
    pub(super) fn new(wiring: &Wiring) -> Result<(Self, [OwnedFd; 3]), ExecError> {
        let high = |fd: OwnedFd| {
            sys::fd::duplicate_from(fd.as_fd(), sys::clone::FIRST_FREE_FD)
                .map_err(CallError::on("duplicate a descriptor"))
        };
        let null = |flags| crate::task::null::open(flags).map_err(CallError::on("open /dev/null"));
        let make = || pipe().map_err(CallError::on("make a pipe"));
        let ours = |fd: OwnedFd, interest| {
            sys::fd::set_nonblocking(&fd).map_err(CallError::on("set up a pipe"))?;
            register(fd, interest)
        };
        Ok(match wiring {
            Wiring::Terminal { .. } => {
                (Self::default(), [null(OFlag::O_RDONLY)?, null(OFlag::O_WRONLY)?, null(OFlag::O_WRONLY)?])
            }
            Wiring::Merged => {
                let (reader, writer) = make()?;
                let again = writer.try_clone().map_err(CallError::on("duplicate a descriptor"))?;
                let stdout = Some(ours(reader.into(), Interest::READABLE)?);
                let stdio = [null(OFlag::O_RDONLY)?, high(writer.into())?, high(again.into())?];
                (Self { stdout, ..Self::default() }, stdio)
            }
            Wiring::Pipes => {
                let ((input, stdin), (stdout, output), (stderr, error)) = (make()?, make()?, make()?);
                let ends = Self {
                    stdin: Some(ours(stdin.into(), Interest::WRITABLE)?),
                    stdout: Some(ours(stdout.into(), Interest::READABLE)?),
                    stderr: Some(ours(stderr.into(), Interest::READABLE)?),
                };
                (ends, [high(input.into())?, high(output.into())?, high(error.into())?])
            }
        })
    }
}

pub(super) fn register(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, CallError> {
    sys::async_fd::register(fd, interest).map_err(|(_, error)| CallError::new("watch a descriptor", error))
}
