//! Fingerprint: whether this host can run tasks, and the attributes for job constraints.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Driver, Settings};
use crate::host::{self, Health, Host};
use crate::proto::driver::FingerprintResponse;
use crate::proto::driver::fingerprint_response::HealthState;
use crate::proto::structs::{Attribute, attribute::Value};

/// Interval between probes. A probe takes well under a millisecond, and its subjects (controllers, LSMs) change when an
/// operator changes them and expects the node to follow.
const INTERVAL: Duration = Duration::from_secs(30);
/// What Nomad shows for a healthy driver.
const HEALTHY: &str = "Healthy";

impl Driver {
    /// Sends the first response immediately, then one whenever it differs from the last. Stays open while the plugin runs.
    pub(super) fn fingerprints(&self) -> ReceiverStream<Result<FingerprintResponse, Status>> {
        let driver = self.clone();
        let look = move || Ok(response(&host::probe()?, &driver.settings()));
        stream(self.0.configured.subscribe(), INTERVAL, look)
    }
}

/// Probes the host immediately, then at each interval and whenever `configured` changes, and sends a response that differs from
/// the previous one. If a probe fails (out of descriptors or memory), the previous response stays valid: otherwise Nomad would
/// place no job here, or drop the driver, without a reason in the host. A task start with the same problem reports it itself.
fn stream(
    mut configured: watch::Receiver<u64>,
    interval: Duration,
    look: impl Fn() -> io::Result<FingerprintResponse> + Send + 'static,
) -> ReceiverStream<Result<FingerprintResponse, Status>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut last = None;
        loop {
            configured.borrow_and_update();
            let now = match (look(), &last) {
                (Ok(now), _) => now,
                (Err(error), Some(before)) => {
                    tracing::warn!(%error, "failed to probe the host; the fingerprint is unchanged");
                    FingerprintResponse::clone(before)
                }
                (Err(error), None) => unseen(&error),
            };
            if last.as_ref() != Some(&now) {
                tracing::debug!(health = now.health, description = now.health_description, "fingerprint");
                last = Some(now.clone());
                if sender.send(Ok(now)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = configured.changed() => {}
                () = sender.closed() => return,
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// The first response if even the first probe fails.
fn unseen(error: &io::Error) -> FingerprintResponse {
    FingerprintResponse {
        health: HealthState::Unhealthy.into(),
        health_description: format!("failed to probe the host: {error}"),
        ..Default::default()
    }
}

fn response(host: &Host, settings: &Settings) -> FingerprintResponse {
    let (health, health_description) = match host.health(settings.plugin.wanted()) {
        Health::Healthy => (HealthState::Healthy, HEALTHY.into()),
        Health::Unhealthy(why) => (HealthState::Unhealthy, why),
        Health::Undetected(why) => (HealthState::Undetected, why),
    };
    let attributes = match health {
        // Nomad drops the attributes of an undetected driver.
        HealthState::Undetected => HashMap::new(),
        _ => attributes(host, settings),
    };
    FingerprintResponse { attributes, health: health.into(), health_description, err: String::new() }
}

fn attributes(host: &Host, settings: &Settings) -> HashMap<String, Attribute> {
    let plugin = &settings.plugin;
    let of = |value| Attribute { value: Some(value), unit: String::new() };
    let text = |value: String| of(Value::StringVal(value));
    HashMap::from([
        ("driver.exec2.version".into(), text(env!("CARGO_PKG_VERSION").into())),
        ("driver.exec2.unveil.defaults".into(), of(Value::BoolVal(plugin.unveil_defaults))),
        ("driver.exec2.unveil.tasks".into(), of(Value::BoolVal(plugin.unveil_by_task))),
        ("driver.exec2.caps.allowlist".into(), text(plugin.policy().allowed_caps().names().join(","))),
        ("driver.exec2.landlock.abi".into(), of(Value::IntVal(host.landlock_abi.unwrap_or(0).into()))),
        ("driver.exec2.cgroup.controllers".into(), text(host.controllers.join(","))),
    ])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

    use tokio::time::{Instant, timeout};
    use tokio_stream::StreamExt;

    use super::*;

    /// A host that reports a number, and counts its probes.
    #[derive(Default)]
    struct Fake {
        shown: AtomicI32,
        looks: AtomicUsize,
    }

    impl Fake {
        /// A negative number makes the probe fail.
        fn look(&self) -> io::Result<FingerprintResponse> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            match self.shown.load(Ordering::Relaxed) {
                ..0 => Err(nix::errno::Errno::EMFILE.into()),
                health => Ok(FingerprintResponse { health, ..Default::default() }),
            }
        }

        fn show(&self, number: i32) {
            self.shown.store(number, Ordering::Relaxed);
        }

        fn looks(&self) -> usize {
            self.looks.load(Ordering::Relaxed)
        }
    }

    // The clock of these tests advances when all tasks sleep.
    #[tokio::test(start_paused = true)]
    async fn the_first_response_is_immediate_then_one_per_change() {
        let host = Arc::new(Fake::default());
        let (configured, receiver) = watch::channel(0);
        let looked_at = Arc::clone(&host);
        let mut stream = stream(receiver, INTERVAL, move || looked_at.look());
        let start = Instant::now();

        assert_eq!(stream.next().await.unwrap().unwrap().health, 0);
        assert_eq!(start.elapsed(), Duration::ZERO, "the first comes at once");

        assert!(timeout(INTERVAL * 10, stream.next()).await.is_err(), "nothing new, and still open");
        assert!((10..=11).contains(&host.looks()), "looked at {} times", host.looks());

        host.show(1);
        let change = Instant::now();
        assert_eq!(stream.next().await.unwrap().unwrap().health, 1);
        assert!(change.elapsed() <= INTERVAL, "{:?}", change.elapsed());
        assert!(timeout(INTERVAL * 3, stream.next()).await.is_err(), "it is sent once");

        host.show(2);
        let change = Instant::now();
        configured.send_replace(1);
        assert_eq!(stream.next().await.unwrap().unwrap().health, 2);
        assert_eq!(change.elapsed(), Duration::ZERO, "SetConfig does not wait for the interval");
        configured.send_replace(2);
        assert!(timeout(INTERVAL * 3, stream.next()).await.is_err(), "the same options change nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_keeps_the_previous_response() {
        let host = Arc::new(Fake::default());
        let (_configured, receiver) = watch::channel(0);
        let looked_at = Arc::clone(&host);
        host.show(-1);
        let mut stream = stream(receiver, INTERVAL, move || looked_at.look());
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!(first.health(), HealthState::Unhealthy);
        assert!(first.health_description.starts_with("failed to probe the host: "), "{first:?}");

        host.show(HealthState::Healthy.into());
        assert_eq!(stream.next().await.unwrap().unwrap().health(), HealthState::Healthy);
        host.show(-1);
        assert!(timeout(INTERVAL * 3, stream.next()).await.is_err(), "still healthy");
        host.show(HealthState::Undetected.into());
        assert_eq!(stream.next().await.unwrap().unwrap().health(), HealthState::Undetected);
    }

    #[tokio::test(start_paused = true)]
    async fn probing_stops_when_the_subscriber_disconnects() {
        let host = Arc::new(Fake::default());
        let (_configured, receiver) = watch::channel(0);
        let looked_at = Arc::clone(&host);
        let mut stream = stream(receiver, INTERVAL, move || looked_at.look());
        stream.next().await.unwrap().unwrap();
        drop(stream);
        tokio::time::sleep(INTERVAL * 5).await;
        assert_eq!(host.looks(), 1);
        assert_eq!(Arc::strong_count(&host), 1, "the task of the stream has ended");
    }
}
