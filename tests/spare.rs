//! The shim that is started ahead of its task: who uses it, and when it ends.
//!
//! These tests need root and Landlock: CI runs them as root, and elsewhere they report that they were not run. They have no harness,
//! because the launcher starts this file as the shim.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]
// Output that a harness would print.
#![allow(clippy::print_stdout)]

#[path = "common/launched.rs"]
mod launched;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use nomad_driver_exec2::cgroup::Limits;
use nomad_driver_exec2::config::{DriverConfig, PluginConfig};
use nomad_driver_exec2::shim::spec::TaskDirs;
use nomad_driver_exec2::task::id::TaskId;
use nomad_driver_exec2::task::launch::Launcher;
use nomad_driver_exec2::task::processes::Launched;
use nomad_driver_exec2::task::spec::{Logs, Request, TaskSpec};
use nomad_driver_exec2::users;

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");
/// The argument with which a test starts itself as a plugin with one running task.
const KEEPER: &str = "keep";
/// It exists in the roots of the tasks only, except for one test.
const TASK_DIR: &str = "/srv/exec2-spare";
const LIMIT: Duration = Duration::from_secs(20);

const TESTS: [launched::Test; 6] = [
    ("a_spare_becomes_the_shim_of_the_next_task", a_spare_becomes_the_shim_of_the_next_task),
    ("a_killed_spare_fails_no_start", a_killed_spare_fails_no_start),
    (
        "a_spare_that_is_killed_during_a_start_fails_no_start",
        a_spare_that_is_killed_during_a_start_fails_no_start,
    ),
    ("a_spare_of_another_kind_is_not_used", a_spare_of_another_kind_is_not_used),
    ("a_task_has_the_present_name_of_the_host", a_task_has_the_present_name_of_the_host),
    ("a_spare_ends_with_its_plugin", a_spare_ends_with_its_plugin),
];

fn main() -> ExitCode {
    if let Some(ended) = launched::of_launcher() {
        return ended;
    }
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some(KEEPER) => keep(Path::new(&args[2])),
        _ => launched::run(PLUGIN, &TESTS, || {}),
    }
}

fn launcher() -> (Launcher, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Launcher::new(&dir.path().join("run")).unwrap(), dir)
}

fn spec(id: &str, root: &str) -> TaskSpec {
    let config = DriverConfig::decode_json(r#"{"command": "/bin/sleep", "args": ["1000"]}"#).unwrap();
    let request = Request {
        id: TaskId::new(id, "", "t").unwrap(),
        user: users::lookup("nomad-80000").unwrap(),
        program: &config.command,
        args: &config.args,
        env: &HashMap::new(),
        root: Path::new(TASK_DIR),
        dirs: TaskDirs::Scratch,
        logs: Logs::Null,
        network: None,
        names: nomad_driver_exec2::sandbox::names::Names::default(),
        ports: &[],
        cgroup: None,
        limits: Limits::UNLIMITED,
        ask: config.ask(),
    };
    let policy = PluginConfig::decode_json(&format!(r#"{{"root": "{root}"}}"#)).unwrap();
    TaskSpec::new(request, &policy.policy()).unwrap()
}

/// A running task, which ends with its shim.
struct Task(Launched);

impl Task {
    fn start(launcher: &Launcher, id: &str) -> Self {
        Self(launcher.launch(&spec(id, "private")).unwrap())
    }

    fn shim(&self) -> i32 {
        self.0.processes.shim_id.pid
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        kill(Pid::from_raw(self.shim()), Signal::SIGKILL).unwrap();
        waitid(Id::Pid(Pid::from_raw(self.shim())), WaitPidFlag::WEXITED).unwrap();
        self.0.run_dir.remove().unwrap();
    }
}

/// The shims of a process that have no task.
fn spares_of(parent: u32) -> Vec<i32> {
    let children = fs::read_dir(format!("/proc/{parent}/task")).unwrap();
    let children =
        children.map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap());
    let children: Vec<i32> = children
        .flat_map(|list| list.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    children.into_iter().filter(|pid| arguments(*pid) == "nomad-driver-exec2\0idle\0").collect()
}

fn spares() -> Vec<i32> {
    spares_of(std::process::id())
}

/// The only spare of a process, once it waits: it has its arguments a moment after its exec.
fn spare_of(parent: u32) -> i32 {
    let mut found = Vec::new();
    poll("a spare waits", || {
        found = spares_of(parent);
        !found.is_empty() && found.iter().all(|spare| state(*spare) == 'S')
    });
    assert_eq!(found.len(), 1);
    found[0]
}

fn spare() -> i32 {
    spare_of(std::process::id())
}

fn arguments(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

fn poll(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Of a process: 'S' while it waits, 'Z' when it has ended.
fn state(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

fn a_spare_becomes_the_shim_of_the_next_task() {
    let (launcher, _dir) = launcher();
    launcher.make_spare().unwrap();
    assert!(spares().is_empty(), "nothing is known of the next task");
    let first = Task::start(&launcher, "a/first/1");
    assert!(spares().is_empty());
    for _ in 0..3 {
        launcher.make_spare().unwrap();
    }
    let spare = spare();
    assert_eq!(launcher.entries().len(), 1, "it has no record");
    let second = Task::start(&launcher, "a/second/1");
    assert_eq!(second.shim(), spare);
    assert!(spares().is_empty());
    for task in [&first, &second] {
        assert_eq!(arguments(task.shim()), "nomad-driver-exec2\0shim\0");
    }
    let namespaces = |task: &Task| {
        ["pid", "ipc", "uts", "mnt"]
            .map(|kind| fs::read_link(format!("/proc/{}/ns/{kind}", task.shim())).unwrap())
    };
    assert!(namespaces(&first).iter().zip(namespaces(&second)).all(|(one, other)| *one != other));
}

fn a_killed_spare_fails_no_start() {
    let (launcher, _dir) = launcher();
    let _first = Task::start(&launcher, "a/first/1");
    launcher.make_spare().unwrap();
    let spare = spare();
    kill(Pid::from_raw(spare), Signal::SIGKILL).unwrap();
    poll("it has ended", || state(spare) == 'Z');
    let second = Task::start(&launcher, "a/second/1");
    assert_ne!(second.shim(), spare);
    launcher.make_spare().unwrap();
    assert_ne!(self::spare(), spare);
    assert!(!Path::new(&format!("/proc/{spare}")).exists(), "it has been reaped");
}

fn a_spare_that_is_killed_during_a_start_fails_no_start() {
    let (launcher, _dir) = launcher();
    let _first = Task::start(&launcher, "a/first/1");
    launcher.make_spare().unwrap();
    let spare = Pid::from_raw(spare());
    kill(spare, Signal::SIGSTOP).unwrap();
    let second = std::thread::scope(|scope| {
        let start = scope.spawn(|| Task::start(&launcher, "a/second/1"));
        poll("the start has taken it", || {
            launcher.entries().iter().any(|entry| entry.shim().is_some_and(|shim| shim.pid == spare.as_raw()))
        });
        kill(spare, Signal::SIGKILL).unwrap();
        start.join().unwrap()
    });
    assert_ne!(second.shim(), spare.as_raw());
    assert_eq!(
        second.0.run_dir.shim(),
        Some(second.0.processes.shim_id),
        "the record is that of the new shim"
    );
}

fn a_spare_of_another_kind_is_not_used() {
    let (launcher, _dir) = launcher();
    let _first = Task::start(&launcher, "a/first/1");
    launcher.make_spare().unwrap();
    let spare = spare();
    // Nomad has made them for a task.
    for name in ["local", "secrets", "tmp", "alloc/logs"] {
        fs::create_dir_all(Path::new(TASK_DIR).join(name)).unwrap();
    }
    let hosts = Task(launcher.launch(&spec("a/host/1", "host")).unwrap());
    fs::remove_dir_all(TASK_DIR).unwrap();
    assert_eq!(self::spare(), spare);
    assert_ne!(hosts.shim(), spare);
    launcher.make_spare().unwrap();
    assert!(spares().is_empty(), "a shim with a copy of the host's mounts must not be older than its task");
}

fn a_task_has_the_present_name_of_the_host() {
    unshare(CloneFlags::CLONE_NEWUTS).unwrap();
    let (launcher, _dir) = launcher();
    let _first = Task::start(&launcher, "a/first/1");
    launcher.make_spare().unwrap();
    let spare = spare();
    fs::write("/proc/sys/kernel/hostname", "renamed").unwrap();
    let second = Task::start(&launcher, "a/second/1");
    assert_ne!(second.shim(), spare);
    launcher.make_spare().unwrap();
    assert_ne!(self::spare(), spare);
    let third = Task::start(&launcher, "a/third/1");
    let name = Command::new("nsenter")
        .args(["--uts", "--target", &third.shim().to_string(), "hostname"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(name.stdout).unwrap(), "renamed\n");
}

/// A plugin with a spare, until it is killed.
fn keep(dir: &Path) -> ! {
    let launcher = Launcher::new(dir).unwrap();
    let _task = Task::start(&launcher, "a/first/1");
    launcher.make_spare().unwrap();
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn a_spare_ends_with_its_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let mut keeper: Child = Command::new(std::env::current_exe().unwrap())
        .arg(KEEPER)
        .arg(&run_dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    keeper.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let spare = spare_of(keeper.id());
    let launcher = Launcher::new(&run_dir).unwrap();
    let shim = launcher.entries()[0].shim().unwrap();
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    // Another process reaps it.
    poll("it has ended", || !Path::new(&format!("/proc/{spare}")).exists() || state(spare) == 'Z');
    assert_eq!(arguments(shim.pid), "nomad-driver-exec2\0shim\0", "a task outlives the plugin");
    kill(Pid::from_raw(shim.pid), Signal::SIGKILL).unwrap();
}
