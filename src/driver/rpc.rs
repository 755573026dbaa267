//! `Driver`: what Nomad asks about tasks.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status::RpcError;
use super::{Driver, request, stats};
use crate::cgroup::CpuSampler;
use crate::config::TaskConfig;
use crate::proto::driver::driver_server::Driver as DriverRpc;
use crate::proto::driver::network_isolation_spec::NetworkIsolationMode;
use crate::proto::driver::{self as proto, *};
use crate::task::recover::{Recovered, recover};
use crate::task::running::{Ended, Names, Task};
use crate::task::signal::{self, SignalNumber};
use crate::task::state::HANDLE_VERSION;

type Reply<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A TaskStats stream's readings that may wait for a slow reader.
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
        Ok(Response::new(TaskConfigSchemaResponse { spec: Some(TaskConfig::schema()) }))
    }

    async fn capabilities(&self, _: Request<CapabilitiesRequest>) -> Reply<CapabilitiesResponse> {
        Ok(Response::new(CapabilitiesResponse { capabilities: Some(capabilities()) }))
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
        let ended = self.task(&request.into_inner().task_id)?.wait().await;
        Ok(Response::new(WaitTaskResponse { result: Some(exit_result(&ended)), err: String::new() }))
    }

    async fn stop_task(&self, request: Request<StopTaskRequest>) -> Reply<StopTaskResponse> {
        let StopTaskRequest { task_id, timeout, signal } = request.into_inner();
        // Nomad stops what it no longer knows for certain; a task that is not there is stopped.
        let Some(task) = self.0.store.get(&task_id) else { return Ok(Response::new(StopTaskResponse {})) };
        let grace = timeout.and_then(|timeout| Duration::try_from(timeout).ok()).unwrap_or_default();
        let signal = match signal.as_str() {
            "" => SignalNumber::SIGINT,
            name => signal::parse(name).unwrap_or_else(|error| {
                // An error here would leave the task running for good.
                self.0.events.emit(&task, format!("kill_signal: {error}; stopping with SIGINT"), &[]);
                SignalNumber::SIGINT
            }),
        };
        tracing::debug!(task = task_id, %signal, ?grace, "stop");
        task.stop(signal, grace).await.map_err(RpcError::from)?;
        Ok(Response::new(StopTaskResponse {}))
    }

    async fn destroy_task(&self, request: Request<DestroyTaskRequest>) -> Reply<DestroyTaskResponse> {
        let DestroyTaskRequest { task_id, force } = request.into_inner();
        tracing::debug!(task = task_id, force, "destroy");
        if let Some(task) = self.0.store.get(&task_id) {
            if task.ended().is_none() {
                if !force {
                    return Err(RpcError::StillRuns.into());
                }
                task.kill().await.map_err(RpcError::from)?;
            }
            self.0.store.remove(&task_id);
        }
        // Also for a task that this plugin never knew: RecoverTask may have refused it.
        self.0.launcher.run_dir(&task_id).remove().map_err(RpcError::from)?;
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
                        Ok(TaskStatsResponse { stats: Some(stats::task_stats(&task.id, &stats, usage)) })
                    }
                    // The cgroup goes when the task does.
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
        Ok(Response::new(Box::pin(self.0.events.subscribe())))
    }

    async fn signal_task(&self, request: Request<SignalTaskRequest>) -> Reply<SignalTaskResponse> {
        let SignalTaskRequest { task_id, signal } = request.into_inner();
        let signal = signal::parse(&signal).map_err(RpcError::from)?;
        self.task(&task_id)?.signal(signal).map_err(RpcError::from)?;
        Ok(Response::new(SignalTaskResponse {}))
    }

    async fn exec_task(&self, _: Request<ExecTaskRequest>) -> Reply<ExecTaskResponse> {
        Err(RpcError::Unsupported("running a command in a task (alloc exec, script checks)").into())
    }

    async fn exec_task_streaming(
        &self,
        _: Request<Streaming<ExecTaskStreamingRequest>>,
    ) -> Reply<Self::ExecTaskStreamingStream> {
        Err(RpcError::Unsupported("running a command in a task (alloc exec)").into())
    }

    async fn create_network(&self, _: Request<CreateNetworkRequest>) -> Reply<CreateNetworkResponse> {
        Err(RpcError::Unsupported("making a network").into())
    }

    async fn destroy_network(&self, _: Request<DestroyNetworkRequest>) -> Reply<DestroyNetworkResponse> {
        Err(RpcError::Unsupported("making a network").into())
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Reply<ShutdownResponse> {
        // The plugin is about to be ended by GRPCController.Shutdown; tasks outlive it.
        Ok(Response::new(ShutdownResponse {}))
    }
}

impl Driver {
    fn task(&self, id: &str) -> Result<Arc<Task>, RpcError> {
        self.0.store.get(id).ok_or(RpcError::UnknownTask)
    }

    async fn start(&self, config: proto::TaskConfig) -> Result<TaskHandle, RpcError> {
        let reservation = self.0.store.reserve(&config.id)?;
        let driver = self.clone();
        let begun = move || -> Result<_, RpcError> {
            let spec = request::task_spec(&config, &driver.settings())?;
            tracing::info!(
                task = spec.id,
                command = spec.shim.command,
                uid = spec.shim.uid,
                rules = spec.shim.rules.len(),
                limits = ?spec.limits,
                "start"
            );
            let launched = driver.0.launcher.launch(&spec)?;
            let names = Names { id: spec.id, alloc_id: spec.alloc_id, name: spec.name };
            Ok((config, names, launched))
        };
        let (config, names, launched) = tokio::task::spawn_blocking(begun)
            .await
            .map_err(|error| RpcError::Worker(error.to_string()))??;
        let task = Task::adopt(names, launched)?;
        let state = task
            .state()
            .map_err(|error| RpcError::Worker(error.to_string()))
            .and_then(|state| Ok(state.encode()?));
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                // Nomad could never find it again.
                task.kill().await?;
                return Err(error);
            }
        };
        reservation.keep(task);
        Ok(TaskHandle {
            version: HANDLE_VERSION,
            config: Some(config),
            state: TaskState::Running as i32,
            driver_state: state,
        })
    }

    async fn recover(&self, handle: TaskHandle) -> Result<(), RpcError> {
        let config = handle.config.ok_or(RpcError::Absent("config in its handle"))?;
        let Ok(reservation) = self.0.store.reserve(&config.id) else {
            // Asked twice, or the plugin never died: nothing to do.
            return Ok(());
        };
        let run_dir = self.0.launcher.run_dir(&config.id);
        let names = Names { id: config.id, alloc_id: config.alloc_id, name: config.name };
        let task = match recover(handle.version, &handle.driver_state, run_dir)? {
            Recovered::Running(launched) => Task::adopt(names, *launched)?,
            Recovered::Ended { state, run_dir, ended } => Task::already_ended(names, &state, run_dir, ended),
        };
        tracing::info!(task = task.id, ended = ?task.ended(), "recovered");
        reservation.keep(task);
        Ok(())
    }
}

fn capabilities() -> DriverCapabilities {
    use driver_capabilities::{FsIsolation, MountConfigs};
    DriverCapabilities {
        send_signals: true,
        exec: false,
        fs_isolation: FsIsolation::Unveil as i32,
        network_isolation_modes: [
            NetworkIsolationMode::None,
            NetworkIsolationMode::Host,
            NetworkIsolationMode::Group,
        ]
        .map(i32::from)
        .into(),
        must_create_network: false,
        // A job with a volume_mount is refused by Nomad instead of starting without its volume.
        mount_configs: MountConfigs::NoMounts as i32,
        disable_log_collection: false,
        dynamic_workload_users: true,
    }
}

fn exit_result(ended: &Ended) -> ExitResult {
    ExitResult { exit_code: ended.exit.code, signal: ended.exit.signal, oom_killed: ended.oom_killed }
}

fn task_status(task: &Task) -> TaskStatus {
    let ended = task.ended();
    TaskStatus {
        id: task.id.clone(),
        name: task.name.clone(),
        state: if ended.is_some() { TaskState::Exited } else { TaskState::Running } as i32,
        started_at: Some(task.started_at.into()),
        completed_at: Some(ended.map_or(GO_ZERO_TIME, |ended| ended.exit.at.into())),
        result: Some(ended.as_ref().map(exit_result).unwrap_or_default()),
    }
}

/// Go's zero time (the year 1): Nomad's client crashes on an absent timestamp.
const GO_ZERO_TIME: prost_types::Timestamp = prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 };
