//! A task that has been started: who it is, how to reach it, how it ended.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::launch::Launched;
use super::notice::{Notices, What};
use super::signal::SignalNumber;
use crate::cgroup::{Cgroup, OomCounts, OomWatch};
use crate::record::handle::DriverState;
use crate::record::identity::{Identity, boot_id, is_dying};
use crate::record::run_dir::{RunDir, RunDirError};
use crate::shim::exit::Exit;
use crate::sys;

/// How long a killed task may take to be gone. SIGKILL cannot be held back but by a process in an uninterruptible wait
/// (a dead disk, NFS); whoever asked gets an error then instead of waiting for ever.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How long to wait for the end of a task whose cgroup is empty or gone: if it is not just ending, somebody has moved its
/// processes elsewhere, and they have to be killed another way.
const ELSEWHERE_LIMIT: Duration = Duration::from_secs(1);

/// How long a cgroup may count processes after the last of the task's is gone. Since Linux 6.19 the kernel counts a process
/// out a moment after its end can be waited for, and it may hold a notification back for 10 ms. Whoever is in the cgroup
/// after that is none of the task's: somebody else put it there.
const EMPTY_LIMIT: Duration = Duration::from_millis(200);

/// How long after an OOM kill was counted a task that was killed by it is certainly on its way out: the kernel counts first
/// and sends SIGKILL then, and on a busy host whoever does so may lose the CPU in between.
const OOM_AFTERMATH: Duration = Duration::from_secs(1);

/// The shortest time between two notices of OOM kills of one task: one whose children are killed in a loop must not push
/// what Nomad keeps of its events out. What comes between is counted in the next.
const OOM_PAUSE: Duration = Duration::from_secs(10);

/// How long `memory.events` is not looked at after a look that found no new OOM kill. The kernel changes the file up to 100
/// times a second while a task reclaims at its limit, which a task whose page cache has filled the limit always does. A kill that
/// ends the task is counted by its shim, so only the news of a child's kill come later by this.
const OOM_REST: Duration = Duration::from_millis(250);

/// Time between two looks at a shim whose pidfd cannot be waited for.
const SHIM_PAUSE: Duration = Duration::from_millis(100);

/// Time between two tries of reading an exit status for which the plugin lacks a descriptor or memory.
const READ_PAUSE: Duration = Duration::from_millis(100);

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub exit: Exit,
    /// SIGKILL ended the task, and it was the kernel's, for want of memory.
    pub oom_killed: bool,
    /// Nobody could say how the task ended: its shim was killed, or could not write it. `exit` is then what the end of a
    /// shim does to a task.
    pub lost: bool,
}

impl Ended {
    /// The end of a shim is the end of its task, by SIGKILL.
    fn lost() -> Self {
        Self { exit: Exit::signalled(libc::SIGKILL), oom_killed: false, lost: true }
    }
}

/// A started task. Cheap to share; every method may be called at any time, by several callers at once.
///
/// Descriptors of the plugin for each: pidfds of shim and leader and the cgroup's directory; until its end also the
/// cgroup's `memory.events`.
#[derive(Debug)]
pub struct Task {
    pub id: String,
    pub alloc_id: String,
    pub name: String,
    pub started_at: SystemTime,
    /// The task's first process, which leads its session and process group. Its pid is the host's. None: it had ended
    /// before anybody could look.
    pub process: Option<Identity>,
    pub cgroup: Option<Cgroup>,
    shim_id: Identity,
    /// pidfds; none for a process that had ended before this plugin looked.
    shim: Option<AsyncFd<OwnedFd>>,
    leader: Option<OwnedFd>,
    run_dir: RunDir,
    oom_before: OomCounts,
    /// OOM kills of the task's processes, from its start: that have been seen, and that its first process has outlived.
    oom_kills: AtomicU64,
    oom_outlived: AtomicU64,
    /// Whether it was this plugin that sent SIGKILL.
    killed: AtomicBool,
    ended: watch::Receiver<Option<Ended>>,
}

/// What could not be done to a task.
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
    #[error("failed to {step}: {error}")]
    System { step: &'static str, error: std::io::Error },
}

/// What [`Task`] is made of beside the processes.
#[derive(Debug)]
pub struct Names {
    pub id: String,
    pub alloc_id: String,
    pub name: String,
}

impl Task {
    /// Takes over a task that was just started or found again, and watches for its end.
    ///
    /// # Errors
    /// Its end cannot be watched for; the task runs, and is given back.
    pub fn adopt(
        names: Names,
        launched: Launched,
        notices: &Notices,
    ) -> Result<Arc<Self>, (TaskError, Box<Launched>)> {
        let Launched { shim, task, shim_id, task_id, cgroup, run_dir, started_at, oom_before } = launched;
        let shim = match sys::async_fd::register(shim, Interest::READABLE) {
            Ok(shim) => shim,
            Err((shim, error)) => {
                let launched =
                    Launched { shim, task, shim_id, task_id, cgroup, run_dir, started_at, oom_before };
                return Err((TaskError::System { step: "watch the shim", error }, Box::new(launched)));
            }
        };
        let outlived = run_dir.outlived();
        let oom_events = cgroup.as_ref().and_then(|cgroup| oom_events(cgroup, &names.id));
        let (end, ended) = watch::channel(None);
        let this = Arc::new(Self {
            id: names.id,
            alloc_id: names.alloc_id,
            name: names.name,
            started_at,
            process: task_id,
            cgroup,
            shim_id,
            shim: Some(shim),
            leader: task,
            run_dir,
            oom_before,
            oom_kills: AtomicU64::new(outlived),
            oom_outlived: AtomicU64::new(outlived),
            killed: AtomicBool::new(false),
            ended,
        });
        if let Some(events) = oom_events {
            tokio::spawn(watch_oom(Arc::clone(&this), events, notices.clone()));
        }
        tokio::spawn(watch_end(Arc::clone(&this), end));
        Ok(this)
    }

    /// A task that had ended before this plugin looked.
    pub fn already_ended(
        names: Names,
        state: &DriverState,
        run_dir: RunDir,
        cgroup: Option<Cgroup>,
        ended: Ended,
    ) -> Arc<Self> {
        let outlived = run_dir.outlived();
        Arc::new(Self {
            id: names.id,
            alloc_id: names.alloc_id,
            name: names.name,
            started_at: state.started_at(),
            process: state.task,
            cgroup,
            shim_id: state.shim,
            shim: None,
            leader: None,
            run_dir,
            oom_before: OomCounts { oom_kill: state.oom_kills_before, ..OomCounts::default() },
            oom_kills: AtomicU64::new(ended.exit.oom_kills),
            oom_outlived: AtomicU64::new(outlived),
            killed: AtomicBool::new(false),
            ended: watch::channel(Some(ended)).1,
        })
    }

    /// Tells of the OOM kills of a task that ended before this plugin looked.
    pub fn tell_late(&self, notices: &Notices) {
        tell_oom(self, &mut self.oom_outlived.load(Ordering::Relaxed), notices);
    }

    /// Notes that Nomad is about to learn of the task.
    pub fn started(&self) -> Result<(), RunDirError> {
        self.run_dir.started()
    }

    /// Whether Nomad was told that the task runs, and has not shown since that it knows.
    pub fn is_unconfirmed(&self) -> bool {
        self.run_dir.answered().is_some()
    }

    /// Notes that Nomad has asked for the task, and so knows of it. An error costs nothing: at worst the next plugin waits for
    /// Nomad to ask again.
    pub fn confirmed(&self) {
        if let Err(error) = self.run_dir.confirmed() {
            tracing::debug!(task = self.id, %error, "failed to note that Nomad knows of the task");
        }
    }

    /// What Nomad keeps for RecoverTask.
    pub fn state(&self) -> std::io::Result<DriverState> {
        let age = self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(DriverState {
            boot_id: boot_id()?,
            shim: self.shim_id,
            task: self.process,
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned()),
            started_at_us: age.as_micros() as u64,
            oom_kills_before: self.oom_before.oom_kill,
            uid: None,
        })
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// Waits for its end; at once if it has ended.
    pub async fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        loop {
            if let Some(ended) = *ended.borrow_and_update() {
                return ended;
            }
            if ended.changed().await.is_err() {
                // The watcher is gone with the runtime: the process is about to exit.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Signals the task's process group. A task that has ended has nobody to signal.
    pub fn signal(&self, signal: SignalNumber) -> Result<(), TaskError> {
        if self.ended().is_some() {
            return Ok(());
        }
        let leader = self.leader.as_ref().ok_or(TaskError::NoLeader(signal))?.as_fd();
        let number = signal.get();
        let sent = match sys::pidfd::signal_group(leader, number) {
            // Before Linux 6.9. The pid cannot have been used again while the leader, dead or alive, is not reaped; that it
            // is there is asked first, and the shim reaps it only to end itself.
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
        notices: &Notices,
    ) -> Result<Ended, TaskError> {
        match self.signal(signal) {
            // Without its first process the task is about to end: to kill its shim now could cost the exit status.
            Ok(()) | Err(TaskError::NoLeader(_)) => {
                if let Ok(ended) = timeout(grace, self.wait()).await {
                    self.emptied().await;
                    return Ok(ended);
                }
            }
            // Whoever stops a task wants it gone.
            Err(error) => tracing::warn!(task = self.id, %error, "killing the task at once"),
        }
        notices.about(self, What::Killed { signal, grace });
        self.kill().await
    }

    /// Kills every process of the task, and waits until they are gone and its cgroup is empty.
    pub async fn kill(&self) -> Result<Ended, TaskError> {
        let ended = self.kill_processes().await?;
        self.emptied().await;
        Ok(ended)
    }

    /// Waits until the cgroup of a task that has ended counts nobody any more, so that it can be removed. A process that
    /// somebody else put there is killed, too.
    async fn emptied(&self) {
        let Some(cgroup) = &self.cgroup else { return };
        let within = |limit| cgroup.wait_empty(Some(Instant::now() + limit));
        let emptied = match within(EMPTY_LIMIT).await {
            Ok(false) => {
                tracing::warn!(task = self.id, "killing what others have put into the task's cgroup");
                match cgroup.kill() {
                    Ok(()) => within(KILL_LIMIT).await,
                    Err(error) => Err(error),
                }
            }
            first => first,
        };
        match emptied {
            Ok(true) => {}
            Ok(false) => tracing::error!(task = self.id, "the task's cgroup is still not empty"),
            Err(error) => {
                tracing::warn!(task = self.id, %error, "cannot tell whether the task's cgroup is empty")
            }
        }
    }

    async fn kill_processes(&self) -> Result<Ended, TaskError> {
        if let Some(ended) = self.ended() {
            return Ok(ended);
        }
        self.killed.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + KILL_LIMIT;
        if let Some(cgroup) = &self.cgroup {
            let limit =
                if matches!(cgroup.populated(), Ok(false)) { ELSEWHERE_LIMIT } else { KILL_LIMIT / 2 };
            match cgroup.kill() {
                Ok(()) => match timeout(limit, self.wait()).await {
                    Ok(ended) => return Ok(ended),
                    Err(_) => tracing::warn!(
                        task = self.id,
                        "cgroup.kill did not end the task; killing its pid namespace"
                    ),
                },
                Err(error) => {
                    tracing::warn!(task = self.id, %error, "killing the task's pid namespace instead of its cgroup")
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

    /// Takes note of the OOM kills of a cgroup.
    fn see_oom(&self, counts: OomCounts) -> u64 {
        let kills = counts.oom_kill.saturating_sub(self.oom_before.oom_kill);
        self.oom_kills.fetch_max(kills, Ordering::Relaxed).max(kills)
    }

    /// Finds out whether the task goes on after so many OOM kills: then they were of children, and are not behind its end.
    async fn outlive(&self, kills: u64) {
        if kills <= self.oom_outlived.load(Ordering::Relaxed) {
            return;
        }
        let ended = timeout(OOM_AFTERMATH, self.wait()).await.is_ok();
        if ended || self.process.is_none_or(|process| is_dying(process.pid)) {
            return;
        }
        self.oom_outlived.store(kills, Ordering::Relaxed);
        if let Err(error) = self.run_dir.outlives(kills) {
            tracing::warn!(task = self.id, %error, "a plugin after this one will tell of the same OOM kills again");
        }
    }

    /// Removes what the driver keeps of the task outside of memory.
    pub fn forget(&self) -> Result<(), RunDirError> {
        self.run_dir.remove()
    }
}

/// The cgroup's OOM counters, where it has them. A task is not given up for want of them: its end is still told rightly.
fn oom_events(cgroup: &Cgroup, task: &str) -> Option<OomWatch> {
    cgroup.watch_oom().unwrap_or_else(|error| {
        // A cgroup that is gone kills nobody any more.
        if !error.is_gone() {
            tracing::warn!(task, %error, "failed to watch for OOM kills; only those that end the task are reported");
        }
        None
    })
}

/// Waits for the shim, which ends last of all, reaps it if it is our child, and publishes how the task ended.
async fn watch_end(task: Arc<Task>, end: watch::Sender<Option<Ended>>) {
    let Some(shim) = &task.shim else { return };
    shim_ended(&task.id, shim).await;
    // ECHILD: a plugin before this one started it, and init reaps it.
    let _ = waitid(Id::PIDFd(shim.get_ref().as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    readable(&task).await;
    let mut ended = ending_or_lost(&task.id, || {
        ending(&task.run_dir, task.leader.as_ref(), task.cgroup.as_ref(), task.oom_before)
    });
    let seen = task.oom_kills.fetch_max(ended.exit.oom_kills, Ordering::Relaxed);
    ended.exit.oom_kills = ended.exit.oom_kills.max(seen);
    ended.oom_killed = !task.killed.load(Ordering::Relaxed)
        && ended.exit.is_out_of_memory(task.oom_outlived.load(Ordering::Relaxed));
    tracing::info!(
        task = task.id,
        code = ended.exit.code,
        signal = ended.exit.signal,
        oom = ended.oom_killed,
        lost = ended.lost,
        // Since the shim's wait(2) for it returned.
        told_after_us = ended.exit.at.elapsed().unwrap_or_default().as_micros() as u64,
        "task ended"
    );
    end.send_replace(Some(ended));
}

/// Returns when the shim has ended, whatever fails on the way: WaitTask must not wait for ever.
async fn shim_ended(task: &str, shim: &AsyncFd<OwnedFd>) {
    // A pidfd becomes readable when the process has ended, and stays so.
    let Err(error) = shim.readable().await.map(drop) else { return };
    tracing::error!(task, %error, "failed to wait for the shim; looking for its end every {SHIM_PAUSE:?}");
    let ended = || {
        let mut wanted = [PollFd::new(shim.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    };
    while !ended() {
        sleep(SHIM_PAUSE).await;
    }
}

/// A panic must not keep the end of the task from Nomad: then nobody knows how it ended.
fn ending_or_lost(task: &str, ending: impl FnOnce() -> Ended) -> Ended {
    catch_unwind(AssertUnwindSafe(ending)).unwrap_or_else(|_| {
        tracing::error!(task, "failed to read how the task ended: a panic, see above");
        Ended::lost()
    })
}

/// Waits until the plugin has what it takes to read the exit status. A wrong one, told at once, would be worse.
async fn readable(task: &Task) {
    let mut warned = false;
    while let Some(error) = task.run_dir.exit().err().filter(RunDirError::is_passing) {
        if !std::mem::replace(&mut warned, true) {
            tracing::warn!(task = task.id, %error, "the task has ended; its exit status is read as soon as that is possible");
        }
        sleep(READ_PAUSE).await;
    }
}

/// Tells of every OOM kill, also of a child whose parent goes on, until the task ends.
async fn watch_oom(task: Arc<Task>, mut events: OomWatch, notices: Notices) {
    let mut told = task.oom_outlived.load(Ordering::Relaxed);
    let mut seen = told;
    let mut pause = Instant::now();
    let mut next_look = Instant::now();
    loop {
        let untold = task.oom_kills.load(Ordering::Relaxed) > told;
        let look = async {
            sleep_until(next_look).await;
            events.changed().await
        };
        let changed = tokio::select! {
            changed = look => changed,
            () = sleep_until(pause), if untold => {
                tell_oom(&task, &mut told, &notices);
                pause = Instant::now() + OOM_PAUSE;
                continue;
            }
            // The kill that ended the task is told, too: one last look.
            _ = task.wait() => {
                tell_oom(&task, &mut told, &notices);
                return;
            }
        };
        match changed {
            Ok(counts) => {
                let kills = task.see_oom(counts);
                if Instant::now() >= pause && kills > told {
                    tell_oom(&task, &mut told, &notices);
                    pause = Instant::now() + OOM_PAUSE;
                }
                task.outlive(kills).await;
                if kills == std::mem::replace(&mut seen, kills) {
                    events.rest();
                    next_look = Instant::now() + OOM_REST;
                }
            }
            Err(error) if error.is_gone() => return,
            // No memory or descriptor at the moment.
            Err(error) if error.is_passing() => next_look = Instant::now() + OOM_REST,
            Err(error) => {
                tracing::warn!(task = task.id, %error, "failed to watch for OOM kills; only those that end the task are reported");
                return;
            }
        }
    }
}

fn tell_oom(task: &Task, told: &mut u64, notices: &Notices) {
    let seen = task.oom_kills.load(Ordering::Relaxed);
    if seen <= *told {
        return;
    }
    let kills = seen - std::mem::replace(told, seen);
    let limit = task.cgroup.as_ref().and_then(|cgroup| cgroup.memory_limit().ok().flatten());
    let peak = task.cgroup.as_ref().and_then(|cgroup| cgroup.stats().ok()?.memory.peak);
    notices.about(task, What::OomKill { kills, limit, peak });
}

/// What the shim wrote, or else the kernel remembers. `oom_killed` is for the caller to say. The cgroup counts, too: the
/// shim may have been killed together with the task.
pub fn ending(
    run_dir: &RunDir,
    leader: Option<&OwnedFd>,
    cgroup: Option<&Cgroup>,
    oom_before: OomCounts,
) -> Ended {
    let (mut exit, lost) = match run_dir.exit() {
        Ok(Some(exit)) => (exit, false),
        written => {
            if let Err(error) = written {
                tracing::error!(%error, "the exit status cannot be used");
            }
            // Since Linux 6.15 the kernel remembers it for whoever holds a pidfd. Without that: the end of a shim is the end
            // of the task, by SIGKILL.
            match leader.and_then(|leader| sys::pidfd::exit_status(leader.as_fd()).ok().flatten()) {
                Some(status) => (Exit::from_wait_status(status), false),
                None => (Exit::signalled(libc::SIGKILL), true),
            }
        }
    };
    let counted = cgroup.and_then(|cgroup| cgroup.oom().ok().flatten()).unwrap_or(oom_before);
    exit.oom_kills = exit.oom_kills.max(counted.oom_kill.saturating_sub(oom_before.oom_kill));
    Ended { exit, oom_killed: false, lost }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::record::key::Key;

    /// A task without a cgroup, with other processes in place of shim and leader.
    struct Stand {
        task: Arc<Task>,
        shim: Child,
        leader: Child,
        exit: std::fs::File,
        _dir: tempfile::TempDir,
    }

    impl Stand {
        fn new() -> Self {
            Self::with(true)
        }

        fn with(leader_known: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let run_dir = RunDir::of(&dir.path().join("run"), Key::new("a/t/1").unwrap());
            let exit = run_dir.create().unwrap();
            let sleep = || Command::new("sleep").arg("1000").spawn().unwrap();
            let (shim, leader) = (sleep(), sleep());
            let of = |child: &Child| {
                let identity = Identity::of(child.id() as i32).unwrap();
                (identity.open().unwrap().unwrap(), identity)
            };
            let ((shim_fd, shim_id), (task_fd, task_id)) = (of(&shim), of(&leader));
            let launched = Launched {
                shim: shim_fd,
                task: leader_known.then_some(task_fd),
                shim_id,
                task_id: Some(task_id),
                cgroup: None,
                run_dir,
                started_at: SystemTime::now(),
                oom_before: OomCounts { oom_kill: 3, oom: 5 },
            };
            let names = Names { id: "a/t/1".into(), alloc_id: "a".into(), name: "t".into() };
            let task = Task::adopt(names, launched, &Notices::default()).unwrap();
            Self { task, shim, leader, exit, _dir: dir }
        }

        async fn see(&self, oom_kill: u64) {
            let kills = self.task.see_oom(OomCounts { oom_kill, oom: 0 });
            self.task.outlive(kills).await;
        }

        /// SIGKILL for the leader, of which the shim tells.
        async fn end(&mut self, oom_kills: u64) -> Ended {
            self.leader.kill().unwrap();
            Exit { oom_kills, ..Exit::signalled(libc::SIGKILL) }.write(&self.exit).unwrap();
            self.shim.kill().unwrap();
            self.task.wait().await
        }
    }

    impl Drop for Stand {
        fn drop(&mut self) {
            for child in [&mut self.shim, &mut self.leader] {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }

    #[tokio::test]
    async fn an_oom_kill_that_the_task_outlived_is_not_behind_its_end() {
        let mut stand = Stand::new();
        stand.see(3).await;
        assert_eq!(stand.task.run_dir.outlived(), 0, "an earlier run's");
        stand.see(4).await;
        assert_eq!(stand.task.run_dir.outlived(), 1, "a child's, and the next plugin knows");
        let ended = stand.end(1).await;
        assert_eq!((ended.exit.code, ended.oom_killed), (137, false));
    }

    #[tokio::test]
    async fn an_oom_kill_of_the_task_itself_is() {
        let mut stand = Stand::new();
        stand.see(4).await;
        stand.leader.kill().unwrap();
        // Seen while it is on its way out, however long that takes.
        stand.see(5).await;
        assert_eq!(stand.task.run_dir.outlived(), 1);
        assert!(stand.end(2).await.oom_killed);
    }

    #[tokio::test]
    async fn nor_is_one_behind_the_end_of_a_task_that_this_plugin_killed() {
        let mut stand = Stand::new();
        stand.task.killed.store(true, Ordering::Relaxed);
        assert!(!stand.end(1).await.oom_killed);
    }

    #[tokio::test]
    async fn what_only_the_shim_saw_counts() {
        let mut stand = Stand::new();
        assert!(stand.end(1).await.oom_killed);
    }

    #[tokio::test]
    async fn a_signal_that_reaches_nobody_is_an_error_and_a_stop_waits_for_the_end() {
        let mut stand = Stand::with(false);
        let error = stand.task.signal(SignalNumber::SIGINT).unwrap_err();
        assert!(error.to_string().starts_with("failed to send SIGINT"), "{error}");
        let grace = Duration::from_secs(20);
        let notices = Notices::default();
        let stop = stand.task.stop(SignalNumber::SIGINT, grace, &notices);
        let mut stop = std::pin::pin!(stop);
        assert!(timeout(Duration::from_millis(100), &mut stop).await.is_err(), "killed at once");
        Exit::exited(7).write(&stand.exit).unwrap();
        stand.shim.kill().unwrap();
        assert_eq!(stop.await.unwrap().exit.code, 7);
        // A task that has ended needs no signal.
        stand.task.signal(SignalNumber::SIGINT).unwrap();
    }

    #[test]
    fn a_panic_at_the_end_is_an_end_of_which_nothing_is_known() {
        let ended = ending_or_lost("a/t/1", || panic!("on purpose"));
        assert!(ended.lost && ended.exit.code == 137, "{ended:?}");
        let known = Ended { exit: Exit::exited(7), oom_killed: false, lost: false };
        assert_eq!(ending_or_lost("a/t/1", || known), known);
    }
}
