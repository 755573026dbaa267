//! What each version wrote, which every later one must read: `tests/fixtures/records/VERSION/`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::handle::{DriverState, HANDLE_VERSION};
use super::identity::{Identity, boot_id};
use super::key::Key;
use super::run_dir::RunDir;
use super::session::SessionRecord;
use super::spec::StoredSpec;
use crate::cgroup::{CpuMax, Limits, MemoryMax};
use crate::sandbox::capabilities::Capability;
use crate::sandbox::device::{Device, Permissions};
use crate::sandbox::place::{Missing, NamedBy, Place, Rule};
use crate::sandbox::plan::{HidePid, Landlock, Namespaces, Plan, ProcessLimits, Resources, Root, WorkDir};
use crate::sandbox::root::RootRule;
use crate::sandbox::seccomp::{Filter, GroupSet};
use crate::sandbox::unveil::Access;
use crate::sandbox::volume::{Propagation, Volume};
use crate::shim::exit::Exit;
use crate::users::User;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/records");
/// Stands for the boot in which a fixture was written.
const BOOT: &str = "11111111-2222-4333-8444-555555555555";
const ID: &str = "alloc/web/ab12";
const SHIM: Identity = Identity { pid: 101, start_time: 102 };
const PLUGIN: Identity = Identity { pid: 201, start_time: 202 };
const OUTLIVED: u64 = 2;

fn state() -> DriverState {
    DriverState {
        boot_id: BOOT.into(),
        shim: SHIM,
        task: Some(Identity { pid: 103, start_time: 104 }),
        cgroup: Some("/sys/fs/cgroup/nomad.slice/share.slice/alloc.web.scope".into()),
        started_at_us: 1_764_000_000_123_456,
        oom_kills_before: 1,
        uid: Some(1000),
    }
}

fn exit() -> Exit {
    let at = UNIX_EPOCH + Duration::from_micros(1_764_000_100_000_000);
    Exit { oom_kills: 3, at, ..Exit::signalled(9) }
}

fn spec() -> StoredSpec<'static> {
    let rule = |access, place, named_by, missing| Rule { access, place, named_by, missing };
    let rules = vec![
        rule(Access::READ | Access::EXECUTE, Place::host("/usr/bin"), NamedBy::Driver, Missing::Skip),
        rule(Access::WRITE | Access::CREATE, Place::host("/srv/shared"), NamedBy::Agent, Missing::Fail),
        rule(Access::READ, Place::beneath("/srv/shared", "in"), NamedBy::Job, Missing::Fail),
    ];
    let network = Some("/var/run/netns/alloc".into());
    let limits = Limits {
        memory_max: MemoryMax::Bytes(1 << 30),
        memory_low: Some(1 << 29),
        cpu_max: Some(CpuMax { quota_us: 50_000, period_us: 100_000 }),
        cpu_weight: Some(39),
        cpu_burst_us: 25_000,
        memory_high: Some(1 << 29),
        io_weight: Some(50),
        io_max: [("/dev/vda".to_owned(), "rbps=7".parse().unwrap())].into(),
        swap_max: Some(0),
        pids_max: Some(8192),
        cpuset_cpus: Some("0,2-3".parse().unwrap()),
        oom_group: true,
    };
    let user = User { groups: vec![1000, 44], known: true, ..User::unknown("ann", 1000, 1000) };
    StoredSpec {
        task: ID.into(),
        alloc: "alloc".into(),
        name: "web".into(),
        user: std::borrow::Cow::Owned(User { home: Some("/home/ann".into()), ..user }),
        plan: std::borrow::Cow::Owned(Plan {
            devices: vec![Device {
                source: "/dev/dri/card0".into(),
                path: "/dev/card".into(),
                permissions: Permissions::READ_WRITE,
            }],
            volumes: vec![Volume {
                source: "/srv/db".into(),
                path: "/data".into(),
                read_only: true,
                propagation: Propagation::HostToTask,
                mapped: true,
            }],
            root: Root::Private { defaults: true },
            proc_hidepid: HidePid::Noaccess,
            task_dir: "/data/alloc_mounts/alloc-web".into(),
            namespaces: Namespaces { network, ..Namespaces::default() },
            landlock: Landlock {
                rules,
                denied: vec!["/etc/shadow".into()],
                allowed: Some(vec!["r:/srv".parse().unwrap()]),
                ..Landlock::default()
            },
            capabilities: [Capability::NET_BIND_SERVICE].into_iter().collect(),
            rlimits: ProcessLimits { open_files: Some(1024), ..ProcessLimits::default() },
            oom_score_adj: 500,
            resources: Resources { cgroup: state().cgroup, limits },
            work_dir: WorkDir {
                place: Place::beneath("/data/alloc_mounts/alloc-web", "local"),
                named_by: NamedBy::Driver,
            },
            seccomp: Filter::Default { allow: GroupSet::named("io_uring").unwrap() },
        }),
    }
}

fn session() -> SessionRecord<'static> {
    let rule = RootRule { path: "/usr".into(), access: Access::READ | Access::EXECUTE, directory: true };
    SessionRecord { env: vec!["USER=ann".to_owned()].into(), rules: Some(vec![rule].into()) }
}

/// What this version writes of the task above: the handle, and the files of the run directory.
fn written() -> Vec<(&'static str, Vec<u8>)> {
    let base = tempfile::tempdir().unwrap();
    let dir = RunDir::of(&base.path().join("run"), Key::new(ID).unwrap());
    exit().write(&dir.create().unwrap()).unwrap();
    dir.record_spec(&spec()).unwrap();
    dir.new_session_file().unwrap().write_all(&session().encode().unwrap()).unwrap();
    dir.record_shim(&SHIM).unwrap();
    dir.outlives(OUTLIVED).unwrap();
    let own = Identity::of(std::process::id().cast_signed()).unwrap();
    let fields = |process: Identity| format!(r#""pid":{},"start_time":{}"#, process.pid, process.start_time);
    let file = |name: &str| {
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        text.replace(&boot_id().unwrap(), BOOT).replace(&fields(own), &fields(PLUGIN)).into_bytes()
    };
    let mut files = vec![("handle", state().encode().unwrap()), ("starting", file("starting"))];
    dir.started().unwrap();
    files.extend(["answered", "shim", "spec", "session", "outlived", "exit"].map(|name| (name, file(name))));
    files
}

/// A run directory with the files of a fixture, written in this boot.
fn run_dir_of(fixture: &Path, base: &Path) -> RunDir {
    let dir = RunDir::of(base, Key::new(ID).unwrap());
    dir.create().unwrap();
    for file in fs::read_dir(fixture).unwrap().map(|file| file.unwrap()) {
        let text = fs::read_to_string(file.path()).unwrap();
        fs::write(dir.path().join(file.file_name()), text.replace(BOOT, &boot_id().unwrap())).unwrap();
    }
    dir
}

fn versions() -> Vec<PathBuf> {
    fs::read_dir(DIRECTORY).unwrap().map(|version| version.unwrap().path()).collect()
}

/// Written by this test when EXEC2_WRITE_FIXTURES is set. The fixtures of a version that was released stay as they are.
#[test]
fn this_version_writes_what_its_fixtures_have() {
    let fixture = Path::new(DIRECTORY).join(env!("CARGO_PKG_VERSION"));
    for (name, bytes) in written() {
        let path = fixture.join(name);
        if std::env::var_os("EXEC2_WRITE_FIXTURES").is_some() {
            fs::create_dir_all(&fixture).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "{path:?}: see EXEC2_WRITE_FIXTURES");
    }
}

#[test]
fn what_each_version_wrote_is_read() {
    for version in versions() {
        let base = tempfile::tempdir().unwrap();
        let dir = run_dir_of(&version, &base.path().join("run"));
        let handle = fs::read(version.join("handle")).unwrap();
        assert_eq!(DriverState::decode(HANDLE_VERSION, &handle).unwrap(), state(), "{version:?}");
        assert_eq!((dir.shim(), dir.starting(), dir.answered()), (Some(SHIM), Some(PLUGIN), Some(PLUGIN)));
        assert_eq!(dir.exit().unwrap(), Some(exit()), "{version:?}");
        assert_eq!(dir.outlived(), OUTLIVED, "{version:?}");
        assert_eq!(dir.spec().unwrap(), Some(spec()), "{version:?}");
        assert_eq!(dir.session().unwrap(), Some(session()), "{version:?}");
    }
}

#[test]
fn a_record_with_a_field_of_a_later_version_is_read() {
    let base = tempfile::tempdir().unwrap();
    let fixture = Path::new(DIRECTORY).join(env!("CARGO_PKG_VERSION"));
    let dir = run_dir_of(&fixture, &base.path().join("run"));
    for name in ["shim", "starting", "answered", "spec", "session"] {
        let path = dir.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replacen('{', r#"{"later":{"x":[1]},"#, 1)).unwrap();
    }
    assert_eq!((dir.shim(), dir.starting(), dir.answered()), (Some(SHIM), Some(PLUGIN), Some(PLUGIN)));
    assert_eq!(dir.spec().unwrap(), Some(spec()));
    assert_eq!(dir.session().unwrap(), Some(session()));
}

#[test]
fn a_task_of_which_no_root_is_stored_has_the_hosts() {
    let base = tempfile::tempdir().unwrap();
    let fixture = Path::new(DIRECTORY).join(env!("CARGO_PKG_VERSION"));
    let dir = run_dir_of(&fixture, &base.path().join("run"));
    assert_eq!(dir.spec().unwrap().unwrap().plan.root, Root::Private { defaults: true });
    let path = dir.path().join("spec");
    let text = fs::read_to_string(&path).unwrap();
    let earlier = text.replace(r#""root":{"private":{"defaults":true}},"#, "");
    assert_ne!(earlier, text);
    fs::write(&path, earlier).unwrap();
    assert_eq!(dir.spec().unwrap().unwrap().plan.root, Root::Host);
}

#[test]
fn a_task_of_which_no_filter_is_stored_has_none() {
    let base = tempfile::tempdir().unwrap();
    let fixture = Path::new(DIRECTORY).join(env!("CARGO_PKG_VERSION"));
    let dir = run_dir_of(&fixture, &base.path().join("run"));
    let path = dir.path().join("spec");
    let text = fs::read_to_string(&path).unwrap();
    let earlier = text.replace(r#","seccomp":{"default":{"allow":["io_uring"]}}"#, "");
    assert_ne!(earlier, text);
    fs::write(&path, earlier).unwrap();
    assert_eq!(dir.spec().unwrap().unwrap().plan.seccomp, Filter::Unconfined);
}

#[test]
fn a_run_directory_without_a_readable_spec_is_otherwise_as_good() {
    let base = tempfile::tempdir().unwrap();
    let fixture = Path::new(DIRECTORY).join(env!("CARGO_PKG_VERSION"));
    let dir = run_dir_of(&fixture, &base.path().join("run"));
    let path = dir.path().join("spec");
    fs::write(&path, "{").unwrap();
    let error = dir.spec().unwrap_err().to_string();
    assert!(error.starts_with("failed to decode ") && error.contains("spec"), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(dir.spec().unwrap(), None, "an earlier version wrote none");
    assert_eq!((dir.shim(), dir.exit().unwrap()), (Some(SHIM), Some(exit())));
    dir.remove().unwrap();
    assert!(!dir.path().exists());
}
