//! Volumes, as a command of `run` sees them. These tests need root and Landlock, as those of `run_root`.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]

#[path = "common/sandbox.rs"]
mod sandbox;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");
/// The owner on disk.
const UID: u32 = 4321;
const GID: u32 = 4322;

/// A directory of the host with volumes in it.
struct Host(tempfile::TempDir);

/// None if `run` does not work here; the test then reports that it was not run.
fn host() -> Option<Host> {
    if let Some(why) = sandbox::unavailable(PLUGIN) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Not with a macro, whose output the harness captures.
        std::io::stderr().write_all(format!("{name} was not run: {why}\n").as_bytes()).unwrap();
        return None;
    }
    fs::create_dir_all("/srv").unwrap();
    let dir = tempfile::Builder::new().prefix("exec2-volumes-").tempdir_in("/srv").unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    Some(Host(dir))
}

impl Host {
    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// A directory of this owner, for nobody else, with a file in it.
    fn volume(&self, name: &str, (uid, gid): (u32, u32)) -> &Self {
        fs::create_dir_all(self.at(name)).unwrap();
        let file = self.at(name) + "/file";
        fs::write(&file, "content").unwrap();
        for path in [&self.at(name), &file] {
            chown(path, Some(uid), Some(gid)).unwrap();
        }
        fs::set_permissions(self.at(name), Permissions::from_mode(0o750)).unwrap();
        self
    }

    /// The volume's option for `run`.
    fn to(&self, name: &str, destination: &str) -> String {
        format!("{}:{destination}", self.at(name))
    }

    fn owner(&self, name: &str) -> (u32, u32) {
        let found = fs::symlink_metadata(self.at(name)).unwrap();
        (found.uid(), found.gid())
    }
}

fn run(options: &[&str], volumes: &[String], script: &str) -> (Option<i32>, String, String) {
    let volumes = volumes.iter().flat_map(|volume| ["--volume", volume]);
    let output = Command::new(PLUGIN)
        .arg("run")
        .args(options)
        .args(volumes)
        .args(["--", "sh", "-c", script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The output of a script that succeeds.
fn ok(volumes: &[String], script: &str) -> String {
    let (status, out, err) = run(&[], volumes, script);
    assert_eq!(status, Some(0), "{out}{err}");
    out
}

/// The command does not start, for this reason.
fn refused(volumes: &[String], why: &str) {
    let (status, out, err) = run(&[], volumes, "echo started");
    assert!(status == Some(125) && out.is_empty() && err.contains(why), "{status:?} {out}{err}");
}

#[test]
fn a_dynamic_user_owns_what_belongs_to_the_volumes_owner() {
    let Some(host) = host() else { return };
    host.volume("db", (UID, GID));
    let script = "[ $(stat -c %u:%g /data/file) = $(id -u):$(id -g) ] && cat /data/file && mkdir /data/d && echo x > /data/d/f && rm /data/file";
    assert_eq!(ok(&[host.to("db", "/data")], script), "content");
    assert_eq!((host.owner("db/d"), host.owner("db/d/f")), ((UID, GID), (UID, GID)));
    // Another start has another uid.
    assert_eq!(ok(&[host.to("db", "/data")], "cat /data/d/f; chmod 600 /data/d/f"), "x\n");
}

#[test]
fn a_user_that_is_named_has_its_own_files_only() {
    let Some(host) = host() else { return };
    host.volume("db", (UID, GID));
    let id = format!("{UID}:{GID}");
    let (status, out, _) =
        run(&["--user", &id], &[host.to("db", "/data")], "stat -c %u:%g /data/file; touch /data/new");
    assert_eq!((status, out.trim()), (Some(0), id.as_str()));
    let (status, out, err) = run(&["--user", "4400:4400"], &[host.to("db", "/data")], "ls /data");
    assert!(status == Some(2) && out.is_empty() && err.contains("Permission denied"), "{err}");
}

#[test]
fn roots_directory_is_refused_unless_it_is_only_read_or_open_to_all() {
    let Some(host) = host() else { return };
    host.volume("root", (0, 0)).volume("wheel", (UID, 0));
    refused(&[host.to("root", "/data")], "uid and gid of the mkdir plugin");
    refused(&[host.to("wheel", "/data")], "belongs to the group root");
    let (status, _, err) = run(&[], &[host.to("root", "/data:ro")], "cat /data/file");
    assert!(status == Some(1) && err.contains("Permission denied"), "its modes still hold: {err}");
    fs::set_permissions(host.at("root"), Permissions::from_mode(0o1777)).unwrap();
    let set_id = |options, name| {
        run(options, &[host.to("root", "/data")], &format!("touch /data/{name} && chmod u+s /data/{name}"))
    };
    let (status, _, err) = set_id(&[], "refused");
    assert!(status == Some(1) && err.contains("Operation not permitted"), "{err}");
    let (status, _, err) = set_id(&["--seccomp-allow", "set_id"], "new");
    assert_eq!(status, Some(0), "{err}");
    assert_ne!(host.owner("root/new").0, 0);
}

#[test]
fn a_read_only_volume_cannot_be_written_nor_what_is_mounted_in_it() {
    let Some(host) = host() else { return };
    host.volume("db", (UID, GID)).volume("db/sub", (UID, GID));
    let sub = host.at("db/sub");
    let mount =
        |flags: &[&str]| assert!(Command::new(flags[0]).args(&flags[1..]).status().unwrap().success());
    mount(&["mount", "-t", "tmpfs", "-o", "mode=777,noexec", "none", &sub]);
    let (status, out, err) =
        run(&[], &[host.to("db", "/data:ro")], "cat /data/file; touch /data/x; touch /data/sub/x");
    let written =
        run(&[], &[host.to("db", "/data")], "touch /data/sub/x; grep ' /data/sub ' /proc/self/mountinfo");
    mount(&["umount", &sub]);
    assert_eq!((status, out.as_str()), (Some(1), "content"), "{err}");
    assert_eq!(err.matches("Read-only file system").count(), 2, "{err}");
    assert!(written.0 == Some(0) && written.1.contains("nosuid,nodev,noexec"), "{written:?}");
}

#[test]
fn programs_and_the_working_directory_may_be_in_a_volume() {
    let Some(host) = host() else { return };
    host.volume("app", (UID, GID));
    fs::copy("/bin/sh", host.at("app/program")).unwrap();
    fs::set_permissions(host.at("app/program"), Permissions::from_mode(0o755)).unwrap();
    for end in ["", ":ro"] {
        let volume = host.to("app", "/opt/app") + end;
        let output = Command::new(PLUGIN)
            .args([
                "run",
                "--volume",
                &volume,
                "--work-dir",
                "/opt/app",
                "--",
                "/opt/app/program",
                "-c",
                "pwd",
            ])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "/opt/app\n");
    }
}

#[test]
fn a_volume_hides_neither_its_neighbours_nor_shows_its_source() {
    let Some(host) = host() else { return };
    host.volume("one", (UID, GID)).volume("two", (UID, GID));
    let volumes = [host.to("one", "/etc/one"), host.to("two", "/usr/share/exec2-volume")];
    let there = host.at("one");
    let script = format!("ls /etc/hosts /etc/one/file /usr/share/exec2-volume/file; [ ! -e {there} ]");
    if Path::new("/usr/share/exec2-volume").exists() {
        fs::remove_dir("/usr/share/exec2-volume").unwrap();
    }
    // /usr/share is the host's, so that the directory has to be there.
    refused(&volumes, "has no such file or directory");
    fs::create_dir("/usr/share/exec2-volume").unwrap();
    let out = ok(&volumes, &script);
    fs::remove_dir("/usr/share/exec2-volume").unwrap();
    assert_eq!(out.lines().count(), 3, "{out}");
}

#[test]
fn a_mount_point_in_the_tasks_directories_is_made_and_stays() {
    let Some(host) = host() else { return };
    host.volume("db", (UID, GID));
    for destination in ["/task/local/a/b", "/tmp/a", "/task/secrets/a", "/var/tmp/x/y"] {
        let script =
            format!("cat {destination}/file; rmdir {destination} 2>/dev/null; cat {destination}/file");
        assert_eq!(ok(&[host.to("db", destination)], &script), "contentcontent", "{destination}");
    }
    refused(&[host.to("db", "/task/alloc/data")], "write a path outside it");
    refused(&[host.to("db", "/task/local")], "it would hide the task's own directories");
}

#[test]
fn a_volume_in_a_volume_needs_a_mount_point_that_only_root_can_remove() {
    let Some(host) = host() else { return };
    host.volume("in", (UID, GID)).volume("outer", (0, 0)).volume("open", (UID, GID));
    for name in ["outer", "open"] {
        fs::set_permissions(host.at(name), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(host.at(name) + "/in").unwrap();
    }
    let both = |outer: &str| [host.to(outer, "/a:ro"), host.to("in", "/a/in")];
    assert_eq!(
        ok(&both("outer"), "cat /a/in/file; touch /a/in/new; touch /a/new 2>/dev/null || true"),
        "content"
    );
    refused(&both("open"), "/a is not only root's to write");
    fs::remove_dir(host.at("outer/in")).unwrap();
    refused(&both("outer"), "has no such file or directory");
}

#[test]
fn a_destination_that_is_a_file_or_a_link_is_refused() {
    let Some(host) = host() else { return };
    host.volume("in", (UID, GID)).volume("outer", (0, 0));
    symlink("/etc", host.at("outer/link")).unwrap();
    let both = |to: &str| [host.to("outer", "/a:ro"), host.to("in", to)];
    refused(&both("/a/file"), "a file where a directory is needed");
    refused(&both("/a/link"), "is a symbolic link");
    refused(&both("/a/link/ssl"), "is a symbolic link");
    fs::set_permissions(host.at("outer"), Permissions::from_mode(0o755)).unwrap();
    let out = ok(
        &[host.to("in/file", "/opt/app.conf"), host.to("outer", "/a:ro"), host.to("in/file", "/a/file:ro")],
        "cat /opt/app.conf /a/file; echo x > /opt/app.conf",
    );
    assert_eq!(out, "contentcontent");
    assert_eq!(fs::read_to_string(host.at("in/file")).unwrap(), "x\n");
}

#[test]
fn a_link_of_the_root_is_not_replaced() {
    let Some(host) = host() else { return };
    host.volume("db", (UID, GID));
    let merged = ["/bin", "/lib", "/sbin"].into_iter().find(|path| Path::new(path).is_symlink());
    let Some(link) = merged else { return };
    for destination in [link.to_owned(), format!("{link}/exec2-data")] {
        refused(
            &[host.to("db", &destination)],
            &format!("{link} is a symbolic link to usr{link} in the task's root"),
        );
    }
    assert_eq!(ok(&[host.to("db", "/libexec2")], "cat /libexec2/file"), "content", "another name");
}

#[test]
fn a_path_that_is_not_plain_is_a_mistake_of_the_caller() {
    let Some(host) = host() else { return };
    for volume in ["data:/data", "/srv:data", "/srv/../srv:/data", "/srv:/a/../b", "/srv", "/srv:/a:rw"] {
        let (status, _, err) = run(&[], &[volume.to_owned()], "echo started");
        assert!(status == Some(2) && err.contains("SOURCE:DESTINATION"), "{volume}: {status:?} {err}");
    }
    host.volume("db", (UID, GID));
    assert_eq!(ok(&[host.to("db", "/task/local/data")], "cat /task/local/data/file"), "content");
}

#[test]
fn a_source_is_never_behind_a_link_that_a_task_may_have_made() {
    let Some(host) = host() else { return };
    host.volume("db", (UID, GID)).volume("other", (UID, GID));
    symlink("/etc", host.at("db/link")).unwrap();
    refused(&[host.to("db/link", "/data:ro")], "the symbolic link");
    // As a task of root may have made it.
    fs::create_dir(host.at("db/of-root")).unwrap();
    symlink(host.at("other"), host.at("db/of-root/link")).unwrap();
    assert_eq!(ok(&[host.to("db/of-root/link", "/b")], "cat /b/file"), "content");
    refused(&[host.to("db", "/a"), host.to("db/of-root/link", "/b")], "where a task could have made it");
    refused(&[host.to("none", "/data")], "No such file or directory");
}

#[test]
fn nothing_can_be_mounted_in_the_hosts_root() {
    let Some(host) = host() else { return };
    host.volume("db", (UID, GID));
    let (status, _, err) = run(&["--root", "host"], &[host.to("db", "/data")], "true");
    assert!(status == Some(125) && err.contains("set root = \"private\""), "{err}");
}

/// A node as udev makes it, for a group that the command's user is not in.
fn device(name: &str, number: &str) -> String {
    let path = format!("/dev/exec2-test-{name}-{}", std::process::id());
    let made = Command::new("mknod").args(["-m", "660", &path, "c", "1", number]).status().unwrap();
    assert!(made.success());
    path
}

#[test]
fn a_device_has_the_permissions_that_were_asked_for_and_no_other_is_there() {
    if host().is_none() {
        return;
    }
    let (zero, full) = (device("zero", "5"), device("full", "7"));
    let script = format!(
        "head -c 1 /dev/dri/card0 | wc -c; echo x > /dev/dri/card0; chmod 666 /dev/dri/card0; [ ! -e {full} ]; echo $?; echo x > /dev/null; ls /.task/devices"
    );
    let of = |permissions: &str, user: &[&str]| {
        let device = format!("{zero}:/dev/dri/card0{permissions}");
        let mut options = vec!["--device", &device];
        options.extend(user);
        run(&options, &[], &script)
    };
    let (_, all, all_errors) = of("", &[]);
    let (_, read, read_errors) = of(":r", &[]);
    let (_, root, root_errors) = of(":r", &["--user", "root"]);
    let refused = run(&["--device", "/etc/passwd:/dev/x"], &[], "true").2;
    let at_its_path =
        run(&["--device", &format!("{zero}::w")], &[], &format!("echo x > {zero} && cat {zero}"));
    for path in [zero, full] {
        fs::remove_file(path).unwrap();
    }
    assert_eq!(
        (all.as_str(), all_errors.matches("Permission denied").count()),
        ("1\n0\n", 1),
        "{all_errors}"
    );
    assert!(all_errors.contains("chmod"), "{all_errors}");
    assert_eq!(
        (read.as_str(), read_errors.matches("Permission denied").count()),
        ("1\n0\n", 2),
        "{read_errors}"
    );
    // Root may change the mode of its node, but not what Landlock grants on it.
    assert_eq!(root, "1\n0\n0\n", "{root_errors}");
    assert!(root_errors.contains("/dev/dri/card0: Permission denied"), "{root_errors}");
    assert!(refused.contains("is no device file"), "{refused}");
    let (status, _, error) = at_its_path;
    assert!(status == Some(1) && error.contains("cat: ") && error.contains("Permission denied"), "{error}");
}
