//! Start to first byte: a task through the driver's own launcher, against plain fork + exec in the same run.
//!
//! `cargo bench` as root. With cgroup v2 the tasks get a cgroup with limits, as under Nomad; without, it says so.
//! The figures to quote are the ratios: absolute times are those of the machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nomad_driver_exec2::cgroup::{Cgroup, Limits, MOUNT_POINT, MemoryMax};
use nomad_driver_exec2::config::{PluginConfig, TaskConfig};
use nomad_driver_exec2::shim;
use nomad_driver_exec2::sys;
use nomad_driver_exec2::task::launch::{Launched, Launcher};
use nomad_driver_exec2::task::spec::{Logs, Request, TaskSpec};
use nomad_driver_exec2::users;

/// Starts that are counted, after some that are not.
const RUNS: usize = 50;
const WARM_UP: usize = 5;
const PROGRAM: &str = "/bin/echo";

fn main() -> ExitCode {
    // The launcher starts this very file as the shim.
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
    let config = TaskConfig::decode_json(&format!(r#"{{"command": "{PROGRAM}", "args": ["x"]}}"#))?;
    let spec = TaskSpec::new(
        &Request {
            id: "bench",
            alloc_id: "",
            name: "bench",
            user,
            env: &HashMap::new(),
            root: root.path(),
            logs: Logs::Fifos { stdout: Path::new("out"), stderr: Path::new("err") },
            netns: None,
            cgroup: cgroup.as_ref().map(Cgroup::path),
            limits,
            config: &config,
        },
        &PluginConfig::default(),
    )?;
    let launcher = Launcher::new(&root.path().join("run"))?;

    let mut plain = Vec::new();
    let mut driver = Vec::new();
    // In turn, so that the machine's moods hit both alike.
    for run in 0..WARM_UP + RUNS {
        let (a, b) = (plain_start()?, driver_start(&launcher, &spec, root.path())?);
        if run >= WARM_UP {
            plain.push(a);
            driver.push(b);
        }
    }
    if let Some(cgroup) = cgroup {
        cgroup.remove()?;
    }
    let (plain, driver) = (median(plain), median(driver));
    Ok(format!(
        "start to first byte, median of {RUNS}{}:\n  fork + exec  {:8.0} µs\n  exec2        {:8.0} µs   {:.1} x\n",
        if spec.cgroup.is_some() { "" } else { " (no cgroup v2 here: without a cgroup)" },
        plain.as_secs_f64() * 1e6,
        driver.as_secs_f64() * 1e6,
        driver.as_secs_f64() / plain.as_secs_f64(),
    ))
}

fn plain_start() -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let mut child = Command::new(PROGRAM).arg("x").env_clear().stdout(Stdio::piped()).spawn()?;
    child.stdout.as_mut().context("its output")?.read_exact(&mut [0; 1])?;
    let time = begin.elapsed();
    child.wait()?;
    Ok(time)
}

fn driver_start(launcher: &Launcher, spec: &TaskSpec, root: &Path) -> anyhow::Result<Duration> {
    let open = |name: &str| {
        let nonblocking = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(root.join("alloc/logs").join(name));
        nonblocking.inspect(|file| {
            let _ = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_RDONLY));
        })
    };
    let (mut out, _err) = (open("out")?, open("err")?);
    let begin = Instant::now();
    let Launched { shim, run_dir, .. } = launcher.launch(spec)?;
    out.read_exact(&mut [0; 1])?;
    let time = begin.elapsed();
    while !matches!(
        nix::sys::wait::waitid(nix::sys::wait::Id::PIDFd(shim.as_fd()), nix::sys::wait::WaitPidFlag::WEXITED),
        Ok(_) | Err(nix::errno::Errno::ECHILD)
    ) {}
    let exit = run_dir.exit()?.context("the exit status")?;
    ensure!(exit.code == 0, "{PROGRAM} ended with {}", exit.code);
    ensure!(sys::pidfd::signal(shim.as_fd(), 0).is_err(), "the shim is still there");
    run_dir.remove()?;
    Ok(time)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
