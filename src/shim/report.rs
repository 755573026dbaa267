//! The report socket between plugin and shim. It carries the task's pidfd, or the step that failed; end of file means that exec
//! succeeded.
//!
//! A `SOCK_SEQPACKET` pair: each message arrives whole. The shim sends the task's pidfd (a descriptor means the same
//! process in every pid namespace), the task announces that it is about to exec, either sends a failure, and both close
//! their copies, the task's by exec. End of file without the announcement means that the task died before its command ran.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use serde::{Deserialize, Serialize};

use crate::sys;

/// Longest message in bytes: a step, a subject and a note, each of at most [`MAX_TEXT`].
const MAX_MESSAGE: usize = 16 * 1024;

/// Longest subject or note of a failure in bytes. A path has at most 4096 (PATH_MAX); a PATH or a command may be far longer,
/// and is cut: the failure travels in a gRPC trailer and ends in the task's events.
const MAX_TEXT: usize = MAX_MESSAGE / 4;

/// A step of the task start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Spec,
    NetworkNamespace,
    Hostname,
    Mount,
    Root,
    Volume,
    Device,
    DeviceProgram,
    Log,
    Unveil,
    Landlock,
    WorkDir,
    Record,
    Enter,
    Clone,
    CloneCommand,
    Session,
    Inherited,
    OomScoreAdj,
    OpenFiles,
    Rlimit,
    Stdio,
    Capabilities,
    User,
    NoNewPrivs,
    CloseFds,
    Seccomp,
    Exec,
}

impl Step {
    /// The step as a verb phrase, followed by its subject.
    fn phrase(self) -> &'static str {
        match self {
            Self::Spec => "read",
            Self::NetworkNamespace => "join network namespace",
            Self::Hostname => "set the host name to",
            Self::Mount => "mount",
            Self::Root => "make the task's root: mount",
            Self::Volume => "mount volume",
            Self::Device => "give the task device",
            Self::DeviceProgram => "limit the devices of cgroup",
            Self::Log => "open log",
            Self::Unveil => "unveil",
            Self::Landlock => "apply Landlock",
            Self::WorkDir => "enter working directory",
            Self::Record => "record",
            Self::Enter => "join the namespaces of",
            Self::Clone => "clone the task into",
            Self::CloneCommand => "clone the command into",
            Self::Session => "set up the session of",
            Self::Inherited => "reset the task's",
            Self::OomScoreAdj => "set oom_score_adj to",
            Self::OpenFiles => "limit open files to",
            Self::Rlimit => "set ulimit",
            Self::Stdio => "attach the task's",
            Self::Capabilities => "set capabilities",
            Self::User => "become user",
            Self::NoNewPrivs => "set no_new_privs for",
            Self::CloseFds => "close descriptors of",
            Self::Seccomp => "filter the system calls of",
            Self::Exec => "run command",
        }
    }
}

impl Step {
    /// Whether the subject is a value, which is quoted, and not a phrase.
    fn names_a_value(self) -> bool {
        !matches!(
            self,
            Self::Spec
                | Self::Record
                | Self::Enter
                | Self::Clone
                | Self::CloneCommand
                | Self::Session
                | Self::Inherited
                | Self::NoNewPrivs
                | Self::CloseFds
                | Self::Seccomp
                | Self::Stdio
        )
    }
}

/// A step that failed: `unveil "r:/srv/x": No such file or directory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub step: Step,
    /// The object of the step: a path, an unveil string, a name.
    pub subject: String,
    /// 0 when the reason is no errno.
    pub errno: i32,
    /// The reason when it is no errno, or what to do about it.
    pub note: Option<String>,
}

impl Failure {
    pub fn new(step: Step, subject: impl Into<String>, errno: Errno) -> Self {
        Self { step, subject: subject.into(), errno: errno as i32, note: None }
    }

    pub fn io(step: Step, subject: impl Into<String>, error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::new(step, subject, Errno::from_raw(errno)),
            None => Self::text(step, subject, error.to_string()),
        }
    }

    pub fn text(step: Step, subject: impl Into<String>, reason: String) -> Self {
        Self { step, subject: subject.into(), errno: 0, note: Some(reason) }
    }

    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// The same failure in as many bytes as fit into one message.
    fn cut(mut self) -> Self {
        self.subject = cut(self.subject);
        self.note = self.note.map(cut);
        self
    }

    /// The errno, if the step that failed is exec.
    pub fn exec_errno(&self) -> Option<Errno> {
        (self.step == Step::Exec && self.errno != 0).then(|| Errno::from_raw(self.errno))
    }

    /// Whether the job itself is at fault, so that a retry on this host cannot help: the
    /// kernel refuses to run its program. Every other error may be temporary.
    pub fn is_jobs_fault(&self) -> bool {
        self.step == Step::Exec
            && matches!(
                Errno::from_raw(self.errno),
                Errno::EACCES | Errno::EPERM | Errno::ENOEXEC | Errno::E2BIG | Errno::ELOOP
            )
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.step.names_a_value() {
            true => write!(f, "{} {:?}", self.step.phrase(), self.subject)?,
            false => write!(f, "{} {}", self.step.phrase(), self.subject)?,
        }
        if self.errno != 0 {
            write!(f, ": {}", Errno::from_raw(self.errno).desc())?;
        }
        match &self.note {
            Some(note) if self.errno != 0 => write!(f, " ({note})"),
            Some(note) => write!(f, ": {note}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// The text, or its beginning and its length in bytes.
fn cut(text: String) -> String {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}… ({} bytes)", &text[..end], text.len())
}

#[derive(Serialize, Deserialize)]
enum Message {
    /// Carries the task's pidfd as its one descriptor.
    Task,
    Failed(Failure),
    /// The task's next call is execve(2).
    Exec,
    /// Of a session: carries the master of its terminal.
    Terminal,
    /// Of a session: nothing of it is left.
    Ended(SessionEnd),
}

/// How the command of a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionEnd {
    /// As in wait(2).
    pub status: i32,
    /// Whether the OOM killer ended it.
    pub oom_killed: bool,
}

/// The sending end, in the shim and, until exec, in the task.
#[derive(Debug)]
pub struct Reporter(OwnedFd);

impl Reporter {
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends the task's pidfd to the plugin.
    pub fn task(&self, pidfd: BorrowedFd<'_>) -> nix::Result<()> {
        self.send_with(&Message::Task, pidfd)
    }

    /// Sends the master of a session's terminal to the process that asked for the session.
    pub(crate) fn terminal(&self, master: BorrowedFd<'_>) -> nix::Result<()> {
        self.send_with(&Message::Terminal, master)
    }

    /// Reports the end of a session.
    pub(crate) fn ended(&self, end: SessionEnd) -> nix::Result<()> {
        self.send(&Message::Ended(end))
    }

    /// From now on, reporting never waits: what does not fit into the socket's buffer is an error.
    pub(crate) fn never_wait(&self) -> nix::Result<()> {
        sys::fd::set_nonblocking(&self.0)
    }

    fn send_with(&self, message: &Message, fd: BorrowedFd<'_>) -> nix::Result<()> {
        let message = rmp_serde::to_vec(message).map_err(|_| Errno::EINVAL)?;
        sys::fd::send(self.0.as_fd(), &message, &[fd])
    }

    /// Waits until the plugin has recorded the shim's identity, and returns the descriptors that it hands over then. No task may start
    /// before that: if the plugin died, the next one could not find it. EPIPE: the plugin is dead.
    pub(crate) fn wait_for_go(&self) -> nix::Result<Vec<OwnedFd>> {
        loop {
            match sys::fd::receive(self.0.as_fd(), &mut [0; 1]) {
                Ok((0, _)) => return Err(Errno::EPIPE),
                Ok((_, given)) => return Ok(given),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Whether the process that started the shim has died: nobody reads the socket any more.
    pub fn is_abandoned(&self) -> bool {
        sys::poll::now(&mut [PollFd::new(self.0.as_fd(), PollFlags::empty())]).unwrap_or(false)
    }

    /// Announces to the plugin that the command is about to be executed.
    pub fn about_to_exec(&self) -> nix::Result<()> {
        self.send(&Message::Exec)
    }

    /// Reports to the plugin what failed. If even that fails, the plugin sees the socket end too early.
    pub fn failed(&self, failure: Failure) {
        let bare = Failure::new(failure.step, "", Errno::from_raw(failure.errno));
        if self.send(&Message::Failed(failure.cut())).is_err() {
            // Shorter, in case the kernel has no memory for the longer one.
            let _ = self.send(&Message::Failed(bare));
        }
    }

    fn send(&self, message: &Message) -> nix::Result<()> {
        let message = rmp_serde::to_vec(message).map_err(|_| Errno::EINVAL)?;
        nix::sys::socket::send(self.0.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL).map(drop)
    }
}

/// Why a task start failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("failed to start the shim: {}", .0.desc())]
    ShimExec(Errno),
    #[error("the shim ended before the task was started; it was killed or ran out of memory")]
    ShimDied,
    #[error(
        "the task was killed before its command ran; if its memory limit is a few MiB, it may be too low for the start"
    )]
    TaskDied,
    #[error("the task was not started within {0:?}; a path to unveil or the log reader does not respond")]
    TimedOut(Duration),
    #[error("failed to read the report socket: {}", .0.desc())]
    Socket(#[from] Errno),
}

/// The receiving end, in the plugin.
#[derive(Debug)]
pub struct Receiver(OwnedFd);

/// A connected pair, close-on-exec on both ends.
pub fn pair() -> nix::Result<(Receiver, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    Ok((Receiver(ours), theirs))
}

impl Receiver {
    /// Lets the shim continue, with these descriptors: its identity has been recorded. If it is dead, [`Receiver::wait`] reports why.
    pub(crate) fn go_on(&self, given: &[BorrowedFd<'_>]) -> nix::Result<()> {
        match sys::fd::send(self.0.as_fd(), b"g", given) {
            Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            sent => sent,
        }
    }

    /// Waits until the task has executed its command and returns its pidfd, or the reason for the failure.
    pub fn wait(&self, limit: Duration) -> Result<OwnedFd, StartError> {
        let deadline = Instant::now() + limit;
        let mut task = None;
        let mut exec = false;
        loop {
            if !sys::poll::readable(&self.0, deadline)? {
                return Err(StartError::TimedOut(limit));
            }
            match self.receive()? {
                Received::Task(pidfd) => task = Some(pidfd),
                Received::Failed(failure) => return Err(failure.into()),
                Received::ShimExec(errno) => return Err(StartError::ShimExec(errno)),
                Received::Exec => exec = true,
                // Only sessions send the last two.
                Received::Nothing | Received::Terminal(_) | Received::Ended(_) => {}
                Received::End if exec => return task.ok_or(StartError::ShimDied),
                Received::End => return Err(task.map_or(StartError::ShimDied, |_| StartError::TaskDied)),
            }
        }
    }

    fn receive(&self) -> Result<Received, StartError> {
        receive(self.0.as_fd())
    }

    /// The socket, non-blocking, for [`receive`].
    pub(crate) fn into_nonblocking(self) -> nix::Result<OwnedFd> {
        sys::fd::set_nonblocking(&self.0)?;
        Ok(self.0)
    }
}

/// Receives one message.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Received, StartError> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let (length, passed) = match sys::fd::receive(socket, &mut buffer) {
        Ok(received) => received,
        // The other end was closed with unread data; what it sent can still be received.
        Err(Errno::ECONNRESET) => return Ok(Received::Nothing),
        Err(errno) => return Err(errno.into()),
    };
    let message = &buffer[..length];
    let passed = passed.into_iter().next();
    // A child that could not exec the shim sends 4 bytes, which no message of ours has.
    if let Ok(errno) = <[u8; 4]>::try_from(message) {
        return Ok(Received::ShimExec(Errno::from_raw(i32::from_ne_bytes(errno))));
    }
    if message.is_empty() {
        return Ok(Received::End);
    }
    let mut reader = rmp_serde::Deserializer::new(message);
    reader.set_max_depth(super::MAX_DEPTH);
    match Message::deserialize(&mut reader) {
        Ok(Message::Task) => passed.map(Received::Task).ok_or(StartError::Socket(Errno::EBADF)),
        Ok(Message::Failed(failure)) => Ok(Received::Failed(failure)),
        Ok(Message::Exec) => Ok(Received::Exec),
        Ok(Message::Terminal) => passed.map(Received::Terminal).ok_or(StartError::Socket(Errno::EBADF)),
        Ok(Message::Ended(end)) => Ok(Received::Ended(end)),
        Err(_) => Err(StartError::Socket(Errno::EBADMSG)),
    }
}

/// What the receiving end got.
#[derive(Debug)]
pub(crate) enum Received {
    Task(OwnedFd),
    Failed(Failure),
    ShimExec(Errno),
    Exec,
    Terminal(OwnedFd),
    Ended(SessionEnd),
    Nothing,
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// What the plugin makes of what `send` sends before the socket ends.
    fn received(send: impl FnOnce(&Reporter)) -> Result<OwnedFd, StartError> {
        let (receiver, theirs) = pair().unwrap();
        let reporter = Reporter::new(theirs);
        send(&reporter);
        drop(reporter);
        receiver.wait(LIMIT)
    }

    fn task(reporter: &Reporter) {
        reporter.task(sys::pidfd::open(std::process::id() as i32).unwrap().as_fd()).unwrap();
    }

    #[test]
    fn a_task_has_started_when_it_announced_exec_and_the_socket_ended() {
        for task_first in [true, false] {
            received(|reporter| {
                if task_first {
                    task(reporter);
                }
                reporter.about_to_exec().unwrap();
                if !task_first {
                    task(reporter);
                }
            })
            .unwrap();
        }
    }

    #[test]
    fn a_task_that_died_before_exec_has_not_started() {
        assert!(matches!(received(task), Err(StartError::TaskDied)));
        assert!(matches!(received(|_| ()), Err(StartError::ShimDied)));
        assert!(matches!(received(|reporter| reporter.about_to_exec().unwrap()), Err(StartError::ShimDied)));
    }

    #[test]
    fn a_failed_exec_overrides_its_announcement() {
        let error = received(|reporter| {
            task(reporter);
            reporter.about_to_exec().unwrap();
            reporter.failed(Failure::new(Step::Exec, "/bin/x", Errno::ENOENT));
        });
        assert!(
            matches!(error, Err(StartError::Failed(failure)) if failure.exec_errno() == Some(Errno::ENOENT))
        );
    }

    #[test]
    fn a_long_failure_is_cut_and_arrives() {
        // Longer than a message, and longer than the socket's buffer (212992 bytes by default).
        for length in [20_000, 300_000] {
            let long = "ä".repeat(length);
            let failure = Failure::new(Step::Exec, &long, Errno::EACCES).with_note(&long);
            let error = received(|reporter| {
                task(reporter);
                reporter.failed(failure);
            });
            let Err(StartError::Failed(failure)) = error else { panic!("{error:?}") };
            assert_eq!((failure.step, failure.errno), (Step::Exec, Errno::EACCES as i32));
            let size = format!("… ({} bytes)", 2 * length);
            assert!(failure.subject.ends_with(&size) && failure.note.unwrap().ends_with(&size));
        }
    }
}
