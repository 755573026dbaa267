//! Compares tasks, started by the driver's own code, with plain processes in the same run: from the start to the first byte,
//! from SIGKILL of the task to the response of WaitTask, and from StopTask to its response.
//!
//! Run `cargo bench` as root. With cgroup v2 the tasks get a cgroup with limits, as under Nomad; otherwise the output says so.
//! Quote the ratios: absolute times depend on the machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nomad_driver_exec2::cgroup::{Cgroup, Limits, MOUNT_POINT, MemoryMax};
use nomad_driver_exec2::config::{DriverConfig, PluginConfig};
use nomad_driver_exec2::shim;
use nomad_driver_exec2::sys;
use nomad_driver_exec2::task::events::EventBus;
use nomad_driver_exec2::task::id::TaskId;
use nomad_driver_exec2::task::launch::Launcher;
use nomad_driver_exec2::task::processes::Launched;
use nomad_driver_exec2::task::running::Task;
use nomad_driver_exec2::task::signal::SignalNumber;
use nomad_driver_exec2::task::spec::{Logs, Request, TaskSpec};
use nomad_driver_exec2::users;

/// Measured runs, after some warm-up runs.
const RUNS: usize = 50;
const WARM_UP: usize = 5;
/// A program that ends immediately, and one that runs until a signal ends it.
const BRIEF: [&str; 2] = ["/bin/echo", "x"];
const LASTING: [&str; 2] = ["/bin/sleep", "1000"];
/// As many threads for calls as in the plugin.
const WORKERS: usize = 2;
/// Far longer than a stop takes: the signal ends the task.
const GRACE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    // The launcher starts this file as the shim.
    if std::env::args().nth(1).as_deref() == Some("shim") {
        return shim::main();
    }
    match bench() {
        Ok(report) => {
            let written = std::io::stdout().write_all(report.as_bytes());
            if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> anyhow::Result<String> {
    ensure!(nix::unistd::geteuid().is_root(), "the launcher needs root: run cargo bench as root");
    let root = tempfile::Builder::new().prefix("exec2-bench").tempdir()?;
    let user = users::lookup("nomad-80000")?;
    for dir in ["alloc", "alloc/logs", "local", "secrets", "tmp"] {
        let path = root.path().join(dir);
        std::fs::create_dir(&path)?;
        chown(&path, Some(user.uid), Some(user.gid))?;
    }
    std::fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    for fifo in ["alloc/logs/out", "alloc/logs/err"] {
        nix::unistd::mkfifo(&root.path().join(fifo), nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    }
    let path = Path::new(MOUNT_POINT).join("nomad-driver-exec2-bench.slice/bench/task.scope");
    let cgroup = Cgroup::create(&path).ok().map(|created| created.cgroup);
    let limits = match &cgroup {
        Some(_) => Limits { memory_max: MemoryMax::Bytes(64 << 20), ..Limits::UNLIMITED },
        None => Limits::UNLIMITED,
    };
    let spec = |[command, arg]: [&str; 2]| -> anyhow::Result<TaskSpec> {
        let config = DriverConfig::decode_json(&format!(r#"{{"command": "{command}", "args": ["{arg}"]}}"#))?;
        let request = Request {
            id: TaskId::new("bench", "", "bench")?,
            user: user.clone(),
            program: &config.command,
            args: &config.args,
            env: &HashMap::new(),
            root: root.path(),
            logs: Logs::Fifos { stdout: Path::new("out"), stderr: Path::new("err") },
            network: None,
            cgroup: cgroup.as_ref().map(Cgroup::path),
            limits: limits.clone(),
            ask: config.ask(),
        };
        Ok(TaskSpec::new(request, &PluginConfig::default().policy())?)
    };
    let (brief, lasting) = (spec(BRIEF)?, spec(LASTING)?);
    let launcher = Launcher::new(&root.path().join("run"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;

    let mut times: [Vec<Duration>; 5] = Default::default();
    for run in 0..WARM_UP + RUNS {
        // Alternating, so that changes in the machine's load affect all kinds equally.
        let measured = [
            plain_start()?,
            driver_start(&launcher, &brief, root.path())?,
            plain_end()?,
            runtime.block_on(driver_end(&launcher, &lasting, root.path()))?,
            runtime.block_on(driver_stop(&launcher, &lasting, root.path()))?,
        ];
        if run >= WARM_UP {
            times.iter_mut().zip(measured).for_each(|(all, time)| all.push(time));
        }
    }
    if let Some(cgroup) = cgroup {
        cgroup.remove()?;
    }
    let [start, exec2_start, end, exec2_end, exec2_stop] = times.map(Figures::of);
    let without =
        if brief.plan.resources.cgroup.is_some() { "" } else { " (no cgroup v2 here: without a cgroup)" };
    Ok(format!(
        "medians of {RUNS}{without}:\n\
         start to first byte\n  fork + exec        {start}\n  exec2              {exec2_start}   {:.1} x\n\
         SIGKILL to the answer\n  kill + waitpid     {end}\n  exec2, WaitTask    {exec2_end}   {:.1} x\n\
         SIGINT to the answer\n  exec2, StopTask    {exec2_stop}   {:.1} x\n",
        exec2_start.over(&start),
        exec2_end.over(&end),
        exec2_stop.over(&end),
    ))
}

/// The times of one kind of run.
struct Figures {
    median: Duration,
    slowest: Duration,
}

impl Figures {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { median: times[times.len() / 2], slowest: times[times.len() - 1] }
    }

    fn over(&self, plain: &Self) -> f64 {
        self.median.as_secs_f64() / plain.median.as_secs_f64()
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        write!(f, "{:8.0} µs, slowest {:8.0} µs", us(self.median), us(self.slowest))
    }
}

fn plain_start() -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let [program, arg] = BRIEF;
    let mut child = Command::new(program).arg(arg).env_clear().stdout(Stdio::piped()).spawn()?;
    child.stdout.as_mut().context("its output")?.read_exact(&mut [0; 1])?;
    let time = begin.elapsed();
    child.wait()?;
    Ok(time)
}

fn plain_end() -> anyhow::Result<Duration> {
    let [program, arg] = LASTING;
    let mut child = Command::new(program).arg(arg).env_clear().spawn()?;
    let begin = Instant::now();
    child.kill()?;
    child.wait()?;
    Ok(begin.elapsed())
}

/// The read ends of the task's log FIFOs, opened before there is a writer.
fn readers(root: &Path) -> anyhow::Result<[File; 2]> {
    let open = |name: &str| -> anyhow::Result<File> {
        let options = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(root.join("alloc/logs").join(name));
        let file = options?;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_RDONLY))?;
        Ok(file)
    };
    Ok([open("out")?, open("err")?])
}

fn driver_start(launcher: &Launcher, spec: &TaskSpec, root: &Path) -> anyhow::Result<Duration> {
    let [mut out, _err] = readers(root)?;
    let begin = Instant::now();
    let Launched { processes, run_dir, .. } = launcher.launch(spec)?;
    let shim = processes.shim;
    out.read_exact(&mut [0; 1])?;
    let time = begin.elapsed();
    while !matches!(
        nix::sys::wait::waitid(nix::sys::wait::Id::PIDFd(shim.as_fd()), nix::sys::wait::WaitPidFlag::WEXITED),
        Ok(_) | Err(nix::errno::Errno::ECHILD)
    ) {}
    let exit = run_dir.exit()?.context("the exit status")?;
    ensure!(exit.code == 0, "{:?} ended with {}", BRIEF, exit.code);
    ensure!(sys::pidfd::signal(shim.as_fd(), 0).is_err(), "the shim is still there");
    run_dir.remove()?;
    Ok(time)
}

/// A task in its state after StartTask.
fn lasting_task(launcher: &Launcher, spec: &TaskSpec) -> anyhow::Result<Arc<Task>> {
    Task::adopt(spec.id.clone(), launcher.launch(spec)?, &EventBus::default())
        .map_err(|(error, _)| error.into())
}

/// From the death of the task to the end of the wait for it, which is all of WaitTask.
async fn driver_end(launcher: &Launcher, spec: &TaskSpec, root: &Path) -> anyhow::Result<Duration> {
    let _readers = readers(root)?;
    let task = lasting_task(launcher, spec)?;
    let leader = task.process.context("the task's process")?.open()?.context("it runs")?;
    let begin = Instant::now();
    sys::pidfd::signal(leader.as_fd(), libc::SIGKILL)?;
    let ended = task.wait().await;
    let time = begin.elapsed();
    ensure!(ended.exit.signal == libc::SIGKILL, "the task ended otherwise: {ended:?}");
    task.forget()?;
    Ok(time)
}

/// All of StopTask.
async fn driver_stop(launcher: &Launcher, spec: &TaskSpec, root: &Path) -> anyhow::Result<Duration> {
    let _readers = readers(root)?;
    let task = lasting_task(launcher, spec)?;
    let begin = Instant::now();
    let ended = task.stop(SignalNumber::SIGINT, GRACE, &EventBus::default()).await?;
    let time = begin.elapsed();
    ensure!(ended.exit.signal == libc::SIGINT, "the task ended otherwise: {ended:?}");
    task.forget()?;
    Ok(time)
}
