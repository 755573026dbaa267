//! Compares tasks, started by the driver's own code, with plain processes in the same run: from the start to the first byte and
//! to the end of a short program, from SIGKILL of the task to the response of WaitTask, and from StopTask to its response. Each is
//! measured with the host's root and with a root of the task's own, with more and more mounts on the host, with more and more
//! running tasks, and with volumes. And with less and more of what protects the host from a task.
//!
//! Run `cargo bench` as root; `cargo bench -- private 0 1000 tasks=100 volumes=5` names the kinds of root, the numbers of extra mounts,
//! of running tasks, and of the task's volumes (`mapped=5`: of volumes that are mapped to its user); `cargo bench -- protections` compares
//! protections instead. With cgroup v2 the tasks get a cgroup with limits, as under Nomad; otherwise the output says so. Quote
//! the ratios: absolute times depend on the machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nomad_driver_exec2::cgroup::{Cgroup, Limits, MOUNT_POINT, MemoryMax};
use nomad_driver_exec2::config::{DriverConfig, PluginConfig};
use nomad_driver_exec2::sandbox::policy::Ask;
use nomad_driver_exec2::sandbox::volume::{AskedVolume, VolumeIdmap};
use nomad_driver_exec2::shim;
use nomad_driver_exec2::shim::spec::TaskDirs;
use nomad_driver_exec2::sys;
use nomad_driver_exec2::task::events::EventBus;
use nomad_driver_exec2::task::id::TaskId;
use nomad_driver_exec2::task::launch::Launcher;
use nomad_driver_exec2::task::processes::Launched;
use nomad_driver_exec2::task::running::Task;
use nomad_driver_exec2::task::signal::SignalNumber;
use nomad_driver_exec2::task::spec::{Logs, Request, TaskSpec};
use nomad_driver_exec2::users::{self, User};

/// Measured runs, after some warm-up runs.
const RUNS: usize = 50;
const WARM_UP: usize = 5;
/// Extra mounts on the host.
const MOUNTS: [usize; 3] = [0, 1000, 5000];
/// Values of the plugin option `root`.
const ROOTS: [&str; 2] = ["host", "private"];
/// A program that ends immediately, and one that runs until a signal ends it.
const BRIEF: [&str; 2] = ["/bin/echo", "x"];
const LASTING: [&str; 2] = ["/bin/sleep", "1000"];
/// As many threads for calls as in the plugin.
const WORKERS: usize = 2;
/// Before each start. The plugin starts the shim of the next one meanwhile.
const REST: Duration = Duration::from_millis(30);
/// Far longer than a stop takes: the signal ends the task.
const GRACE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    // The launcher starts this file as the shim.
    match std::env::args().nth(1).as_deref() {
        Some("shim") => return shim::main(),
        Some("idle") => return shim::idle(),
        Some("template") => return shim::template::main(),
        _ => {}
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
    let args = || std::env::args().skip(1);
    if args().any(|arg| arg == "protections") {
        let host = Host::new()?;
        let report = measure_protections(&host)?;
        host.remove()?;
        return Ok(report);
    }
    let Cells { roots, mounts, tasks, volumes } = Cells::parse(args())?;
    let host = Host::new()?;
    let mut report = String::new();
    for mounts in mounts {
        host.mount_up_to(mounts)?;
        for &tasks in &tasks {
            for &volumes in &volumes {
                for root in &roots {
                    report += &measure(&host, mounts, tasks, volumes, root)?;
                }
            }
        }
    }
    host.remove()?;
    Ok(report)
}

/// What the arguments select.
struct Cells {
    roots: Vec<String>,
    mounts: Vec<usize>,
    tasks: Vec<usize>,
    volumes: Vec<Volumes>,
}

/// The volumes of a task: directories of another user.
#[derive(Debug, Clone, Copy, Default)]
struct Volumes {
    count: usize,
    mapped: bool,
}

impl std::fmt::Display for Volumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{} volumes", self.count, if self.mapped { " mapped" } else { "" })
    }
}

impl Cells {
    fn parse(args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut cells =
            Self { roots: Vec::new(), mounts: Vec::new(), tasks: Vec::new(), volumes: Vec::new() };
        // cargo adds --bench.
        for arg in args.filter(|arg| !arg.starts_with("--")) {
            if let Some(number) = arg.strip_prefix("tasks=") {
                cells.tasks.push(number.parse()?);
            } else if let Some(number) = arg.strip_prefix("volumes=") {
                cells.volumes.push(Volumes { count: number.parse()?, mapped: false });
            } else if let Some(number) = arg.strip_prefix("mapped=") {
                cells.volumes.push(Volumes { count: number.parse()?, mapped: true });
            } else if arg.starts_with(|first: char| first.is_ascii_digit()) {
                cells.mounts.push(arg.parse()?);
            } else {
                cells.roots.push(arg);
            }
        }
        if cells.roots.is_empty() {
            cells.roots = ROOTS.map(str::to_owned).to_vec();
        }
        if cells.mounts.is_empty() {
            cells.mounts = MOUNTS.to_vec();
        }
        if cells.tasks.is_empty() {
            cells.tasks.push(0);
        }
        if cells.volumes.is_empty() {
            cells.volumes.push(Volumes::default());
        }
        Ok(cells)
    }
}

/// What is measured, for one number of extra mounts, one of running tasks, and one kind of root.
///
/// The kinds are not mixed: a namespace with many mounts is taken down by the kernel after its last process, which would slow down
/// the next start of another kind.
fn measure(host: &Host, mounts: usize, tasks: usize, volumes: Volumes, root: &str) -> anyhow::Result<String> {
    let policy = PluginConfig::decode_json(&format!(r#"{{"root": "{root}"}}"#))?;
    let brief = host.spec(&policy, &command(BRIEF)?, MEASURED, volumes)?;
    let lasting = host.spec(&policy, &command(LASTING)?, MEASURED, volumes)?;
    let launcher = Launcher::new(&host.run_dir())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    let others = {
        let _reactor = runtime.enter();
        let started = (0..tasks).map(|number| Other::start(&launcher, host, &policy, number));
        started.collect::<anyhow::Result<Vec<_>>>()?
    };
    let mut starts: [Vec<Start>; 3] = Default::default();
    let mut ends: [Vec<Duration>; 3] = Default::default();
    for run in 0..WARM_UP + RUNS {
        // Alternating, so that changes in the machine's load affect all kinds equally.
        let task = |shim| driver_start(&launcher, &brief, host, shim);
        let started = [plain_start()?, task(Shim::New)?, task(Shim::Ahead)?];
        let ended = [
            plain_end()?,
            runtime.block_on(driver_end(&launcher, &lasting, host))?,
            runtime.block_on(driver_stop(&launcher, &lasting, host))?,
        ];
        if run >= WARM_UP {
            starts.iter_mut().zip(started).for_each(|(all, time)| all.push(time));
            ends.iter_mut().zip(ended).for_each(|(all, time)| all.push(time));
        }
    }
    others.into_iter().try_for_each(|other| runtime.block_on(other.end()))?;
    let bytes = starts.each_ref().map(|all| Figures::of(all.iter().map(|start| start.first_byte).collect()));
    let exits = starts.each_ref().map(|all| Figures::of(all.iter().map(|start| start.exit).collect()));
    let without = if host.cgroup.is_some() { "" } else { ", no cgroup v2 here" };
    let mut report = format!(
        "root {root:?}, {mounts} extra mounts, {tasks} running tasks, {volumes}, medians of {RUNS}{without}\n"
    );
    let kinds = ["vfork + exec", "task, new shim", "task, shim ahead"];
    report += &table("start to first byte", &kinds, &bytes);
    report += &table("start to end of process", &kinds, &exits);
    let signals = ["SIGKILL, waitpid", "SIGKILL, WaitTask", "SIGINT, StopTask"];
    report += &table("signal to answer", &signals, &ends.map(Figures::of));
    Ok(report)
}

/// What protects the host from a task: a name, the plugin's options, and those of the task beside its command. The default is measured as
/// such, and then one more at a time.
const PROTECTIONS: [(&str, &str, &str); 5] = [
    ("little", r#"{"seccomp": "unconfined", "abstract_sockets": "host"}"#, ""),
    ("default", "{}", ""),
    (
        "ports, limits, caps",
        r#"{"network_policy": {"bind": ["8000-8063"], "connect": ["443", "5432"]}}"#,
        r#", "ulimit": {"nofile": "1024:4096", "core": "0"}, "cap_add": ["chown", "setuid"]"#,
    ),
    ("r:/etc, none denied", r#"{"unveil_by_task": true, "unveil_deny": []}"#, r#", "unveil": ["r:/etc"]"#),
    ("r:/etc, default", r#"{"unveil_by_task": true}"#, r#", "unveil": ["r:/etc"]"#),
];

/// The starts of all kinds in turn, with a shim that was started ahead.
fn measure_protections(host: &Host) -> anyhow::Result<String> {
    let launcher = Launcher::new(&host.run_dir())?;
    let specs = PROTECTIONS.map(|(name, plugin, task)| {
        let config = DriverConfig::decode_json(&format!(
            r#"{{"command": "{}", "args": ["{}"]{task}}}"#,
            BRIEF[0], BRIEF[1]
        ))?;
        let policy = PluginConfig::decode_json(plugin)?;
        anyhow::Ok((name, host.spec(&policy, &config, MEASURED, Volumes::default())?))
    });
    let specs = specs.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let mut times = vec![Vec::new(); 1 + specs.len()];
    for run in 0..WARM_UP + RUNS {
        let mut round = vec![plain_start()?];
        for (_, spec) in &specs {
            round.push(driver_start(&launcher, spec, host, Shim::Ahead)?);
        }
        if run >= WARM_UP {
            times.iter_mut().zip(round).for_each(|(all, start)| all.push(start.first_byte));
        }
    }
    let names: Vec<_> = std::iter::once("vfork + exec").chain(specs.iter().map(|(name, _)| *name)).collect();
    let figures: Vec<_> = times.into_iter().map(Figures::of).collect();
    Ok(table(&format!("start to first byte, shim ahead, medians of {RUNS}"), &names, &figures))
}

/// A task's options: its command with one argument.
fn command([command, arg]: [&str; 2]) -> anyhow::Result<DriverConfig> {
    Ok(DriverConfig::decode_json(&format!(r#"{{"command": "{command}", "args": ["{arg}"]}}"#))?)
}

fn table(title: &str, names: &[&str], figures: &[Figures]) -> String {
    let line = |(name, found): (&&str, &Figures)| {
        format!("    {name:20} {found}   {:.2} x\n", found.over(&figures[0]))
    };
    let lines: String = names.iter().zip(figures).map(line).collect();
    format!("  {title}\n{lines}")
}

/// The directories of one allocation with one task as Nomad makes them, in a mount namespace of this process.
struct Host {
    /// Everything is below it.
    base: tempfile::TempDir,
    user: User,
    cgroup: Option<Cgroup>,
}

const ALLOC: &str = "alloc/1";
const TASK: &str = "web";
/// The task id of the measured tasks, and their FIFOs.
const MEASURED: (&str, [&str; 2]) = ("bench", ["out", "err"]);
/// The FIFOs of the other running tasks: what is written to the measured ones must not be read from them.
const OTHERS: [&str; 2] = ["others.out", "others.err"];
/// The uid and gid of the volumes.
const VOLUME_OWNER: u32 = 4321;
/// Mounts that Nomad makes for each task.
const MOUNTS_EACH: usize = 5;

impl Host {
    fn new() -> anyhow::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        // The extra mounts stay in it; what is in it is shared with the template, as on a host.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)?;
        let base = tempfile::Builder::new().prefix("exec2-bench").tempdir_in("/var/lib")?;
        // As /run is: to make files on a disk would take longer than the start.
        mount(Some("bench"), base.path(), Some("tmpfs"), MsFlags::empty(), Some("mode=0711"))?;
        let path = Path::new(MOUNT_POINT).join("nomad-driver-exec2-bench.slice/bench/task.scope");
        let cgroup = Cgroup::create(&path).ok().map(|created| created.cgroup);
        let host = Self { base, user: users::lookup("nomad-80000")?, cgroup };
        host.make_directories()?;
        Ok(host)
    }

    fn make_directories(&self) -> anyhow::Result<()> {
        let alloc = self.base.path().join(ALLOC);
        for dir in ["alloc/logs", "web/alloc", "web/local", "web/secrets", "web/tmp"] {
            let path = alloc.join(dir);
            std::fs::create_dir_all(&path)?;
            chown(&path, Some(self.user.uid), Some(self.user.gid))?;
        }
        for fifo in MEASURED.1.into_iter().chain(OTHERS) {
            nix::unistd::mkfifo(&self.logs().join(fifo), Mode::from_bits_truncate(0o600))?;
        }
        let none: Option<&str> = None;
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&alloc.join("alloc")), &alloc.join("web/alloc"), none, bind, none)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("secrets"), &alloc.join("web/secrets"), Some("tmpfs"), flags, Some("size=1m"))?;
        std::fs::create_dir_all(self.task_dir())?;
        Ok(mount(Some(&alloc.join(TASK)), &self.task_dir(), none, bind, none)?)
    }

    fn run_dir(&self) -> PathBuf {
        self.base.path().join("run")
    }

    fn task_dir(&self) -> PathBuf {
        self.base.path().join("alloc_mounts/1-web")
    }

    fn logs(&self) -> PathBuf {
        self.base.path().join(ALLOC).join("alloc/logs")
    }

    /// As those of other allocations.
    fn mount_up_to(&self, count: usize) -> anyhow::Result<()> {
        self.mount_more("extra", count)
    }

    /// Those of a group that are missing.
    fn mount_more(&self, group: &str, count: usize) -> anyhow::Result<()> {
        let others = self.base.path().join("others").join(group);
        std::fs::create_dir_all(&others)?;
        for number in 0..count {
            let point = others.join(number.to_string());
            if std::fs::create_dir(&point).is_ok() {
                mount(Some("other"), &point, Some("tmpfs"), MsFlags::empty(), Some("size=4k"))?;
            }
        }
        Ok(())
    }

    fn spec(
        &self,
        policy: &PluginConfig,
        config: &DriverConfig,
        id: (&str, [&str; 2]),
        Volumes { count, mapped }: Volumes,
    ) -> anyhow::Result<TaskSpec> {
        let (id, [stdout, stderr]) = id;
        let limits = match &self.cgroup {
            Some(_) => Limits { memory_max: MemoryMax::Bytes(64 << 20), ..Limits::UNLIMITED },
            None => Limits::UNLIMITED,
        };
        let volumes = (0..count).map(|number| self.volume(number)).collect::<anyhow::Result<Vec<_>>>()?;
        let volume_idmap = Some(if mapped { VolumeIdmap::Auto } else { VolumeIdmap::Never });
        let request = Request {
            id: TaskId::new(id, "", "bench")?,
            user: self.user.clone(),
            program: &config.command,
            args: &config.args,
            env: &HashMap::new(),
            root: &self.task_dir(),
            dirs: TaskDirs::Nomad { alloc_dir: self.base.path().join(ALLOC), task: TASK.into() },
            logs: Logs::Fifos { stdout: Path::new(stdout), stderr: Path::new(stderr) },
            network: None,
            names: nomad_driver_exec2::sandbox::names::Names::default(),
            ports: &[],
            cgroup: self.cgroup.as_ref().map(Cgroup::path),
            limits,
            ask: Ask { volumes: &volumes, volume_idmap, ..config.ask() },
        };
        Ok(TaskSpec::new(request, &policy.policy())?)
    }

    /// A directory that everyone may write, so that it need not be mapped.
    fn volume(&self, number: usize) -> anyhow::Result<AskedVolume> {
        let source = self.base.path().join(format!("volumes/{number}"));
        std::fs::create_dir_all(&source)?;
        chown(&source, Some(VOLUME_OWNER), Some(VOLUME_OWNER))?;
        std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o777))?;
        Ok(AskedVolume {
            source: source.display().to_string(),
            destination: format!("/volumes/{number}"),
            propagation: "private".into(),
            ..AskedVolume::default()
        })
    }

    fn remove(self) -> anyhow::Result<()> {
        if let Some(cgroup) = self.cgroup {
            cgroup.remove()?;
        }
        Ok(umount2(self.base.path(), MntFlags::MNT_DETACH)?)
    }
}

/// The times of one kind of run.
struct Figures {
    median: Duration,
    p10: Duration,
    p90: Duration,
}

impl Figures {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |tenths: usize| times[times.len() * tenths / 10];
        Self { median: at(5), p10: at(1), p90: at(9) }
    }

    fn over(&self, plain: &Self) -> f64 {
        self.median.as_secs_f64() / plain.median.as_secs_f64()
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        write!(f, "{:8.0} µs, p10 {:6.0}, p90 {:6.0}", us(self.median), us(self.p10), us(self.p90))
    }
}

/// How long a short program took.
struct Start {
    first_byte: Duration,
    exit: Duration,
}

fn plain_start() -> anyhow::Result<Start> {
    std::thread::sleep(REST);
    let begin = Instant::now();
    let [program, arg] = BRIEF;
    let mut child = Command::new(program).arg(arg).env_clear().stdout(Stdio::piped()).spawn()?;
    child.stdout.as_mut().context("its output")?.read_exact(&mut [0; 1])?;
    let first_byte = begin.elapsed();
    child.wait()?;
    Ok(Start { first_byte, exit: begin.elapsed() })
}

fn plain_end() -> anyhow::Result<Duration> {
    let [program, arg] = LASTING;
    let mut child = Command::new(program).arg(arg).env_clear().spawn()?;
    let begin = Instant::now();
    child.kill()?;
    child.wait()?;
    Ok(begin.elapsed())
}

/// A task that runs while others are measured.
struct Other {
    task: Arc<Task>,
    _readers: [File; 2],
}

impl Other {
    /// Starts it, with as many mounts on the host as Nomad makes for it.
    fn start(launcher: &Launcher, host: &Host, policy: &PluginConfig, number: usize) -> anyhow::Result<Self> {
        host.mount_more(&format!("other-{number}"), MOUNTS_EACH)?;
        let readers = open_fifos(host, OTHERS)?;
        let spec =
            host.spec(policy, &command(LASTING)?, (&format!("other-{number}"), OTHERS), Volumes::default())?;
        Ok(Self { task: lasting_task(launcher, &spec)?, _readers: readers })
    }

    async fn end(self) -> anyhow::Result<()> {
        self.task.stop(SignalNumber::SIGINT, GRACE, &EventBus::default()).await?;
        Ok(self.task.forget()?)
    }
}

/// The read ends of the measured task's log FIFOs, opened before there is a writer.
fn readers(host: &Host) -> anyhow::Result<[File; 2]> {
    open_fifos(host, MEASURED.1)
}

fn open_fifos(host: &Host, [out, err]: [&str; 2]) -> anyhow::Result<[File; 2]> {
    let open = |name: &str| -> anyhow::Result<File> {
        let options = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(host.logs().join(name));
        let file = options?;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_RDONLY))?;
        Ok(file)
    };
    Ok([open(out)?, open(err)?])
}

/// When the shim of a task is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shim {
    /// With the task: the first start of a plugin, or one that closely follows another.
    New,
    /// Before it.
    Ahead,
}

fn driver_start(launcher: &Launcher, spec: &TaskSpec, host: &Host, shim: Shim) -> anyhow::Result<Start> {
    let [mut out, _err] = readers(host)?;
    if shim == Shim::Ahead {
        launcher.make_spare()?;
    }
    std::thread::sleep(REST);
    let begin = Instant::now();
    let Launched { processes, run_dir, .. } = launcher.launch(spec)?;
    let shim = processes.shim;
    out.read_exact(&mut [0; 1])?;
    let first_byte = begin.elapsed();
    while !matches!(
        nix::sys::wait::waitid(nix::sys::wait::Id::PIDFd(shim.as_fd()), nix::sys::wait::WaitPidFlag::WEXITED),
        Ok(_) | Err(nix::errno::Errno::ECHILD)
    ) {}
    let ended = begin.elapsed();
    let exit = run_dir.exit()?.context("the exit status")?;
    ensure!(exit.code == 0, "{:?} ended with {}", BRIEF, exit.code);
    ensure!(sys::pidfd::signal(shim.as_fd(), 0).is_err(), "the shim is still there");
    run_dir.remove()?;
    Ok(Start { first_byte, exit: ended })
}

/// A task in its state after StartTask.
fn lasting_task(launcher: &Launcher, spec: &TaskSpec) -> anyhow::Result<Arc<Task>> {
    Task::adopt(spec.id.clone(), launcher.launch(spec)?, &EventBus::default())
        .map_err(|(error, _)| error.into())
}

/// From the death of the task to the end of the wait for it, which is all of WaitTask.
async fn driver_end(launcher: &Launcher, spec: &TaskSpec, host: &Host) -> anyhow::Result<Duration> {
    let _readers = readers(host)?;
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
async fn driver_stop(launcher: &Launcher, spec: &TaskSpec, host: &Host) -> anyhow::Result<Duration> {
    let _readers = readers(host)?;
    let task = lasting_task(launcher, spec)?;
    let begin = Instant::now();
    let ended = task.stop(SignalNumber::SIGINT, GRACE, &EventBus::default()).await?;
    let time = begin.elapsed();
    ensure!(ended.exit.signal == libc::SIGINT, "the task ended otherwise: {ended:?}");
    task.forget()?;
    Ok(time)
}
