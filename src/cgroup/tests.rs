//! Against a real cgroup v2 mount: what a temporary directory cannot show. They need root, so plain `cargo test`
//! counts them as ignored; run the test binary with `--ignored cgroup::live` in a VM.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use super::*;

/// Far more than a kill takes, also in an emulated machine.
const SOON: Duration = Duration::from_secs(20);

fn made(name: &str) -> Cgroup {
    let path = Path::new(MOUNT_POINT).join("exec2-test").join(format!("{name}-{}", std::process::id()));
    let made = Cgroup::create(&path).unwrap();
    assert_eq!(made.missing, [], "the machine must offer cpu, memory and pids");
    made.cgroup
}

/// A shell that moves itself into the cgroup, then runs the script once `release` has closed its standard input.
fn spawn(cgroup: &Cgroup, script: &str) -> Child {
    let procs = cgroup.path().join("cgroup.procs");
    let script = format!("echo $$ > {}; read -r _; {script}", procs.display());
    let child = Command::new("/bin/sh").arg("-c").arg(script).stdin(Stdio::piped()).spawn().unwrap();
    let until = std::time::Instant::now() + SOON;
    while fs::read_to_string(&procs).unwrap().is_empty() {
        assert!(std::time::Instant::now() < until, "the shell never entered the cgroup");
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

fn release(child: &mut Child) {
    drop(child.stdin.take());
}

fn value(cgroup: &Cgroup, file: &str) -> String {
    fs::read_to_string(cgroup.path().join(file)).unwrap().trim().to_owned()
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn limits_read_back() {
    let cgroup = made("limits");
    let request =
        ResourceRequest { memory_mb: 150, memory_max_mb: 250, cpu_mhz: 1000, cores: None, oom_group: true };
    cgroup.apply(&Limits::plan(&request, std::num::NonZeroU64::new(2000))).unwrap();
    assert_eq!(value(&cgroup, "memory.max"), "262144000");
    assert_eq!(value(&cgroup, "memory.low"), "157286400");
    assert_eq!(value(&cgroup, "cpu.max"), "50000 100000");
    assert_eq!(value(&cgroup, "memory.oom.group"), "1");
    cgroup.apply(&Limits::UNLIMITED).unwrap();
    assert_eq!(value(&cgroup, "memory.max"), "max");
    assert_eq!(value(&cgroup, "memory.low"), "0");
    assert_eq!(value(&cgroup, "cpu.max"), "max 100000");
    assert_eq!(value(&cgroup, "memory.oom.group"), "0");
    // The extremes of a plan are numbers that the kernel takes.
    for (mib, mhz) in [(1, 1), (i64::MAX, i64::MAX)] {
        let request =
            ResourceRequest { memory_mb: mib, memory_max_mb: 0, cpu_mhz: mhz, cores: None, oom_group: false };
        cgroup.apply(&Limits::plan(&request, std::num::NonZeroU64::new(2000))).unwrap();
    }
    cgroup.remove().unwrap();
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn wait_sees_the_last_exit_at_once() {
    let cgroup = made("wait");
    let mut child = spawn(&cgroup, "sleep 0.5 & exit 0");
    release(&mut child);
    child.wait().unwrap();
    block_on(async {
        let begin = Instant::now();
        assert!(cgroup.wait_empty(Some(begin + SOON)).await.unwrap());
        assert!(begin.elapsed() < SOON / 2, "woken by the deadline: {:?}", begin.elapsed());
        // Empty from the start: no wait at all.
        assert!(cgroup.wait_empty(None).await.unwrap());
    });
    assert!(!cgroup.populated().unwrap());
    cgroup.remove().unwrap();
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn wait_ends_at_the_deadline_and_kill_ends_everyone() {
    let cgroup = made("kill");
    let mut child = spawn(&cgroup, "trap '' INT TERM; setsid sleep 600 & sleep 600 & wait");
    release(&mut child);
    block_on(async {
        assert!(!cgroup.wait_empty(Some(Instant::now() + Duration::from_millis(100))).await.unwrap());
        let reaper = tokio::task::spawn_blocking(move || child.wait());
        cgroup.kill().unwrap();
        assert!(cgroup.wait_empty(Some(Instant::now() + SOON)).await.unwrap());
        reaper.await.unwrap().unwrap();
    });
    let path: PathBuf = cgroup.path().to_owned();
    cgroup.remove().unwrap();
    assert!(!path.exists());
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn many_short_lives_and_no_lost_wake_up() {
    block_on(async {
        // The exit comes before, during and after the first read and the registration.
        for round in 0..50 {
            let cgroup = made("short");
            let mut child = spawn(&cgroup, "exit 0");
            let begin = Instant::now();
            let exit = tokio::task::spawn_blocking(move || {
                std::thread::sleep(Duration::from_micros(200 * round));
                release(&mut child);
                child.wait()
            });
            assert!(cgroup.wait_empty(Some(begin + SOON)).await.unwrap());
            assert!(begin.elapsed() < SOON / 2, "round {round}: woken by the deadline");
            assert!(exit.await.unwrap().unwrap().success());
            cgroup.remove().unwrap();
        }
    });
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn stats_and_oom_of_a_real_task() {
    let cgroup = made("oom");
    let before = cgroup.oom().unwrap().unwrap();
    let request = ResourceRequest { memory_mb: 16, ..ResourceRequest::default() };
    cgroup.apply(&Limits::plan(&request, None)).unwrap();
    let _ = fs::write(cgroup.path().join("memory.swap.max"), "0");
    let mut child = spawn(&cgroup, "exec tail /dev/zero");
    release(&mut child);
    child.wait().unwrap();
    let after = cgroup.oom().unwrap().unwrap();
    assert_eq!(after.oom_kill - before.oom_kill, 1);
    let stats = cgroup.stats().unwrap();
    assert!(stats.cpu.times.usage_us > 0 && stats.memory.usage.is_some() && stats.memory.rss.is_some());
    assert!(stats.memory.peak.is_none_or(|peak| peak > 8 << 20), "{stats:?}");
    cgroup.remove().unwrap();
}

#[test]
#[ignore = "needs root and cgroup v2"]
fn the_shims_get_a_sibling() {
    let partition =
        Path::new(MOUNT_POINT).join(format!("exec2-test/shims-{}/share.slice", std::process::id()));
    let task = Cgroup::create(&partition.join("a.t.scope")).unwrap().cgroup;
    let shims = Cgroup::shims_for(task.path()).unwrap();
    assert_eq!(Some(shims.path().parent().unwrap()), partition.parent());
    // It takes processes, although its parent hands controllers down.
    let mut child = spawn(&shims, "exit 0");
    release(&mut child);
    child.wait().unwrap();
    let top = Cgroup::open(partition.parent().unwrap()).unwrap();
    top.remove().unwrap();
}
