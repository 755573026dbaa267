//! A start, from the call to its answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::orphans::end;
use super::{Job, Lifecycle, LifecycleError, hold};
use crate::record::handle::DriverState;
use crate::sandbox::policy::{Denied, may_share_uid};
use crate::sandbox::volume::Volume;
use crate::sys::{self, CallError};
use crate::task::blocking::{WorkerError, blocking};
use crate::task::events::{Event, Unveiled};
use crate::task::id::TaskId;
use crate::task::owners;
use crate::task::processes::Launched;
use crate::task::running::{Task, TaskError};
use crate::task::spec::TaskSpec;
use crate::task::uids::Claim;

/// How long after a start the shim of the next one is started: the command has loaded its libraries by then, and tasks that start at the
/// same time do not wait for it.
const SPARE_DELAY: Duration = Duration::from_millis(20);

/// Resolves when the call of a start has been dropped.
type Gone = oneshot::Receiver<Infallible>;

/// A start whose answer has not been sent. If the agent dies meanwhile, the call is dropped. A pending start is then abandoned; one
/// that is running is completed, because it cannot be interrupted, and its task is ended as orphaned.
pub(super) struct Unacknowledged<E: Send + 'static> {
    lifecycle: Lifecycle,
    id: TaskId,
    start: Option<JoinHandle<Result<Vec<u8>, E>>>,
    /// Dropped with the call, see [`Gone`].
    _here: oneshot::Sender<Infallible>,
}

impl<E: From<LifecycleError> + std::fmt::Display + Send + 'static> Unacknowledged<E> {
    pub(super) fn begin(
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

    pub(super) async fn answer(mut self) -> Result<Vec<u8>, E> {
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

impl Lifecycle {
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

    fn report_failure(&self, id: &TaskId, error: &impl std::fmt::Display) {
        self.0.bus.send(id, Event::not_started(error));
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
}

/// A task whose program runs.
struct Started {
    launched: Launched,
    sandbox: Event,
    claim: Claim,
    /// Its volumes that are shown as its own.
    mapped: Vec<Volume>,
}

/// Records that the answer is on its way, and returns it.
fn answer(task: &Task, uid: u32) -> Result<Vec<u8>, LifecycleError> {
    let state = task.state().map_err(|error| TaskError::from(CallError::new("identify the boot", error)))?;
    let state = DriverState { uid: Some(uid), ..state }.encode()?;
    task.answered()?;
    Ok(state)
}
