//! The `run` verb as a process: its streams, its signals, its terminal, and what it leaves behind.
//!
//! These tests need root and Landlock: CI runs this file as root. Elsewhere each test prints that it was not run, also when
//! the harness captures the output of tests.

// Here a step that fails is a test that fails.
#![allow(clippy::unwrap_used)]

#[path = "common/sandbox.rs"]
mod sandbox;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// Whether `run` can work here. If not, that is said.
fn applicable() -> bool {
    let unavailable = sandbox::unavailable(PLUGIN);
    if let Some(why) = &unavailable {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Not by a macro, whose output the harness would drop.
        writeln!(std::io::stderr(), "{name} was not run: {why}").unwrap();
    }
    unavailable.is_none()
}

/// `run OPTIONS -- COMMAND`, in a temporary directory of its own as TMPDIR.
fn run(base: &Path, options: &[&str], command: &[&str]) -> Command {
    let mut run = Command::new(PLUGIN);
    run.arg("run").args(options).arg("--").args(command).env("TMPDIR", base).stdin(Stdio::null());
    run
}

/// A TMPDIR that `run` accepts.
fn base() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn status(output: &Output) -> Option<i32> {
    output.status.code()
}

/// Polls until `is` or the test fails.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(PAUSE);
    }
}

/// The pid of the process whose command line has `argument`, which no other one has.
fn process_with(argument: &str) -> Option<i32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        // Not `run` itself, which has the argument as well.
        let is = line.starts_with(b"sleep\0") && text(&line).split('\0').any(|found| found == argument);
        is.then_some(pid)
    })
}

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Starts a command that says "ready" and waits for that.
fn ready(mut command: Command) -> (Run, BufReader<std::process::ChildStdout>) {
    let mut child = Run(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut stdout = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, stdout)
}

fn pid(child: &Run) -> Pid {
    Pid::from_raw(child.0.id() as i32)
}

/// A number of seconds for sleep(1) that no other process on this host has.
fn unique_seconds(number: u32) -> String {
    format!("{}.{number}", 100_000 + u64::from(std::process::id()))
}

/// A `run`, ended with the test, also with one that fails.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the driver itself sets for a task of `run`.
const DRIVER_VARIABLES: [&str; 8] = [
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "NOMAD_ALLOC_DIR",
    "NOMAD_TASK_DIR",
    "NOMAD_SECRETS_DIR",
    "NOMAD_WORK_DIR",
];

#[test]
fn the_environment_has_nothing_of_the_callers_session() {
    if !applicable() {
        return;
    }
    let base = base();
    let env = |options: &[&str]| {
        let mut run = run(base.path(), options, &["env"]);
        run.env_clear()
            .env("TMPDIR", base.path())
            .envs([("PATH", "/usr/bin:/bin"), ("TERM", "vt100"), ("LC_TIME", "C"), ("TZ", "UTC")])
            .envs([("AWS_SECRET_ACCESS_KEY", "k"), ("NOMAD_TOKEN", "t"), ("SUDO_USER", "u")]);
        let output = run.output().unwrap();
        assert_eq!(status(&output), Some(0), "{output:?}");
        let mut lines: Vec<String> = text(&output.stdout).lines().map(ToOwned::to_owned).collect();
        lines.retain(|line| {
            let name = line.split('=').next().unwrap();
            !DRIVER_VARIABLES.contains(&name)
        });
        lines.sort();
        lines
    };
    assert_eq!(env(&[]), ["LC_TIME=C", "PATH=/usr/bin:/bin", "TERM=vt100", "TZ=UTC"]);
    assert_eq!(
        env(&["--env", "NOMAD_TOKEN", "--env", "A=b=c", "--env", "TZ=CET", "--env", "UNSET"]),
        ["A=b=c", "LC_TIME=C", "NOMAD_TOKEN=t", "PATH=/usr/bin:/bin", "TERM=vt100", "TZ=CET"]
    );
    for variable in ["TMPDIR=/x", "LD_PRELOAD=/x", "NOMAD_TASK_DIR=/x"] {
        let output = run(base.path(), &["--env", variable], &["true"]).output().unwrap();
        assert_eq!(status(&output), Some(125));
        assert!(text(&output.stderr).contains("has no effect"), "{output:?}");
    }
}

#[test]
fn a_temporary_directory_that_does_not_suit_is_not_used() {
    if !applicable() {
        return;
    }
    let (base, user) = (base(), 54_322);
    let private = base.path().join("private");
    let foreign = base.path().join("foreign");
    for dir in [&private, &foreign] {
        fs::create_dir(dir).unwrap();
    }
    fs::set_permissions(&private, Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&foreign, Some(user), Some(user)).unwrap();
    for unsuitable in [&private, &foreign] {
        let output = run(unsuitable, &[], &["mktemp"]).output().unwrap();
        assert_eq!(status(&output), Some(0), "{output:?}");
        assert!(!text(&output.stdout).contains(&unsuitable.display().to_string()), "{output:?}");
    }
    let output = run(base.path(), &[], &["mktemp"]).output().unwrap();
    assert!(text(&output.stdout).starts_with(&base.path().display().to_string()), "{output:?}");
    let output = run(&base.path().join("missing"), &[], &["true"]).output().unwrap();
    assert_eq!(status(&output), Some(125));
    assert!(text(&output.stderr).contains("/missing\": No such file or directory"), "{output:?}");
}

#[test]
fn standard_output_and_error_can_be_opened_again() {
    if !applicable() {
        return;
    }
    let base = base();
    let script = "echo out > /dev/stdout; echo err > /dev/stderr";
    let file = base.path().join("file");
    let mut to_file = run(base.path(), &[], &["sh", "-c", script]);
    to_file.stderr(File::create(&file).unwrap());
    let output = to_file.output().unwrap();
    assert_eq!((status(&output), text(&output.stdout)), (Some(0), "out\n".into()));
    assert!(fs::read_to_string(&file).unwrap().ends_with("err\n"));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644 & !umask(base.path()));
    let output = run(base.path(), &["--unveil", "rw:/dev/stdout"], &["sh", "-c", script]).output().unwrap();
    assert_eq!((status(&output), text(&output.stdout)), (Some(0), "out\n".into()), "{output:?}");
    // The denied twin: a file beside it, through the same directory of descriptors.
    let other = File::create(base.path().join("other")).unwrap();
    let mut twin = run(base.path(), &[], &["sh", "-c", "echo x > /dev/stdin"]);
    let output = twin.stdin(other).output().unwrap();
    assert_ne!(status(&output), Some(0), "{output:?}");
}

fn umask(dir: &Path) -> u32 {
    let probe = dir.join("umask");
    File::create(&probe).unwrap();
    0o666 & !(fs::metadata(&probe).unwrap().permissions().mode() & 0o666)
}

#[test]
fn a_reader_that_goes_away_ends_the_command_with_sigpipe() {
    if !applicable() {
        return;
    }
    let base = base();
    let mut child = run(base.path(), &[], &["yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 2]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGPIPE));
}

#[test]
fn all_of_a_long_output_arrives() {
    if !applicable() {
        return;
    }
    let base = base();
    let output = run(base.path(), &[], &["head", "-c", "20000000", "/dev/zero"]).output().unwrap();
    assert_eq!((status(&output), output.stdout.len()), (Some(0), 20_000_000));
}

#[test]
fn arguments_that_are_not_text_are_refused_with_125() {
    if !applicable() {
        return;
    }
    let base = base();
    let mut command = run(base.path(), &[], &["printf"]);
    let output = command.arg(OsString::from_vec(b"\xff".to_vec())).output().unwrap();
    assert_eq!(status(&output), Some(125));
    assert!(text(&output.stderr).contains("argument 1"), "{output:?}");
}

/// `run` as a child of a shell that ignores `signal`.
fn ignoring(base: &Path, signal: &str, script: &str) -> Command {
    let mut shell = Command::new("sh");
    let ignore = format!("trap '' {signal}; exec \"$@\"");
    shell.args(["-c", &ignore, "sh", PLUGIN, "run", "--", "sh", "-c", script]);
    shell.env("TMPDIR", base).stdin(Stdio::null());
    shell
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    if !applicable() {
        return;
    }
    let base = base();
    let script = "echo ready; sleep 1; echo survived";
    for (name, signal) in [("HUP", Signal::SIGHUP), ("INT", Signal::SIGINT), ("TERM", Signal::SIGTERM)] {
        let (mut child, mut stdout) = ready(ignoring(base.path(), name, script));
        kill(pid(&child), signal).unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), child.0.wait().unwrap().code()), ("survived\n", Some(0)), "{name}");
    }
    let output = ignoring(base.path(), "PIPE", "grep SigIgn /proc/self/status").output().unwrap();
    assert!(text(&output.stdout).ends_with("1000\n"), "{output:?}");
    // The twin: nothing is ignored that was not.
    let output = run(base.path(), &[], &["grep", "SigIgn", "/proc/self/status"]).output().unwrap();
    assert!(text(&output.stdout).ends_with("\t0000000000000000\n"), "{output:?}");
    let (mut child, _stdout) = ready(run(base.path(), &[], &["sh", "-c", script]));
    kill(pid(&child), Signal::SIGHUP).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(128 + libc::SIGHUP));
}

#[test]
fn a_killed_run_takes_its_command_with_it_and_the_next_one_cleans_up() {
    if !applicable() {
        return;
    }
    let base = base();
    let count = || base.path().read_dir().unwrap().count();
    let started = |seconds: &str| {
        let script = format!("echo ready; exec sleep {seconds}");
        let (run, stdout) = ready(run(base.path(), &[], &["sh", "-c", &script]));
        until("the command runs", || process_with(seconds).is_some());
        (run_directory(pid(&run)), run, stdout)
    };
    let [seconds, others] = [1, 2].map(unique_seconds);
    let (entry, mut killed, _stdout) = started(&seconds);
    let (living_entry, mut living, _stdout) = started(&others);
    killed.0.kill().unwrap();
    assert_eq!(killed.0.wait().unwrap().signal(), Some(libc::SIGKILL));
    until("the command is gone", || process_with(&seconds).is_none());
    assert_eq!(count(), 2);
    assert_eq!(status(&run(base.path(), &[], &["true"]).output().unwrap()), Some(0));
    assert!(!entry.exists());
    assert!(living_entry.exists() && process_with(&others).is_some());
    assert_eq!(count(), 1, "the directories of the living one");
    kill(pid(&living), Signal::SIGTERM).unwrap();
    assert_eq!(living.0.wait().unwrap().code(), Some(128 + libc::SIGTERM));
    assert_eq!(count(), 0);
}

fn run_directory(run: Pid) -> std::path::PathBuf {
    let prefix = format!("run-{run}-");
    let entries = fs::read_dir("/run/nomad-driver-exec2").unwrap().flatten();
    let mut found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    found.next().unwrap().path()
}

#[test]
fn a_stop_stops_the_command_first_and_a_continue_continues_both() {
    if !applicable() {
        return;
    }
    let base = base();
    for (signal, number) in [(Signal::SIGTSTP, 3), (Signal::SIGTTIN, 4)] {
        let argument = &unique_seconds(number);
        let mut command = run(base.path(), &[], &["sh", "-c", &format!("echo ready; exec sleep {argument}")]);
        // Of its own, whose parent is in the same session: such a group can be stopped.
        command.process_group(0);
        let (mut child, _stdout) = ready(command);
        until("the command runs", || process_with(argument).is_some());
        let task = process_with(argument).unwrap();
        kill(pid(&child), signal).unwrap();
        until("run stops", || state(pid(&child).as_raw()) == Some('T'));
        // A process that runs on another CPU stops a moment after the signal was sent.
        until("the command has stopped", || state(task) == Some('T'));
        kill(pid(&child), Signal::SIGCONT).unwrap();
        until("the command continues", || state(task) == Some('S'));
        kill(pid(&child), Signal::SIGTERM).unwrap();
        assert_eq!(child.0.wait().unwrap().code(), Some(128 + libc::SIGTERM), "{signal}");
    }
}

/// An interactive shell at a pseudo-terminal, and what it has shown since it was last looked at.
struct Shell {
    master: File,
    slave: OwnedFd,
    child: Child,
    shown: String,
}

impl Shell {
    fn new(base: &Path) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let child = Command::new("setsid")
            .args(["--ctty", "sh", "-i"])
            .env_clear()
            .envs([("PATH", std::env::var_os("PATH").unwrap()), ("RUN", OsString::from(PLUGIN))])
            .envs([
                ("TMPDIR", base.as_os_str()),
                ("PS1", OsStr::new("SHELL> ")),
                ("TERM", OsStr::new("dumb")),
            ])
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()
            .unwrap();
        let mut shell = Self { master: master.into(), slave, child, shown: String::new() };
        shell.wait_for("SHELL> ");
        shell
    }

    fn enter(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `wanted` is shown, and forgets everything up to it.
    fn wait_for(&mut self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.shown.find(wanted) {
                self.shown.drain(..at + wanted.len());
                return;
            }
            assert!(Instant::now() < deadline, "no {wanted:?} in {:?}", self.shown);
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(100u16)).unwrap() > 0 {
                let read = self.master.read(&mut buffer).unwrap();
                self.shown.push_str(&text(&buffer[..read]));
            }
        }
    }

    /// Whether the terminal makes lines and echoes, as a shell's commands expect it.
    fn is_cooked(&self) -> bool {
        use nix::sys::termios::{LocalFlags, OutputFlags, tcgetattr};
        let modes = tcgetattr(&self.slave).unwrap();
        modes.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
            && modes.output_flags.contains(OutputFlags::OPOST)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn after_ctrl_z_the_keys_are_for_the_shell() {
    if !applicable() {
        return;
    }
    let base = base();
    let mut shell = Shell::new(base.path());
    shell.enter("$RUN run -- sh -c 'echo re''ady; read x; echo TASK: $x'\r");
    shell.wait_for("ready");
    shell.enter("\x1a");
    shell.wait_for("SHELL> ");
    shell.enter("echo pass''word\r");
    shell.wait_for("password\r\n");
    shell.wait_for("SHELL> ");
    assert!(!shell.shown.contains("TASK"), "{:?}", shell.shown);
    shell.enter("fg\r");
    shell.wait_for("\n");
    shell.enter("for the task\r");
    shell.wait_for("TASK: for the task\r\n");
    shell.wait_for("SHELL> ");
    shell.enter("cat\r");
    until("the terminal is as it was", || shell.is_cooked());
}

#[test]
fn the_command_has_a_terminal_of_its_own() {
    if !applicable() {
        return;
    }
    let base = base();
    let mut shell = Shell::new(base.path());
    shell.enter(
        "$RUN run -- sh -c 'stty size; echo again > /dev/tty; echo out > /dev/stdout; exec sleep 1000'\r",
    );
    shell.wait_for("33 77\r\nagain\r\nout\r\n");
    shell.enter("\x03");
    shell.wait_for("SHELL> ");
    shell.enter("echo status $?\r");
    shell.wait_for("status 130\r\n");
    shell.wait_for("SHELL> ");
    // The caller's own terminal is not to be had.
    shell.enter("t=$(tty); $RUN run -- sh -c \"echo x > $t && echo open''ed || echo re''fused\"\r");
    shell.wait_for("refused\r\n");
    shell.wait_for("SHELL> ");
    shell.enter("$RUN run -- seq 20000\r");
    shell.wait_for("\n20000\r\nSHELL> ");
    shell.enter("$RUN run -- cat | tr a-z A-Z\r");
    shell.enter("hello\r");
    shell.wait_for("HELLO\r\n");
    shell.enter("\x04");
    shell.wait_for("SHELL> ");
}
