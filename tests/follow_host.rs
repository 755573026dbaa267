//! The host changes while tasks run: what they see of /etc, and what the template of later tasks shows.
//!
//! These tests need root and Landlock, as those of `run_verb`. Each has a mount namespace of its own with a copy of /etc, so that
//! it never changes the host's. Beside each change that is followed is one that is not.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]

// The rest of it is for other tests.
#[allow(dead_code)]
mod common;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nomad_driver_exec2::proto::base::base_plugin_client::BasePluginClient;
use nomad_driver_exec2::proto::base::{NomadConfig, NomadDriverConfig, SetConfigRequest};

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");
const RUN_DIR: &str = "/run/nomad-driver-exec2";
/// Longer than any change takes on a busy machine, and shorter than the interval after which the host is looked at anyway.
const PATIENCE: Duration = Duration::from_secs(25);
/// After which the host is looked at without a change.
const INTERVAL: Duration = Duration::from_secs(30);
/// Longer than it takes until a change has been looked at.
const LOOKED: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(50);

/// A host of its own: a mount namespace in which /etc is a copy and RUN_DIR is empty.
struct Host {
    etc: tempfile::TempDir,
}

/// None if `run` does not work here; the test then reports that it was not run.
fn host() -> Option<Host> {
    if let Some(why) = sandbox::unavailable(PLUGIN) {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        // Not with a macro, whose output the harness captures.
        std::io::stderr().write_all(format!("{name} was not run: {why}\n").as_bytes()).unwrap();
        return None;
    }
    // Beside the run directories of tests that run now.
    fs::create_dir_all(RUN_DIR).unwrap();
    let etc = tempfile::tempdir().unwrap();
    fs::set_permissions(etc.path(), Permissions::from_mode(0o755)).unwrap();
    let copied = Command::new("cp").args(["-a", "/etc/."]).arg(etc.path()).status().unwrap();
    assert!(copied.success());
    Some(Host { etc })
}

impl Host {
    fn at(&self, name: &str) -> PathBuf {
        self.etc.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.at(name), content).unwrap();
    }

    /// Replaces the file as most programs do.
    fn replace(&self, name: &str, content: &str) {
        self.write("unfinished", content);
        fs::rename(self.at("unfinished"), self.at(name)).unwrap();
    }

    fn link(&self, name: &str, target: &str) {
        let new = self.at("unfinished");
        symlink(target, &new).unwrap();
        fs::rename(new, self.at(name)).unwrap();
    }

    /// A command in this host's namespace. `before` is a part of a shell script.
    fn command(&self, before: &str, command: &[&str]) -> Command {
        let script = format!(
            "set -e; mount --make-rprivate /; mount --bind {} /etc; mount -t tmpfs -o mode=0700 none {RUN_DIR}; {before} exec \"$@\"",
            self.etc.path().display()
        );
        let mut shell = Command::new("unshare");
        shell.args(["-m", "sh", "-c", &script, "sh"]).args(command).stdin(Stdio::null());
        shell
    }
}

/// A task of `run` that prints the same fact about /etc again and again.
struct Task {
    run: Child,
    last: Arc<Mutex<String>>,
}

impl Task {
    /// `look` prints one line.
    fn start(host: &Host, look: &str) -> Self {
        let script = format!("while :; do {look}; sleep 0.05; done");
        let mut run = host
            .command("", &[PLUGIN, "run", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let last = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(run.stdout.take().unwrap()).lines();
        let written = Arc::clone(&last);
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| *written.lock().unwrap() = line);
        });
        Self { run, last }
    }

    fn sees(&self, line: &str) {
        until(&format!("{line:?}, not {:?}", self.last.lock().unwrap()), || {
            *self.last.lock().unwrap() == line
        });
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.run.kill();
        let _ = self.run.wait();
    }
}

/// Polls until `is` returns true, or the test fails.
fn until(what: &str, is: impl FnMut() -> bool) {
    within(PATIENCE, what, is);
}

fn within(limit: Duration, what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is() {
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(PAUSE);
    }
}

/// Prints the content of a file in one line, or that there is none.
fn content(name: &str) -> String {
    format!("if [ -e /etc/{name} ]; then cat /etc/{name}; else echo none; fi")
}

#[test]
fn a_running_task_sees_each_kind_of_change_to_a_file() {
    let Some(host) = host() else { return };
    let _ = fs::remove_file(host.at("hosts"));
    host.write("hosts", "first\n");
    let task = Task::start(&host, &content("hosts"));
    task.sees("first");
    host.write("hosts", "rewritten in place\n");
    task.sees("rewritten in place");
    host.replace("hosts", "replaced by rename\n");
    task.sees("replaced by rename");
    fs::remove_file(host.at("hosts")).unwrap();
    task.sees("none");
    host.write("hosts", "there again\n");
    task.sees("there again");
}

#[test]
fn a_running_task_sees_where_links_lead() {
    let Some(host) = host() else { return };
    let place = tempfile::Builder::new().prefix("exec2-resolve-").tempdir_in("/run").unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    let at = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("one"), "one\n").unwrap();
    fs::write(at("two"), "two\n").unwrap();
    host.link("resolv.conf", &at("one"));
    let task = Task::start(&host, &content("resolv.conf"));
    task.sees("one");
    // The file behind the link, in a directory that has nothing else to do with /etc.
    fs::write(at("new"), "one, replaced\n").unwrap();
    fs::rename(at("new"), at("one")).unwrap();
    task.sees("one, replaced");
    host.link("resolv.conf", &at("two"));
    task.sees("two");
    // What the link led to is not there for the task.
    let absent = Task::start(&host, &format!("if [ -e {} ]; then echo there; else echo none; fi", at("two")));
    absent.sees("none");
}

#[test]
fn what_is_no_default_does_not_appear() {
    let Some(host) = host() else { return };
    host.write("hosts", "first\n");
    let task = Task::start(&host, "if [ -e /etc/secret ]; then echo secret; else cat /etc/hosts; fi");
    task.sees("first");
    host.write("secret", "s\n");
    fs::set_permissions(host.at("secret"), Permissions::from_mode(0o644)).unwrap();
    // This one shows that the task would have seen it.
    host.write("hosts", "second\n");
    task.sees("second");
}

#[test]
fn a_name_that_is_not_utf_8_is_a_default_as_any_other() {
    let Some(host) = host() else { return };
    let odd = |before: &[u8], after: &str| {
        let name = [before, b"\xff", after.as_bytes()].concat();
        host.etc.path().join(OsStr::from_bytes(&name))
    };
    let directory = odd(b"java-", "odd-openjdk");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "in a directory\n").unwrap();
    fs::write(odd(b"", "odd-release"), "a file\n").unwrap();
    fs::write(odd(b"", "odd-secret"), "no default\n").unwrap();
    let _ = fs::remove_file(host.at("localtime"));
    symlink(OsStr::from_bytes(b"/usr/share/zoneinfo/\xff"), host.at("localtime")).unwrap();
    let script =
        r"x=$(printf '\377')odd; cat /etc/java-$x-openjdk/file /etc/$x-release; cat /etc/$x-secret; exit 0";
    for root in ["private", "host"] {
        let run = [PLUGIN, "run", "--root", root, "--", "sh", "-c", script];
        let seen = host.command("", &run).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&seen.stdout), String::from_utf8_lossy(&seen.stderr));
        assert_eq!(out, "in a directory\na file\n", "{root}: {err}");
        assert!(err.contains("odd-secret"), "{root}: {err}");
    }
}

#[test]
fn a_reader_never_finds_half_a_file_or_none() {
    let Some(host) = host() else { return };
    let text = |letter: &str| format!("{}\n", letter.repeat(100_000));
    host.replace("hosts", &text("a"));
    // Prints the length and the letters of each file that is read.
    let look = "cat /etc/hosts | fold -w 1000 | sort -u | cut -c1 | tr -d '\\n'; wc -c < /etc/hosts";
    let script = format!("for i in $(seq 400); do {look}; done");
    let mut run = host.command("", &[PLUGIN, "run", "--", "sh", "-c", &script]);
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = run.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut seen = String::new();
        pipe.read_to_string(&mut seen).unwrap();
        seen
    });
    for letter in ["b", "c", "d", "e", "f", "g"].iter().cycle() {
        if run.try_wait().unwrap().is_some() {
            break;
        }
        host.replace("hosts", &text(letter));
        std::thread::sleep(Duration::from_millis(200));
    }
    let seen = reader.join().unwrap();
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines.len(), 400, "{seen}");
    for line in &lines {
        assert!(line.ends_with("100001") && line.trim_end_matches("100001").trim().len() == 1, "{line}");
    }
    assert!(lines.iter().any(|line| *line != lines[0]), "the file was replaced meanwhile");
}

/// A plugin as an agent starts it, configured.
struct Plugin {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Plugin {
    fn start(host: &Host, tmp: &Path, before: &str, msgpack_config: &[u8]) -> Self {
        let mut child = host
            .command(before, &[PLUGIN])
            .env(
                "NOMAD_PLUGIN_MAGIC_COOKIE",
                "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
            )
            .env("PLUGIN_PROTOCOL_VERSIONS", "2")
            .env("PLUGIN_MIN_PORT", "10000")
            .env("PLUGIN_MAX_PORT", "25000")
            .env("TMPDIR", tmp)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (written, pipe) = (Arc::clone(&log), BufReader::new(child.stderr.take().unwrap()));
        std::thread::spawn(move || {
            pipe.lines().map_while(Result::ok).for_each(|line| *written.lock().unwrap() += &(line + "\n"));
        });
        let plugin = Self { child, log };
        let request = SetConfigRequest {
            msgpack_config: msgpack_config.to_vec(),
            nomad_config: Some(NomadConfig { driver: Some(NomadDriverConfig::default()) }),
            ..SetConfigRequest::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let channel = common::connect(&common::socket_in(&line)).await.unwrap();
            BasePluginClient::new(channel).set_config(request).await.unwrap();
        });
        plugin
    }

    /// How many templates were completed.
    fn templates(&self) -> usize {
        self.log.lock().unwrap().matches("the template of the tasks' roots is complete").count()
    }

    fn has_logged(&self, text: &str) -> usize {
        self.log.lock().unwrap().matches(text).count()
    }

    /// Runs a shell script in the plugin's mount namespace.
    fn inside(&self, script: &str) -> String {
        let pid = self.child.id().to_string();
        let done = Command::new("nsenter").args(["-t", &pid, "-m", "sh", "-c", script]).output().unwrap();
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }

    fn copy_of_hosts(&self) -> String {
        self.inside(&format!("cat {RUN_DIR}/@etc-*/.host/hosts 2>/dev/null || :"))
    }

    fn threads(&self) -> String {
        fs::read_dir(format!("/proc/{}/task", self.child.id()))
            .unwrap()
            .map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap())
            .collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A part of a shell script that mounts a FUSE file system whose server, which has descriptor 3, never answers.
fn dead(path: &str) -> String {
    let options = "fd=3,rootmode=40000,user_id=0,group_id=0";
    format!("exec 3<>/dev/fuse; mount -i -t fuse -o {options} dead {path};")
}

/// As they are in a log line, which is JSON.
const SILENT: &str = r#""/usr/local/lib\" does not answer within 2 s"#;
const OLD_STAYS: &str = "the template of the tasks' roots stays as it is";

/// MessagePack of `{}`.
const DEFAULTS: &[u8] = b"\x80";

#[test]
fn a_plugin_refreshes_the_copies_before_any_start() {
    let Some(host) = host() else { return };
    let tmp = tempfile::tempdir().unwrap();
    host.replace("hosts", "first\n");
    // What an earlier plugin left, for tasks that still run, and another version's.
    let before = format!("mkdir {RUN_DIR}/@etc-other; echo old > {RUN_DIR}/@etc-other/hosts;");
    let plugin = Plugin::start(&host, tmp.path(), &before, DEFAULTS);
    until("the first copy", || plugin.copy_of_hosts().contains("first"));
    host.replace("hosts", "second\n");
    until("the second copy", || plugin.copy_of_hosts().contains("second"));
    assert_eq!(plugin.inside(&format!("cat {RUN_DIR}/@etc-other/hosts")), "old\n");
    assert_eq!(plugin.templates(), 1, "the template shows what it showed");
}

#[test]
fn name_servers_behind_a_stub_are_followed_for_tasks_with_a_network_namespace() {
    let Some(host) = host() else { return };
    let tmp = tempfile::tempdir().unwrap();
    host.replace("resolv.conf", "nameserver 127.0.0.53\n");
    host.replace("dnsmasq-resolv.conf", "nameserver 192.0.2.1\n");
    let plugin = Plugin::start(&host, tmp.path(), "", DEFAULTS);
    let servers = |name: &str| -> Vec<String> {
        let text = plugin.inside(&format!("cat {RUN_DIR}/@etc-*/.host/{name} 2>/dev/null || :"));
        text.lines().filter_map(|line| line.strip_prefix("nameserver ")).map(str::to_owned).collect()
    };
    until("the server behind the stub", || servers("resolv.conf.netns") == ["192.0.2.1"]);
    assert_eq!(servers("resolv.conf"), ["127.0.0.53"]);
    host.replace("dnsmasq-resolv.conf", "nameserver 192.0.2.2\n");
    until("the next one", || servers("resolv.conf.netns") == ["192.0.2.2"]);
    host.replace("resolv.conf", "nameserver 192.0.2.3\n");
    until("one that needs no replacement", || servers("resolv.conf.netns") == ["192.0.2.3"]);
    host.replace("resolv.conf", "nameserver ::1\n");
    host.replace("dnsmasq-resolv.conf", "nameserver 127.0.0.1\n");
    until("the host's, if there is no other", || servers("resolv.conf.netns") == ["::1"]);
}

#[test]
fn a_template_is_replaced_if_a_default_path_changes_and_not_otherwise() {
    let Some(host) = host() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let plugin = Plugin::start(&host, tmp.path(), "", DEFAULTS);
    until("the first template", || plugin.templates() == 1);
    // Elsewhere.
    for _ in 0..5 {
        plugin.inside("mount -t tmpfs none /mnt");
    }
    host.write("secret", "s");
    std::thread::sleep(LOOKED);
    assert_eq!(plugin.templates(), 1);
    // At a default path.
    plugin.inside("mount -t tmpfs none /usr/local/lib");
    until("a template with the mount", || plugin.templates() == 2);
    plugin.inside("umount /usr/local/lib");
    until("a template without the mount", || plugin.templates() == 3);
    // Above one.
    plugin.inside("mount --bind /usr/local/lib /usr/local");
    until("a template without what was covered", || plugin.templates() == 4);
    // A link.
    host.link("localtime", "/usr/share/zoneinfo/Zulu");
    until("a template with the link", || plugin.templates() == 5);
    // A directory that is replaced.
    fs::rename(host.at("ssl"), host.at("ssl-old")).unwrap();
    fs::create_dir_all(host.at("ssl/certs")).unwrap();
    until("a template with the new directory", || plugin.templates() >= 6);
    std::thread::sleep(LOOKED);
    assert!(plugin.templates() <= 7, "it comes to rest");
}

#[test]
fn a_plugin_whose_tasks_have_no_template_watches_nothing() {
    let Some(host) = host() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let threads = |config: &[u8]| {
        let plugin = Plugin::start(&host, tmp.path(), "", config);
        std::thread::sleep(PAUSE);
        (plugin.threads().contains("watch-roots"), plugin)
    };
    assert!(threads(DEFAULTS).0);
    // MessagePack of `{"root": "host"}` and of `{"unveil_defaults": false}`.
    for config in [&b"\x81\xa4root\xa4host"[..], &b"\x81\xafunveil_defaults\xc2"[..]] {
        let (watches, plugin) = threads(config);
        assert!(!watches);
        assert_eq!(plugin.inside(&format!("ls {RUN_DIR}")), "");
    }
}

#[test]
fn a_file_system_that_does_not_answer_is_named_once_and_stops_nothing_else() {
    let Some(host) = host() else { return };
    let tmp = tempfile::tempdir().unwrap();
    host.replace("hosts", "first\n");
    let plugin = Plugin::start(&host, tmp.path(), "", DEFAULTS);
    until("the first template", || plugin.templates() == 1);
    let pid = plugin.child.id().to_string();
    // The shell that waits is the server.
    let mount = format!("{} exec sleep 1000", dead("/usr/local/lib"));
    let mut server = Command::new("nsenter").args(["-t", &pid, "-m", "sh", "-c", &mount]).spawn().unwrap();
    until("the path is named", || plugin.has_logged(SILENT) == 1);
    host.replace("hosts", "second\n");
    until("the copies are refreshed", || plugin.copy_of_hosts().contains("second"));
    assert_eq!((plugin.has_logged(SILENT), plugin.has_logged(OLD_STAYS), plugin.templates()), (1, 1, 1));
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn the_first_template_lacks_what_does_not_answer_until_it_does() {
    let Some(host) = host() else { return };
    let tmp = tempfile::tempdir().unwrap();
    host.replace("hosts", "first\n");
    // The plugin inherits the server's descriptor.
    let plugin = Plugin::start(&host, tmp.path(), &dead("/usr/local/lib"), DEFAULTS);
    until("the first template", || plugin.templates() == 1);
    assert_eq!((plugin.has_logged(SILENT), plugin.has_logged(OLD_STAYS)), (1, 0));
    assert!(plugin.copy_of_hosts().contains("first"));
    plugin.inside("umount -l /usr/local/lib");
    within(INTERVAL + PATIENCE, "it answers", || {
        plugin.has_logged(r#""/usr/local/lib\" answers again"#) == 1
    });
    until("a template that has it", || plugin.templates() == 2);
    assert_eq!(plugin.has_logged(SILENT), 1);
}
