//! The lifecycle of tasks: start, recover, stop, destroy, reconcile, acknowledge. Owns launcher, store, event bus and timers;
//! `driver/` translates Nomad's messages into calls of this module.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::blocking::{Starts, WorkerError, blocking};
use super::events::{Event, EventBus, Unveiled};
use super::exec::{self, ExecError, Session, Wanted};
use super::id::TaskId;
use super::launch::{LaunchError, Launcher};
use super::owners;
use super::processes::Launched;
use super::recover::{RecoverError, Recovered, recover};
use super::running::{Task, TaskError};
use super::signal::{self, SignalError, SignalNumber};
use super::spec::TaskSpec;
use super::store::{Store, Taken};
use super::uids::{self, Claim, Uids};
use crate::record::handle::{DriverState, StateError};
use crate::record::key::{EmptyKey, Key};
use crate::record::reconcile::{ACKNOWLEDGE_LIMIT, end_unacknowledged};
use crate::record::run_dir::{RunDir, RunDirError};
use crate::sandbox::policy::{Denied, may_share_uid};
use crate::sandbox::volume::Volume;
use crate::sys::{self, CallError};

/// How long after a start the shim of the next one is started: the command has loaded its libraries by then, and tasks that start at the
/// same time do not wait for it.
const SPARE_DELAY: Duration = Duration::from_millis(20);

/// Why a call for a task failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LifecycleError {
    #[error(transparent)]
    Id(#[from] EmptyKey),
    #[error("unknown task")]
    Unknown,
    #[error("the caller hung up before the start began")]
    HungUp,
    #[error("the task still runs; stop it first, or destroy it with force")]
    StillRuns,
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("failed to start task: {0}")]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Recover(#[from] RecoverError),
    #[error(transparent)]
    Taken(#[from] Taken),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error("failed to destroy the task: {0}")]
    Destroy(LaunchError),
    #[error("failed to run the command in the task: {0}")]
    Exec(#[from] ExecError),
}

impl LifecycleError {
    /// Whether the same call may succeed on this host later.
    pub(crate) fn is_recoverable(&self) -> bool {
        match self {
            Self::Launch(error) => !error.is_jobs_fault(),
            Self::Denied(denied) => denied.may_change(),
            Self::Task(_) | Self::RunDir(_) | Self::Worker(_) | Self::Destroy(_) => true,
            Self::Id(_)
            | Self::Unknown
            | Self::HungUp
            | Self::StillRuns
            | Self::Recover(_)
            | Self::Taken(_)
            | Self::State(_)
            | Self::Signal(_)
            | Self::Exec(_) => false,
        }
    }
}

/// The job of a task: its starts are limited together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Job {
    pub namespace: String,
    pub id: String,
}

/// All tasks of a plugin; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Lifecycle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    launcher: Launcher,
    starts: Starts,
    store: Arc<Store>,
    uids: Arc<Uids>,
    bus: EventBus,
    /// Whether [`Lifecycle::make_spare`] is about to make a shim.
    preparing: AtomicBool,
}

impl Lifecycle {
    /// Writes nothing to disk: Nomad starts the plugin twice just to identify it.
    pub(crate) fn new(run_dir: &Path) -> Result<Self, LaunchError> {
        Ok(Self(Arc::new(Inner {
            launcher: Launcher::new(run_dir)?,
            starts: Starts::default(),
            store: Arc::default(),
            uids: Arc::default(),
            bus: EventBus::default(),
            preparing: AtomicBool::default(),
        })))
    }

    pub(crate) fn bus(&self) -> &EventBus {
        &self.0.bus
    }

    pub(crate) fn task(&self, id: Key<'_>) -> Result<Arc<Task>, LifecycleError> {
        self.0.store.get(id.as_str()).ok_or(LifecycleError::Unknown)
    }

    /// Starts a task and returns its state for Nomad's handle once the command runs. `spec` is called on a thread for blocking
    /// work. If the caller goes away, a pending start is abandoned, and a task that has been started is ended.
    pub(crate) async fn start<E>(
        &self,
        id: TaskId,
        job: Job,
        spec: impl FnOnce() -> Result<TaskSpec, E> + Send + 'static,
    ) -> Result<Vec<u8>, E>
    where
        E: From<LifecycleError> + std::fmt::Display + Send + 'static,
    {
        Unacknowledged::begin(self.clone(), id, job, spec).answer().await
    }

    /// Takes over the task of a handle, running or ended.
    pub(crate) async fn recover(&self, id: TaskId, version: i32, state: &[u8]) -> Result<(), LifecycleError> {
        let reservation = loop {
            match self.0.store.reserve(id.key()) {
                Ok(reservation) => break reservation,
                // A repeated call, or the plugin never died. Another call may still be recovering it, and fail.
                Err(_) => {
                    if let Some(task) = self.0.store.get_started(id.as_str()).await {
                        task.acknowledge();
                        return Ok(());
                    }
                }
            }
        };
        let task = match recover(version, state, self.0.launcher.run_dir(id.key()))? {
            // After an error the task keeps running: Nomad destroys what it cannot recover.
            Recovered::Running(launched) => {
                Task::adopt(id, *launched, &self.0.bus).map_err(|(error, _)| error)?
            }
            Recovered::Ended { state, run_dir, cgroup } => Task::already_ended(id, &state, run_dir, cgroup),
        };
        task.acknowledge();
        let running = task.ended().is_none();
        if running {
            self.hold_recovered(version, state, &task);
        }
        self.0.bus.send(&task.id, Event::Recovered { running });
        if !running {
            task.report_late(&self.0.bus);
        }
        reservation.keep(task);
        Ok(())
    }

    /// Signals a task, gives it `grace` to end, then kills it. An unknown task counts as stopped. The default signal is SIGINT.
    pub(crate) async fn stop(
        &self,
        id: Key<'_>,
        signal: &str,
        grace: Duration,
    ) -> Result<(), LifecycleError> {
        let Ok(task) = self.task(id) else { return Ok(()) };
        let signal = match signal {
            "" => SignalNumber::SIGINT,
            name => signal::parse(name).unwrap_or_else(|error| {
                // An error here would leave the task running forever.
                self.0.bus.send(&task.id, Event::BadKillSignal(error.to_string()));
                SignalNumber::SIGINT
            }),
        };
        tracing::debug!(task = %task.id, %signal, ?grace, "stop");
        task.stop(signal, grace, &self.0.bus).await?;
        Ok(())
    }

    pub(crate) fn signal(&self, id: Key<'_>, signal: &str) -> Result<(), LifecycleError> {
        let signal = signal::parse(signal)?;
        Ok(self.task(id)?.signal(signal)?)
    }

    /// Begins to run a command in a running task.
    pub(crate) async fn enter(&self, id: Key<'_>, wanted: Wanted) -> Result<Session, LifecycleError> {
        let target = self.task(id)?.target()?;
        let this = self.clone();
        // If the caller goes away meanwhile, the session is dropped, and with it the command.
        Ok(blocking(move || this.0.launcher.enter(target, &wanted)).await??)
    }

    /// Forgets a task; with `force` a running one is killed first. Nomad also destroys tasks that this plugin does not know, after
    /// RecoverTask has failed, and they may be running.
    pub(crate) async fn destroy(&self, id: String, force: bool) -> Result<(), LifecycleError> {
        let key = Key::new(&id)?;
        let mut cgroup = None;
        if let Ok(task) = self.task(key) {
            if task.ended().is_none() {
                if !force {
                    return Err(LifecycleError::StillRuns);
                }
                self.0.bus.send(&task.id, Event::Destroyed);
                task.kill().await?;
            }
            cgroup = task.cgroup.clone();
            self.0.store.remove(&id);
        } else if !force && self.0.launcher.runs_unknown(key) {
            return Err(LifecycleError::StillRuns);
        }
        let this = self.clone();
        let end = move || {
            this.0.launcher.end_unknown(Key::new(&id)?)?;
            if let Some(cgroup) = cgroup {
                exec::remove_left_over(&cgroup);
            }
            Ok(())
        };
        blocking(end).await?.map_err(LifecycleError::Destroy)
    }

    /// Whether tasks get roots with the default unveils, which have to follow what the host has.
    pub(crate) fn keep_template(&self, keep: bool) {
        self.0.launcher.keep_template(keep);
    }

    /// Reconciles the records of earlier plugins: ends orphaned tasks, records which uids are in use, and later ends tasks that
    /// Nomad has not acknowledged.
    pub(crate) async fn reconcile(&self) -> Result<(), LifecycleError> {
        let this = self.clone();
        let look = move || {
            let doubtful = this.0.launcher.sweep();
            this.0.uids.note_running(this.0.launcher.entries());
            doubtful
        };
        self.acknowledge_within(ACKNOWLEDGE_LIMIT, Doubtful::Entries(blocking(look).await?));
        Ok(())
    }

    /// The agent that was informed of tasks may have died. The next one has until `limit` to ask for the tasks it knows, which it
    /// does when it has restored their allocations.
    pub(crate) fn expect_acknowledgements(&self, limit: Duration) {
        let tasks = self.0.store.tasks().into_iter().filter(|task| task.is_unacknowledged()).collect();
        self.acknowledge_within(limit, Doubtful::Tasks(tasks));
    }

    /// Ends unacknowledged tasks after `limit`, if Nomad has still not asked for them. Nothing else does.
    fn acknowledge_within(&self, limit: Duration, doubtful: Doubtful) {
        if doubtful.is_empty() {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            match doubtful {
                Doubtful::Entries(entries) => {
                    if let Err(error) = blocking(move || end_unacknowledged(&entries)).await {
                        tracing::error!(%error, "failed to end unacknowledged tasks");
                    }
                }
                Doubtful::Tasks(tasks) => {
                    for task in tasks.iter().filter(|task| task.is_unacknowledged()) {
                        this.give_up(task, "Nomad has not acknowledged it").await;
                    }
                }
            }
        });
    }

    /// Ends an orphaned task. If that fails, it stays known to the plugin.
    async fn give_up(&self, task: &Task, why: &str) {
        tracing::warn!(task = %task.id, why, "ending an orphaned task");
        if end(task).await {
            self.0.store.remove(task.id.as_str());
        }
    }

    /// Nomad destroys every invocation of a task that it knows before it starts the next: any other is orphaned, because its agent
    /// died before it stored the answer.
    async fn end_earlier_invocations(&self, id: Key<'_>) {
        let Some(prefix) = id.task_prefix() else { return };
        for task in self.0.store.with_prefix(prefix) {
            self.give_up(&task, "it is an earlier invocation of a task that is about to start").await;
        }
    }

    /// `gone` resolves when the caller has gone away: a start that is still pending is then abandoned.
    async fn launch<E>(
        &self,
        id: &TaskId,
        job: Job,
        spec: impl FnOnce() -> Result<TaskSpec, E> + Send + 'static,
        gone: Gone,
    ) -> Result<Vec<u8>, E>
    where
        E: From<LifecycleError> + std::fmt::Display + Send + 'static,
    {
        let reservation = self.0.store.reserve(id.key()).map_err(LifecycleError::from)?;
        self.end_earlier_invocations(id.key()).await;
        let turn = tokio::select! {
            turn = self.0.starts.turn(&job.namespace, &job.id) => turn.map_err(LifecycleError::from)?,
            _ = gone => return Err(LifecycleError::HungUp.into()),
        };
        let this = self.clone();
        let begin = move || {
            let _turn = turn;
            this.launch_blocking(&spec()?).map_err(E::from)
        };
        let started = blocking(begin).await.map_err(LifecycleError::from)?;
        // After a start that failed as well: it has used the spare.
        self.make_spare();
        let Started { launched, sandbox, claim, mapped } =
            started.inspect_err(|error| self.report_failure(id, error))?;
        let uid = claim.uid();
        match self.adopt(id, launched, claim).await {
            Ok((task, state)) => {
                self.0.bus.send(id, sandbox);
                self.report_foreign_files(id, mapped, uid);
                reservation.keep(task);
                Ok(state)
            }
            Err(error) => {
                let error = E::from(error);
                self.report_failure(id, &error);
                Err(error)
            }
        }
    }

    /// Prepares the next start, a moment after this one: the task itself is just beginning to run.
    fn make_spare(&self) {
        if self.0.preparing.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SPARE_DELAY).await;
            // A start from here on asks again.
            this.0.preparing.store(false, Ordering::Release);
            match blocking(move || this.0.launcher.make_spare()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "failed to start a shim ahead of the next task"),
                Err(error) => tracing::warn!(%error, "failed to start a shim ahead of the next task"),
            }
        });
    }

    fn report_foreign_files(&self, id: &TaskId, mapped: Vec<Volume>, uid: u32) {
        if mapped.is_empty() {
            return;
        }
        let (bus, id) = (self.0.bus.clone(), id.clone());
        tokio::spawn(async move {
            let found = blocking(move || owners::foreign(&mapped, uid)).await;
            for foreign in found.unwrap_or_default() {
                bus.send(&id, Event::ForeignFile(foreign));
            }
        });
    }

    fn launch_blocking(&self, spec: &TaskSpec) -> Result<Started, LifecycleError> {
        let claim = self.claim(spec)?;
        let TaskSpec { id, user, plan, command, root: _ } = spec;
        tracing::debug!(task = %id, command = command.program, limits = ?plan.resources.limits, "start");
        let launched = self.0.launcher.launch(spec)?;
        if self.0.launcher.lacks_name_server(spec) {
            self.0.bus.send(id, Event::NoNameServer);
        }
        let ignored = &plan.landlock.network.ignored;
        if !ignored.is_empty() {
            self.0.bus.send(id, Event::PortsNotLimited(ignored.clone()));
        }
        let sandbox = Event::Started {
            user: user.name.clone(),
            uid: user.uid,
            landlock_abi: sys::landlock::abi().unwrap_or(0),
            unveiled: Unveiled::of(plan),
        };
        Ok(Started { launched, sandbox, claim, mapped: owners::mapped(plan) })
    }

    /// Watches a task that was just started. Once the answer is recorded, Nomad owns the task.
    async fn adopt(
        &self,
        id: &TaskId,
        launched: Launched,
        claim: Claim,
    ) -> Result<(Arc<Task>, Vec<u8>), LifecycleError> {
        let task = match Task::adopt(id.clone(), launched, &self.0.bus) {
            Ok(task) => task,
            Err((error, launched)) => {
                blocking(|| launched.abandon()).await?;
                return Err(error.into());
            }
        };
        let uid = claim.uid();
        hold(claim, &task);
        match answer(&task, uid) {
            Ok(state) => Ok((task, state)),
            Err(error) => {
                // Nomad could never recover it.
                end(&task).await;
                Err(error)
            }
        }
    }

    /// Takes the task's uid.
    fn claim(&self, spec: &TaskSpec) -> Result<Claim, LifecycleError> {
        let (uids, uid, alloc) = (&self.0.uids, spec.user.uid, spec.id.alloc());
        if may_share_uid(&spec.user) {
            return Ok(uids.claim(uid, alloc));
        }
        uids.claim_alone(uid, alloc).ok_or_else(|| {
            tracing::warn!(task = %spec.id, uid, "the task's uid is in use by a task of another allocation");
            Denied::UidInUse { user: spec.user.name.clone(), uid }.into()
        })
    }

    /// A recovered task keeps its uid, even if another task has the same.
    fn hold_recovered(&self, version: i32, state: &[u8], task: &Arc<Task>) {
        let noted = DriverState::decode(version, state).ok().and_then(|state| state.uid);
        match noted.or_else(|| task.process.and_then(uids::of_process)) {
            Some(uid) => hold(self.0.uids.claim(uid, task.id.alloc()), task),
            None => tracing::warn!(task = %task.id, "failed to determine the uid of a recovered task"),
        }
    }

    fn report_failure(&self, id: &TaskId, error: &impl std::fmt::Display) {
        self.0.bus.send(id, Event::not_started(error));
    }

    #[cfg(test)]
    pub(crate) fn run_dir(&self, id: Key<'_>) -> RunDir {
        self.0.launcher.run_dir(id)
    }

    #[cfg(test)]
    pub(crate) fn uids(&self) -> &Arc<Uids> {
        &self.0.uids
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    #[cfg(test)]
    pub(crate) fn starts(&self) -> &Starts {
        &self.0.starts
    }
}

/// A task whose program runs.
struct Started {
    launched: Launched,
    sandbox: Event,
    claim: Claim,
    /// Its volumes that are shown as its own.
    mapped: Vec<Volume>,
}

/// Unacknowledged tasks.
#[derive(Debug)]
enum Doubtful {
    /// By an earlier plugin.
    Entries(Vec<RunDir>),
    /// By this one.
    Tasks(Vec<Arc<Task>>),
}

impl Doubtful {
    fn is_empty(&self) -> bool {
        match self {
            Self::Entries(entries) => entries.is_empty(),
            Self::Tasks(tasks) => tasks.is_empty(),
        }
    }
}

/// Records that the answer is on its way, and returns it.
fn answer(task: &Task, uid: u32) -> Result<Vec<u8>, LifecycleError> {
    let state = task.state().map_err(|error| TaskError::from(CallError::new("identify the boot", error)))?;
    let state = DriverState { uid: Some(uid), ..state }.encode()?;
    task.answered()?;
    Ok(state)
}

/// Keeps a task's uid for it until all of its processes are gone.
fn hold(claim: Claim, task: &Arc<Task>) {
    let task = Arc::clone(task);
    tokio::spawn(async move {
        task.wait().await;
        drop(claim);
    });
}

/// Ends an orphaned task; false if it is still there, and on record.
async fn end(task: &Task) -> bool {
    if let Err(error) = task.kill().await {
        tracing::error!(task = %task.id, %error, "failed to end an orphaned task");
        return false;
    }
    if let Err(error) = task.forget() {
        tracing::warn!(task = %task.id, %error, "failed to forget an orphaned task");
    }
    true
}

/// Resolves when the call of a start has been dropped.
type Gone = oneshot::Receiver<Infallible>;

/// A start whose answer has not been sent. If the agent dies meanwhile, the call is dropped. A pending start is then abandoned; one
/// that is running is completed, because it cannot be interrupted, and its task is ended as orphaned.
struct Unacknowledged<E: Send + 'static> {
    lifecycle: Lifecycle,
    id: TaskId,
    start: Option<JoinHandle<Result<Vec<u8>, E>>>,
    /// Dropped with the call, see [`Gone`].
    _here: oneshot::Sender<Infallible>,
}

impl<E: From<LifecycleError> + std::fmt::Display + Send + 'static> Unacknowledged<E> {
    fn begin(
        lifecycle: Lifecycle,
        id: TaskId,
        job: Job,
        spec: impl FnOnce() -> Result<TaskSpec, E> + Send + 'static,
    ) -> Self {
        let (here, gone) = oneshot::channel();
        let (this, its) = (lifecycle.clone(), id.clone());
        let start = tokio::spawn(async move { this.launch(&its, job, spec, gone).await });
        Self { lifecycle, id, start: Some(start), _here: here }
    }

    async fn answer(mut self) -> Result<Vec<u8>, E> {
        let failed = |why: String| E::from(LifecycleError::from(WorkerError::Failed(why)));
        let Some(start) = &mut self.start else { return Err(failed("no start".into())) };
        let started = start.await;
        self.start = None;
        started.map_err(|error| failed(error.to_string()))?
    }
}

impl<E: Send + 'static> Drop for Unacknowledged<E> {
    fn drop(&mut self) {
        // Without a runtime the process is about to end, and the next plugin reconciles.
        let (Some(start), Ok(runtime)) = (self.start.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let (lifecycle, id) = (self.lifecycle.clone(), self.id.clone());
        runtime.spawn(async move {
            if !matches!(start.await, Ok(Ok(_))) {
                return;
            }
            if let Ok(task) = lifecycle.task(id.key()) {
                lifecycle.give_up(&task, "the agent died before it received the answer").await;
            }
        });
    }
}
