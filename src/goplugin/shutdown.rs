//! One flag for the whole process: it is time to go.

use tokio::sync::watch;

/// Set once, by the host's Shutdown call or by SIGTERM; everyone who holds a clone may wait for it.
///
/// After [`begin`](Self::begin) the process lives for a fraction of a second. What a part of the plugin has to put
/// right before it ends must be quick; tasks are not its concern, they go on.
#[derive(Clone, Debug)]
pub struct Shutdown {
    begun: watch::Sender<bool>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    #[must_use]
    pub fn new() -> Self {
        Self { begun: watch::Sender::new(false) }
    }

    /// Returns false if it had begun already.
    pub fn begin(&self) -> bool {
        !self.begun.send_replace(true)
    }

    #[must_use]
    pub fn has_begun(&self) -> bool {
        *self.begun.borrow()
    }

    /// Completes when the shutdown has begun; at once if it has.
    pub async fn begun(&self) {
        // An error would mean that the sender is gone, and `self` is one.
        let _ = self.begun.subscribe().wait_for(|begun| *begun).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn wakes_every_waiter_and_later_ones_at_once() {
        let shutdown = Shutdown::new();
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let shutdown = shutdown.clone();
                tokio::spawn(async move { shutdown.begun().await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(!shutdown.has_begun());
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()));

        assert!(shutdown.begin(), "the first one");
        assert!(!shutdown.begin(), "and no second one");
        for waiter in waiters {
            tokio::time::timeout(Duration::from_secs(5), waiter).await.unwrap().unwrap();
        }
        tokio::time::timeout(Duration::from_secs(5), shutdown.begun()).await.unwrap();
        assert!(shutdown.clone().has_begun());
    }
}
