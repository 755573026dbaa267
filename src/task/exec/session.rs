//! A session after its start, as the plugin sees it: what its helper reports.

use std::io::PipeWriter;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::wiring::register;
use super::{CANCEL_LIMIT, Ends, NotRun, START_LIMIT};
use crate::shim::report::{self, Failure, Received, SessionEnd, StartError};
use crate::sys::CallError;

/// A command in a task. Dropping it kills all that the command has started.
#[derive(Debug)]
pub(crate) struct Session {
    report: AsyncFd<OwnedFd>,
    /// The helper sees its end.
    alive: Option<PipeWriter>,
    ends: Ends,
    terminal: Option<OwnedFd>,
    failure: Option<Failure>,
    /// Whether the command has been executed, or at least that was about to be tried.
    ran: bool,
}

impl Session {
    /// Of a helper that has `alive`'s other end.
    pub(super) fn new(report: AsyncFd<OwnedFd>, alive: PipeWriter, ends: Ends) -> Self {
        Self { report, alive: Some(alive), ends, terminal: None, failure: None, ran: false }
    }

    /// The pipes to the command.
    pub(crate) fn take_ends(&mut self) -> Ends {
        std::mem::take(&mut self.ends)
    }

    /// Returns when the command runs; with the master of its terminal, if it has one.
    pub(crate) async fn started(&mut self) -> Result<Option<AsyncFd<OwnedFd>>, NotRun> {
        let running = async {
            while !self.ran {
                if let Some(end) = self.next().await? {
                    return Err(self.not_run(end));
                }
            }
            Ok(())
        };
        timeout(START_LIMIT, running).await.unwrap_or(Err(NotRun::TimedOut))?;
        let both = Interest::READABLE | Interest::WRITABLE;
        let lost = |error: CallError| NotRun::Helper(StartError::Socket(error.errno));
        self.terminal.take().map(|master| register(master, both).map_err(lost)).transpose()
    }

    /// Returns when nothing is left of the command. May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> Result<SessionEnd, NotRun> {
        loop {
            if let Some(end) = self.next().await? {
                return if self.failure.is_some() || !self.ran { Err(self.not_run(end)) } else { Ok(end) };
            }
        }
    }

    /// Kills the command, and waits until nothing is left of it.
    pub(crate) async fn cancel(mut self) {
        self.alive = None;
        let gone = async { while matches!(self.next().await, Ok(None)) {} };
        let _ = timeout(CANCEL_LIMIT, gone).await;
    }

    fn not_run(&mut self, end: SessionEnd) -> NotRun {
        match self.failure.take() {
            Some(failure) => NotRun::Failed(failure),
            None if end.status & 0x7f != 0 => NotRun::Killed,
            None => NotRun::Lost,
        }
    }

    /// Takes note of the next message; the end of the command if it is that.
    async fn next(&mut self) -> Result<Option<SessionEnd>, NotRun> {
        loop {
            let mut ready = self.report.readable().await.map_err(|_| NotRun::Lost)?;
            match report::receive(self.report.get_ref().as_fd()) {
                Err(StartError::Socket(Errno::EAGAIN)) => ready.clear_ready(),
                Err(error) => return Err(NotRun::Helper(error)),
                Ok(Received::ShimExec(errno)) => return Err(NotRun::Helper(StartError::ShimExec(errno))),
                Ok(Received::End) => return Err(self.failure.take().map_or(NotRun::Lost, NotRun::Failed)),
                Ok(Received::Ended(end)) => return Ok(Some(end)),
                Ok(Received::Failed(failure)) => self.failure = Some(failure),
                Ok(Received::Terminal(master)) => self.terminal = Some(master),
                Ok(Received::Exec) => {
                    self.ran = true;
                    return Ok(None);
                }
                Ok(Received::Nothing | Received::Task(_)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::time::Duration;

    use super::*;
    use crate::shim::report::Step;

    /// A session whose helper is this test, and the helper's end of the report socket and of the pipe.
    fn session() -> (Session, report::Reporter, std::io::PipeReader) {
        let (receiver, theirs) = report::pair().unwrap();
        let (watched, alive) = pipe().unwrap();
        let report = register(receiver.into_nonblocking().unwrap(), Interest::READABLE).unwrap();
        let session = Session::new(report, alive, Ends::default());
        (session, report::Reporter::new(theirs), watched)
    }

    fn end(status: i32) -> SessionEnd {
        SessionEnd { status, oom_killed: false }
    }

    #[tokio::test]
    async fn a_command_runs_from_its_announcement_to_its_end() {
        let (mut session, helper, _watched) = session();
        helper.about_to_exec().unwrap();
        assert!(session.started().await.unwrap().is_none());
        let early = timeout(Duration::from_millis(20), session.ended()).await;
        assert!(early.is_err(), "{early:?}");
        helper.ended(end(7 << 8)).unwrap();
        assert_eq!(session.ended().await.unwrap(), end(7 << 8));
    }

    #[tokio::test]
    async fn a_failed_exec_overrides_its_announcement() {
        let (mut session, helper, _watched) = session();
        helper.about_to_exec().unwrap();
        helper.failed(Failure::new(Step::Exec, "/x", Errno::ENOENT));
        helper.ended(end(127 << 8)).unwrap();
        session.started().await.unwrap();
        assert!(matches!(session.ended().await, Err(NotRun::Failed(failure)) if failure.subject == "/x"));
    }

    #[tokio::test]
    async fn a_command_that_is_killed_before_it_runs_did_not_run() {
        let (mut session, helper, _watched) = session();
        helper.ended(end(9)).unwrap();
        assert!(matches!(session.started().await, Err(NotRun::Killed)));
        let (mut session, helper, _watched) = self::session();
        drop(helper);
        assert!(matches!(session.started().await, Err(NotRun::Lost)));
    }

    #[tokio::test]
    async fn the_helper_sees_that_a_session_is_cancelled_or_dropped() {
        use std::io::Read;
        let (session, helper, mut watched) = session();
        let waits = std::thread::spawn(move || {
            watched.read_exact(&mut [0]).unwrap_err();
            helper.ended(end(9)).unwrap();
        });
        session.cancel().await;
        waits.join().unwrap();
        let (session, _helper, mut watched) = self::session();
        drop(session);
        assert_eq!(watched.read(&mut [0]).unwrap(), 0);
    }
}
