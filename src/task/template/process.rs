//! One process that makes a template, seen from the plugin: its request, its reports, and the time that it gets.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use super::{Template, TemplateError};
use crate::shim::fds;
use crate::shim::template::progress::Progress;
use crate::shim::template::{MAX_MESSAGE, Report, Request};
use crate::sys::{self, CallError};
use crate::task::null::Null;

/// How long a process may take to end once it is killed, before it is left to end later.
const END_LIMIT: Duration = Duration::from_millis(100);

/// What a process has made.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub empty: Option<OwnedFd>,
    pub template: Option<Template>,
    /// Readable when something has changed that the process looked at.
    pub changes: Option<OwnedFd>,
    pub warning: Option<String>,
}

/// Processes that were killed and have not ended: they hang in the kernel.
#[derive(Debug, Default)]
pub(super) struct Hanging(Vec<OwnedFd>);

impl Hanging {
    /// How many there are.
    pub(super) fn count(&mut self) -> usize {
        self.0.retain(|process| !reaped(process, Duration::ZERO));
        self.0.len()
    }

    fn end(&mut self, process: OwnedFd) {
        if let Err(errno) = sys::pidfd::signal(process.as_fd(), libc::SIGKILL)
            && errno != Errno::ESRCH
        {
            tracing::warn!(
                "failed to kill the process that makes the template of the tasks' roots: {}",
                errno.desc()
            );
        }
        if !reaped(&process, END_LIMIT) {
            self.0.push(process);
        }
    }
}

fn reaped(process: &OwnedFd, limit: Duration) -> bool {
    let ended = sys::poll::readable(process, Instant::now() + limit).unwrap_or(false);
    if ended {
        let _ = waitid(Id::PIDFd(process.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    }
    ended
}

/// Runs a process. It has `limit` for each thing that it looks at, and until `deadline` for all.
pub(super) fn run(
    program: BorrowedFd<'_>,
    request: &Request,
    (limit, deadline): (Duration, Instant),
    hanging: &mut Hanging,
) -> Result<Made, TemplateError> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(CallError::on("make a socket"))?;
    let request =
        rmp_serde::to_vec(request).map_err(|_| CallError::new("encode the request", Errno::EINVAL))?;
    send(ours.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL).map_err(CallError::on("send the request"))?;
    let progress = Progress::new().map_err(CallError::on("make a memfd"))?;
    let high = |fd| sys::fd::duplicate_from(fd, sys::clone::FIRST_FREE_FD);
    let [theirs, its_progress] = [high(theirs.as_fd()), high(progress.file().as_fd())]
        .map(|fd| fd.map_err(CallError::on("duplicate a descriptor")));
    let (theirs, its_progress) = (theirs?, its_progress?);
    let null = Null::open().map_err(CallError::on("open /dev/null"))?;
    let child = sys::clone::spawn(&sys::clone::Spawn {
        program,
        argv: &[c"nomad-driver-exec2", c"template"],
        namespaces: 0,
        cgroup: None,
        fds: &[theirs.as_fd(), its_progress.as_fd()],
        first_fd: fds::FIRST,
        stdio: Some(null.stdio()),
        report: theirs.as_fd(),
    })
    .map_err(CallError::on("start a process"))?;
    drop(theirs);
    let received = receive(&ours, &progress, limit, deadline);
    hanging.end(child.pidfd);
    received
}

/// Takes what the process makes as it comes.
fn receive(
    socket: &OwnedFd,
    progress: &Progress,
    limit: Duration,
    deadline: Instant,
) -> Result<Made, TemplateError> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut made = Made::default();
    loop {
        wait_for_message(socket, progress, limit, deadline)?;
        let (length, passed) =
            sys::fd::receive(socket.as_fd(), &mut bytes).map_err(CallError::on("read a message"))?;
        if length == 0 {
            return Err(TemplateError::Ended);
        }
        let fd = passed.into_iter().next();
        // A child that could not exec sends its errno.
        if let Ok(errno) = <[u8; 4]>::try_from(&bytes[..length]) {
            let errno = Errno::from_raw(i32::from_ne_bytes(errno));
            return Err(CallError::new("execute this program", errno).into());
        }
        match rmp_serde::from_slice(&bytes[..length])
            .map_err(|error| TemplateError::Failed(error.to_string()))?
        {
            Report::Empty => made.empty = fd,
            Report::Changes => made.changes = fd,
            Report::Template { layout, identity } => {
                let namespace = fd.ok_or(TemplateError::Ended)?;
                made.template = Some(Template { namespace, layout, identity, skipped: Vec::new() });
            }
            Report::Done { warning } => return Ok(Made { warning, ..made }),
            Report::Failed(reason) => return Err(TemplateError::Failed(reason)),
        }
    }
}

/// An error if the process looks at one path for longer than the limit.
fn wait_for_message(
    socket: &OwnedFd,
    progress: &Progress,
    limit: Duration,
    deadline: Instant,
) -> Result<(), TemplateError> {
    let mut last = progress.last();
    let mut until = Instant::now() + limit;
    loop {
        let next = deadline.min(until).min(Instant::now() + limit / 4);
        if sys::poll::readable(socket, next).map_err(CallError::on("wait for a message"))? {
            return Ok(());
        }
        let now = progress.last();
        if next == deadline || next == until && now == last {
            let path = now.map_or_else(|| PathBuf::from("/"), |(_, path)| path);
            return Err(TemplateError::Silent(path));
        }
        if now != last {
            last = now;
            until = Instant::now() + limit;
        }
    }
}
