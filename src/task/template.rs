//! The template of the tasks' roots, as the plugin has it: two mount namespaces and what is in them.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};

use crate::record::reconcile;
use crate::sandbox::root::layout::Layout;
use crate::shim::fds;
use crate::shim::template::{MAX_MESSAGE, Report, Request};
use crate::sys;

/// How long one default path may take to answer. A local file system needs microseconds; a file server that is alive, less
/// than this.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// The most default paths that may fail to answer before the template is given up. All of them then wait for the same server.
const SKIPPED_MAX: usize = 8;

/// A template that is complete.
#[derive(Debug)]
pub(crate) struct Template {
    pub empty: OwnedFd,
    pub namespace: OwnedFd,
    pub layout: Layout,
}

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("failed to {step} for the template of the tasks' roots: {}", .errno.desc())]
    System { step: &'static str, errno: Errno },
    #[error("the template of the tasks' roots: {0}")]
    Failed(String),
    #[error("failed to make the template of the tasks' roots: its process ended early")]
    Ended,
    #[error("failed to make the template of the tasks' roots: {0:?} does not answer")]
    Silent(PathBuf),
}

fn system(step: &'static str) -> impl FnOnce(Errno) -> TemplateError {
    move |errno| TemplateError::System { step, errno }
}

/// Builds the template when the first task needs it, and keeps it.
#[derive(Debug)]
pub(crate) struct Templates {
    /// This program, opened `O_PATH`.
    program: OwnedFd,
    run_dir: PathBuf,
    current: Mutex<Option<Arc<Template>>>,
}

impl Templates {
    pub(crate) fn new(program: OwnedFd, run_dir: &Path) -> Self {
        Self { program, run_dir: run_dir.to_owned(), current: Mutex::new(None) }
    }

    /// The present template.
    pub(crate) fn get(&self) -> Result<Arc<Template>, TemplateError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = &*current {
            return Ok(Arc::clone(template));
        }
        let template = Arc::new(self.build()?);
        *current = Some(Arc::clone(&template));
        Ok(template)
    }

    /// Default paths that do not answer are left out, with a warning: a dead file server must not keep every task from starting.
    fn build(&self) -> Result<Template, TemplateError> {
        let mut skip = Vec::new();
        loop {
            match self.try_build(&skip) {
                Err(TemplateError::Silent(path)) if skip.len() < SKIPPED_MAX && !skip.contains(&path) => {
                    tracing::warn!(
                        "the default unveil {path:?} does not answer within {} s; tasks that start now do not have it",
                        ANSWER_LIMIT.as_secs()
                    );
                    skip.push(path);
                }
                built => return built,
            }
        }
    }

    fn try_build(&self, skip: &[PathBuf]) -> Result<Template, TemplateError> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(system("make a socket"))?;
        let request = Request { run_dir: self.run_dir.clone(), skip: skip.to_vec() };
        let request = rmp_serde::to_vec(&request).map_err(|_| system("encode the request")(Errno::EINVAL))?;
        send(ours.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL).map_err(system("send the request"))?;
        let high = |fd: &OwnedFd| sys::fd::duplicate_from(fd.as_fd(), sys::clone::FIRST_FREE_FD);
        let theirs = high(&theirs).map_err(system("duplicate a descriptor"))?;
        let child = sys::clone::spawn(&sys::clone::Spawn {
            program: self.program.as_fd(),
            argv: &[c"nomad-driver-exec2", c"template"],
            namespaces: 0,
            cgroup: None,
            fds: &[theirs.as_fd()],
            first_fd: fds::SPEC,
            stdio: None,
            report: theirs.as_fd(),
        })
        .map_err(system("start a process"))?;
        drop(theirs);
        let received = receive(&ours);
        // It has ended, or must.
        if let Err(error) = reconcile::end(child.pidfd) {
            tracing::warn!("failed to end the process that makes the template: {error}");
        }
        received
    }
}

/// Takes the parts of a template as they come.
fn receive(socket: &OwnedFd) -> Result<Template, TemplateError> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut looking = PathBuf::from("/");
    let mut empty = None;
    loop {
        let (length, fd) = match wait(socket)? {
            true => sys::fd::receive(socket.as_fd(), &mut bytes).map_err(system("read a message"))?,
            false => return Err(TemplateError::Silent(looking)),
        };
        if length == 0 {
            return Err(TemplateError::Ended);
        }
        // A child that could not exec sends its errno.
        if let Ok(errno) = <[u8; 4]>::try_from(&bytes[..length]) {
            return Err(system("execute this program")(Errno::from_raw(i32::from_ne_bytes(errno))));
        }
        match rmp_serde::from_slice(&bytes[..length]).map_err(|error| TemplateError::Failed(error.to_string()))? {
            Report::Looking(path) => looking = path,
            Report::Empty => empty = fd,
            Report::Template { layout, warning } => {
                if let Some(warning) = warning {
                    tracing::warn!("{warning}");
                }
                let (Some(empty), Some(namespace)) = (empty, fd) else { return Err(TemplateError::Ended) };
                return Ok(Template { empty, namespace, layout });
            }
            Report::Failed(reason) => return Err(TemplateError::Failed(reason)),
        }
    }
}

/// Whether a message came in time.
fn wait(socket: &OwnedFd) -> Result<bool, TemplateError> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(system("wait for a message")(errno)),
        }
    }
}
