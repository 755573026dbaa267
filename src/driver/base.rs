//! `BasePlugin`: the plugin's name, its API version and its configuration.

use tonic::{Request, Response, Status};

use super::{Driver, NAME, Settings, status::RpcError};
use crate::cgroup::{CoreMhz, Topology, mhz_per_core};
use crate::config::PluginConfig;
use crate::proto::base::base_plugin_server::BasePlugin;
use crate::proto::base::{
    ClientTopology, ConfigSchemaRequest, ConfigSchemaResponse, PluginInfoRequest, PluginInfoResponse,
    PluginType, SetConfigRequest, SetConfigResponse,
};

/// The plugin API version of Nomad 0.9 to 2.0.
const API_VERSION: &str = "v0.1.0";

#[tonic::async_trait]
impl BasePlugin for Driver {
    async fn plugin_info(
        &self,
        _: Request<PluginInfoRequest>,
    ) -> Result<Response<PluginInfoResponse>, Status> {
        Ok(Response::new(PluginInfoResponse {
            r#type: PluginType::Driver as i32,
            plugin_api_versions: vec![API_VERSION.into()],
            plugin_version: env!("CARGO_PKG_VERSION").into(),
            name: NAME.into(),
        }))
    }

    async fn config_schema(
        &self,
        _: Request<ConfigSchemaRequest>,
    ) -> Result<Response<ConfigSchemaResponse>, Status> {
        Ok(Response::new(ConfigSchemaResponse { spec: Some(PluginConfig::schema()) }))
    }

    async fn set_config(
        &self,
        request: Request<SetConfigRequest>,
    ) -> Result<Response<SetConfigResponse>, Status> {
        let request = request.into_inner();
        let plugin = PluginConfig::decode(&request.msgpack_config).map_err(RpcError::from)?;
        // Without it Nomad only validates the configuration: this process will never run a task and must not touch the tasks of
        // another plugin process.
        let agent = request.nomad_config.and_then(|nomad| nomad.driver);
        if agent.is_some() {
            self.0.tasks.reconcile().await.map_err(RpcError::from)?;
            // Before the first start: recovered tasks have roots already.
            self.0.tasks.keep_template(plugin.has_template());
        }
        let topology = agent.and_then(|agent| agent.topology);
        let mhz_per_core = topology.and_then(|topology| mhz_per_core(&self::topology(&topology)));
        tracing::debug!(?plugin, ?mhz_per_core, "configured");
        self.configure(Settings { plugin, mhz_per_core });
        Ok(Response::new(SetConfigResponse {}))
    }
}

fn topology(topology: &ClientTopology) -> Topology {
    Topology {
        cores: topology
            .cores
            .iter()
            .map(|core| CoreMhz { base: core.base_speed, max: core.max_speed, guess: core.guess_speed })
            .collect(),
        override_total_compute: topology.override_total_compute,
    }
}
