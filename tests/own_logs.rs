//! Output that Nomad's log collector does not read: to the journal, and to files where there is none.
//!
//! These tests need root and Landlock: CI runs them as root, and elsewhere they report that they were not run. They have no harness,
//! because the launcher starts this file as the shim. All of them see a /run of their own, where journald is what they make it.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]
// Output that a harness would print.
#![allow(clippy::print_stdout)]

#[path = "common/launched.rs"]
mod launched;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use nomad_driver_exec2::cgroup::Limits;
use nomad_driver_exec2::config::{DriverConfig, PluginConfig};
use nomad_driver_exec2::sandbox::names::Names;
use nomad_driver_exec2::shim::exit::Exit;
use nomad_driver_exec2::shim::spec::TaskDirs;
use nomad_driver_exec2::task::id::TaskId;
use nomad_driver_exec2::task::launch::Launcher;
use nomad_driver_exec2::task::spec::{Logs, Request, TaskSpec};
use nomad_driver_exec2::users;

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");
/// It exists in the roots of the tasks only.
const TASK_DIR: &str = "/srv/exec2-own-logs";
const JOURNAL: &str = "/run/systemd/journal/stdout";
const LIMIT: Duration = Duration::from_secs(30);
const FILE_MAX: u64 = 10 << 20;

const TESTS: [launched::Test; 5] = [
    (
        "without_journald_output_is_in_files_to_the_last_byte",
        without_journald_output_is_in_files_to_the_last_byte,
    ),
    ("files_are_bounded_and_other_output_goes_on", files_are_bounded_and_other_output_goes_on),
    ("with_journald_nothing_is_between_it_and_the_task", with_journald_nothing_is_between_it_and_the_task),
    ("the_journal_needs_no_log_directory", the_journal_needs_no_log_directory),
    ("a_journald_that_has_ended_is_none", a_journald_that_has_ended_is_none),
];

fn main() -> ExitCode {
    launched::of_launcher().unwrap_or_else(|| launched::run(PLUGIN, &TESTS, own_run))
}

/// An empty /run, for this process and those that it starts.
fn own_run() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).unwrap();
    mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
}

/// The directories of an allocation as Nomad makes them.
struct Alloc {
    launcher: Launcher,
    dir: tempfile::TempDir,
}

impl Alloc {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["alloc/logs", "t/alloc", "t/local", "t/secrets", "t/tmp"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o777)).unwrap();
        }
        Self { launcher: Launcher::new(&dir.path().join("run")).unwrap(), dir }
    }

    /// Runs a script to its end.
    fn run(&self, script: &str) -> Exit {
        let config = serde_json::json!({ "command": "/bin/sh", "args": ["-c", script] }).to_string();
        let config = DriverConfig::decode_json(&config).unwrap();
        let request = Request {
            id: TaskId::new("a/t/1", "a", "t").unwrap(),
            user: users::lookup("nomad-80000").unwrap(),
            program: &config.command,
            args: &config.args,
            env: &HashMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
            root: Path::new(TASK_DIR),
            dirs: TaskDirs::Nomad { alloc_dir: self.dir.path().to_owned(), task: "t".to_owned() },
            logs: Logs::Own { identifier: "job/g/t".to_owned(), task: "t" },
            network: None,
            names: Names::default(),
            ports: &[],
            cgroup: None,
            limits: Limits::UNLIMITED,
            ask: config.ask(),
        };
        let spec = TaskSpec::new(request, &PluginConfig::default().policy()).unwrap();
        let launched = self.launcher.launch(&spec).unwrap();
        let shim = Pid::from_raw(launched.processes.shim_id.pid);
        let deadline = Instant::now() + LIMIT;
        let ended =
            || waitid(Id::Pid(shim), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).unwrap().pid().is_some();
        while !ended() {
            assert!(Instant::now() < deadline, "{script} does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let exit = fs::read(launched.run_dir.path().join("exit")).unwrap();
        launched.run_dir.remove().unwrap();
        Exit::read(&exit).unwrap().unwrap()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join("alloc/logs").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.log(name)).unwrap()
    }
}

fn without_journald_output_is_in_files_to_the_last_byte() {
    let alloc = Alloc::new();
    let script = "echo out; echo err >&2; echo again > /dev/stdout; exec seq 1 9999";
    assert_eq!(alloc.run(script).code, 0);
    let numbers: String = (1..=9999).map(|number| format!("{number}\n")).collect();
    assert_eq!(alloc.read("t.stdout.0"), format!("out\nagain\n{numbers}"));
    assert_eq!(alloc.read("t.stderr.0"), "err\n");
    // A restart, and a process that outlives the first one for a moment.
    assert_eq!(alloc.run("(sleep 0.2; echo late) & echo second; exit 7").code, 7);
    assert_eq!((alloc.read("t.stdout.1"), alloc.read("t.stderr.1")), ("second\n".into(), String::new()));
    // The task cannot change them.
    alloc.run("for f in $NOMAD_ALLOC_DIR/logs/t.stdout.0 /srv/exec2-own-logs/alloc/logs/t.stdout.0; do echo x >> $f; done");
    assert!(!alloc.read("t.stdout.0").ends_with("x\n"));
}

fn files_are_bounded_and_other_output_goes_on() {
    let alloc = Alloc::new();
    let megabytes = 130;
    let script = format!("head -c {megabytes}M /dev/zero; echo done >&2");
    assert_eq!(alloc.run(&script).code, 0);
    assert_eq!(alloc.read("t.stderr.0"), "done\n");
    let size =
        |number: u64| fs::metadata(alloc.log(&format!("t.stdout.{number}"))).map(|found| found.len()).ok();
    let last = megabytes * (1 << 20) / FILE_MAX - 1;
    let sizes: Vec<_> = (0..=last + 1).map(size).collect();
    let kept = |number: u64| (number + 10 > last && number <= last).then_some(FILE_MAX);
    assert_eq!(sizes, (0..=last + 1).map(kept).collect::<Vec<_>>());
}

fn with_journald_nothing_is_between_it_and_the_task() {
    let alloc = Alloc::new();
    fs::create_dir_all(Path::new(JOURNAL).parent().unwrap()).unwrap();
    let journald = UnixListener::bind(JOURNAL).unwrap();
    assert_eq!(alloc.run("echo out; echo err >&2; readlink /proc/$$/fd/1 | cut -d: -f1").code, 0);
    let mut streams: Vec<String> = (0..2)
        .map(|_| {
            let mut all = String::new();
            journald.accept().unwrap().0.read_to_string(&mut all).unwrap();
            all
        })
        .collect();
    streams.sort();
    assert_eq!(streams, ["job/g/t\n\n3\n1\n0\n0\n0\nerr\n", "job/g/t\n\n6\n1\n0\n0\n0\nout\nsocket\n"]);
    for stream in ["stdout", "stderr"] {
        let note = alloc.read(&format!("t.{stream}.0"));
        assert!(note.contains("journalctl -t 'job/g/t'"), "{note}");
    }
}

fn the_journal_needs_no_log_directory() {
    let alloc = Alloc::new();
    fs::create_dir_all(Path::new(JOURNAL).parent().unwrap()).unwrap();
    let _journald = UnixListener::bind(JOURNAL).unwrap();
    // As a task can do.
    fs::rename(alloc.log(""), alloc.dir.path().join("alloc/other")).unwrap();
    assert_eq!(alloc.run("exit 7").code, 7);
}

fn a_journald_that_has_ended_is_none() {
    let alloc = Alloc::new();
    fs::create_dir_all(Path::new(JOURNAL).parent().unwrap()).unwrap();
    drop(UnixListener::bind(JOURNAL).unwrap());
    assert_eq!(alloc.run("echo out").code, 0);
    assert_eq!(alloc.read("t.stdout.0"), "out\n");
}
