//! What blocks, on threads that are there for it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

use super::status::RpcError;

type Work = Box<dyn FnOnce() + Send>;

/// Runs the work where it holds up nobody.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RpcError> {
    on(
        |work| {
            tokio::task::spawn_blocking(work);
        },
        work,
    )
    .await
}

/// Where no thread can be made (`pids.max`, RLIMIT_NPROC), tokio's `spawn` panics and leaves the work in its queue, for a
/// thread that may come later. A start must not run when Nomad has been told that it failed: so the work is claimed, by the
/// thread that runs it or by the error, and is done at most once and only if it is waited for.
async fn on<T: Send + 'static>(
    spawn: impl FnOnce(Work),
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RpcError> {
    let (sender, result) = oneshot::channel();
    let claimed = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&claimed);
    let run = Box::new(move || {
        if !theirs.swap(true, Ordering::AcqRel) {
            // Nobody listens when the agent has hung up.
            let _ = sender.send(work());
        }
    });
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| spawn(run)))
        && !claimed.swap(true, Ordering::AcqRel)
    {
        return Err(RpcError::NoThread(message(&*panic)));
    }
    result.await.map_err(|_| RpcError::Worker("it panicked; the plugin's log says where".to_owned()))
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
    use super::*;

    #[tokio::test]
    async fn the_result_comes_back_and_a_panic_is_an_error() {
        assert_eq!(blocking(|| 7).await.unwrap(), 7);
        let error = blocking(|| -> i32 { panic!("on purpose") }).await.unwrap_err();
        assert!(matches!(error, RpcError::Worker(_)), "{error}");
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
