//! What blocks, on threads that are there for it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;

use super::status::RpcError;

/// Runs the work where it holds up nobody.
///
/// Where no thread can be made for it (`pids.max`, RLIMIT_NPROC), tokio panics and leaves the work in its queue, for a thread
/// that may come later. A start must not run when Nomad has been told that it failed: so the work is claimed, by the thread
/// that runs it or by the error, and done at most once and only if somebody waits for it.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, RpcError> {
    let (sender, result) = oneshot::channel();
    let claimed = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&claimed);
    let run = move || {
        if !theirs.swap(true, Ordering::AcqRel) {
            // Nobody listens when the agent has hung up.
            let _ = sender.send(work());
        }
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_blocking(run)))
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

    #[test]
    fn without_a_thread_it_is_an_error_and_never_run() {
        // A runtime that is shutting down takes no work: tokio drops it.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handle = runtime.handle().clone();
        drop(runtime);
        let _entered = handle.enter();
        let ran = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&ran);
        let waiting = blocking(move || theirs.store(true, Ordering::Relaxed));
        assert!(futures_now(waiting).is_some_and(|result| result.is_err()));
        assert!(!ran.load(Ordering::Relaxed));
    }

    /// What the future is at its first poll.
    fn futures_now<F: Future>(future: F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}
