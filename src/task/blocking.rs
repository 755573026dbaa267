//! Blocking work on threads of its own.
//!
//! procfs, cgroupfs and `/run` count as non-blocking, because they are in memory; everything else goes through this module.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

/// Limit for threads of blocking work. Each start holds one until its program runs (milliseconds; 40 s when a path hangs).
/// tokio's default of 512 would let a dead file server fill the process.
pub const MAX_BLOCKING: usize = 64;

/// Starts at a time. The other threads are for ending tasks (DestroyTask, the sweep of SetConfig), which starts that hang
/// must not delay.
const STARTS: usize = 48;

/// Starts of one job at a time: a job whose paths hang must not keep other jobs from starting.
const STARTS_OF_A_JOB: usize = 8;

/// A start that waits longer for its turn is logged.
const SLOW_TURN: Duration = Duration::from_secs(5);

const _: () = assert!(STARTS < MAX_BLOCKING && STARTS_OF_A_JOB < STARTS);

/// Why the work failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkerError {
    #[error("internal error: {0}")]
    Failed(String),
    /// `pids.max`, RLIMIT_NPROC.
    #[error("failed to create a thread for the call: {0}")]
    NoThread(String),
}

type Work = Box<dyn FnOnce() + Send>;

/// Which starts may use a thread.
#[derive(Debug)]
pub(crate) struct Starts {
    all: Arc<Semaphore>,
    /// By namespace and job id; gone with the last start that uses it.
    jobs: Mutex<HashMap<Job, Weak<Semaphore>>>,
}

type Job = (String, String);

/// The right to run one start, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _job: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Default for Starts {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(STARTS)), jobs: Mutex::default() }
    }
}

impl Starts {
    /// Waits, first come first served, until the job may run one more start.
    pub(crate) async fn turn(&self, namespace: &str, job: &str) -> Result<Turn, WorkerError> {
        let of_job = self.of_job((namespace.to_owned(), job.to_owned()));
        let closed = |_| WorkerError::Failed("the starts were closed".to_owned());
        let turn = async {
            let of_job = of_job.acquire_owned().await.map_err(closed)?;
            let all = Arc::clone(&self.all).acquire_owned().await.map_err(closed)?;
            Ok(Turn { _job: of_job, _all: all })
        };
        let mut turn = std::pin::pin!(turn);
        match timeout(SLOW_TURN, &mut turn).await {
            Ok(turn) => turn,
            Err(_) => {
                tracing::warn!(namespace, job, "a task start is waiting for earlier ones that take long");
                turn.await
            }
        }
    }

    fn of_job(&self, job: Job) -> Arc<Semaphore> {
        let mut jobs = self.jobs();
        if let Some(known) = jobs.get(&job).and_then(Weak::upgrade) {
            return known;
        }
        jobs.retain(|_, semaphore| semaphore.strong_count() > 0);
        let new = Arc::new(Semaphore::new(STARTS_OF_A_JOB));
        jobs.insert(job, Arc::downgrade(&new));
        new
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<Job, Weak<Semaphore>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs the work on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, WorkerError> {
    on(
        |work| {
            tokio::task::spawn_blocking(work);
        },
        work,
    )
    .await
}

/// If no thread can be created (`pids.max`, RLIMIT_NPROC), tokio's `spawn` panics and leaves the work in its queue for a later
/// thread. A start must not run after Nomad was informed that it failed: so either the thread takes the work and runs it, or the
/// error path takes and drops it.
async fn on<T: Send + 'static>(
    spawn: impl FnOnce(Work),
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, WorkerError> {
    let (sender, result) = oneshot::channel();
    let work = Arc::new(Mutex::new(Some(work)));
    let theirs = Arc::clone(&work);
    let run = Box::new(move || {
        let work = take(&theirs);
        if let Some(work) = work {
            // The receiver is gone if the agent has hung up.
            let _ = sender.send(work());
        }
    });
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| spawn(run)))
        && take(&work).is_some()
    {
        return Err(WorkerError::NoThread(message(&*panic)));
    }
    result.await.map_err(|_| WorkerError::Failed("it panicked; the plugin's log says where".to_owned()))
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<String>(), panic.downcast_ref::<&str>()) {
        (Some(message), _) => message.clone(),
        (None, Some(message)) => (*message).to_owned(),
        (None, None) => "no reason given".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Far more than anything here takes.
    const SOON: Duration = Duration::from_secs(20);
    /// Long enough to see that something does not happen.
    const A_WHILE: Duration = Duration::from_millis(200);

    /// As the plugin's runtime.
    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).max_blocking_threads(MAX_BLOCKING).enable_all().build().unwrap()
    }

    /// Starts that hang until what is returned is dropped.
    fn hanging_starts(starts: &Arc<Starts>, count: usize, job: fn(usize) -> String) -> mpsc::Sender<()> {
        let (release, hang) = mpsc::channel::<()>();
        let hang = Arc::new(Mutex::new(hang));
        for number in 0..count {
            let (starts, hang) = (Arc::clone(starts), Arc::clone(&hang));
            tokio::spawn(async move {
                let turn = starts.turn("default", &job(number)).await.unwrap();
                blocking(move || {
                    let _turn = turn;
                    let _ = hang.lock().unwrap_or_else(PoisonError::into_inner).recv();
                })
                .await
                .unwrap();
            });
        }
        release
    }

    #[test]
    fn starts_that_hang_leave_threads_for_what_ends_tasks() {
        let runtime = runtime();
        runtime.block_on(async {
            let starts = Arc::new(Starts::default());
            let release = hanging_starts(&starts, 4 * MAX_BLOCKING, |number| format!("job{number}"));
            while starts.all.available_permits() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let end = timeout(SOON, blocking(|| 7)).await;
            assert_eq!(end.expect("an end has a thread").unwrap(), 7);
            assert!(timeout(A_WHILE, starts.turn("default", "another")).await.is_err(), "a start waits");
            drop(release);
            timeout(SOON, starts.turn("default", "another")).await.expect("its turn comes").unwrap();
        });
    }

    #[test]
    fn a_job_that_hangs_leaves_turns_for_other_jobs() {
        let runtime = runtime();
        runtime.block_on(async {
            let starts = Arc::new(Starts::default());
            let release = hanging_starts(&starts, 4 * MAX_BLOCKING, |_| "hangs".to_owned());
            while starts.all.available_permits() > STARTS - STARTS_OF_A_JOB {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(timeout(A_WHILE, starts.turn("default", "hangs")).await.is_err());
            for (namespace, job) in [("default", "another"), ("other", "hangs")] {
                timeout(SOON, starts.turn(namespace, job)).await.expect("not held up").unwrap();
            }
            drop(release);
            timeout(SOON, starts.turn("default", "hangs")).await.expect("its turn comes").unwrap();
            assert_eq!(starts.of_job(("a".into(), "b".into())).available_permits(), STARTS_OF_A_JOB);
        });
    }

    #[tokio::test]
    async fn what_is_kept_of_a_job_goes_with_its_starts() {
        let starts = Starts::default();
        for number in 0..100 {
            drop(starts.turn("default", &number.to_string()).await.unwrap());
        }
        assert_eq!(starts.jobs().len(), 1);
        assert_eq!(starts.all.available_permits(), STARTS);
    }

    #[tokio::test]
    async fn the_result_comes_back_and_a_panic_is_an_error() {
        assert_eq!(blocking(|| 7).await.unwrap(), 7);
        let error = blocking(|| -> i32 { panic!("on purpose") }).await.unwrap_err();
        assert!(matches!(error, WorkerError::Failed(_)), "{error}");
    }

    #[tokio::test]
    async fn without_a_thread_it_is_an_error_and_not_run_when_one_comes() {
        let ran = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&ran);
        let mut queue = None;
        let spawn = |work| {
            queue = Some(work);
            panic!("no thread");
        };
        let error = on(spawn, move || theirs.store(true, Ordering::Relaxed)).await.unwrap_err();
        assert!(error.to_string().ends_with(": no thread"), "{error}");
        assert_eq!(Arc::strong_count(&ran), 1, "what the work held, such as its turn, is free again");
        queue.unwrap()();
        assert!(!ran.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn what_another_thread_has_taken_meanwhile_is_waited_for() {
        let spawn = |work: Work| {
            work();
            panic!("no thread");
        };
        assert_eq!(on(spawn, || 7).await.unwrap(), 7);
    }
}
