//! `Driver`: what Nomad asks about tasks.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::status::RpcError;
use super::{Driver, blocking::blocking, events, request, stats};
use crate::cgroup::CpuSampler;
use crate::config::DriverConfig;
use crate::proto::driver::driver_server::Driver as DriverRpc;
use crate::proto::driver::network_isolation_spec::NetworkIsolationMode;
use crate::proto::driver::{self as proto, *};
use crate::sys;
use crate::task::id::TaskId;
use crate::task::launch::Launched;
use crate::task::notice::{Notice, Unveiled, What};
use crate::task::recover::{Recovered, recover};
use crate::task::running::{Ended, Names, Task};
use crate::task::signal::{self, SignalNumber};
use crate::task::spec::TaskSpec;
use crate::task::state::{DriverState, HANDLE_VERSION};
use crate::task::sweep::CONFIRM_LIMIT;
use crate::task::uids::{self, Claim};
use crate::users::UserError;

type Reply<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What Nomad shows as the exit message of a task whose end nobody saw.
const LOST: &str = "the exit status is lost: the task's shim was killed, or could not write it";

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
        Ok(Response::new(TaskConfigSchemaResponse { spec: Some(DriverConfig::schema()) }))
    }

    async fn capabilities(&self, _: Request<CapabilitiesRequest>) -> Reply<CapabilitiesResponse> {
        Ok(Response::new(CapabilitiesResponse { capabilities: Some(capabilities()) }))
    }

    async fn fingerprint(&self, _: Request<FingerprintRequest>) -> Reply<Self::FingerprintStream> {
        Ok(Response::new(Box::pin(self.fingerprints())))
    }

    async fn start_task(&self, request: Request<StartTaskRequest>) -> Reply<StartTaskResponse> {
        let config = request.into_inner().task.ok_or(RpcError::Absent("task"))?;
        let handle = Unanswered::begin(self.clone(), config).answer().await?;
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
        let task = self.task(task_id(&request.into_inner().task_id)?)?;
        // The first thing that Nomad does when it has the answer of StartTask.
        task.confirmed();
        let ended = task.wait().await;
        let err = if ended.lost { LOST.to_owned() } else { String::new() };
        Ok(Response::new(WaitTaskResponse { result: Some(exit_result(&ended)), err }))
    }

    async fn stop_task(&self, request: Request<StopTaskRequest>) -> Reply<StopTaskResponse> {
        let StopTaskRequest { task_id, timeout, signal } = request.into_inner();
        // Nomad stops what it no longer knows for certain; a task that is not there is stopped.
        let Some(task) = self.0.store.get(self::task_id(&task_id)?.as_str()) else {
            return Ok(Response::new(StopTaskResponse {}));
        };
        let grace = timeout.and_then(|timeout| Duration::try_from(timeout).ok()).unwrap_or_default();
        let signal = match signal.as_str() {
            "" => SignalNumber::SIGINT,
            name => signal::parse(name).unwrap_or_else(|error| {
                // An error here would leave the task running for good.
                self.0.notices.about(&task, What::BadKillSignal(error.to_string()));
                SignalNumber::SIGINT
            }),
        };
        tracing::debug!(task = task_id, %signal, ?grace, "stop");
        task.stop(signal, grace, &self.0.notices).await.map_err(RpcError::from)?;
        Ok(Response::new(StopTaskResponse {}))
    }

    async fn destroy_task(&self, request: Request<DestroyTaskRequest>) -> Reply<DestroyTaskResponse> {
        let DestroyTaskRequest { task_id, force } = request.into_inner();
        tracing::debug!(task = task_id, force, "destroy");
        let id = self::task_id(&task_id)?;
        if let Some(task) = self.0.store.get(&task_id) {
            if task.ended().is_none() {
                if !force {
                    return Err(RpcError::StillRuns.into());
                }
                self.0.notices.about(&task, What::Destroyed);
                task.kill().await.map_err(RpcError::from)?;
            }
            self.0.store.remove(&task_id);
        } else if !force && self.0.launcher.runs_unknown(id) {
            return Err(RpcError::StillRuns.into());
        }
        // Also for a task that this plugin does not know: Nomad asks for it after RecoverTask has failed, and it may well run.
        let driver = self.clone();
        let end = move || driver.0.launcher.end_unknown(TaskId::new(&task_id)?);
        blocking(end).await?.map_err(RpcError::Destroy)?;
        Ok(Response::new(DestroyTaskResponse {}))
    }

    async fn inspect_task(&self, request: Request<InspectTaskRequest>) -> Reply<InspectTaskResponse> {
        let task = self.task(task_id(&request.into_inner().task_id)?)?;
        let pid = task.process.map(|process| ("pid".to_owned(), process.pid.to_string()));
        Ok(Response::new(InspectTaskResponse {
            task: Some(task_status(&task)),
            driver: Some(TaskDriverStatus { attributes: pid.into_iter().collect() }),
            network_override: None,
        }))
    }

    async fn task_stats(&self, request: Request<TaskStatsRequest>) -> Reply<Self::TaskStatsStream> {
        let TaskStatsRequest { task_id, collection_interval } = request.into_inner();
        let task = self.task(self::task_id(&task_id)?)?;
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
        // An agent opens this stream when it has found the plugin, be it a new one or its own of before a restart.
        self.end_unconfirmed_after(CONFIRM_LIMIT);
        Ok(Response::new(Box::pin(events::stream(&self.0.notices))))
    }

    async fn signal_task(&self, request: Request<SignalTaskRequest>) -> Reply<SignalTaskResponse> {
        let SignalTaskRequest { task_id, signal } = request.into_inner();
        let signal = signal::parse(&signal).map_err(RpcError::from)?;
        self.task(self::task_id(&task_id)?)?.signal(signal).map_err(RpcError::from)?;
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
    fn task(&self, id: TaskId<'_>) -> Result<Arc<Task>, RpcError> {
        self.0.store.get(id.as_str()).ok_or(RpcError::UnknownTask)
    }

    /// `gone` ends when nobody waits for the answer any more: a start that still waits for its turn is then given up.
    async fn start(&self, config: proto::TaskConfig, gone: Gone) -> Result<TaskHandle, RpcError> {
        let id = task_id(&config.id)?;
        let reservation = self.0.store.reserve(id)?;
        self.end_earlier_invocations(id).await;
        let turn = tokio::select! {
            turn = self.0.starts.turn(&config.namespace, &config.job_id) => turn?,
            _ = gone => return Err(RpcError::HungUp),
        };
        let driver = self.clone();
        let begin = move || {
            let _turn = turn;
            let started = driver.launch(&config);
            (config, started)
        };
        let (config, started) = blocking(begin).await?;
        let (launched, what, claim) = started.inspect_err(|error| self.tell_failure(&config, error))?;
        let task = match Task::adopt(names(&config), launched, &self.0.notices) {
            Ok(task) => task,
            Err((error, launched)) => {
                blocking(|| launched.abandon()).await?;
                let error = RpcError::from(error);
                self.tell_failure(&config, &error);
                return Err(error);
            }
        };
        let uid = claim.uid();
        hold(claim, &task);
        let state = match self.ready(&task, uid) {
            Ok(state) => state,
            Err(error) => {
                // Nomad could never find it again.
                end(&task).await;
                self.tell_failure(&config, &error);
                return Err(error);
            }
        };
        self.0.notices.about(&task, what);
        reservation.keep(task);
        Ok(TaskHandle {
            version: HANDLE_VERSION,
            config: Some(config),
            state: TaskState::Running as i32,
            driver_state: state,
        })
    }

    /// Nomad has destroyed every invocation of a task that it knew before it starts the next: whatever is left was started
    /// for an agent that died before it had noted the answer.
    async fn end_earlier_invocations(&self, id: TaskId<'_>) {
        let Some(prefix) = id.task_prefix() else { return };
        for task in self.0.store.with_prefix(prefix) {
            tracing::warn!(task = task.id, "ending an earlier invocation of the task, which is orphaned");
            self.give_up(&task).await;
        }
    }

    /// The answers of StartTask may have been lost with an agent that died. The next one has until `limit` to ask for the
    /// tasks that it knows, which it does when it has restored their allocations.
    pub(super) fn end_unconfirmed_after(&self, limit: Duration) {
        let doubtful: Vec<_> =
            self.0.store.tasks().into_iter().filter(|task| task.is_unconfirmed()).collect();
        if doubtful.is_empty() {
            return;
        }
        let driver = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            for task in doubtful.iter().filter(|task| task.is_unconfirmed()) {
                tracing::warn!(task = task.id, "ending a task for which Nomad has not asked");
                driver.give_up(task).await;
            }
        });
    }

    /// Ends a task of which Nomad does not know. One that cannot be ended stays known.
    async fn give_up(&self, task: &Task) {
        if end(task).await {
            self.0.store.remove(&task.id);
        }
    }

    /// The blocking part of a start.
    fn launch(&self, config: &proto::TaskConfig) -> Result<(Launched, What, Claim), RpcError> {
        let settings = self.settings();
        let spec = request::task_spec(config, &settings)?;
        let claim = self.claim(&spec)?;
        tracing::debug!(task = spec.id, command = spec.shim.command, limits = ?spec.limits, "start");
        let launched = self.0.launcher.launch(&spec)?;
        let what = What::Started {
            // Not the one that was asked for: that may have been forgotten.
            user: spec.shim.env("USER").unwrap_or(&config.user).to_owned(),
            uid: spec.shim.uid,
            landlock_abi: sys::landlock::abi().unwrap_or(0),
            unveiled: Unveiled::new(
                settings.plugin.unveil_defaults,
                settings.plugin.unveil_paths.len(),
                spec.asked,
            ),
        };
        Ok((launched, what, claim))
    }

    /// Takes the task's uid. One that no user database knows must not be another allocation's.
    fn claim(&self, spec: &TaskSpec) -> Result<Claim, RpcError> {
        let (uids, uid) = (&self.0.uids, spec.shim.uid);
        if !spec.unknown_user {
            return Ok(uids.claim(uid, &spec.alloc_id));
        }
        uids.claim_alone(uid, &spec.alloc_id).ok_or_else(|| {
            tracing::warn!(task = spec.id, uid, "the task's user is that of a task of another allocation");
            UserError::InUse { user: spec.shim.env("USER").unwrap_or_default().to_owned(), uid }.into()
        })
    }

    /// The last steps before Nomad is told: from here on the task is Nomad's.
    fn ready(&self, task: &Task, uid: u32) -> Result<Vec<u8>, RpcError> {
        let state = task.state().map_err(|error| RpcError::Worker(error.to_string()))?;
        let state = DriverState { uid: Some(uid), ..state }.encode()?;
        task.started()?;
        Ok(state)
    }

    /// A recovered task has its uid already, whoever else has it.
    fn hold_recovered(&self, version: i32, state: &[u8], task: &Arc<Task>) {
        let noted = DriverState::decode(version, state).ok().and_then(|state| state.uid);
        match noted.or_else(|| task.process.and_then(uids::of_process)) {
            Some(uid) => hold(self.0.uids.claim(uid, &task.alloc_id), task),
            None => tracing::warn!(task = task.id, "failed to find out the uid of a recovered task"),
        }
    }

    fn tell_failure(&self, config: &proto::TaskConfig, error: &RpcError) {
        self.0.notices.send(Notice {
            task_id: config.id.clone(),
            alloc_id: config.alloc_id.clone(),
            task_name: config.name.clone(),
            at: std::time::SystemTime::now(),
            what: What::not_started(error),
        });
    }

    async fn recover(&self, handle: TaskHandle) -> Result<(), RpcError> {
        let config = handle.config.ok_or(RpcError::Absent("config in its handle"))?;
        let id = task_id(&config.id)?;
        let reservation = loop {
            match self.0.store.reserve(id) {
                Ok(reservation) => break reservation,
                // Asked twice, or the plugin never died. Somebody else may still be at it, and fail.
                Err(_) => {
                    if let Some(task) = self.0.store.get_started(&config.id).await {
                        task.confirmed();
                        return Ok(());
                    }
                }
            }
        };
        let names = names(&config);
        let run_dir = self.0.launcher.run_dir(id);
        let notices = &self.0.notices;
        let task = match recover(handle.version, &handle.driver_state, run_dir)? {
            // It is left running: Nomad decides, and destroys what it cannot have.
            Recovered::Running(launched) => {
                Task::adopt(names, *launched, notices).map_err(|(error, _)| error)?
            }
            Recovered::Ended { state, run_dir, cgroup, ended } => {
                Task::already_ended(names, &state, run_dir, cgroup, ended)
            }
        };
        task.confirmed();
        let running = task.ended().is_none();
        if running {
            self.hold_recovered(handle.version, &handle.driver_state, &task);
        }
        notices.about(&task, What::Recovered { running });
        if !running {
            task.tell_late(notices);
        }
        reservation.keep(task);
        Ok(())
    }
}

/// Keeps a task's uid for it until all of its processes are gone.
fn hold(claim: Claim, task: &Arc<Task>) {
    let task = Arc::clone(task);
    tokio::spawn(async move {
        task.wait().await;
        drop(claim);
    });
}

/// Resolves when the call that a start is to answer has been dropped.
type Gone = oneshot::Receiver<Infallible>;

/// A start whose answer Nomad has not got yet. If the agent dies meanwhile, the call is dropped. A start that has not begun is
/// then given up; one that has runs to its end, since half a start cannot be left alone, and its task is ended: nobody would
/// ever ask for it.
struct Unanswered {
    driver: Driver,
    start: Option<JoinHandle<Result<TaskHandle, RpcError>>>,
    /// Dropped with the call, see [`Gone`].
    _here: oneshot::Sender<Infallible>,
}

impl Unanswered {
    fn begin(driver: Driver, config: proto::TaskConfig) -> Self {
        let this = driver.clone();
        let (here, gone) = oneshot::channel();
        let start = tokio::spawn(async move { this.start(config, gone).await });
        Self { driver, start: Some(start), _here: here }
    }

    async fn answer(mut self) -> Result<TaskHandle, RpcError> {
        let Some(start) = &mut self.start else { return Err(RpcError::Worker("no start".into())) };
        let started = start.await;
        self.start = None;
        started.map_err(|error| RpcError::Worker(error.to_string()))?
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        // Without a runtime the process is about to end, and its successor sweeps.
        let (Some(start), Ok(runtime)) = (self.start.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let driver = self.driver.clone();
        runtime.spawn(async move {
            let Ok(Ok(handle)) = start.await else { return };
            let id = handle.config.map(|config| config.id).unwrap_or_default();
            if let Some(task) = driver.0.store.get(&id) {
                tracing::warn!(task = id, "ending a task: the agent has gone before it knew that it runs");
                driver.give_up(&task).await;
            }
        });
    }
}

/// Ends an orphaned task; false if it is still there, and on record.
async fn end(task: &Task) -> bool {
    if let Err(error) = task.kill().await {
        tracing::error!(task = task.id, %error, "failed to end an orphaned task");
        return false;
    }
    if let Err(error) = task.forget() {
        tracing::warn!(task = task.id, %error, "failed to forget an orphaned task");
    }
    true
}

/// The id in a request.
fn task_id(id: &str) -> Result<TaskId<'_>, RpcError> {
    Ok(TaskId::new(id)?)
}

fn names(config: &proto::TaskConfig) -> Names {
    Names { id: config.id.clone(), alloc_id: config.alloc_id.clone(), name: config.name.clone() }
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
