//! The command `run` as a process: its streams, signals, terminal and leftovers.
//!
//! These tests need root and Landlock: CI runs this file as root. Elsewhere each test reports that it was not run, even if the
//! harness captures the output of tests.

// In a test, a failed step is a failed test.
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

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");
/// Longer than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// `run OPTIONS -- COMMAND`, with a temporary directory of its own as TMPDIR.
fn run(base: &Path, options: &[&str], command: &[&str]) -> Command {
    let mut run = Command::new(PLUGIN);
    run.arg("run").args(options).arg("--").args(command).env("TMPDIR", base).stdin(Stdio::null());
    run
}

/// A TMPDIR that `run` accepts. None if `run` does not work here; the test then reports that it was not run.
fn base() -> Option<tempfile::TempDir> {
    if let Some(why) = sandbox::unavailable(PLUGIN) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Not with a macro, whose output the harness captures.
        std::io::stderr().write_all(format!("{name} was not run: {why}\n").as_bytes()).unwrap();
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    Some(dir)
}

/// `run -- sh -c SCRIPT` in a shell that runs `before` first.
fn run_after(base: &Path, before: &str, script: &str) -> Command {
    let mut shell = Command::new("sh");
    let exec = format!("{before}; exec \"$@\"");
    shell.args(["-c", &exec, "sh", PLUGIN, "run", "--", "sh", "-c", script]);
    shell.env("TMPDIR", base).stdin(Stdio::null());
    shell
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn status(output: &Output) -> Option<i32> {
    output.status.code()
}

/// Polls until `is` returns true, or the test fails.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(PAUSE);
    }
}

/// The pid of the only process whose command line has `argument`.
fn process_with(argument: &str) -> Option<i32> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        // Excludes `run` itself, whose command line has the argument as well.
        let is = line.starts_with(b"sleep\0") && text(&line).split('\0').any(|found| found == argument);
        is.then_some(pid)
    })
}

/// A child of the process whose command line contains `word`.
fn child_of(parent: Pid, word: &str) -> Option<Pid> {
    fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let is = stat.rsplit_once(") ")?.1.split(' ').nth(1)? == parent.to_string();
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        (is && text(&line).contains(word)).then_some(Pid::from_raw(pid))
    })
}

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Starts a command that prints "ready", and waits for that.
fn ready(mut command: Command) -> (Run, BufReader<std::process::ChildStdout>) {
    let mut child = Run(command.stdout(Stdio::piped()).spawn().unwrap());
    let mut stdout = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (child, stdout)
}

/// A `run` of sleep(1), and the pid of the command.
fn sleeping(base: &Path, seconds: &str) -> (Run, i32) {
    sleeping_with(base, &[], seconds)
}

fn sleeping_with(base: &Path, options: &[&str], seconds: &str) -> (Run, i32) {
    let mut run = run(base, options, &["sleep", seconds]);
    // A process group of its own, whose parent is in the same session: such a group can be stopped.
    let run = Run(run.process_group(0).spawn().unwrap());
    until("the command runs", || process_with(seconds).is_some());
    (run, process_with(seconds).unwrap())
}

/// A number of seconds for sleep(1) that no other process on this host uses.
fn unique_seconds(number: u32) -> String {
    format!("{}.{number}", 100_000 + u64::from(std::process::id()))
}

/// A `run` that is killed at the end of the test, even of a failed one.
struct Run(Child);

impl Run {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    fn kill(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// The exit status after a signal, which the command gets.
    fn end_by(&mut self, signal: Signal) -> Option<i32> {
        self.kill(signal);
        self.0.wait().unwrap().code()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The variables that the driver itself sets for a task of `run`.
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
    let Some(base) = base() else { return };
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

/// The tree of the host as root directory: the task's directories are in TMPDIR.
const HOST_ROOT: [&str; 2] = ["--root", "host"];

#[test]
fn limits_of_processes_are_those_that_were_asked_for() {
    let Some(base) = base() else { return };
    let script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc; ulimit -Ss";
    let limits =
        |options: &[&str]| text(&run(base.path(), options, &["bash", "-c", script]).output().unwrap().stdout);
    let asked = ["--ulimit", "nofile=100:200", "--ulimit", "core=0", "--ulimit", "stack=1048576:unlimited"];
    assert_eq!(limits(&asked), "100\n200\n0\n0\n1024\n");
    // Without them: this process's own.
    let own = text(&Command::new("bash").args(["-c", script]).output().unwrap().stdout);
    assert_eq!(limits(&[]), own);
    // Too low for the shim's own steps, which come before it; but not for the program.
    let output =
        run(base.path(), &["--ulimit", "fsize=0", "--ulimit", "nofile=64"], &["echo", "x"]).output().unwrap();
    assert_eq!((status(&output), text(&output.stdout)), (Some(0), "x\n".into()));
    let output = run(base.path(), &["--ulimit", "fsize=0"], &["sh", "-c", "echo x > file"]).output().unwrap();
    assert_ne!(status(&output), Some(0));
    for wrong in ["nofile=200:100", "nofile=63", "files=1", "nofile"] {
        let output = run(base.path(), &["--ulimit", wrong], &["true"]).output().unwrap();
        assert_eq!(status(&output), Some(2), "{wrong}: {}", text(&output.stderr));
    }
}

#[test]
fn an_unsuitable_temporary_directory_is_not_used() {
    let Some(base) = base() else { return };
    let user = 54_322;
    let private = base.path().join("private");
    let foreign = base.path().join("foreign");
    for dir in [&private, &foreign] {
        fs::create_dir(dir).unwrap();
    }
    fs::set_permissions(&private, Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&foreign, Some(user), Some(user)).unwrap();
    for unsuitable in [&private, &foreign] {
        let output = run(unsuitable, &HOST_ROOT, &["mktemp"]).output().unwrap();
        assert_eq!(status(&output), Some(0), "{output:?}");
        assert!(!text(&output.stdout).contains(&unsuitable.display().to_string()), "{output:?}");
    }
    let output = run(base.path(), &HOST_ROOT, &["mktemp"]).output().unwrap();
    assert!(text(&output.stdout).starts_with(&base.path().display().to_string()), "{output:?}");
    let output = run(&base.path().join("missing"), &HOST_ROOT, &["true"]).output().unwrap();
    assert_eq!(status(&output), Some(125));
    assert!(text(&output.stderr).contains("/missing\": No such file or directory"), "{output:?}");
    // A task with a root of its own needs none.
    for tmpdir in [base.path(), &private, &base.path().join("missing")] {
        let output = run(tmpdir, &[], &["mktemp"]).output().unwrap();
        assert!(text(&output.stdout).starts_with("/task/tmp/"), "{output:?}");
    }
    assert_eq!(base.path().read_dir().unwrap().count(), 2);
}

#[test]
fn the_plugin_may_be_where_only_root_can_enter() {
    let Some(base) = base() else { return };
    let private = base.path().join("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, Permissions::from_mode(0o700)).unwrap();
    let plugin = private.join("plugin");
    // By another process: a file that this one has open for writing could not be executed while another test forks.
    assert!(Command::new("cp").args([OsStr::new(PLUGIN), plugin.as_os_str()]).status().unwrap().success());
    for root in ["private", "host"] {
        let mut run = Command::new(&plugin);
        run.args(["run", "--root", root, "--user", "54322:54322", "--", "id", "-u"]);
        let output = run.env("TMPDIR", base.path()).stdin(Stdio::null()).output().unwrap();
        assert_eq!((status(&output), text(&output.stdout)), (Some(0), "54322\n".into()), "{output:?}");
    }
}

#[test]
fn a_start_that_fails_names_the_step_and_has_the_status_of_its_cause() {
    let Some(base) = base() else { return };
    let unveils: &[&str] = &["--unveil", "r:/no/such"];
    for (options, command, wanted, step) in [
        (unveils, "true", 125, "unveil \"r:/no/such\": No such file"),
        (&[], "/usr/share/no-such", 127, ""),
        (&[], "/usr/share", 126, ""),
    ] {
        let output = run(base.path(), options, &[command]).output().unwrap();
        assert_eq!(status(&output), Some(wanted), "{output:?}");
        let start = format!("nomad-driver-exec2: failed to start the command: {step}");
        assert!(text(&output.stderr).lines().any(|line| line.starts_with(&start)), "{output:?}");
    }
}

#[test]
fn directories_deeper_than_the_limit_of_open_files_are_removed() {
    let Some(base) = base() else { return };
    let nest = "mkdir -p $(printf 'd/%.0s' $(seq 300)) && test -d d/d/d";
    for root in ["host", "private"] {
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            "ulimit -n 128; exec \"$@\"",
            "sh",
            PLUGIN,
            "run",
            "--root",
            root,
            "--",
            "sh",
            "-c",
            nest,
        ]);
        let output = shell.env("TMPDIR", base.path()).stdin(Stdio::null()).output().unwrap();
        assert_eq!(status(&output), Some(0), "{output:?}");
        assert_eq!(base.path().read_dir().unwrap().count(), 0, "{output:?}");
    }
}

#[test]
fn standard_output_and_error_can_be_opened_again() {
    let Some(base) = base() else { return };
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
    // The denied twin: a file next to it, through the same directory of descriptors.
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
fn a_closed_output_pipe_ends_the_command_with_sigpipe() {
    let Some(base) = base() else { return };
    let mut child = run(base.path(), &[], &["yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 2]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGPIPE));
}

#[test]
fn all_of_a_long_output_arrives() {
    let Some(base) = base() else { return };
    let output = run(base.path(), &[], &["head", "-c", "20000000", "/dev/zero"]).output().unwrap();
    assert_eq!((status(&output), output.stdout.len()), (Some(0), 20_000_000));
}

#[test]
fn arguments_that_are_not_text_are_refused_with_125() {
    let Some(base) = base() else { return };
    let mut command = run(base.path(), &[], &["printf"]);
    let output = command.arg(OsString::from_vec(b"\xff".to_vec())).output().unwrap();
    assert_eq!(status(&output), Some(125));
    assert!(text(&output.stderr).contains("argument 1"), "{output:?}");
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let Some(base) = base() else { return };
    let ignoring = |signal: &str, script| run_after(base.path(), &format!("trap '' {signal}"), script);
    let script = "echo ready; sleep 1; echo survived";
    for (name, signal) in [("HUP", Signal::SIGHUP), ("INT", Signal::SIGINT), ("TERM", Signal::SIGTERM)] {
        let (mut child, mut stdout) = ready(ignoring(name, script));
        child.kill(signal);
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), child.0.wait().unwrap().code()), ("survived\n", Some(0)), "{name}");
    }
    let output = ignoring("PIPE", "grep SigIgn /proc/self/status").output().unwrap();
    assert!(text(&output.stdout).ends_with("1000\n"), "{output:?}");
    // The twin: other signals are not ignored.
    let output = run(base.path(), &[], &["grep", "SigIgn", "/proc/self/status"]).output().unwrap();
    assert!(text(&output.stdout).ends_with("\t0000000000000000\n"), "{output:?}");
    let (mut child, _stdout) = ready(run(base.path(), &[], &["sh", "-c", script]));
    assert_eq!(child.end_by(Signal::SIGHUP), Some(128 + libc::SIGHUP));
}

#[test]
fn killing_run_kills_its_command_and_the_next_run_cleans_up() {
    let Some(base) = base() else { return };
    let count = || base.path().read_dir().unwrap().count();
    for (root, number) in [("host", 1), ("private", 6)] {
        let options = ["--root", root];
        // A task with a root of its own has its directories there.
        let directories = |runs| if root == "host" { runs } else { 0 };
        let started = |seconds: &str| {
            let (run, _) = sleeping_with(base.path(), &options, seconds);
            (run_directory(run.pid()), run)
        };
        let [seconds, others] = [number, number + 1].map(unique_seconds);
        let (entry, mut killed) = started(&seconds);
        let (living_entry, mut living) = started(&others);
        killed.0.kill().unwrap();
        assert_eq!(killed.0.wait().unwrap().signal(), Some(libc::SIGKILL));
        until("the command is gone", || process_with(&seconds).is_none());
        assert_eq!(count(), directories(2));
        assert_eq!(status(&run(base.path(), &options, &["true"]).output().unwrap()), Some(0));
        assert!(!entry.exists());
        assert!(living_entry.exists() && process_with(&others).is_some());
        assert_eq!(count(), directories(1), "the directories of the living one");
        assert_eq!(living.end_by(Signal::SIGTERM), Some(128 + libc::SIGTERM));
        assert_eq!(count(), 0);
    }
}

fn run_directory(run: Pid) -> std::path::PathBuf {
    let prefix = format!("run-{run}-");
    let entries = fs::read_dir("/run/nomad-driver-exec2").unwrap().flatten();
    let mut found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    found.next().unwrap().path()
}

#[test]
fn a_stop_stops_the_command_first_and_a_continue_continues_both() {
    let Some(base) = base() else { return };
    for (signal, number) in [(Signal::SIGTSTP, 3), (Signal::SIGTTIN, 4)] {
        let argument = &unique_seconds(number);
        let (mut child, task) = sleeping(base.path(), argument);
        child.kill(signal);
        until("run stops", || state(child.pid().as_raw()) == Some('T'));
        // A process that runs on another CPU stops a moment after the signal was sent.
        until("the command has stopped", || state(task) == Some('T'));
        child.kill(Signal::SIGCONT);
        until("the command continues", || state(task) == Some('S'));
        assert_eq!(child.end_by(Signal::SIGTERM), Some(128 + libc::SIGTERM), "{signal}");
    }
}

/// A pseudo-terminal that no child inherits, so that it hangs up when the master is closed here.
fn open_pair() -> (File, OwnedFd) {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = open(ptsname_r(&master).unwrap().as_str(), flags, Mode::empty()).unwrap();
    (File::from(OwnedFd::from(master)), slave)
}

/// An interactive shell at a pseudo-terminal, and its output since the last check.
struct Shell {
    master: File,
    slave: OwnedFd,
    child: Child,
    shown: String,
}

impl Shell {
    fn new(base: &Path) -> Self {
        let mut shell = Self::at_terminal(base, &["sh", "-i"]);
        shell.wait_for("SHELL> ");
        shell
    }

    /// A program other than a shell, as the leader of the terminal's session.
    fn at_terminal(base: &Path, command: &[&str]) -> Self {
        let (master, slave) = open_pair();
        let mut size = Command::new("stty");
        size.args(["rows", "33", "cols", "77"]).stdin(slave.try_clone().unwrap());
        assert!(size.status().unwrap().success());
        let stdio = || Stdio::from(slave.try_clone().unwrap());
        let child = Command::new("setsid")
            .arg("--ctty")
            .args(command)
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
        Self { master, slave, child, shown: String::new() }
    }

    fn enter(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for `wanted` in the output, and removes and returns everything up to it.
    fn wait_for(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.shown.find(wanted) {
                return self.shown.drain(..at + wanted.len()).collect();
            }
            assert!(Instant::now() < deadline, "no {wanted:?} in {:?}", self.shown);
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(100u16)).unwrap() > 0 {
                let read = self.master.read(&mut buffer).unwrap();
                self.shown.push_str(&text(&buffer[..read]));
            }
        }
    }

    /// Whether the terminal edits lines and echoes, as a shell's commands expect.
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
    let Some(base) = base() else { return };
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
    let Some(base) = base() else { return };
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
    // The caller's own terminal is not available.
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

#[test]
fn a_password_is_not_echoed_in_a_pipeline() {
    /// Acts like a program that asks for a password: it uses the controlling terminal, whatever the standard streams are.
    const ASK: &str = "stty -echo < /dev/tty; printf 'Password: ' > /dev/tty; read x < /dev/tty; stty echo < /dev/tty; \
                       printf %s \"$x\" | tr a-z A-Z > /dev/tty; echo > /dev/tty";
    let Some(base) = base() else { return };
    let mut shell = Shell::new(base.path());
    shell.enter(&format!("ASK={}\r", shell_quoted(ASK)));
    shell.wait_for("SHELL> ");
    for (before, after) in
        [("", ""), ("", "> $TMPDIR/file"), ("", "| cat"), ("", "< /etc/hostname"), (": |", "| cat")]
    {
        shell.enter(&format!("{before} $RUN run -- sh -c \"$ASK\" {after}\r"));
        shell.wait_for("Password: ");
        shell.enter("hunter2\r");
        let shown = shell.wait_for("HUNTER2");
        assert!(!shown.contains("hunter"), "{before} run {after}: {shown:?}");
        shell.wait_for("SHELL> ");
        until("the terminal is as it was", || shell.is_cooked());
        // The twin: other input is echoed, once.
        shell.enter(&format!(
            "{before} $RUN run -- sh -c 'echo re''ady; read x; echo $x' {after}; echo do''ne\r"
        ));
        if before.is_empty() && after == "| cat" {
            shell.wait_for("ready");
            shell.enter("word\r");
            assert_eq!(shell.wait_for("done").matches("word").count(), 2);
        } else if before.is_empty() && !after.starts_with('<') {
            shell.enter("word\r");
        }
        shell.wait_for("SHELL> ");
    }
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[test]
fn a_question_is_answered_when_standard_input_is_a_file() {
    let Some(base) = base() else { return };
    let mut shell = Shell::new(base.path());
    shell.enter("$RUN run -- sh -c 'echo sure''ly; read x < /dev/tty; echo answer $x' < /etc/hostname\r");
    shell.wait_for("surely");
    shell.enter("yes\r");
    shell.wait_for("answer yes");
    shell.wait_for("SHELL> ");
    // The twin: in a pipeline the keys are for the program that reads the terminal, not for the last one.
    shell.enter("cat | $RUN run -- tr a-z A-Z\r");
    for (line, upper) in [("one", "ONE"), ("two", "TWO"), ("three", "THREE")] {
        shell.enter(&format!("{line}\r"));
        shell.wait_for(upper);
        // Longer than the interval at which `run` checks the terminal.
        std::thread::sleep(Duration::from_millis(300));
    }
    shell.enter("\x04");
    shell.wait_for("SHELL> ");
}

#[test]
fn lines_typed_ahead_arrive_one_by_one_and_the_end_of_file_after_them() {
    let Some(base) = base() else { return };
    let mut shell = Shell::new(base.path());
    // dd reads one line, as a read from a terminal returns it, and leaves the others.
    shell.enter(
        "$RUN run -- sh -c 'echo re''ady; sleep 1; dd count=1 2>/dev/null; echo first; cat' | tr a-z A-Z\r",
    );
    shell.wait_for("READY");
    shell.enter("one\rtwo\rthree\r\x04");
    shell.wait_for("ONE\r\nFIRST\r\nTWO\r\nTHREE\r\n");
    shell.wait_for("SHELL> ");
}

#[test]
fn lost_output_is_a_failure() {
    let Some(base) = base() else { return };
    // The command succeeds even if it gets SIGPIPE, which depends on how fast it writes.
    let full = |bytes: &str| {
        let script = "mount -t tmpfs -o size=8k tmpfs $1 && exec $2 run -- sh -c \"head -c $3 /dev/zero; true\" > $1/file";
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "sh", "-c", script, "sh"]).arg(base.path()).args([PLUGIN, bytes]);
        shell.output().unwrap()
    };
    let output = full("50000");
    assert_eq!(status(&output), Some(125), "{output:?}");
    assert!(text(&output.stderr).contains("copy the command's output: No space left"), "{output:?}");
    assert_eq!(status(&full("100")), Some(0));
}

#[test]
fn a_signal_ends_run_while_its_output_is_blocked() {
    let Some(base) = base() else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        // More than one pipe holds, and less than two: the command ends, and the last part stays.
        let mut command = run(base.path(), &[], &["head", "-c", "100000", "/dev/zero"]);
        let mut child = Run(command.stdout(Stdio::piped()).spawn().unwrap());
        let output = child.0.stdout.as_ref().unwrap().as_fd();
        assert_eq!(poll(&mut [PollFd::new(output, PollFlags::POLLIN)], PollTimeout::NONE), Ok(1));
        // Any child: it exists until `run` knows how the command ended.
        until("the command ends", || child_of(child.pid(), "").is_none());
        assert_eq!(child.0.try_wait().unwrap(), None, "it waits for its reader");
        child.kill(signal);
        until("run ends", || child.0.try_wait().unwrap().is_some());
        assert_eq!(child.0.wait().unwrap().signal(), Some(signal as i32));
        assert_eq!(base.path().read_dir().unwrap().count(), 0, "it removes its directories before");
    }
}

/// A `run` and its shim, which is stopped during the start of the command: it has so many rules that there is time for that,
/// and the rest of the start takes far less than a second.
fn stopped_start(base: &Path, command: &[&str]) -> (Run, Pid) {
    let unveils = vec!["--unveil=r:/usr/share"; 3000];
    let mut run = run(base, &unveils, command);
    // A process group of its own, whose parent is in the same session: such a group can be stopped.
    let child = Run(run.process_group(0).spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(shim) = child_of(child.pid(), "shim") {
            kill(shim, Signal::SIGSTOP).unwrap();
            assert_eq!(child_of(shim, command[0]), None, "the start has not been stopped in time");
            return (child, shim);
        }
        assert!(Instant::now() < deadline, "no start within {PATIENCE:?}");
    }
}

#[test]
fn a_signal_during_the_start_reaches_the_command() {
    let Some(base) = base() else { return };
    let argument = &unique_seconds(5);
    let (mut child, shim) = stopped_start(base.path(), &["sleep", argument]);
    child.kill(Signal::SIGTSTP);
    std::thread::sleep(PAUSE * 10);
    assert_ne!(state(child.pid().as_raw()), Some('T'), "run waits for the end of the start");
    kill(shim, Signal::SIGCONT).unwrap();
    until("run stops", || state(child.pid().as_raw()) == Some('T'));
    until("the command stops", || process_with(argument).and_then(state) == Some('T'));
    child.kill(Signal::SIGCONT);
    assert_eq!(child.end_by(Signal::SIGTERM), Some(128 + libc::SIGTERM));
}

#[test]
fn a_signal_ends_run_during_a_start_that_hangs() {
    let Some(base) = base() else { return };
    let (mut child, shim) = stopped_start(base.path(), &["true"]);
    child.kill(Signal::SIGTERM);
    // Less than the time limit of a start.
    let deadline = Instant::now() + Duration::from_secs(10);
    while child.0.try_wait().unwrap().is_none() && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
    let ended = child.0.try_wait().unwrap();
    // It has died with `run` if its parent-death signal was already set.
    let _ = kill(shim, Signal::SIGKILL);
    assert_eq!(ended.and_then(|status| status.signal()), Some(libc::SIGTERM));
}

#[test]
fn a_second_terminal_gets_its_own_output() {
    let Some(base) = base() else { return };
    let [(mut first_master, first), (mut second_master, second)] = [(); 2].map(|()| open_pair());
    let mut command = run(base.path(), &[], &["sh", "-c", "read x; echo out $x; echo err >&2"]);
    let stdio = |slave: &OwnedFd| Stdio::from(slave.try_clone().unwrap());
    command.stdin(stdio(&first)).stdout(stdio(&first)).stderr(stdio(&second));
    let mut child = Run(command.spawn().unwrap());
    drop(command);
    // The terminal belongs to no session, so it is read.
    first_master.write_all(b"typed\r").unwrap();
    until("run ends", || child.0.try_wait().unwrap().is_some());
    let mut shown = [0; 4096];
    let read = first_master.read(&mut shown).unwrap();
    let on_first = text(&shown[..read]);
    let read = second_master.read(&mut shown).unwrap();
    let on_second = text(&shown[..read]);
    assert!(on_first.contains("out typed") && !on_first.contains("err\r"), "{on_first:?}");
    assert!(on_second.ends_with("err\r\n") && !on_second.contains("typed"), "{on_second:?}");
}

#[test]
fn the_terminal_of_another_session_is_neither_read_nor_changed() {
    let Some(base) = base() else { return };
    let mut shell = Shell::new(base.path());
    shell.enter("setsid $RUN run -- sh -c 'echo re''ady; while read x; do echo TA''SK $x; done' &\r");
    shell.wait_for("ready");
    for _ in 0..3 {
        assert!(shell.is_cooked());
        shell.enter("echo pass''word\r");
        let shown = shell.wait_for("password\r\n");
        assert!(!shown.contains("TASK"), "{shown:?}");
        // Longer than the interval at which `run` checks the terminal.
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn a_terminal_that_hangs_up_ends_a_command_that_reads_it() {
    let Some(base) = base() else { return };
    for script in ["trap '' HUP; echo ready; cat", "trap 'exit' HUP; echo ready; while :; do sleep 0.1; done"]
    {
        let mut shell = Shell::at_terminal(base.path(), &[PLUGIN, "run", "--", "sh", "-c", script]);
        shell.wait_for("ready");
        (shell.master, shell.slave) = open_pair();
        until("run ends", || shell.child.try_wait().unwrap().is_some());
    }
}

#[test]
fn a_signal_that_dumps_core_leaves_the_terminal_as_it_was() {
    let Some(base) = base() else { return };
    let mut shell = Shell::new(base.path());
    for signal in ["ABRT", "SYS", "40"] {
        shell.enter("(ulimit -c 0; exec $RUN run -- sh -c 'echo re''ady; exec sleep 1000')\r");
        shell.wait_for("ready");
        until("the terminal is raw", || !shell.is_cooked());
        let run = child_of(Pid::from_raw(shell.child.id() as i32), "sleep").unwrap();
        assert!(Command::new("kill").args(["-s", signal, &run.to_string()]).status().unwrap().success());
        shell.wait_for("SHELL> ");
        until("the terminal is as it was", || shell.is_cooked());
    }
}
