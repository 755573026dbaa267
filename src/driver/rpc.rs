//! The `Driver` service: Nomad's calls about tasks.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status::RpcError;
use super::{Driver, events, exec, request, stats};
use crate::cgroup::CpuSampler;
use crate::config::{DriverConfig, PluginConfig, RootKind};
use crate::proto::driver::driver_server::Driver as DriverRpc;
use crate::proto::driver::network_isolation_spec::NetworkIsolationMode;
use crate::proto::driver::{self as proto, *};
use crate::record::handle::{DriverState, HANDLE_VERSION};
use crate::record::key::Key;
use crate::record::reconcile::ACKNOWLEDGE_LIMIT;
use crate::task::end::Ended;
use crate::task::exec::{Wanted, Wiring};
use crate::task::id::TaskId;
use crate::task::running::Task;

type Reply<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The exit message in Nomad for a task whose exit status is unknown.
const LOST: &str = "the exit status is unknown: the task's shim was killed or failed to write it";

/// How many readings of a TaskStats stream may wait for a slow reader.
const STATS_BACKLOG: usize = 1;

#[tonic::async_trait]
impl DriverRpc for Driver {
    type FingerprintStream = Events<FingerprintResponse>;
    type TaskStatsStream = Events<TaskStatsResponse>;
    type TaskEventsStream = Events<DriverTaskEvent>;
    type ExecTaskStreamingStream = Events<ExecTaskStreamingResponse>;

    async fn init(&self, _: Request<InitRequest>) -> Reply<InitResponse> {
        Ok(Response::new(InitResponse {}))
    }

    async fn task_config_schema(
        &self,
        _: Request<TaskConfigSchemaRequest>,
    ) -> Reply<TaskConfigSchemaResponse> {
        Ok(Response::new(TaskConfigSchemaResponse { spec: Some(DriverConfig::schema()) }))
    }

    async fn capabilities(&self, _: Request<CapabilitiesRequest>) -> Reply<CapabilitiesResponse> {
        Ok(Response::new(CapabilitiesResponse { capabilities: Some(capabilities(&self.settings().plugin)) }))
    }

    async fn fingerprint(&self, _: Request<FingerprintRequest>) -> Reply<Self::FingerprintStream> {
        Ok(Response::new(Box::pin(self.fingerprints())))
    }

    async fn start_task(&self, request: Request<StartTaskRequest>) -> Reply<StartTaskResponse> {
        let config = request.into_inner().task.ok_or(RpcError::Absent("task"))?;
        let handle = self.start(config).await?;
        Ok(Response::new(StartTaskResponse {
            result: start_task_response::Result::Success as i32,
            handle: Some(handle),
            ..Default::default()
        }))
    }

    async fn recover_task(&self, request: Request<RecoverTaskRequest>) -> Reply<RecoverTaskResponse> {
        let handle = request.into_inner().handle.ok_or(RpcError::Absent("handle"))?;
        self.recover(handle).await?;
        Ok(Response::new(RecoverTaskResponse {}))
    }

    async fn wait_task(&self, request: Request<WaitTaskRequest>) -> Reply<WaitTaskResponse> {
        let task = self.task(&request.into_inner().task_id)?;
        // Nomad calls this first after it has the response of StartTask.
        task.acknowledge();
        let ended = task.wait().await;
        let err = if ended.is_lost() { LOST.to_owned() } else { String::new() };
        Ok(Response::new(WaitTaskResponse { result: Some(exit_result(&ended)), err }))
    }

    async fn stop_task(&self, request: Request<StopTaskRequest>) -> Reply<StopTaskResponse> {
        let StopTaskRequest { task_id, timeout, signal } = request.into_inner();
        let grace = timeout.and_then(|timeout| Duration::try_from(timeout).ok()).unwrap_or_default();
        self.0.tasks.stop(key(&task_id)?, &signal, grace).await.map_err(RpcError::from)?;
        Ok(Response::new(StopTaskResponse {}))
    }

    async fn destroy_task(&self, request: Request<DestroyTaskRequest>) -> Reply<DestroyTaskResponse> {
        let DestroyTaskRequest { task_id, force } = request.into_inner();
        tracing::debug!(task = task_id, force, "destroy");
        self.0.tasks.destroy(task_id, force).await.map_err(RpcError::from)?;
        Ok(Response::new(DestroyTaskResponse {}))
    }

    async fn inspect_task(&self, request: Request<InspectTaskRequest>) -> Reply<InspectTaskResponse> {
        let task = self.task(&request.into_inner().task_id)?;
        let pid = task.process.map(|process| ("pid".to_owned(), process.pid.to_string()));
        Ok(Response::new(InspectTaskResponse {
            task: Some(task_status(&task)),
            driver: Some(TaskDriverStatus { attributes: pid.into_iter().collect() }),
            network_override: None,
        }))
    }

    async fn task_stats(&self, request: Request<TaskStatsRequest>) -> Reply<Self::TaskStatsStream> {
        let TaskStatsRequest { task_id, collection_interval } = request.into_inner();
        let task = self.task(&task_id)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(STATS_BACKLOG);
        let sampler = self.settings().mhz_per_core;
        let interval = stats::interval(collection_interval);
        tokio::spawn(async move {
            let Some(cgroup) = &task.cgroup else { return };
            let mut sampler = match stats::read(cgroup) {
                Ok((now, first)) => CpuSampler::since(sampler, now, first.cpu.times),
                Err(_) => CpuSampler::new(sampler),
            };
            loop {
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    _ = task.wait() => return,
                    () = sender.closed() => return,
                }
                let sample = match stats::read(cgroup) {
                    Ok((now, stats)) => {
                        let usage = sampler.sample(now, stats.cpu.times);
                        Ok(TaskStatsResponse {
                            stats: Some(stats::task_stats(task.id.as_str(), &stats, usage)),
                        })
                    }
                    // The cgroup is removed when the task ends.
                    Err(error) if error.is_gone() => return,
                    Err(error) => Err(Status::internal(error.to_string())),
                };
                if sender.send(sample).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn task_events(&self, _: Request<TaskEventsRequest>) -> Reply<Self::TaskEventsStream> {
        // An agent opens this stream when it has connected to the plugin: a new one, or its own after a restart.
        self.0.tasks.expect_acknowledgements(ACKNOWLEDGE_LIMIT);
        Ok(Response::new(Box::pin(events::stream(self.0.tasks.bus()))))
    }

    async fn signal_task(&self, request: Request<SignalTaskRequest>) -> Reply<SignalTaskResponse> {
        let SignalTaskRequest { task_id, signal } = request.into_inner();
        self.0.tasks.signal(key(&task_id)?, &signal).map_err(RpcError::from)?;
        Ok(Response::new(SignalTaskResponse {}))
    }

    async fn exec_task(&self, request: Request<ExecTaskRequest>) -> Reply<ExecTaskResponse> {
        let ExecTaskRequest { task_id, command, timeout } = request.into_inner();
        let limit =
            timeout.and_then(|timeout| Duration::try_from(timeout).ok()).filter(|limit| !limit.is_zero());
        let wanted = Wanted { command, wiring: Wiring::Merged };
        let session = self.0.tasks.enter(key(&task_id)?, wanted).await.map_err(RpcError::from)?;
        Ok(Response::new(exec::run(session, limit).await?))
    }

    async fn exec_task_streaming(
        &self,
        request: Request<Streaming<ExecTaskStreamingRequest>>,
    ) -> Reply<Self::ExecTaskStreamingStream> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.setup);
        let exec_task_streaming_request::Setup { task_id, command, tty } =
            first.ok_or(RpcError::Absent("setup in its first message"))?;
        let wiring = if tty { Wiring::Terminal { term: None, size: None } } else { Wiring::Pipes };
        let wanted = Wanted { command, wiring };
        let session = self.0.tasks.enter(key(&task_id)?, wanted).await.map_err(RpcError::from)?;
        Ok(Response::new(Box::pin(exec::stream(session, requests))))
    }

    async fn create_network(&self, _: Request<CreateNetworkRequest>) -> Reply<CreateNetworkResponse> {
        Err(RpcError::Unsupported("making a network").into())
    }

    async fn destroy_network(&self, _: Request<DestroyNetworkRequest>) -> Reply<DestroyNetworkResponse> {
        Err(RpcError::Unsupported("making a network").into())
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Reply<ShutdownResponse> {
        // GRPCController.Shutdown is about to end the plugin; tasks outlive it.
        Ok(Response::new(ShutdownResponse {}))
    }
}

impl Driver {
    fn task(&self, id: &str) -> Result<Arc<Task>, RpcError> {
        Ok(self.0.tasks.task(key(id)?)?)
    }

    async fn start(&self, config: proto::TaskConfig) -> Result<TaskHandle, RpcError> {
        let id = task_id(&config)?;
        let config = Arc::new(config);
        let (wanted, settings, its) = (Arc::clone(&config), self.settings(), id.clone());
        let spec = move || request::task_spec(its, &wanted, &settings);
        let driver_state = self.0.tasks.start(id, request::job(&config), spec).await?;
        Ok(TaskHandle {
            version: HANDLE_VERSION,
            config: Some(Arc::unwrap_or_clone(config)),
            state: TaskState::Running as i32,
            driver_state,
        })
    }

    async fn recover(&self, handle: TaskHandle) -> Result<(), RpcError> {
        let config = handle.config.ok_or(RpcError::Absent("config in its handle"))?;
        self.0.tasks.recover(task_id(&config)?, handle.version, &handle.driver_state).await?;
        if let Ok(DriverState { uid: Some(uid), .. }) =
            DriverState::decode(handle.version, &handle.driver_state)
        {
            let (job, settings) = (request::job(&config), self.settings());
            self.0.tasks.beside_starts(job, move || request::record_user(&config, uid, &settings.plugin));
        }
        Ok(())
    }
}

/// The task id in a request.
fn key(id: &str) -> Result<Key<'_>, RpcError> {
    Ok(Key::new(id)?)
}

fn task_id(config: &proto::TaskConfig) -> Result<TaskId, RpcError> {
    Ok(TaskId::new(&config.id, &config.alloc_id, &config.name)?)
}

fn capabilities(plugin: &PluginConfig) -> DriverCapabilities {
    use driver_capabilities::{FsIsolation, MountConfigs};
    DriverCapabilities {
        send_signals: true,
        exec: true,
        fs_isolation: FsIsolation::Unveil as i32,
        network_isolation_modes: [
            NetworkIsolationMode::None,
            NetworkIsolationMode::Host,
            NetworkIsolationMode::Group,
        ]
        .map(i32::from)
        .into(),
        must_create_network: false,
        // In the host's tree nothing can be mounted for one task: Nomad then refuses a job with a volume_mount.
        mount_configs: match plugin.root {
            // Another name of AnyMounts.
            RootKind::Private => MountConfigs::UnknownMounts,
            RootKind::Host => MountConfigs::NoMounts,
        } as i32,
        disable_log_collection: plugin.disable_log_collection,
        dynamic_workload_users: true,
    }
}

fn exit_result(ended: &Ended) -> ExitResult {
    ExitResult { exit_code: ended.exit.code, signal: ended.exit.signal, oom_killed: ended.is_oom_killed() }
}

fn task_status(task: &Task) -> TaskStatus {
    let ended = task.ended();
    TaskStatus {
        id: task.id.as_str().to_owned(),
        name: task.id.name().to_owned(),
        state: if ended.is_some() { TaskState::Exited } else { TaskState::Running } as i32,
        started_at: Some(task.started_at.into()),
        completed_at: Some(ended.map_or(GO_ZERO_TIME, |ended| ended.exit.at.into())),
        result: Some(ended.as_ref().map(exit_result).unwrap_or_default()),
    }
}

/// Go's zero time (the year 1): Nomad's client crashes on an absent timestamp.
const GO_ZERO_TIME: prost_types::Timestamp = prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 };
