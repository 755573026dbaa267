//! The host's own user database: /etc/passwd through the C library, everything else through `getent`.
//!
//! A static binary's C library reads only /etc/passwd. Users of a directory service (LDAP, SSSD) are known to the
//! host's glibc and its NSS modules, and `getent passwd` is its public interface. It runs with a fixed path, an empty
//! environment, no standard input and a time limit, and it never sees an argument that it could take for an option.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Uid;

use super::{Database, Entry, LookupError};

/// Where distributions keep it; the last one is NixOS. Never searched on PATH.
const GETENT: [&str; 3] = ["/usr/bin/getent", "/bin/getent", "/run/current-system/sw/bin/getent"];

/// A directory service that is down must not hold a start for longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Between looks for the end of a process that has closed its output already.
const EXIT_PAUSE: Duration = Duration::from_millis(1);

/// One line of passwd(5) is far shorter (bytes).
const ANSWER_MAX: usize = 64 * 1024;

/// `getent`'s exit status for "no such key" (getent(1)).
const NOT_FOUND: i32 = 2;

const NSSWITCH: &str = "/etc/nsswitch.conf";

/// nsswitch.conf is a few hundred bytes; no more than this is read.
const NSSWITCH_MAX: u64 = 64 * 1024;

/// The database of this host.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Database for System {
    fn by_name(&self, name: &str) -> Result<Option<Entry>, LookupError> {
        match nix::unistd::User::from_name(name).map_err(LookupError::Passwd)? {
            Some(user) => Ok(Some(user.into())),
            None => getent(name, None),
        }
    }

    /// Asks `getent` only where nsswitch.conf names a source that can know more than the file: this is on the way of
    /// every start of a dynamic user, and a process more would be felt there.
    fn by_uid(&self, uid: u32) -> Result<Option<Entry>, LookupError> {
        match nix::unistd::User::from_uid(Uid::from_raw(uid)).map_err(LookupError::Passwd)? {
            Some(user) => Ok(Some(user.into())),
            None if has_directory_service(&nsswitch()) => getent(&uid.to_string(), Some(uid)),
            None => Ok(None),
        }
    }
}

impl From<nix::unistd::User> for Entry {
    fn from(user: nix::unistd::User) -> Entry {
        Entry { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), home: user.dir }
    }
}

fn nsswitch() -> String {
    let mut bytes = Vec::new();
    // Absent or unreadable: glibc then uses the files, and other C libraries know nothing else.
    if let Ok(file) = File::open(NSSWITCH) {
        let _ = file.take(NSSWITCH_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether the `passwd` line of nsswitch.conf(5) names more than local sources. `systemd` counts as local: it knows the
/// users of running units, whose ids (61184-65519) are outside of Nomad's range, and `compat` and `db` serve the files.
fn has_directory_service(nsswitch: &str) -> bool {
    let lines = nsswitch.lines().map(|line| line.split('#').next().unwrap_or("").trim_start());
    let sources = lines.filter_map(|line| line.strip_prefix("passwd:"));
    let mut in_action = false;
    sources.flat_map(str::split_whitespace).any(|word| {
        // [NOTFOUND=return] and the like, possibly with blanks inside.
        in_action |= word.starts_with('[');
        let source = !in_action && !matches!(word, "files" | "systemd" | "compat" | "db");
        if word.ends_with(']') {
            in_action = false;
        }
        source
    })
}

/// `uid`: the key is this uid, and the answer must have it. A directory service may answer a name with another spelling of
/// it (`CORP\eve` with `eve@corp.example`), so names are not compared.
fn getent(key: &str, uid: Option<u32>) -> Result<Option<Entry>, LookupError> {
    match GETENT.into_iter().find(|path| Path::new(path).exists()) {
        Some(program) => ask(program, &["passwd", "--", key], uid, TIMEOUT),
        // A host without it (Alpine) has no NSS modules either.
        None => Ok(None),
    }
}

/// Runs the program and reads one line of passwd(5) from it.
fn ask(
    program: &'static str,
    args: &[&str],
    uid: Option<u32>,
    timeout: Duration,
) -> Result<Option<Entry>, LookupError> {
    let failed = |e: &std::io::Error| LookupError::Spawn {
        program,
        errno: e.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    };
    let until = Instant::now() + timeout;
    let timed_out = || LookupError::Timeout { program, seconds: timeout.as_secs() };
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(&e))?;
    let output = match child.stdout.take() {
        Some(stdout) => read_until(File::from(std::os::fd::OwnedFd::from(stdout)), until),
        None => Ok(None),
    };
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if matches!(output, Ok(Some(_))) && Instant::now() < until => {
                std::thread::sleep(EXIT_PAUSE)
            }
            // Out of time, or nothing to hope for: no process stays behind.
            Ok(None) | Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    let output = output.map_err(|e| failed(&e))?;
    let (Some(output), Some(status)) = (output, status) else { return Err(timed_out()) };
    match status.code() {
        Some(0) => {}
        Some(NOT_FOUND) => return Ok(None),
        _ => return Err(LookupError::Failed { program, status }),
    }
    let text = String::from_utf8_lossy(&output);
    let line = text.lines().next().unwrap_or("");
    match parse_line(line) {
        Some(entry) if uid.is_none_or(|uid| uid == entry.uid) => Ok(Some(entry)),
        _ => Err(LookupError::Answer { program, line: line.to_owned() }),
    }
}

/// Everything up to the end of the pipe; `None` when the time is over or the answer too long.
fn read_until(mut pipe: File, until: Instant) -> std::io::Result<Option<Vec<u8>>> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => return Ok(None),
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
        match pipe.read(&mut buffer)? {
            0 => return Ok(Some(all)),
            n => all.write_all(&buffer[..n])?,
        }
        if all.len() > ANSWER_MAX {
            return Ok(None);
        }
    }
}

/// `name:password:uid:gid:gecos:home:shell`
fn parse_line(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, _] = fields.as_slice() else { return None };
    if name.is_empty() {
        return None;
    }
    Some(Entry {
        name: (*name).to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: PathBuf::from(home),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, uid: Option<u32>, timeout: Duration) -> Result<Option<Entry>, LookupError> {
        ask("/bin/sh", &["-c", script, "sh", "key"], uid, timeout)
    }

    #[test]
    fn lines_of_passwd() {
        let entry = parse_line("ann:x:1000:100:Ann,,:/home/ann:/bin/sh").unwrap();
        assert_eq!((entry.name.as_str(), entry.uid, entry.gid), ("ann", 1000, 100));
        assert_eq!(entry.home, Path::new("/home/ann"));
        for bad in [
            "",
            "ann",
            "ann:x:1000:100:Ann:/home/ann",
            ":x:1:1::/:",
            "a:x:-1:1::/:",
            "a:x:1:4294967296::/:",
            "+::::::",
        ] {
            assert_eq!(parse_line(bad), None, "{bad}");
        }
    }

    #[test]
    fn directory_services() {
        for text in [
            "passwd: files sss\n",
            "passwd:\tfiles systemd ldap # x\n",
            "# c\ngroup: files\npasswd: winbind files\n",
            "passwd: files [NOTFOUND = continue SUCCESS=return] sss",
        ] {
            assert!(has_directory_service(text), "{text}");
        }
        for text in [
            "",
            "passwd: files\n",
            "passwd: files systemd [SUCCESS=merge]\n",
            "passwd: files [ NOTFOUND = return ] systemd # sss\n",
            "# passwd: sss\ngroup: sss\n",
        ] {
            assert!(!has_directory_service(text), "{text}");
        }
    }

    #[test]
    fn answers_of_the_program() {
        let found = sh("echo ann:x:1000:100::/home/ann:/bin/sh", None, TIMEOUT).unwrap().unwrap();
        assert_eq!(found.uid, 1000);
        let by_uid = sh("echo ann:x:1000:100::/home/ann:/bin/sh", Some(1000), TIMEOUT).unwrap().unwrap();
        assert_eq!(by_uid.name, "ann");
        assert_eq!(sh("exit 2", None, TIMEOUT).unwrap(), None);
        assert!(matches!(sh("exit 3", None, TIMEOUT), Err(LookupError::Failed { .. })));
        assert!(matches!(sh("kill -9 $$", None, TIMEOUT), Err(LookupError::Failed { .. })));
        assert!(matches!(sh("echo hello", None, TIMEOUT), Err(LookupError::Answer { .. })));
        let other = sh("echo bob:x:1001:100::/home/bob:/bin/sh", Some(1000), TIMEOUT);
        assert!(matches!(other, Err(LookupError::Answer { .. })), "{other:?}");
        let missing = ask("/nonexistent/getent", &[], None, TIMEOUT);
        assert!(matches!(missing, Err(LookupError::Spawn { errno: Errno::ENOENT, .. })), "{missing:?}");
    }

    #[test]
    fn never_longer_than_the_limit() {
        let short = Duration::from_millis(100);
        // Silent, endless, and one that closes its output but stays. The shell's own commands: with an empty environment it
        // finds no other program where /bin has none.
        let endless = "while :; do echo ann:x:1:1::/:; done";
        for script in ["while :; do :; done", endless, "exec >&-; while :; do :; done"] {
            let begin = Instant::now();
            let got = sh(script, None, short);
            assert!(matches!(got, Err(LookupError::Timeout { .. })), "{script}: {got:?}");
            assert!(begin.elapsed() < Duration::from_secs(10), "{script}");
        }
    }

    #[test]
    fn the_environment_is_empty() {
        let script = r#"[ -z "$HOME$CARGO" ] && echo "ann:x:1:1::$1:/bin/sh""#;
        assert_eq!(sh(script, None, TIMEOUT).unwrap().unwrap().home, Path::new("key"));
    }

    #[test]
    fn this_host_knows_root() {
        assert_eq!(System.by_name("root").unwrap().unwrap().uid, 0);
        assert_eq!(System.by_uid(0).unwrap().unwrap().name, "root");
        assert_eq!(System.by_name("no-such-user-of-exec2").unwrap(), None);
    }
}
