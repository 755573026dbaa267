//! The RPC surface: decodes requests, calls the modules below, and encodes responses.

mod base;
mod events;
pub(crate) mod exec;
mod fingerprint;
mod request;
mod rpc;
mod stats;
mod status;

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;
use tonic::service::Routes;

use crate::config::PluginConfig;
use crate::proto::base::base_plugin_server::BasePluginServer;
use crate::proto::driver::driver_server::DriverServer;
use crate::record::run_dir::RUN_DIR;
use crate::task::launch::LaunchError;
use crate::task::lifecycle::Lifecycle;

/// The name in jobs: `driver = "exec2"`.
pub const NAME: &str = "exec2";

/// Largest message that is decoded, in bytes. A task's templates and secrets are part of its environment; tonic's default of 4
/// MiB is less than what Nomad can send.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// Set by SetConfig.
#[derive(Debug, Clone, Default)]
struct Settings {
    plugin: PluginConfig,
    /// Speed of a core as Nomad counts it; none before Nomad has sent its topology.
    mhz_per_core: Option<NonZeroU64>,
}

#[derive(Debug)]
struct Inner {
    settings: RwLock<Settings>,
    /// Wakes the fingerprint streams after SetConfig.
    configured: watch::Sender<u64>,
    tasks: Lifecycle,
}

/// The driver; clones share their state.
#[derive(Debug, Clone)]
pub struct Driver(Arc<Inner>);

impl Driver {
    /// Does not touch the disk: Nomad starts the plugin twice only to ask for its name and schema.
    pub fn new() -> Result<Self, LaunchError> {
        Self::with_run_dir(Path::new(RUN_DIR))
    }

    /// Like [`Driver::new`], with state in another directory.
    pub(crate) fn with_run_dir(run_dir: &Path) -> Result<Self, LaunchError> {
        Ok(Self(Arc::new(Inner {
            settings: RwLock::default(),
            configured: watch::Sender::new(0),
            tasks: Lifecycle::new(run_dir)?,
        })))
    }

    /// The gRPC services of the driver.
    pub fn routes(&self) -> Routes {
        Routes::new(BasePluginServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(DriverServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE))
    }

    fn settings(&self) -> Settings {
        self.0.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn configure(&self, settings: Settings) {
        *self.0.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        self.0.configured.send_modify(|generation| *generation += 1);
    }
}

#[cfg(test)]
mod tests;
