//! The command `exec` as a process: a command in a task of `run`, without a cgroup where this host has none.
//!
//! These tests need root and Landlock, as those of `run_verb`. Beside each allowed action is one that is denied. What takes a cgroup is
//! in the scenario `exec`.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]

#[path = "common/sandbox.rs"]
mod sandbox;

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");
/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;
const FAILED: i32 = 125;

/// A task of `run` that prints a line and then waits; it ends with this.
struct Task {
    run: Child,
    id: String,
    dir: tempfile::TempDir,
}

/// None if `run` does not work here; the test then reports that it was not run.
fn task(options: &[&str]) -> Option<Task> {
    task_running(options, "echo $$ > $NOMAD_TASK_DIR/pid; echo ready; exec sleep 3600")
}

fn task_running(options: &[&str], script: &str) -> Option<Task> {
    if let Some(why) = sandbox::unavailable(PLUGIN) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Not with a macro, whose output the harness captures.
        std::io::stderr().write_all(format!("{name} was not run: {why}\n").as_bytes()).unwrap();
        return None;
    }
    fs::create_dir_all("/srv").unwrap();
    let dir = tempfile::Builder::new().prefix("exec2-exec-").tempdir_in("/srv").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    for name in ["granted", "kept"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let granted = format!("r:{}", dir.path().join("granted").display());
    // The task ignores what its caller does, and a session ignores nothing; shells start background jobs with both ignored.
    let mut run = Command::new("env")
        .args(["--default-signal=INT,QUIT", PLUGIN, "run", "--unveil", &granted])
        .args(options)
        .args(["--", "sh", "-c", script])
        .env("TMPDIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let prefix = format!("run-{}-", run.id());
    let listed = Command::new(PLUGIN).arg("exec").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let id = listed.split_whitespace().find(|word| word.starts_with(&prefix)).unwrap().to_owned();
    Some(Task { run, id, dir })
}

impl Task {
    fn exec(&self, command: &[&str]) -> Command {
        let mut exec = Command::new(PLUGIN);
        exec.args(["exec", &self.id, "--"]).args(command).stdin(Stdio::null());
        exec
    }

    fn sh(&self, script: &str) -> Output {
        self.exec(&["sh", "-c", script]).output().unwrap()
    }

    /// The output of a script that succeeds.
    fn ok(&self, script: &str) -> String {
        let output = self.sh(script);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{script}");
        text(&output.stdout)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.run.kill();
        let _ = self.run.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Waits until `done`.
fn within(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(PAUSE);
    }
}

/// Whether `sleep SECONDS` runs.
fn runs(seconds: &str) -> bool {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let wanted = format!("sleep\0{seconds}\0").into_bytes();
    entries.into_iter().any(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == wanted))
}

const ATTRIBUTES: &str = "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Umask|SigIgn|SigBlk)' /proc/$1/status; \
                          grep -E 'open files|Max processes' /proc/$1/limits; cat /proc/$1/oom_score_adj; \
                          readlink /proc/$1/ns/mnt /proc/$1/ns/pid /proc/$1/ns/ipc /proc/$1/ns/uts /proc/$1/ns/net";

#[test]
fn a_command_of_root_cannot_change_the_modes_of_the_hosts_proc() {
    let Some(task) = task(&["--user", "root"]) else { return };
    // The mode that it has.
    let refused = task.sh("chmod 444 /proc/version");
    assert!(text(&refused.stderr).contains("Read-only file system"), "{}", text(&refused.stderr));
    assert_eq!(task.ok("stat -c %a /proc/version; cat /proc/self/oom_score_adj"), "444\n0\n");
}

#[test]
fn a_command_is_what_the_task_is() {
    for options in [&["--cap-add", "net_bind_service"][..], &["--root", "host"]] {
        // The task tells of itself, since nothing else can look into it.
        let script = format!(
            "attributes() {{ {ATTRIBUTES}; }}; (attributes self; pwd; env | sort) > $NOMAD_TASK_DIR/own; echo ready; exec sleep 3600"
        );
        let Some(task) = task_running(options, &script) else { return };
        let theirs = task.ok("cat $NOMAD_TASK_DIR/own");
        let ours = task.ok(&format!("attributes() {{ {ATTRIBUTES}; }}; attributes self; pwd; env | sort"));
        assert_eq!(ours, theirs, "{options:?}");
    }
}

#[test]
fn a_command_has_the_tasks_paths_and_no_other() {
    for (options, refusal) in [(&[][..], "No such file"), (&["--root", "host"], "Permission denied")] {
        let Some(task) = task(options) else { return };
        assert_eq!(task.ok(&format!("cat {}", task.path("granted"))), "granted");
        for path in [task.path("kept"), "/etc/shadow".into()] {
            let output = task.sh(&format!("cat {path}"));
            assert!(!output.status.success() && text(&output.stderr).contains(refusal), "{path} {output:?}");
        }
        assert_eq!(task.ok("echo x > $NOMAD_TASK_DIR/x; cat $NOMAD_TASK_DIR/x"), "x\n");
        assert!(!task.sh("echo x > /usr/x").status.success());
    }
}

#[test]
fn a_command_can_signal_the_task_and_look_into_no_process_of_it() {
    let Some(task) = task(&[]) else { return };
    assert_eq!(task.ok("kill -0 $(cat $NOMAD_TASK_DIR/pid)"), "");
    for target in ["1", "$(cat $NOMAD_TASK_DIR/pid)"] {
        for name in ["environ", "mem", "fd/0"] {
            assert!(
                !task.sh(&format!("head -c 1 /proc/{target}/{name}")).status.success(),
                "{target} {name}"
            );
        }
    }
    assert_eq!(task.ok("ps -e -o args= | head -1"), "nomad-driver-exec2 shim\n");
}

#[test]
fn nothing_of_the_helper_is_open_in_the_command() {
    let Some(task) = task(&[]) else { return };
    let open = task.ok("for n in /proc/$$/fd/*; do readlink $n; done; true");
    assert_eq!(open.lines().count(), 3, "{open}");
    assert!(open.lines().skip(1).all(|name| name.starts_with("pipe:")), "{open}");
}

#[test]
fn a_command_has_the_tasks_limits_of_processes() {
    let Some(task) = task(&["--ulimit", "nofile=100:200"]) else { return };
    let output = task.exec(&["sh", "-c", "ulimit -Sn; ulimit -Hn"]).output().unwrap();
    assert_eq!(text(&output.stdout), "100\n200\n");
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    let Some(task) = task(&[]) else { return };
    for (command, code) in [
        (&["sh", "-c", "exit 7"][..], 7),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["nosuch"], NOT_FOUND),
        (&["/etc/passwd"], NOT_EXECUTABLE),
    ] {
        let output = task.exec(command).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{command:?} {output:?}");
        assert_eq!(
            text(&output.stderr).is_empty(),
            !(NOT_EXECUTABLE..=NOT_FOUND).contains(&code),
            "{output:?}"
        );
    }
    let missing = Command::new(PLUGIN).args(["exec", "no-such-task", "--", "true"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(FAILED));
    assert!(text(&missing.stderr).contains("no running task"), "{missing:?}");
    let command = Command::new(PLUGIN).args(["exec", &task.id]).output().unwrap();
    assert_eq!(command.status.code(), Some(FAILED), "{command:?}");
}

#[test]
fn input_and_output_are_exact_and_separate() {
    let Some(task) = task(&[]) else { return };
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut cat = task.exec(&["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, sent) = (cat.stdin.take().unwrap(), bytes.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut back = Vec::new();
    cat.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(back == bytes, "{} of {} bytes", back.len(), bytes.len());
    assert_eq!(cat.wait().unwrap().code(), Some(0));
    let output = task.sh("echo out > /dev/stdout; echo err > /dev/stderr; echo more >&2");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".into(), "err\nmore\n".into()));
}

#[test]
fn a_reader_that_goes_away_and_a_caller_that_is_killed_end_the_command() {
    let Some(task) = task(&[]) else { return };
    let mut yes = task.exec(&["yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 2];
    yes.stdout.take().unwrap().read_exact(&mut line).unwrap();
    yes.wait().unwrap();
    let mut sleep = task.exec(&["sh", "-c", "sleep 36001 & exec sleep 36002"]).spawn().unwrap();
    within("they run", || runs("36001") && runs("36002"));
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    within("they are killed", || !runs("36001") && !runs("36002"));
}

#[test]
fn a_caller_that_is_killed_with_its_process_group_ends_the_command() {
    let Some(task) = task(&[]) else { return };
    let mut sleep = task.exec(&["sleep", "36004"]).process_group(0).spawn().unwrap();
    within("it runs", || runs("36004"));
    killpg(Pid::from_raw(i32::try_from(sleep.id()).unwrap()), Signal::SIGKILL).unwrap();
    sleep.wait().unwrap();
    within("it is killed", || !runs("36004"));
}

#[test]
fn the_end_of_the_task_ends_its_sessions() {
    let Some(mut task) = task(&[]) else { return };
    let mut sleep = task.exec(&["sleep", "36003"]).spawn().unwrap();
    within("it runs", || runs("36003"));
    task.run.kill().unwrap();
    task.run.wait().unwrap();
    assert_eq!(sleep.wait().unwrap().code(), Some(137));
    let late = task.sh("true");
    let why = text(&late.stderr);
    assert!(
        !late.status.success() && (why.contains("has ended") || why.contains("no running task")),
        "{late:?}"
    );
}

#[test]
fn a_session_at_a_terminal_has_one_of_the_tasks_own() {
    let Some(task) = task(&[]) else { return };
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave =
        open(ptsname_r(&master).unwrap().as_str(), OFlag::O_RDWR | OFlag::O_NOCTTY, Mode::empty()).unwrap();
    let again = || Stdio::from(slave.as_fd().try_clone_to_owned().unwrap());
    let script = "tty; echo $TERM; stat -c '%U %a' $(tty); echo controlling > /dev/tty; stty -echo; read line; echo got $line; exit 5";
    let mut command = task.exec(&["sh", "-c", script]);
    let mut exec =
        command.env("TERM", "dumb").stdin(again()).stdout(again()).stderr(again()).spawn().unwrap();
    // It has the slave open as well.
    drop(command);
    drop(slave);
    let mut master = File::from(std::os::fd::OwnedFd::from(master));
    let mut seen = String::new();
    let mut chunk = [0; 1024];
    let mut typed = false;
    while let Ok(length @ 1..) = master.read(&mut chunk) {
        seen.push_str(&text(&chunk[..length]));
        if !typed && seen.contains("controlling") {
            typed = true;
            master.write_all("größe\r".as_bytes()).unwrap();
        }
    }
    assert_eq!(exec.wait().unwrap().code(), Some(5), "{seen}");
    let lines: Vec<_> = seen.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(&lines[..4], ["/dev/pts/0", "dumb", "root 600", "controlling"], "{seen:?}");
    assert!(seen.contains("got größe"), "{seen:?}");
}

#[test]
fn a_session_has_the_filter_of_its_task() {
    const FILTERS: &str = "sed -n 's/^Seccomp_filters:\t//p' /proc/self/status";
    const SET: &str = "cd $NOMAD_TASK_DIR && touch x && chmod u+s x && stat -c %A x";
    let Some(default) = task(&[]) else { return };
    let Some(allowed) = task(&["--seccomp-allow", "set_id"]) else { return };
    let Some(unconfined) = task(&["--seccomp", "unconfined"]) else { return };
    let filters = |task: &Task| task.ok(FILTERS).trim().parse::<u32>().unwrap();
    assert_eq!(filters(&default), filters(&unconfined) + 1);
    assert_eq!(filters(&allowed), filters(&unconfined) + 1);
    let refused = default.sh(SET);
    assert_eq!((refused.status.code(), text(&refused.stdout)), (Some(1), String::new()));
    assert!(text(&refused.stderr).contains("Operation not permitted"), "{}", text(&refused.stderr));
    assert_eq!(allowed.ok(SET), "-rwSr--r--\n");
    assert_eq!(unconfined.ok(SET), "-rwSr--r--\n");
}

#[test]
fn a_session_has_the_limits_on_ports_of_its_task() {
    const BIND: &str = "python3 -c 'import socket; socket.socket().bind((\"127.0.0.1\", 0))'";
    let Some(free) = task(&[]) else { return };
    free.ok(BIND);
    // ABI 4, Linux 6.7.
    let check = Command::new(PLUGIN).args(["check", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    if report["landlock_abi"].as_u64().unwrap() < 4 {
        return;
    }
    let limited = task(&["--bind", "none"]).unwrap();
    let refused = limited.sh(BIND);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("PermissionError"), "{}", text(&refused.stderr));
}
