//! The root of a task, as a command of `run` sees it: what is there, what is not, and what each mount refuses.
//!
//! These tests need root and Landlock, as those of `run_verb`. Beside each allowed action is one that is denied.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]

#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");

/// A directory of the host with a few files, which every user may read.
struct Host(tempfile::TempDir);

/// None if `run` does not work here; the test then reports that it was not run.
fn host_in(parent: &str) -> Option<Host> {
    if let Some(why) = sandbox::unavailable(PLUGIN) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Not with a macro, whose output the harness captures.
        std::io::stderr().write_all(format!("{name} was not run: {why}\n").as_bytes()).unwrap();
        return None;
    }
    fs::create_dir_all(parent).unwrap();
    let dir = tempfile::Builder::new().prefix("exec2-root-").tempdir_in(parent).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let host = Host(dir);
    host.write("a/f", "in a").write("b/f", "in b").write("c/f", "in c").write("secret", "s");
    Some(host)
}

fn host() -> Option<Host> {
    host_in("/srv")
}

impl Host {
    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Replaces the file as most programs do.
    fn replace(&self, name: &str, content: &str) -> &Self {
        self.write("new", content).let_all_write("new");
        fs::rename(self.at("new"), self.at(name)).unwrap();
        self
    }

    fn let_all_write(&self, name: &str) {
        fs::set_permissions(self.at(name), Permissions::from_mode(0o666)).unwrap();
    }

    fn write(&self, name: &str, content: &str) -> &Self {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// `MODES:` and the path of this name.
    fn rule(&self, modes: &str, name: &str) -> String {
        format!("{modes}:{}", self.at(name))
    }
}

/// What a task wrote, and how it ended.
struct Seen {
    status: Option<i32>,
    out: String,
    err: String,
}

impl Seen {
    fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }

    /// The lines of the output of a command that succeeded.
    fn ok(&self) -> Vec<&str> {
        assert_eq!(self.status, Some(0), "{}{}", self.out, self.err);
        self.lines()
    }

    fn refused(&self, why: &str) {
        assert!(
            self.status != Some(0) && self.err.contains(why),
            "{:?} {}{}",
            self.status,
            self.out,
            self.err
        );
    }
}

fn run(options: &[&str], command: &[&str]) -> Seen {
    seen(Command::new(PLUGIN).arg("run").args(options).arg("--").args(command))
}

fn seen(command: &mut Command) -> Seen {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Seen { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A shell command in a task with these unveils.
fn sh(unveils: &[&str], script: &str) -> Seen {
    sh_with(&[], unveils, script)
}

fn sh_with(options: &[&str], unveils: &[&str], script: &str) -> Seen {
    let unveils = unveils.iter().flat_map(|rule| ["--unveil", rule]);
    let options: Vec<_> = options.iter().copied().chain(unveils).collect();
    run(&options, &["sh", "-c", script])
}

/// Prints the name of the errno, or ok, of each call with a path.
const CALLS: &str = r#"
import errno, os, socket, sys
def connect(path):
    socket.socket(socket.AF_UNIX).connect(path)
def bind(path):
    socket.socket(socket.AF_UNIX).bind(path)
def access(path):
    os.stat(path) if os.access(path, os.F_OK) else os.stat(path)
for call in sys.argv[2:]:
    name, path = call.split("=")
    calls = {"stat": os.stat, "lstat": os.lstat, "access": access, "chdir": os.chdir, "readlink": os.readlink,
             "list": os.listdir, "open": lambda p: os.open(p, os.O_RDONLY), "connect": connect, "bind": bind,
             "write": lambda p: os.open(p, os.O_WRONLY), "chmod": lambda p: os.chmod(p, 0o700),
             "create": lambda p: os.open(p, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "mkdir": os.mkdir,
             "statfs": os.statvfs, "xattr": lambda p: os.getxattr(p, "user.x")}
    try:
        calls[name](path)
        print(name, "ok")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
"#;

/// The outcome of each `(call, path)` in a task.
fn calls(options: &[&str], calls: &[(&str, &str)]) -> Vec<String> {
    let calls: Vec<_> = calls.iter().map(|(call, path)| format!("{call}={path}")).collect();
    let mut command = vec!["/usr/bin/python3", "-c", CALLS, "calls"];
    command.extend(calls.iter().map(String::as_str));
    run(options, &command).ok().into_iter().map(ToOwned::to_owned).collect()
}

fn outcomes(calls: &[&str], outcome: &str) -> Vec<String> {
    calls.iter().map(|call| format!("{call} {outcome}")).collect()
}

/// Mount point, and options of the mount and of its file system.
fn mounts(mountinfo: &str) -> Vec<(String, Vec<String>)> {
    let line = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        (fields[4].to_owned(), fields[5].split(',').map(ToOwned::to_owned).collect())
    };
    mountinfo.lines().map(line).collect()
}

fn options_of(found: &[(String, Vec<String>)], path: &str) -> Vec<String> {
    let last = found.iter().rev().find(|(point, _)| point == path);
    last.unwrap_or_else(|| panic!("{path} is no mount in {found:?}")).1.clone()
}

#[test]
fn nothing_is_listed_but_the_way_to_what_was_unveiled() {
    let Some(host) = host() else { return };
    let script = "cat /proc/self/mountinfo; echo; find / -xdev -printf '%p %y %l\n'";
    let seen = sh(&[&host.rule("r", "a")], script);
    let (mountinfo, listed) = seen.out.split_once("\n\n").unwrap();
    let points: Vec<_> = mounts(mountinfo).into_iter().map(|(point, _)| PathBuf::from(point)).collect();
    assert!(points.contains(&host.at("a").into()), "{mountinfo}");
    for line in listed.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let path = Path::new(fields[0]);
        match fields[1] {
            // The task's own names, or the host's.
            "l" if path.starts_with("/.task") => assert!(fields[2].starts_with("/etc/.host/"), "{line}"),
            // The same link as on the host.
            "l" => assert_eq!(fs::read_link(path).unwrap(), Path::new(fields[2]), "{line}"),
            "d" => assert!(
                ["/.task", "/.task/empty"].contains(&fields[0])
                    || points.iter().any(|point| point.starts_with(path)),
                "{line}"
            ),
            _ => assert!(["/.task/passwd", "/.task/group"].contains(&fields[0]), "{line}"),
        }
    }
    // The twin: what is there can be listed.
    assert_eq!(sh(&[&host.rule("r", "a")], &format!("ls {}", host.at(""))).ok(), ["a"]);
    let all: BTreeSet<_> =
        host.0.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(all.len(), 4);
}

#[test]
fn mountinfo_has_nothing_of_the_host() {
    let Some(host) = host() else { return };
    let script = "mount -t tmpfs -o size=8k exec2-secret-mount $1 && exec $2 run --root $3 -- cat /proc/self/mountinfo";
    let mountinfo = |root: &str| {
        let mut shell = Command::new("unshare");
        seen(shell.args(["--mount", "sh", "-c", script, "sh", &host.at("c"), PLUGIN, root]))
    };
    let private = mountinfo("private");
    assert!(private.ok().len() > 10, "{}", private.out);
    assert!(!private.out.contains("exec2-"), "{}", private.out);
    assert!(mounts(&private.out).iter().all(|(point, _)| !point.starts_with("/srv")));
    assert!(mountinfo("host").out.contains("exec2-secret-mount"));
}

#[test]
fn outside_of_what_was_unveiled_there_is_nothing_for_any_call() {
    let Some(host) = host() else { return };
    symlink("f", host.at("b/link")).unwrap();
    let socket = host.at("b/socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, Permissions::from_mode(0o777)).unwrap();
    let (dir, file, link) = (host.at("b"), host.at("b/f"), host.at("b/link"));
    let all = [
        ("stat", file.as_str()),
        ("lstat", &link),
        ("access", &file),
        ("readlink", &link),
        ("list", &dir),
        ("open", &file),
        ("statfs", &dir),
        ("connect", &socket),
        ("chdir", &dir),
    ];
    let names = all.map(|(call, _)| call);
    let rule = host.rule("rw", "b");
    assert_eq!(calls(&["--unveil", &host.rule("r", "a")], &all), outcomes(&names, "ENOENT"));
    assert_eq!(calls(&[], &all), outcomes(&names, "ENOENT"));
    assert_eq!(calls(&["--unveil", &rule], &all), outcomes(&names, "ok"));
    // With the host's root, what is not opened is not covered, and the rest is refused, not absent.
    let host_root = calls(&["--root", "host"], &all);
    for line in ["stat ok", "readlink ok", "chdir ok", "list EACCES", "open EACCES"] {
        assert!(host_root.contains(&line.to_owned()), "{line}: {host_root:?}");
    }
    // Others of the directory are not there either.
    let beside = [("stat", host.at("secret")), ("bind", host.at("new"))];
    let beside = beside.each_ref().map(|(call, path)| (*call, path.as_str()));
    assert_eq!(calls(&["--unveil", &rule], &beside[..1]), ["stat ENOENT"]);
    assert_ne!(calls(&["--unveil", &rule], &beside[1..]), ["bind ok"]);
    assert_eq!(calls(&[], &[("bind", "/tmp/socket")]), ["bind ok"]);
}

#[test]
fn tmp_is_the_tasks_own() {
    let Some(host) = host_in("/tmp") else { return };
    let script = "echo x > /tmp/mine && cat $TMPDIR/mine /var/tmp/mine && ls /tmp && echo $TMPDIR";
    assert_eq!(sh(&[], script).ok(), ["x", "x", "mine", "/task/tmp"]);
    assert!(!Path::new("/tmp/mine").exists());
    sh(&[], &format!("cat {}", host.at("a/f"))).refused("No such file");
    assert_eq!(sh(&[&host.rule("r", "a")], &format!("cat {}; ls /tmp", host.at("a/f"))).ok().len(), 1);
    let below = sh(&[&host.rule("r", "a")], &format!("cat {} && ls {}", host.at("a/f"), host.at("")));
    assert_eq!(below.ok(), ["in aa"]);
    // Written beside it, not in it.
    let beside = format!("touch /tmp/new && echo x > {}", host.at("a/f"));
    fs::set_permissions(host.at("a/f"), Permissions::from_mode(0o666)).unwrap();
    sh(&[&host.rule("r", "a")], &beside).refused("a/f");
    assert_eq!(sh(&[&host.rule("rwc", "a")], &beside).ok(), [""; 0]);
    assert_eq!(fs::read_to_string(host.at("a/f")).unwrap(), "x\n");
    sh(&[&host.rule("rw", "a")], "true").refused("it would get rwc");
    // Only what the rule grants, although /tmp itself grants more.
    let program = host.at("a/f");
    fs::write(&program, "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    for modes in ["r", "rwc"] {
        sh(&[&host.rule(modes, "a")], &program).refused("Permission denied");
    }
    for modes in ["rx", "rwxc"] {
        assert_eq!(sh(&[&host.rule(modes, "a")], &program).ok(), ["ran"]);
    }
}

#[test]
fn the_user_database_is_the_tasks_own() {
    let Some(_host) = host() else { return };
    let options = ["--user", "nomad-90123"];
    let seen =
        sh_with(&options, &[], "cut -d: -f1,3,6 /etc/passwd; cut -d: -f1,3 /etc/group; id -un; id -gn");
    assert_eq!(
        seen.ok(),
        [
            "root:0:/root",
            "nobody:65534:/nonexistent",
            "nomad-90123:90123:/task/local",
            "root:0",
            "nogroup:65534",
            "nomad-90123:90123",
            "nomad-90123",
            "nomad-90123"
        ]
    );
    sh(&[], "cat /etc/shadow").refused("No such file");
    sh(&[], "echo x >> /etc/passwd").refused("/etc/passwd");
    // Who wants the host's unveils it.
    let seen = run(&["--unveil", "r:/etc/passwd"], &["cat", "/etc/passwd"]);
    assert_eq!(seen.ok(), fs::read_to_string("/etc/passwd").unwrap().lines().collect::<Vec<_>>());
    run(&["--root", "host"], &["cat", "/etc/passwd"]).refused("Permission denied");
}

#[test]
fn dev_has_a_few_devices_and_a_terminal_of_its_own() {
    let Some(_host) = host() else { return };
    let mut wanted = vec![
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ];
    if fs::symlink_metadata("/dev/log").is_ok() {
        wanted.push("log");
        wanted.sort_unstable();
    }
    assert_eq!(sh(&[], "ls /dev").ok(), wanted);
    assert_eq!(sh(&[], "script -qec tty /dev/null < /dev/null | tr -d '\\r'").ok(), ["/dev/pts/0"]);
    assert_eq!(
        sh(&[], "echo x > /dev/shm/x && cat /dev/shm/x; ls /dev/mqueue; echo x > /dev/null").ok(),
        ["x"]
    );
    assert_eq!(
        sh(&[], "head -c 8 /dev/urandom | wc -c; echo x > /dev/full || echo full").lines(),
        ["8", "full"]
    );
    sh(&[], "touch /dev/new").refused("/dev/new");
    sh_with(&["--user", "root", "--cap-add", "mknod"], &[], "mknod /dev/new c 1 3").refused("/dev/new");
    sh_with(&["--user", "root", "--cap-add", "mknod"], &[], "mknod /tmp/new c 1 3").refused("/tmp/new");
    sh(&[], "echo '#!/bin/sh' > /dev/shm/x && chmod +x /dev/shm/x && /dev/shm/x")
        .refused("Permission denied");
}

#[test]
fn a_single_device_is_unveiled_without_defaults() {
    let Some(host) = host() else { return };
    let programs = ["/bin", "/lib", "/lib64", "/usr/bin", "/usr/lib", "/usr/lib64"];
    let programs = programs.iter().filter(|path| Path::new(path).exists()).map(|path| format!("rx:{path}"));
    let (programs, file) = (programs.collect::<Vec<_>>(), host.rule("r", "a/f"));
    let bare = |more: &[&str], script: &str| {
        let unveils: Vec<_> = programs.iter().map(String::as_str).chain(more.iter().copied()).collect();
        sh_with(&["--no-defaults"], &unveils, script)
    };
    assert_eq!(bare(&["r:/dev/urandom"], "head -c 4 /dev/urandom | wc -c; ls /dev").ok(), ["4", "urandom"]);
    bare(&["r:/dev/urandom"], "head -c 4 /dev/zero").refused("No such file");
    bare(&["r:/dev/urandom"], ": > /dev/urandom").refused("/dev/urandom");
    assert_eq!(bare(&[&file], &format!("cat {}", host.at("a/f"))).ok(), ["in a"]);
    for absent in ["/etc/hosts", "/etc/passwd", "/tmp", "/dev/null", "/.task", "/sys"] {
        bare(&[&file], &format!("ls -d {absent}")).refused("No such file");
        assert_eq!(sh(&[], &format!("ls -d {absent}")).ok(), [absent]);
    }
    // Not even its own directories.
    bare(&[], "echo x > $NOMAD_TASK_DIR/x").refused("x");
    bare(&[], "cat /proc/self/status").refused("Permission denied");
}

#[test]
fn a_mount_refuses_what_was_not_granted() {
    let Some(host) = host() else { return };
    let unveils = [host.rule("r", "a"), host.rule("rwc", "b"), host.rule("r", "c/f")];
    let unveils = unveils.each_ref().map(String::as_str);
    let seen = sh_with(&["--user", "root"], &unveils, "cat /proc/self/mountinfo");
    let found = mounts(&seen.out);
    let has = |path: &str, option: &str| options_of(&found, path).contains(&option.to_owned());
    for path in ["/", "/usr", "/usr/bin", "/etc", "/dev"] {
        assert!(has(path, "ro"), "{path}");
    }
    for read_only in [host.at("a"), host.at("c/f")] {
        assert!(has(&read_only, "ro") && has(&read_only, "nodev"), "{read_only}");
    }
    assert!(has(&host.at("b"), "rw") && has("/tmp", "rw") && has("/task", "rw"));
    for (path, options) in &found {
        assert!(options.contains(&"nosuid".to_owned()), "{path}");
        assert!(options.contains(&"nodev".to_owned()) || path.starts_with("/dev"), "{path}");
    }
    for path in ["/", "/etc", "/proc", "/dev/shm"] {
        assert!(has(path, "noexec"), "{path}");
    }
    assert!(!has("/usr/bin", "noexec") && !has("/task", "noexec"));
    // The layers together: root may write by file permissions everywhere.
    let as_root = |script: &str| sh_with(&["--user", "root"], &unveils, script);
    for path in [
        host.at("a/f"),
        host.at("a/new"),
        host.at("c/f"),
        "/new".into(),
        "/etc/new".into(),
        "/usr/new".into(),
    ] {
        as_root(&format!("echo x > {path}")).refused(&path);
    }
    for path in [host.at("b/f"), host.at("b/new"), "/tmp/new".into(), "/task/local/new".into()] {
        assert_eq!(as_root(&format!("echo x > {path} && cat {path}")).ok(), ["x"], "{path}");
    }
    as_root(&format!("chmod 700 {}", host.at("a/f"))).refused("Read-only file system");
}

#[test]
fn a_symbolic_link_leads_where_it_does_on_the_host() {
    let Some(host) = host() else { return };
    host.write("releases/4/f", "4").write("releases/5/f", "5");
    symlink("releases/5", host.at("current")).unwrap();
    symlink(host.at("current"), host.at("live")).unwrap();
    let rule = host.rule("r", "live");
    let [live, current, releases] = ["live", "current", "releases"].map(|name| host.at(name));
    let seen =
        sh(&[&rule], &format!("readlink {live} {current}; cat {live}/f {current}/f; echo; ls {releases}"));
    assert_eq!(seen.ok(), [current.as_str(), "releases/5", "55", "5"]);
    let seen = sh(&[&rule], &format!("ls {}", host.0.path().display()));
    assert_eq!(seen.ok(), ["current", "live", "releases"]);
    for other in ["releases/4/f", "a/f"] {
        sh(&[&rule], &format!("cat {}", host.at(other))).refused("No such file");
    }
}

#[test]
fn a_single_file_a_socket_and_two_paths_with_one_parent() {
    let Some(host) = host() else { return };
    let file = host.rule("r", "a/f");
    assert_eq!(sh(&[&file], &format!("cat {}; ls {}", host.at("a/f"), host.at("a"))).ok(), ["in af"]);
    sh(&[&file], &format!("cat {}", host.at("b/f"))).refused("No such file");
    let (socket, path) = (host.rule("rw", "socket"), host.at("socket"));
    let _listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    assert_eq!(calls(&["--unveil", &socket], &[("connect", &path)]), ["connect ok"]);
    assert_eq!(calls(&[], &[("connect", &path)]), ["connect ENOENT"]);
    let both = [host.rule("r", "a"), host.rule("rw", "b")];
    let both = both.each_ref().map(String::as_str);
    for file in ["a/f", "b/f"] {
        fs::set_permissions(host.at(file), Permissions::from_mode(0o666)).unwrap();
    }
    assert_eq!(sh(&both, &format!("cat {} {}", host.at("a/f"), host.at("b/f"))).ok(), ["in ain b"]);
    sh(&both, &format!("echo x > {}", host.at("a/f"))).refused("a/f");
    assert_eq!(sh(&both, &format!("echo x > {}", host.at("b/f"))).ok(), [""; 0]);
    sh(&both, &format!("cat {}", host.at("c/f"))).refused("No such file");
}

/// What a task sees after `change`, for which it waits once it runs.
fn after(change: impl FnOnce(), rules: &[&str], script: &str) -> String {
    let mut run = Command::new(PLUGIN);
    run.arg("run").args(rules.iter().flat_map(|rule| ["--unveil", rule]));
    run.args(["--", "sh", "-c", &format!("echo ready; read x; {script}")]);
    let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut seen = String::new();
    out.read_line(&mut seen).unwrap();
    assert_eq!(seen, "ready\n");
    change();
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    seen.clear();
    out.read_to_string(&mut seen).unwrap();
    assert!(child.wait().unwrap().success(), "{seen}");
    seen
}

#[test]
fn standard_streams_that_are_the_null_device_can_be_opened_again() {
    if host().is_none() {
        return;
    }
    let script = "cat /proc/self/fd/0 && echo out > /proc/self/fd/1 && echo err > /proc/self/fd/2";
    for options in [
        "--root private",
        "--root host",
        "--no-defaults --unveil rx:/usr --unveil rx:/bin --unveil rx:/lib --unveil rx:/lib64 --unveil r:/proc",
    ] {
        let line = format!(
            "exec {PLUGIN} run --user nobody {options} -- sh -c '{script}' </dev/null >/dev/null 2>&1"
        );
        seen(Command::new("sh").args(["-c", &line])).ok();
    }
    // Nothing else of the host's devices.
    let line = format!("exec {PLUGIN} run --user nobody -- sh -c 'cat /dev/stdin' </dev/full");
    seen(Command::new("sh").args(["-c", &line])).refused("Permission denied");
}

#[test]
fn the_mode_of_an_unveiled_socket_or_pipe_is_the_hosts() {
    let Some(host) = host() else { return };
    let (socket, pipe) = (host.at("socket"), host.at("pipe"));
    let _listener = UnixListener::bind(&socket).unwrap();
    nix::unistd::mkfifo(Path::new(&pipe), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let root = |rules: &[&str], script: &str| sh_with(&["--user", "root"], rules, script);
    let rules = [&*host.rule("rw", "socket"), &host.rule("rw", "pipe"), &host.rule("rw", "secret")];
    for path in [&socket, &pipe] {
        root(&rules, &format!("chmod 600 {path}")).refused("Read-only file system");
    }
    root(&rules, &format!("chmod 600 {}", host.at("secret"))).ok();
    let connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])";
    root(&rules, &format!("python3 -c '{connect}' {socket}")).ok();
    assert_eq!(root(&rules, &format!("exec 3<>{pipe}; echo text >&3; head -1 <&3")).ok(), ["text"]);
    // The same with the log of the host, which every task may write to.
    let script = "mount --rbind /dev $1 && mount -t tmpfs none /dev && cd $1 && cp -a null zero full random urandom tty /dev \
        && mkdir /dev/pts /dev/shm && ln -s $2 /dev/log && exec $3 run --user root -- sh -c \"$4\"";
    let with_log = |script_in_task: &str| {
        let mut shell = Command::new("unshare");
        seen(shell.args([
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            &host.at("c"),
            &socket,
            PLUGIN,
            script_in_task,
        ]))
    };
    with_log("chmod 600 /dev/log").refused("Read-only file system");
    with_log(&format!("python3 -c '{connect}' /dev/log")).ok();
}

#[test]
fn a_replaced_file_is_seen_in_an_unveiled_directory_and_not_by_its_own_rule() {
    let Some(host) = host() else { return };
    let change = || {
        host.replace("a/f", "new ").replace("b/f", "new ");
        fs::remove_file(host.at("c/f")).unwrap();
        host.write("secret", "rewritten");
    };
    host.let_all_write("b/f");
    let script = format!(
        "cat {} {} {} {}; echo lost > {}",
        host.at("a/f"),
        host.at("b/f"),
        host.at("c/f"),
        host.at("secret"),
        host.at("b/f")
    );
    let rules =
        [host.rule("r", "a"), host.rule("rw", "b/f"), host.rule("r", "c/f"), host.rule("r", "secret")];
    let seen = after(change, &rules.each_ref().map(String::as_str), &script);
    assert_eq!(seen, "new in bin crewritten");
    assert_eq!(fs::read_to_string(host.at("b/f")).unwrap(), "new ", "what the task wrote is in the old file");
}

#[test]
fn a_replaced_file_in_an_unveiled_directory_has_the_access_of_the_directory() {
    let Some(host) = host() else { return };
    let script = format!("cat {f}; (echo x > {f}) 2>/dev/null || echo refused", f = host.at("a/f"));
    let rules = [host.rule("r", "a"), host.rule("rw", "a/f")];
    host.let_all_write("a/f");
    let rules = rules.each_ref().map(String::as_str);
    assert_eq!(after(|| {}, &rules, &script), "in a");
    let replace = || {
        host.replace("a/f", "new ");
    };
    assert_eq!(after(replace, &rules, &script), "new refused\n");
}

#[test]
fn an_unveil_inside_etc_or_usr_leaves_the_rest_as_it_was() {
    let Some(_host) = host() else { return };
    let first = |paths: &[&'static str]| paths.iter().copied().find(|path| Path::new(path).exists()).unwrap();
    let mine = first(&["/etc/profile", "/etc/login.defs"]);
    let other = first(&["/etc/shadow", "/etc/fstab"]);
    let unveil = format!("r:{mine}");
    let script =
        format!("cat {mine} > /dev/null && cat /etc/hosts && tail -n 1 /etc/passwd && ls -d /etc/ssl/certs");
    let seen = sh_with(&["--user", "nomad-90123"], &[&unveil], &script);
    let mut wanted: Vec<_> =
        vec!["nomad-90123:x:90123:90123::/task/local:/bin/sh".to_owned(), "/etc/ssl/certs".into()];
    let hosts = fs::read_to_string("/etc/hosts").unwrap();
    wanted.splice(0..0, hosts.lines().map(ToOwned::to_owned));
    assert_eq!(seen.ok(), wanted);
    sh(&[&unveil], &format!("cat {other}")).refused("No such file");
    sh(&[], &format!("cat {mine}")).refused("No such file");
    let mine = first(&["/usr/src", "/usr/local/etc", "/usr/local/games"]);
    assert_eq!(
        sh(&[&format!("r:{mine}")], &format!("ls {mine} > /dev/null && ls -d /usr/bin {mine}")).ok().len(),
        2
    );
    sh(&[], &format!("ls {mine}")).refused("No such file");
}

#[test]
fn what_the_driver_makes_for_a_task_is_hidden_by_no_unveil() {
    let Some(host) = host() else { return };
    let script = "tail -n 1 /etc/passwd && cat /etc/hosts > /dev/null";
    for unveils in [&["r:/run"][..], &["r:/run", "r:/etc/profile"], &["r:/srv", "r:/etc/profile"]] {
        let seen = sh_with(&["--user", "nomad-90123"], unveils, script);
        assert_eq!(seen.ok(), ["nomad-90123:x:90123:90123::/task/local:/bin/sh"], "{unveils:?}");
        sh(unveils, "touch /.task/new").refused("/.task/new");
    }
    // The host's own takes its place where it is unveiled.
    let seen = sh(&["r:/etc"], "cat /etc/passwd");
    assert_eq!(seen.ok(), fs::read_to_string("/etc/passwd").unwrap().lines().collect::<Vec<_>>());
    assert_eq!(sh(&["r:/srv"], &format!("cat {}", host.at("a/f"))).ok(), ["in a"]);
}

#[test]
fn an_unveil_in_proc_is_looked_at_as_any_other() {
    if host().is_none() {
        return;
    }
    sh(&["r:/proc/1/root/srv"], "true").refused("is a link of proc(5)");
    sh(&["r:/proc/no-such"], "true").refused("No such file");
    assert_eq!(sh(&["r:/proc/sys/kernel"], "cat /proc/sys/kernel/ostype").ok(), ["Linux"]);
    // A link that leads into /proc, to the mounts of everybody who looks.
    let host = fs::read_link("/etc/mtab").unwrap();
    assert_eq!(sh(&["r:/etc/mtab"], "readlink /etc/mtab").ok(), [host.to_str().unwrap()]);
}

#[test]
fn the_hosts_proc_is_refused_at_any_path() {
    let Some(host) = host() else { return };
    let script = "mount -t proc none $1 && exec $2 run --root $3 $4 -- true";
    let refused = |root: &str, option: String| {
        let mut shell = Command::new("unshare");
        let seen =
            seen(shell.args(["--mount", "sh", "-c", script, "sh", &host.at("c"), PLUGIN, root, &option]));
        seen.refused("shows the processes of the host");
    };
    for path in ["c", "c/sys/kernel", "c/version"] {
        for root in ["private", "host"] {
            refused(root, format!("--unveil=r:{}", host.at(path)));
        }
        refused("private", format!("--volume={}:/data:ro", host.at(path)));
    }
    refused("private", "--volume=/proc/sys:/data".to_owned());
    // Without the mount they are other files.
    sh(&[&host.rule("r", "c")], "true").ok();
}

#[test]
fn the_whole_host_unveiled_is_still_not_the_hosts_proc_and_tmp() {
    let (Some(host), Some(in_tmp)) = (host(), host_in("/tmp")) else { return };
    let whole = ["r:/"];
    assert_eq!(sh(&whole, &format!("cat {} {}", host.at("a/f"), host.at("secret"))).ok(), ["in as"]);
    sh(&whole, &format!("cat {}", in_tmp.at("a/f"))).refused("No such file");
    assert_eq!(sh(&whole, "ls /proc | grep -c '^[0-9]'").ok(), ["4"]);
    assert_eq!(sh(&whole, "echo x > /tmp/x && cat /tmp/x && echo x > $NOMAD_TASK_DIR/x").ok(), ["x"]);
    sh_with(&["--user", "root"], &whole, &format!("echo x > {}", host.at("a/f"))).refused("a/f");
    assert_eq!(sh(&whole, "echo x > /dev/null; head -n 1 /etc/passwd").ok().len(), 1);
}

#[test]
fn another_task_has_another_root() {
    let Some(host) = host() else { return };
    let script = "echo x > /tmp/mine; ls /tmp /dev/shm; echo x > /dev/shm/mine";
    for _ in 0..2 {
        let seen = sh(&[&host.rule("r", "a")], script);
        assert_eq!(seen.ok(), ["/dev/shm:", "", "/tmp:", "mine"]);
    }
    let [a, b] = ["a", "b"].map(|name| sh(&[&host.rule("r", name)], &format!("ls {}", host.at(""))));
    assert_eq!((a.ok(), b.ok()), (vec!["a"], vec!["b"]));
}

#[test]
fn the_working_directory_is_in_the_root() {
    let Some(host) = host() else { return };
    let pwd = |options: &[&str]| run(options, &["pwd"]);
    assert_eq!(pwd(&[]).ok(), ["/task/local"]);
    let a = host.at("a");
    assert_eq!(pwd(&["--unveil", &host.rule("r", "a"), "--work-dir", &a]).ok(), [a.as_str()]);
    let elsewhere = run(&["--work-dir", &a], &["ls", "-A"]);
    assert_eq!(elsewhere.ok(), [""; 0], "nothing is unveiled there, so it is empty");
    pwd(&["--work-dir", &host.at("none")]).refused("No such file");
}

#[test]
fn what_root_could_read_of_the_host_in_proc_is_empty() {
    if host().is_none() {
        return;
    }
    let script =
        "wc -c < /proc/timer_list; wc -c < /proc/keys; wc -c < /proc/version; echo t > /proc/sysrq-trigger";
    let seen = run(&["--user", "root"], &["sh", "-c", script]);
    let sizes: Vec<u32> = seen.out.lines().map(|size| size.trim().parse().unwrap()).collect();
    assert_eq!(sizes[..2], [0, 0], "{}", seen.err);
    assert!(sizes[2] > 0 && seen.status != Some(0), "{}", seen.out);
    // The caller asks for one of them.
    let seen = run(&["--user", "root", "--unveil", "r:/proc/timer_list"], &["sh", "-c", script]);
    assert!(seen.out.lines().next().unwrap().trim().parse::<u32>().unwrap() > 0, "{}", seen.err);
}

#[test]
fn the_modes_of_the_hosts_proc_are_not_a_tasks_to_change() {
    if host().is_none() {
        return;
    }
    // The mode that it has. Without a sandbox that works.
    let change = "chmod 444 /proc/version /proc/net/dev";
    assert!(Command::new("sh").args(["-c", change]).status().unwrap().success());
    let with = |options: &[&str], unveils: &[&str]| sh_with(options, unveils, change);
    for options in [
        &["--user", "root"][..],
        &["--user", "root", "--no-defaults"],
        &["--user", "nobody", "--cap-add", "fowner"],
    ] {
        let paths = if options.contains(&"--no-defaults") {
            &["rx:/usr", "rx:/bin", "rx:/lib", "rx:/lib64"][..]
        } else {
            &[]
        };
        with(options, paths).refused("Read-only file system");
    }
    sh(&[], change).refused("Operation not permitted");
    // Somebody has asked for it, and is trusted.
    with(&["--user", "root"], &["w:/proc/self/comm", "rw:/proc"]).ok();
}

#[test]
fn what_root_could_write_in_proc_is_read_only() {
    if host().is_none() {
        return;
    }
    let root = |unveils: &[&str], script: &str| sh_with(&["--user", "root"], unveils, script);
    let found = mounts(root(&[], "cat /proc/self/mountinfo").ok().join("\n").as_str());
    for path in ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"] {
        if Path::new(path).exists() {
            assert!(options_of(&found, path).contains(&"ro".to_owned()), "{path}");
        }
    }
    // Of the task's own UTS namespace.
    let (name, write) =
        ("/proc/sys/kernel/domainname", "echo written > /proc/sys/kernel/domainname && cat $_");
    root(&[], write).refused("Read-only file system");
    root(&["w:/proc/sys/kernel/ostype"], write).refused("Permission denied");
    let script = format!("echo written > {name} && cat {name}");
    assert_eq!(root(&[&format!("rw:{name}")], &script).ok(), ["written"]);
    // An ordinary user has no permission, and no mount.
    sh(&[], write).refused("Permission denied");
    assert_eq!(sh(&[], "grep -c ' /proc/' /proc/self/mountinfo; true").ok(), ["0"]);
}
