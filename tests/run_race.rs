//! `run --user NAME` while a process of that user tries to become the owner of root's file: it waits for the directories that
//! `run` creates, and replaces one by a symbolic link before its owner is changed.
//!
//! This test needs root and Landlock: CI runs it as root, and elsewhere it reports that it was not run. It has no harness,
//! because it starts itself as the other user.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]
// Output that a harness would print.
#![allow(clippy::print_stdout)]

#[path = "common/sandbox.rs"]
mod sandbox;

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::symlinkat;
use rustix::fs::{RenameFlags, renameat_with};

const NAME: &str = "a_user_never_becomes_the_owner_of_a_file_of_roots";
/// The argument with which the test starts itself.
const RACER: &str = "race";
/// Against the vulnerable version, the race was won after at most 285 starts.
const STARTS: usize = 400;
/// A uid and gid that need no entry in the user database.
const USER: u32 = 54_321;
/// Attempts for each step: far longer than a start takes.
const TRIES: usize = 20_000;

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");

fn main() {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let [_, mode, base, target] = &args[..]
        && mode == RACER
    {
        return race(Path::new(base), Path::new(target));
    }
    let wanted = |arg: &str| arg.starts_with('-') || NAME.contains(arg);
    let chosen = args[1..].iter().all(|arg| arg.to_str().is_some_and(wanted));
    let others = ["--list", "--ignored"].iter().any(|other| args.iter().any(|arg| arg == other));
    if !chosen || others {
        return;
    }
    match sandbox::unavailable(PLUGIN) {
        Some(why) => println!("test {NAME} ... was not run: {why}"),
        None => {
            a_user_never_becomes_the_owner_of_a_file_of_roots();
            println!("test {NAME} ... ok");
        }
    }
}

/// Kills the racing process at the end of the test.
struct Racer(Child);

impl Drop for Racer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_user_never_becomes_the_owner_of_a_file_of_roots() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let base = dir.path().join("tmp");
    fs::create_dir(&base).unwrap();
    fs::set_permissions(&base, Permissions::from_mode(0o1777)).unwrap();
    let target = dir.path().join("target");
    fs::write(&target, "root's").unwrap();
    // A copy that the other user can execute: the build directory may be readable by root only.
    let program = dir.path().join("racer");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let racer = Command::new(&program)
        .arg(RACER)
        .args([&base, &target])
        .uid(USER)
        .gid(USER)
        .current_dir("/")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut racer = Racer(racer);
    for start in 1..=STARTS {
        let ran = Command::new(PLUGIN)
            .args(["run", "--user", &format!("{USER}:{USER}"), "--", "true"])
            .env("TMPDIR", &base)
            .output()
            .unwrap();
        assert_eq!(fs::metadata(&target).unwrap().uid(), 0, "the file was given away by start {start}");
        // 125: the racing process has replaced its own directory, and the start was refused.
        assert!(matches!(ran.status.code(), Some(0 | 125)), "{ran:?}");
    }
    assert!(racer.0.try_wait().unwrap().is_none(), "the racer ended early");
}

/// The other user's side: runs until it is killed.
fn race(base: &Path, target: &Path) {
    let mut seen: Option<PathBuf> = None;
    loop {
        let found = fs::read_dir(base).unwrap().flatten().map(|entry| entry.path()).next();
        let Some(root) = found.filter(|root| seen.as_ref() != Some(root)) else { continue };
        seen = Some(root.clone());
        attack(&root, target);
    }
}

fn attack(root: &Path, target: &Path) {
    let alloc = root.join("alloc");
    let opened =
        (0..TRIES).find_map(|_| open(&alloc, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).ok());
    let Some(alloc) = opened else { return };
    // Possible as soon as `alloc` belongs to this user.
    if (0..TRIES).any(|_| symlinkat(target, &alloc, "link").is_ok()) {
        (0..TRIES).any(|_| renameat_with(&alloc, "logs", &alloc, "link", RenameFlags::EXCHANGE).is_ok());
    }
}
