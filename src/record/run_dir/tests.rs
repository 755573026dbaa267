use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn id(text: &str) -> Key<'_> {
    Key::new(text).unwrap()
}

fn dir(base: &tempfile::TempDir) -> RunDir {
    RunDir::of(&base.path().join("run"), id("1111/web/ab12"))
}

#[test]
fn an_exit_is_read_back_once_written() {
    let base = tempfile::tempdir().unwrap();
    let dir = dir(&base);
    let file = dir.create().unwrap();
    assert!(dir.exit().unwrap().is_none());
    let exit = Exit::exited(7);
    exit.write(&file).unwrap();
    assert_eq!(dir.exit().unwrap(), Some(exit));
    assert_eq!(std::fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    dir.create().unwrap();
    assert!(dir.exit().unwrap().is_none(), "a new start forgets the old end");
    dir.remove().unwrap();
    dir.remove().unwrap();
    assert!(matches!(dir.exit(), Err(RunDirError::Io(IoError { op: "read", .. }))));
}

#[test]
fn what_a_shim_did_not_write_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let dir = dir(&base);
    dir.create().unwrap();
    let path = dir.path().join(EXIT_FILE);
    for (what, text) in [
        ("empty", String::new()),
        ("truncated", "v1 code=0 signal=0 oom=0 at=1".into()),
        ("short", "v1 code=0 signal=0 oom=0 at=1\n".to_owned() + " "),
        ("forged tail", format!("{:<127}x", "v1 code=0 signal=0 oom=0 at=1\n")),
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(matches!(dir.exit(), Err(RunDirError::Malformed { .. })), "{what}");
    }
    std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let Err(RunDirError::Io(error)) = dir.exit() else { panic!("huge") };
    assert_eq!(error.errno, Errno::EFBIG);
    std::fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(dir.exit(), Err(RunDirError::Io(_))), "a symbolic link");
}

#[test]
fn a_start_leaves_its_mark_until_it_is_done() {
    let base = tempfile::tempdir().unwrap();
    let dir = dir(&base);
    assert_eq!(entries(&base.path().join("run")).unwrap().len(), 0);
    dir.create().unwrap();
    let own = Identity::of(std::process::id().cast_signed()).unwrap();
    assert_eq!((dir.starting(), dir.shim()), (Some(own), None));
    dir.record_shim(&own).unwrap();
    dir.started().unwrap();
    assert_eq!((dir.starting(), dir.answered(), dir.shim()), (None, Some(own), Some(own)));
    dir.acknowledged().unwrap();
    dir.acknowledged().unwrap();
    assert_eq!((dir.answered(), dir.shim()), (None, Some(own)));
    let found = entries(&base.path().join("run")).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].path(), dir.path());
}

#[test]
fn the_oom_kills_that_a_task_outlived_are_a_number() {
    let base = tempfile::tempdir().unwrap();
    let dir = dir(&base);
    dir.create().unwrap();
    assert_eq!(dir.outlived(), 0);
    for kills in [u64::MAX, 3] {
        dir.outlives(kills).unwrap();
        assert_eq!(dir.outlived(), kills);
    }
    for bytes in [&b""[..], b"x", b"-1", b"\xff", &[b'9'; 100]] {
        std::fs::write(dir.path().join(OUTLIVED_FILE), bytes).unwrap();
        assert_eq!(dir.outlived(), 0, "{}", bytes.escape_ascii());
    }
    dir.create().unwrap();
    assert_eq!(dir.outlived(), 0, "a new start");
}

#[test]
fn a_record_of_a_former_boot_names_nobody() {
    let base = tempfile::tempdir().unwrap();
    let dir = dir(&base);
    dir.create().unwrap();
    let own = Identity::of(std::process::id().cast_signed()).unwrap();
    dir.record_shim(&own).unwrap();
    assert!(!dir.is_of_former_boot());
    let record = Record { boot_id: "0000".into(), process: own };
    std::fs::write(dir.path().join(SHIM_FILE), serde_json::to_vec(&record).unwrap()).unwrap();
    assert_eq!(dir.shim(), None);
    assert!(dir.is_of_former_boot());
}

#[test]
fn records_that_no_plugin_wrote_name_nobody() {
    let base = tempfile::tempdir().unwrap();
    let dir = dir(&base);
    dir.create().unwrap();
    let path = dir.path().join(SHIM_FILE);
    for bytes in [&b""[..], b"{", b"{\"pid\":1}", b"\xff\xfe", &[b' '; 4096]] {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(dir.shim(), None, "{bytes:?}");
        assert!(!dir.is_of_former_boot());
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(dir.shim(), None, "a directory");
    std::fs::remove_dir(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(dir.shim(), None, "a FIFO without a writer");
    dir.remove().unwrap();
    assert!(!dir.path().exists());
}

#[test]
fn other_invocations_of_the_same_task_are_found_and_no_others() {
    let base = tempfile::tempdir().unwrap();
    let run = base.path().join("run");
    let of = |text: &str| RunDir::of(&run, id(text));
    for task in ["a/web/1", "a/web/2", "a/web2/1", "b/web/1", "a/web.x/1", "a/web/1/2", "run-7"] {
        of(task).create().unwrap();
    }
    let found = |task| {
        let mut paths: Vec<_> = siblings(&run, id(task)).unwrap().iter().map(|e| e.path()).collect();
        paths.sort();
        paths
    };
    assert_eq!(found("a/web/3"), [of("a/web/1").path(), of("a/web/2").path()]);
    assert_eq!(found("a/web/1"), [of("a/web/2").path()]);
    assert_eq!(found("run-7"), [] as [PathBuf; 0]);
    assert_eq!(found("a/1"), [] as [PathBuf; 0]);
}

#[test]
fn a_base_that_others_can_enter_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let run = base.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(dir(&base).create(), Err(RunDirError::Unsafe(_))));
    std::fs::remove_dir(&run).unwrap();
    symlink("/tmp", &run).unwrap();
    assert!(matches!(dir(&base).create(), Err(RunDirError::Unsafe(_))));
}

#[test]
fn no_id_removes_the_base_or_what_is_above_it() {
    let base = tempfile::tempdir().unwrap();
    let run = base.path().join("run");
    let other = RunDir::of(&run, id("1111/web/ab12"));
    other.create().unwrap();
    for text in ["/", "//", "///", ".", "..", "../..", "\0"] {
        let dir = RunDir::of(&run, id(text));
        dir.remove().unwrap();
        dir.create().unwrap();
        assert_eq!(dir.path().parent(), Some(&*run), "{text:?}");
        dir.remove().unwrap();
        assert!(other.path().join(EXIT_FILE).exists(), "{text:?}");
    }
}

#[test]
fn a_base_that_was_replaced_by_a_link_is_not_touched() {
    let base = tempfile::tempdir().unwrap();
    let dir = dir(&base);
    dir.create().unwrap();
    let (run, moved) = (base.path().join("run"), base.path().join("moved"));
    std::fs::rename(&run, &moved).unwrap();
    symlink(&moved, &run).unwrap();
    assert!(matches!(dir.remove(), Err(RunDirError::Unsafe(_))));
    assert!(matches!(dir.started(), Err(RunDirError::Unsafe(_))));
    assert!(matches!(entries(&run), Err(RunDirError::Unsafe(_))));
    assert_eq!(dir.starting(), None);
    assert!(moved.join("1111.web.ab12").join(STARTING_FILE).exists());
}

#[test]
fn names_stay_inside_and_differ() {
    assert_eq!(name("1111/web/ab12"), "1111.web.ab12");
    assert_eq!(name("../x"), "%2e%2e.x");
    let long = |end: &str| name(&format!("{}{end}", "a".repeat(300)));
    assert_ne!(long("b"), long("c"));
    assert!(long("b").len() < 255);
    assert_ne!(name("a/b"), name("a.b"));
    assert_eq!(name("/"), "%2f");
    assert_eq!(name("//"), "%2f.");
}

#[test]
fn what_belongs_to_no_task_is_no_entry() {
    let base = tempfile::tempdir().unwrap();
    let run = base.path().join("run");
    make_base(&run).unwrap();
    std::fs::create_dir(run.join(format!("{NO_TASK}etc"))).unwrap();
    assert_eq!(entries(&run).unwrap().len(), 0);
    // Nor can a task have such a name.
    dir(&base).create().unwrap();
    let like_it = RunDir::of(&run, id(&format!("{NO_TASK}etc")));
    like_it.create().unwrap();
    assert!(!like_it.path().ends_with(format!("{NO_TASK}etc")));
    assert_eq!(entries(&run).unwrap().len(), 2);
}
