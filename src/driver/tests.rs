//! RecoverTask and DestroyTask, with other processes in place of shims: none of it needs root.

use std::time::Duration;

use tokio::time::timeout;
use tonic::{Code, Request};

use super::Driver;
use crate::proto::base::base_plugin_server::BasePlugin as _;
use crate::proto::base::{NomadConfig, NomadDriverConfig, SetConfigRequest};
use crate::proto::driver::driver_server::Driver as _;
use crate::proto::driver::{
    AllocatedCpuResources, AllocatedMemoryResources, AllocatedTaskResources, CapabilitiesRequest,
    DestroyTaskRequest, ExitResult, InspectTaskRequest, LinuxResources, RecoverTaskRequest, Resources,
    SignalTaskRequest, StartTaskRequest, StopTaskRequest, TaskConfig, TaskHandle, TaskState,
    TaskStatsRequest, WaitTaskRequest,
};
use crate::record::handle::{DriverState, HANDLE_VERSION};
use crate::record::identity::boot_id;
use crate::record::key::Key;
use crate::record::run_dir::RunDir;
use crate::record::testing::FakeProcess;
use crate::shim::exit::Exit;

/// As many as the agent of a large host recovers at once.
const MANY: i32 = 200;

struct Host {
    driver: Driver,
    _dir: tempfile::TempDir,
}

/// A process in place of a shim, and the file for the exit record of its task.
struct Stand {
    shim: FakeProcess,
    exit: std::fs::File,
    handle: TaskHandle,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { driver: Driver::with_run_dir(&dir.path().join("run")).unwrap(), _dir: dir }
    }

    fn run_dir(&self, id: &str) -> RunDir {
        self.driver.0.tasks.run_dir(Key::new(id).unwrap())
    }

    fn stand(&self, number: i32) -> Stand {
        let id = format!("alloc/task{number}/1");
        let shim = FakeProcess::new();
        let entry = self.run_dir(&id);
        let exit = entry.create().unwrap();
        entry.record_shim(&shim.identity).unwrap();
        entry.started().unwrap();
        let state = DriverState {
            boot_id: boot_id().unwrap(),
            shim: shim.identity,
            task: None,
            cgroup: None,
            started_at_us: 1_700_000_000_000_000,
            oom_kills_before: 0,
            uid: None,
        };
        let config = TaskConfig { id, ..TaskConfig::default() };
        let handle = TaskHandle {
            version: HANDLE_VERSION,
            config: Some(config),
            state: TaskState::Running as i32,
            driver_state: state.encode().unwrap(),
        };
        Stand { shim, exit, handle }
    }

    async fn recover(&self, handle: &TaskHandle) -> Result<(), tonic::Status> {
        let handle = Some(handle.clone());
        self.driver.recover_task(Request::new(RecoverTaskRequest { task_id: String::new(), handle })).await?;
        Ok(())
    }

    async fn wait(&self, id: &str) -> ExitResult {
        let request = Request::new(WaitTaskRequest { task_id: id.into() });
        self.driver.wait_task(request).await.unwrap().into_inner().result.unwrap()
    }

    async fn destroy(&self, id: &str, force: bool) -> Result<(), tonic::Status> {
        let request = DestroyTaskRequest { task_id: id.into(), force };
        self.driver.destroy_task(Request::new(request)).await?;
        Ok(())
    }
}

impl Stand {
    fn id(&self) -> &str {
        &self.handle.config.as_ref().unwrap().id
    }

    /// Writes the record of a shim whose task has ended with `code`.
    fn end(&mut self, code: i32) {
        Exit::exited(code).write(&self.exit).unwrap();
        self.shim.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_are_recovered_concurrently_and_twice() {
    let host = Host::new();
    let mut stands: Vec<Stand> = (0..MANY).map(|number| host.stand(number)).collect();
    // Some end before Nomad recovers them.
    for (number, stand) in stands.iter_mut().enumerate().filter(|(number, _)| number % 3 == 0) {
        stand.end(number as i32);
        stand.shim.end();
    }
    let recoveries: Vec<_> = stands
        .iter()
        .rev()
        .map(|stand| {
            let (driver, handle) = (host.driver.clone(), stand.handle.clone());
            tokio::spawn(async move {
                for _ in 0..2 {
                    let handle = Some(handle.clone());
                    let request = RecoverTaskRequest { task_id: String::new(), handle };
                    driver.recover_task(Request::new(request)).await.unwrap();
                }
            })
        })
        .collect();
    for recovery in recoveries {
        recovery.await.unwrap();
    }
    assert_eq!(host.driver.0.tasks.store().tasks().len(), stands.len());
    for (number, stand) in stands.iter_mut().enumerate().filter(|(number, _)| number % 3 != 0) {
        assert!(stand.shim.runs(), "recovery harms nobody");
        stand.end(number as i32);
    }
    for (number, stand) in stands.iter().enumerate() {
        assert_eq!(host.wait(stand.id()).await.exit_code, number as i32 % 256, "{}", stand.id());
    }
}

#[tokio::test]
async fn a_recovered_task_is_running_and_keeps_its_start_time() {
    let host = Host::new();
    let stand = host.stand(1);
    host.recover(&stand.handle).await.unwrap();
    let request = Request::new(InspectTaskRequest { task_id: stand.id().into() });
    let task = host.driver.inspect_task(request).await.unwrap().into_inner().task.unwrap();
    assert_eq!(task.state, TaskState::Running as i32);
    assert_eq!(task.started_at.unwrap().seconds, 1_700_000_000);
    // Without a cgroup and a leader, no process can be signalled: the grace period passes, and the shim is killed.
    let grace = Some(prost_types::Duration { seconds: 0, nanos: 1_000_000 });
    let stop = StopTaskRequest { task_id: stand.id().into(), timeout: grace, signal: String::new() };
    host.driver.stop_task(Request::new(stop)).await.unwrap();
    let result = host.wait(stand.id()).await;
    assert_eq!((result.exit_code, result.signal), (137, 9), "the shim left no word");
}

#[tokio::test]
async fn foreign_handles_and_other_boots_are_refused() {
    let host = Host::new();
    let stand = host.stand(1);
    let refused = async |change: &dyn Fn(&mut TaskHandle)| {
        let mut handle = stand.handle.clone();
        change(&mut handle);
        host.recover(&handle).await.unwrap_err()
    };
    for version in [1, 2] {
        let error = refused(&|handle| handle.version = version).await;
        assert!(error.message().contains("another exec2 driver"), "{error}");
        assert_eq!(error.code(), Code::Unknown);
    }
    let rebooted = |handle: &mut TaskHandle| {
        let mut state = DriverState::decode(HANDLE_VERSION, &handle.driver_state).unwrap();
        state.boot_id = "former".into();
        handle.driver_state = state.encode().unwrap();
    };
    assert!(refused(&rebooted).await.message().contains("rebooted"));
    let reused = |handle: &mut TaskHandle| {
        let mut state = DriverState::decode(HANDLE_VERSION, &handle.driver_state).unwrap();
        state.shim.start_time += 1;
        handle.driver_state = state.encode().unwrap();
    };
    assert!(refused(&reused).await.message().contains("left no exit status"));
    assert!(
        refused(&|handle| handle.driver_state = b"{}".into()).await.message().contains("failed to decode")
    );
    assert!(host.driver.0.tasks.store().tasks().is_empty());
}

#[tokio::test]
async fn a_task_that_was_not_recovered_is_ended_when_nomad_destroys_it() {
    let host = Host::new();
    let (mut stand, mut other) = (host.stand(1), host.stand(2));
    let id = stand.id().to_owned();
    assert!(host.destroy(&id, false).await.unwrap_err().message().contains("still runs"));
    assert!(stand.shim.runs());
    host.destroy(&id, true).await.unwrap();
    assert!(!stand.shim.runs() && other.shim.runs());
    assert!(!host.run_dir(&id).path().exists());
    host.destroy(&id, false).await.unwrap();
}

#[tokio::test]
async fn a_task_that_the_next_agent_does_not_recover_is_ended() {
    let host = Host::new();
    let (mut lost, mut known) = (host.stand(1), host.stand(2));
    for stand in [&lost, &known] {
        host.recover(&stand.handle).await.unwrap();
        // The state after StartTask: the response is sent, but not acknowledged.
        let dir = host.run_dir(stand.id());
        std::fs::copy(dir.path().join("shim"), dir.path().join("answered")).unwrap();
    }
    host.driver.0.tasks.expect_acknowledgements(Duration::from_millis(200));
    // An agent recovers every task that it knows, even from the plugin that started it.
    host.recover(&known.handle).await.unwrap();
    while lost.shim.runs() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while host.run_dir(lost.id()).path().exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(known.shim.runs());
    let ids: Vec<_> =
        host.driver.0.tasks.store().tasks().iter().map(|task| task.id.as_str().to_owned()).collect();
    assert_eq!(ids, [known.id()]);
}

#[tokio::test]
async fn an_unconfigured_plugin_sweeps_nothing() {
    let host = Host::new();
    let mut stand = host.stand(1);
    // A start that a previous plugin did not finish.
    let dir = host.run_dir(stand.id());
    let gone =
        serde_json::json!({ "boot_id": boot_id().unwrap(), "pid": stand.shim.identity.pid, "start_time": 1 });
    std::fs::write(dir.path().join("starting"), gone.to_string()).unwrap();
    // MessagePack of `{"root": "host"}`: there is no template to keep.
    let msgpack_config = b"\x81\xa4root\xa4host".to_vec();
    let configured = async |nomad_config| {
        let msgpack_config = msgpack_config.clone();
        let request = SetConfigRequest { nomad_config, msgpack_config, ..SetConfigRequest::default() };
        host.driver.set_config(Request::new(request)).await.unwrap();
    };
    configured(None).await;
    assert!(stand.shim.runs() && dir.path().exists());
    configured(Some(NomadConfig { driver: Some(NomadDriverConfig::default()) })).await;
    assert!(!stand.shim.runs() && !dir.path().exists());
}

#[tokio::test]
async fn the_log_collector_is_disabled_on_the_wire_only_if_the_operator_says_so() {
    let host = Host::new();
    // MessagePack of `{"disable_log_collection": false}` and of true.
    let config = |value: u8| [b"\x81\xb6disable_log_collection", &[value][..]].concat();
    for (msgpack_config, expected) in [(b"\x80".to_vec(), false), (config(0xc3), true), (config(0xc2), false)]
    {
        let request = SetConfigRequest { msgpack_config, ..SetConfigRequest::default() };
        host.driver.set_config(Request::new(request)).await.unwrap();
        let response = host.driver.capabilities(Request::new(CapabilitiesRequest {})).await.unwrap();
        assert_eq!(response.into_inner().capabilities.unwrap().disable_log_collection, expected);
    }
}

#[tokio::test]
async fn an_unknown_exit_status_is_reported_as_unknown() {
    let host = Host::new();
    let mut stand = host.stand(1);
    host.recover(&stand.handle).await.unwrap();
    stand.shim.kill();
    let request = Request::new(WaitTaskRequest { task_id: stand.id().into() });
    let answer = host.driver.wait_task(request).await.unwrap().into_inner();
    assert!(answer.err.contains("exit status is unknown"), "{}", answer.err);
    let result = answer.result.unwrap();
    assert_eq!((result.exit_code, result.signal, result.oom_killed), (137, 9, false));
}

#[tokio::test]
async fn an_empty_id_is_refused_by_every_call_and_removes_nothing() {
    let host = Host::new();
    let mut stand = host.stand(1);
    let driver = &host.driver;
    let config = Some(TaskConfig::default());
    let handle = TaskHandle { config: config.clone(), ..stand.handle.clone() };
    let errors = [
        host.destroy("", true).await.unwrap_err(),
        host.destroy("", false).await.unwrap_err(),
        host.recover(&handle).await.unwrap_err(),
        driver.start_task(Request::new(StartTaskRequest { task: config })).await.unwrap_err(),
        driver.stop_task(Request::new(StopTaskRequest::default())).await.unwrap_err(),
        driver.wait_task(Request::new(WaitTaskRequest::default())).await.unwrap_err(),
        driver.inspect_task(Request::new(InspectTaskRequest::default())).await.unwrap_err(),
        driver.task_stats(Request::new(TaskStatsRequest::default())).await.err().unwrap(),
        driver
            .signal_task(Request::new(SignalTaskRequest { signal: "SIGHUP".into(), ..Default::default() }))
            .await
            .unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("the task id is empty"), "{error}");
    }
    assert!(stand.shim.runs() && host.run_dir(stand.id()).path().join("exit").exists());
    // An id that is itself a path removes nothing either.
    for id in ["/", "//", "..", "../.."] {
        host.destroy(id, true).await.unwrap();
        assert!(stand.shim.runs() && host.run_dir(stand.id()).path().join("exit").exists(), "{id}");
    }
    host.destroy(stand.id(), true).await.unwrap();
    assert!(!stand.shim.runs());
}

#[tokio::test]
async fn hanging_starts_block_no_destroy_and_an_abandoned_start_is_undone() {
    let host = Host::new();
    let mut stand = host.stand(1);
    let mut turns = Vec::new();
    while let Ok(turn) = timeout(
        Duration::from_millis(200),
        host.driver.0.tasks.starts().turn("default", &turns.len().to_string()),
    )
    .await
    {
        turns.push(turn.unwrap());
    }
    let config = TaskConfig { id: "a/waits/1".into(), ..TaskConfig::default() };
    let request = || Request::new(StartTaskRequest { task: Some(config.clone()) });
    assert!(
        timeout(Duration::from_millis(200), host.driver.start_task(request())).await.is_err(),
        "it waits"
    );
    // The call was dropped, as when the agent dies: its id can be used again.
    while host.driver.0.tasks.store().reserve(Key::new(&config.id).unwrap()).is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    host.destroy(stand.id(), true).await.unwrap();
    assert!(!stand.shim.runs());
    drop(turns);
    let error = host.driver.start_task(request()).await.unwrap_err();
    assert!(error.message().contains("command"), "it is its turn, and it has no command: {error}");
}

/// A start that fails at the task's cgroup, which does not exist; by then the user has been checked completely.
async fn start(host: &Host, alloc: &str, user: &str) -> tonic::Status {
    // Without root no mounts are possible: the allocation's directory is the task's own, with the task's name.
    let (root, task) = (host._dir.path().join(alloc), ".");
    for name in ["local", "secrets", "tmp", "alloc"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    let env = [("NOMAD_TASK_DIR", "local"), ("NOMAD_ALLOC_DIR", "alloc"), ("NOMAD_SECRETS_DIR", "secrets")]
        .map(|(name, dir)| (name.to_owned(), root.join(dir).display().to_string()));
    let allocated = AllocatedTaskResources {
        cpu: Some(AllocatedCpuResources { cpu_shares: 100 }),
        memory: Some(AllocatedMemoryResources { memory_mb: 64, memory_max_mb: 0 }),
        ..AllocatedTaskResources::default()
    };
    let linux = LinuxResources { cpuset_cgroup: "/nonexistent/cgroup".into(), ..LinuxResources::default() };
    let config = TaskConfig {
        id: format!("{alloc}/{task}/1"),
        alloc_id: alloc.into(),
        name: task.into(),
        user: user.into(),
        env: env.into(),
        alloc_dir: root.display().to_string(),
        stdout_path: "/dev/null".into(),
        stderr_path: "/dev/null".into(),
        msgpack_driver_config: rmp_serde::to_vec(&serde_json::json!({ "command": "true" })).unwrap(),
        resources: Some(Resources {
            allocated_resources: Some(allocated),
            linux_resources: Some(linux),
            ..Resources::default()
        }),
        ..TaskConfig::default()
    };
    host.driver.start_task(Request::new(StartTaskRequest { task: Some(config) })).await.unwrap_err()
}

#[tokio::test]
async fn a_dynamic_user_of_another_allocations_task_is_refused() {
    let host = Host::new();
    let mut stand = host.stand(1);
    let config = stand.handle.config.as_mut().unwrap();
    (config.alloc_id, config.user) = ("a".into(), "nomad-80001".into());
    let state = DriverState::decode(HANDLE_VERSION, &stand.handle.driver_state).unwrap();
    stand.handle.driver_state = DriverState { uid: Some(80_001), ..state }.encode().unwrap();
    host.recover(&stand.handle).await.unwrap();
    // Each spelling is refused, and recoverably: the other task may end.
    for user in ["nomad-80001", "80001:80001", "80001:7"] {
        let error = start(&host, "b", user).await;
        assert!(
            error.message().contains("which a task of another allocation on this host is using"),
            "{error}"
        );
        assert_eq!(error.code(), Code::FailedPrecondition);
    }
    for (alloc, user) in [("b", "nomad-80002"), ("a", "nomad-80001")] {
        let error = start(&host, alloc, user).await;
        assert!(error.message().contains("cgroup"), "{user}: {error}");
    }
    stand.end(0);
    host.wait(stand.id()).await;
    while let error = start(&host, "b", "nomad-80001").await
        && !error.message().contains("cgroup")
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_uid_of_an_older_drivers_task_is_known() {
    let host = Host::new();
    let mut stand = host.stand(1);
    stand.handle.config.as_mut().unwrap().alloc_id = "a".into();
    let state = DriverState::decode(HANDLE_VERSION, &stand.handle.driver_state).unwrap();
    stand.handle.driver_state = DriverState { task: Some(state.shim), ..state }.encode().unwrap();
    host.recover(&stand.handle).await.unwrap();
    let uid = nix::unistd::getuid().as_raw();
    assert!(host.driver.0.tasks.uids().claim_alone(uid, "b").is_none());
    assert!(host.driver.0.tasks.uids().claim_alone(uid, "a").is_some());
}

#[tokio::test]
async fn a_dynamic_user_outside_of_the_range_is_refused() {
    let host = Host::new();
    let error = start(&host, "a", "nomad-90000").await;
    assert!(error.message().contains("dynamic_user_range"), "{error}");
    assert_eq!(error.code(), Code::Unknown, "final");
    let error = start(&host, "a", "nomad-89999").await;
    assert!(error.message().contains("cgroup"), "{error}");
}
