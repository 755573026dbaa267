//! The lifecycle of tasks: start, recover, stop, destroy, reconcile, acknowledge. Owns launcher, store, event bus and timers;
//! `driver/` translates Nomad's messages into calls of this module.

mod error;
mod orphans;
mod start;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use start::Unacknowledged;

use super::blocking::{Starts, blocking};
use super::events::{Event, EventBus};
use super::exec::{self, Session, Wanted};
use super::id::TaskId;
use super::launch::{LaunchError, Launcher};
use super::recover::{Recovered, recover};
use super::running::Task;
use super::signal::{self, SignalNumber};
use super::spec::TaskSpec;
use super::store::Store;
use super::uids::{self, Claim, Uids};
use crate::record::handle::DriverState;
use crate::record::key::Key;
#[cfg(test)]
use crate::record::run_dir::RunDir;

pub(crate) use error::LifecycleError;

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

    /// Does what needs the directories of a task of this job. On a file server that does not answer it hangs, as a start does: so it takes a turn of
    /// the job's starts, and nobody waits for it.
    pub(crate) fn beside_starts(&self, job: Job, work: impl FnOnce() + Send + 'static) {
        let this = self.clone();
        tokio::spawn(async move {
            let turn = this.0.starts.turn(&job.namespace, &job.id).await?;
            blocking(move || {
                let _turn = turn;
                work();
            })
            .await
        });
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

    /// A recovered task keeps its uid, even if another task has the same.
    fn hold_recovered(&self, version: i32, state: &[u8], task: &Arc<Task>) {
        let noted = DriverState::decode(version, state).ok().and_then(|state| state.uid);
        match noted.or_else(|| task.process.and_then(uids::of_process)) {
            Some(uid) => hold(self.0.uids.claim(uid, task.id.alloc()), task),
            None => tracing::warn!(task = %task.id, "failed to determine the uid of a recovered task"),
        }
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

/// Keeps a task's uid for it until all of its processes are gone.
fn hold(claim: Claim, task: &Arc<Task>) {
    let task = Arc::clone(task);
    tokio::spawn(async move {
        task.wait().await;
        drop(claim);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn what_hangs_beside_the_starts_of_a_job_holds_up_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let tasks = Lifecycle::new(dir.path()).unwrap();
        let job = |id: &str| Job { id: id.to_owned(), ..Job::default() };
        // More than there are threads; each ends with its sender.
        let hanging = [(); 100].map(|()| {
            let (end, ended) = mpsc::channel::<()>();
            tasks.beside_starts(job("hangs"), move || {
                let _ = ended.recv();
            });
            end
        });
        let (done, is_done) = oneshot::channel();
        tasks.beside_starts(job("other"), move || {
            let _ = done.send(());
        });
        assert!(matches!(timeout(Duration::from_secs(20), is_done).await, Ok(Ok(()))));
        assert_eq!(blocking(|| 7).await.unwrap(), 7, "a thread is left");
        drop(hanging);
    }
}
