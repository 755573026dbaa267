//! Fingerprint: whether this host can run tasks, and what jobs can constrain on.

use std::collections::HashMap;
use std::time::Duration;

use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Driver, Settings};
use crate::host::{self, Health, Host};
use crate::proto::driver::FingerprintResponse;
use crate::proto::driver::fingerprint_response::HealthState;
use crate::proto::structs::{Attribute, attribute::Value};

/// How often the host is looked at again. A probe takes well under a millisecond; what it looks at (controllers, LSMs)
/// changes by an operator's hand, who expects to see the node follow.
const INTERVAL: Duration = Duration::from_secs(30);
/// What Nomad shows for a healthy driver.
const HEALTHY: &str = "Healthy";

impl Driver {
    /// The first answer at once, then one whenever it differs from the last. Stays open for as long as the plugin lives.
    pub(super) fn fingerprints(
        &self,
    ) -> impl Stream<Item = Result<FingerprintResponse, Status>> + Send + use<> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let driver = self.clone();
        tokio::spawn(async move {
            let mut configured = driver.0.configured.subscribe();
            let mut last = None;
            loop {
                configured.borrow_and_update();
                let now = response(&host::probe(), &driver.settings());
                if last.as_ref() != Some(&now) {
                    tracing::debug!(health = now.health, description = now.health_description, "fingerprint");
                    last = Some(now.clone());
                    if sender.send(Ok(now)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(INTERVAL) => {}
                    _ = configured.changed() => {}
                    () = sender.closed() => return,
                }
            }
        });
        ReceiverStream::new(receiver)
    }
}

fn response(host: &Host, settings: &Settings) -> FingerprintResponse {
    let (health, health_description) = match host.health() {
        Health::Healthy => (HealthState::Healthy, HEALTHY.into()),
        Health::Unhealthy(why) => (HealthState::Unhealthy, why),
        Health::Undetected(why) => (HealthState::Undetected, why),
    };
    let attributes = match health {
        // Nomad drops the attributes of a driver that it does not detect.
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
        ("driver.exec2.caps.allowlist".into(), text(plugin.allow_caps.names().join(","))),
        ("driver.exec2.landlock.abi".into(), of(Value::IntVal(host.landlock_abi.unwrap_or(0).into()))),
        ("driver.exec2.cgroup.controllers".into(), text(host.controllers.join(","))),
    ])
}
