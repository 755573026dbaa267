//! A started task: its identity, its processes, its end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use super::end::{self, End, EndSender, Ended};
use super::events::{Event, EventBus};
use super::exec::{ExecError, SESSIONS_PER_TASK, Target};
use super::id::TaskId;
use super::oom::OomLedger;
use super::processes::{Launched, Processes};
use super::signal::SignalNumber;
use crate::cgroup::{Cgroup, OomCounts, Owner};
use crate::record::handle::DriverState;
use crate::record::identity::{Identity, boot_id};
use crate::record::run_dir::{RunDir, RunDirError};
use crate::sys::{self, CallError};

/// How long a killed task may take to be gone. Only a process in an uninterruptible wait (a dead disk, NFS)
/// delays SIGKILL; the caller then gets an error instead of waiting forever.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How long to wait for the end of a task whose cgroup is empty or gone: if it is not just ending, its
/// processes have been moved to another cgroup and have to be killed another way.
const ELSEWHERE_LIMIT: Duration = Duration::from_secs(1);

/// How long a cgroup may count processes after the task's last one is gone. Since Linux 6.19 the kernel counts a process
/// out a moment after its end can be waited for, and it may hold a notification back for 10 ms. A process that
/// is in the cgroup after that is not the task's: another program put it there.
const EMPTY_LIMIT: Duration = Duration::from_millis(200);

/// A started task. Cheap to share; every method may be called at any time, by several callers at once.
///
/// Descriptors of the plugin for each: pidfds of shim and leader and the cgroup's directory; until its end also the
/// cgroup's `memory.events`.
#[derive(Debug)]
pub struct Task {
    pub id: TaskId,
    pub started_at: SystemTime,
    /// The task's first process, which leads its session and process group. Its PID is the host's. None: it ended before it
    /// could be identified.
    pub process: Option<Identity>,
    pub cgroup: Option<Arc<Cgroup>>,
    shim_id: Identity,
    /// pidfds; none for a process that had ended before this plugin looked.
    shim: Option<AsyncFd<OwnedFd>>,
    leader: Option<OwnedFd>,
    run_dir: RunDir,
    oom: OomLedger,
    sessions: Arc<Semaphore>,
    end: End,
}

/// Why an operation on a task failed.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("failed to send {signal} to the task: {}", .errno.desc())]
    Signal { signal: SignalNumber, errno: Errno },
    #[error("failed to send {0} to the task: its first process has ended, and the rest of it is about to")]
    NoLeader(SignalNumber),
    #[error("failed to kill the task: {}", .0.desc())]
    Kill(Errno),
    #[error(
        "the task was killed {KILL_LIMIT:?} ago and is not gone yet; a process of it hangs in the kernel"
    )]
    Hangs,
    #[error(transparent)]
    System(#[from] CallError),
}

impl Task {
    /// Takes over a task that was just started or recovered, and watches for its end.
    ///
    /// # Errors
    /// Its end cannot be watched for; the task runs, and is given back.
    pub fn adopt(
        id: TaskId,
        mut launched: Launched,
        bus: &EventBus,
    ) -> Result<Arc<Self>, (TaskError, Box<Launched>)> {
        let shim = match sys::async_fd::register(launched.processes.shim, Interest::READABLE) {
            Ok(shim) => shim,
            Err((shim, error)) => {
                launched.processes.shim = shim;
                return Err((CallError::new("watch the shim", error).into(), Box::new(launched)));
            }
        };
        let Processes { shim: _, shim_id, leader, leader_id } = launched.processes;
        let Launched { processes: _, cgroup, run_dir, started_at, oom_before } = launched;
        let cgroup = cgroup.map(Arc::new);
        let oom = OomLedger::new(id.clone(), cgroup.clone(), run_dir.clone(), leader_id, oom_before);
        let (publish, end) = End::unknown();
        let this = Arc::new(Self {
            id,
            started_at,
            process: leader_id,
            cgroup,
            shim_id,
            shim: Some(shim),
            leader,
            run_dir,
            oom,
            sessions: Arc::new(Semaphore::new(SESSIONS_PER_TASK)),
            end,
        });
        if let Some(events) = this.oom.events() {
            let (this, bus) = (Arc::clone(&this), bus.clone());
            tokio::spawn(async move { this.oom.watch(events, this.end.clone(), bus).await });
        }
        tokio::spawn(watch_end(Arc::clone(&this), publish));
        Ok(this)
    }

    /// A task that had ended before this plugin looked.
    pub(crate) fn already_ended(
        id: TaskId,
        state: &DriverState,
        run_dir: RunDir,
        cgroup: Option<Cgroup>,
    ) -> Arc<Self> {
        let cgroup = cgroup.map(Arc::new);
        let before = OomCounts { oom_kill: state.oom_kills_before, ..OomCounts::default() };
        let oom = OomLedger::new(id.clone(), cgroup.clone(), run_dir.clone(), state.task, before);
        let ended = oom.judge(Ended::read(&run_dir, None));
        Arc::new(Self {
            id,
            started_at: state.started_at(),
            process: state.task,
            cgroup,
            shim_id: state.shim,
            shim: None,
            leader: None,
            run_dir,
            oom,
            sessions: Arc::new(Semaphore::new(0)),
            end: End::known(ended),
        })
    }

    /// Reports the OOM kills of a task that ended before this plugin looked.
    pub(crate) fn report_late(&self, bus: &EventBus) {
        self.oom.report_late(bus);
    }

    /// Records that the answer to Nomad's StartTask is on its way.
    pub(crate) fn answered(&self) -> Result<(), RunDirError> {
        self.run_dir.started()
    }

    /// Whether Nomad has not acknowledged the task since it was answered.
    pub(crate) fn is_unacknowledged(&self) -> bool {
        self.run_dir.answered().is_some()
    }

    /// Records that Nomad has asked for the task, which acknowledges it. An error is harmless: at worst the next plugin waits for
    /// Nomad to ask again.
    pub(crate) fn acknowledge(&self) {
        if let Err(error) = self.run_dir.acknowledged() {
            tracing::debug!(task = %self.id, %error, "failed to record the acknowledgement of the task");
        }
    }

    /// The state that Nomad keeps for RecoverTask.
    pub(crate) fn state(&self) -> std::io::Result<DriverState> {
        let age = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(DriverState {
            boot_id: boot_id()?,
            shim: self.shim_id,
            task: self.process,
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
            started_at_us: u64::try_from(age.as_micros()).unwrap_or(u64::MAX),
            oom_kills_before: self.oom.kills_before(),
            uid: None,
        })
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.end.get()
    }

    /// Waits for its end; at once if it has ended.
    pub async fn wait(&self) -> Ended {
        self.end.wait().await
    }

    /// Signals the task's process group. Does nothing for a task that has ended.
    pub fn signal(&self, signal: SignalNumber) -> Result<(), TaskError> {
        if self.ended().is_some() {
            return Ok(());
        }
        let leader = self.leader.as_ref().ok_or(TaskError::NoLeader(signal))?.as_fd();
        let number = signal.get();
        let sent = match sys::pidfd::signal_group(leader, number) {
            // Before Linux 6.9. The PID cannot be reused until the leader is reaped; the signal 0 checks that it is not, and the
            // shim reaps it only before its own end.
            Err(Errno::EINVAL) => match (self.process, sys::pidfd::signal(leader, 0)) {
                (Some(process), Ok(())) => sys::pidfd::signal_group_by_number(process.pid, number),
                (None, Ok(())) | (_, Err(Errno::ESRCH)) => Ok(()),
                (_, Err(errno)) => Err(errno),
            },
            sent => sent,
        };
        match sent {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(TaskError::Signal { signal, errno }),
        }
    }

    /// Signals the task, gives it `grace` to end, then kills all of it. Returns when the last process is gone, and its
    /// cgroup is empty.
    pub async fn stop(
        &self,
        signal: SignalNumber,
        grace: Duration,
        bus: &EventBus,
    ) -> Result<Ended, TaskError> {
        match self.signal(signal) {
            // Without its first process the task is about to end: killing its shim now could lose the exit status.
            Ok(()) | Err(TaskError::NoLeader(_)) => {
                if let Ok(ended) = timeout(grace, self.wait()).await {
                    self.emptied().await;
                    return Ok(ended);
                }
            }
            // A task that cannot be signalled is killed: StopTask must end it.
            Err(error) => tracing::warn!(task = %self.id, %error, "killing the task at once"),
        }
        bus.send(&self.id, Event::Killed { signal, grace });
        self.kill().await
    }

    /// Kills every process of the task, and waits until they are gone and its cgroup is empty.
    pub(crate) async fn kill(&self) -> Result<Ended, TaskError> {
        let ended = self.kill_processes().await?;
        self.emptied().await;
        Ok(ended)
    }

    /// Waits until the cgroup of a task that has ended is empty, so that it can be removed. A process that
    /// another program put there is killed, too.
    async fn emptied(&self) {
        let Some(cgroup) = &self.cgroup else { return };
        let within = |limit| cgroup.wait_empty(Some(Instant::now() + limit));
        let emptied = match within(EMPTY_LIMIT).await {
            Ok(false) => {
                tracing::warn!(task = %self.id, "killing processes that another program put into the task's cgroup");
                match cgroup.kill() {
                    Ok(()) => within(KILL_LIMIT).await,
                    Err(error) => Err(error),
                }
            }
            first => first,
        };
        match emptied {
            Ok(true) => {}
            Ok(false) => tracing::error!(task = %self.id, "failed to empty the task's cgroup"),
            Err(error) => {
                tracing::warn!(task = %self.id, %error, "failed to check whether the task's cgroup is empty")
            }
        }
    }

    async fn kill_processes(&self) -> Result<Ended, TaskError> {
        if let Some(ended) = self.ended() {
            return Ok(ended);
        }
        self.oom.plugin_kills();
        let deadline = Instant::now() + KILL_LIMIT;
        if let Some(cgroup) = &self.cgroup {
            let limit =
                if matches!(cgroup.populated(), Ok(false)) { ELSEWHERE_LIMIT } else { KILL_LIMIT / 2 };
            match cgroup.kill() {
                Ok(()) => match timeout(limit, self.wait()).await {
                    Ok(ended) => return Ok(ended),
                    Err(_) => tracing::warn!(
                        task = %self.id,
                        "cgroup.kill did not end the task; killing its pid namespace"
                    ),
                },
                Err(error) => {
                    tracing::warn!(task = %self.id, %error, "killing the task's pid namespace instead of its cgroup")
                }
            }
        }
        // Without a cgroup: the kernel kills everything in the pid namespace of which the shim is pid 1.
        let shim = self.shim.as_ref().map(|shim| shim.get_ref().as_fd());
        match shim.map(|shim| sys::pidfd::signal(shim, libc::SIGKILL)) {
            None | Some(Ok(()) | Err(Errno::ESRCH)) => {}
            Some(Err(errno)) => return Err(TaskError::Kill(errno)),
        }
        timeout_at(deadline, self.wait()).await.map_err(|_| TaskError::Hangs)
    }

    /// What a session in it needs.
    pub(crate) fn target(&self) -> Result<Target, ExecError> {
        let shim = self.shim.as_ref().filter(|_| self.ended().is_none()).ok_or(ExecError::Ended)?;
        let turn = Arc::clone(&self.sessions).try_acquire_owned().map_err(|_| ExecError::TooMany)?;
        let shim = shim.get_ref().try_clone().map_err(CallError::on("duplicate a descriptor"))?;
        let (run_dir, cgroup) = (self.run_dir.clone(), self.cgroup.clone());
        Ok(Target { shim, run_dir, cgroup, owner: Owner::Plugin, turn: Some(turn) })
    }

    /// Removes the run directory of the task.
    pub fn forget(&self) -> Result<(), RunDirError> {
        self.run_dir.remove()
    }
}

/// Waits for the shim, which ends last of all, reaps it if it is our child, and publishes how the task ended.
async fn watch_end(task: Arc<Task>, publish: EndSender) {
    let Some(shim) = &task.shim else { return };
    end::shim_ended(&task.id, shim).await;
    // ECHILD: an earlier plugin started it, and init reaps it.
    let _ = waitid(Id::PIDFd(shim.get_ref().as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    end::readable(&task.id, &task.run_dir).await;
    let ended = end::or_lost(&task.id, || task.oom.judge(Ended::read(&task.run_dir, task.leader.as_ref())));
    tracing::info!(
        task = %task.id,
        code = ended.exit.code,
        signal = ended.exit.signal,
        verdict = ?ended.verdict,
        // Since the shim's wait(2) for it returned.
        reported_after = ?ended.exit.at.elapsed().unwrap_or_default(),
        "task ended"
    );
    publish.publish(ended);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::FakeProcess;
    use crate::shim::exit::Exit;

    /// A task without a cgroup, with other processes in place of shim and leader.
    struct Stand {
        task: Arc<Task>,
        shim: FakeProcess,
        leader: FakeProcess,
        exit: std::fs::File,
        _dir: tempfile::TempDir,
    }

    impl Stand {
        fn new(leader_known: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let id = TaskId::new("a/t/1", "a", "t").unwrap();
            let run_dir = RunDir::of(&dir.path().join("run"), id.key());
            let exit = run_dir.create().unwrap();
            let (shim, leader) = (FakeProcess::new(), FakeProcess::new());
            let pidfd = |process: &FakeProcess| process.identity.open().unwrap().unwrap();
            let processes = Processes {
                shim: pidfd(&shim),
                shim_id: shim.identity,
                leader: leader_known.then(|| pidfd(&leader)),
                leader_id: Some(leader.identity),
            };
            let (started_at, oom_before) = (SystemTime::now(), OomCounts::default());
            let launched = Launched { processes, cgroup: None, run_dir, started_at, oom_before };
            let task = Task::adopt(id, launched, &EventBus::default()).unwrap();
            Self { task, shim, leader, exit, _dir: dir }
        }

        /// SIGKILL for the leader, of which the shim tells.
        async fn end(&mut self, oom_kills: u64) -> Ended {
            self.leader.kill();
            Exit { oom_kills, ..Exit::signalled(libc::SIGKILL) }.write(&self.exit).unwrap();
            self.shim.kill();
            self.task.wait().await
        }
    }

    #[tokio::test]
    async fn the_end_has_the_verdict_of_the_oom_ledger() {
        let ended = Stand::new(true).end(1).await;
        assert_eq!((ended.exit.code, ended.is_oom_killed()), (137, true));
        let ended = Stand::new(true).end(0).await;
        assert_eq!((ended.exit.code, ended.is_oom_killed()), (137, false));
    }

    #[tokio::test]
    async fn a_signal_that_reaches_nobody_is_an_error_and_a_stop_waits_for_the_end() {
        let mut stand = Stand::new(false);
        let error = stand.task.signal(SignalNumber::SIGINT).unwrap_err();
        assert!(error.to_string().starts_with("failed to send SIGINT"), "{error}");
        let grace = Duration::from_secs(20);
        let bus = EventBus::default();
        let stop = stand.task.stop(SignalNumber::SIGINT, grace, &bus);
        let mut stop = std::pin::pin!(stop);
        assert!(timeout(Duration::from_millis(100), &mut stop).await.is_err(), "killed at once");
        Exit::exited(7).write(&stand.exit).unwrap();
        stand.shim.kill();
        assert_eq!(stop.await.unwrap().exit.code, 7);
        // A task that has ended needs no signal.
        stand.task.signal(SignalNumber::SIGINT).unwrap();
    }
}
