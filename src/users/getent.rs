//! Queries the host's directory services with `getent`.
//!
//! Users of LDAP or SSSD are only known to the host's glibc and its NSS modules, and `getent` is their public interface. It
//! runs with a fixed path, an empty environment, no standard input and a time limit, and it never gets an argument that it
//! could parse as an option. An unresponsive service costs the time limit, never more.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Entry, LookupError, files};

/// Where distributions install it; the last one is NixOS. PATH is never searched.
const PROGRAMS: [&str; 3] = ["/usr/bin/getent", "/bin/getent", "/run/current-system/sw/bin/getent"];

/// A directory service that is down must not delay a start for longer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Interval between checks for the end of a process that has already closed its output: wait(2) has no timeout, and such a
/// process ends at once.
const EXIT_PAUSE: Duration = Duration::from_millis(1);

/// Limit for the output in bytes: a line of passwd(5) is far shorter, and 65536 gids (NGROUPS_MAX) of 11 bytes fit.
const ANSWER_MAX: usize = 1 << 20;

/// `getent`'s exit status for "no such key" (getent(1)).
const NOT_FOUND: i32 = 2;

/// Looks up a user. With `uid`, the key is this uid, and the response must have it. A directory service may return another
/// spelling of a name (`CORP\eve` for `eve@corp.example`), so names are not compared.
pub(super) fn user(key: &str, uid: Option<u32>) -> Result<Option<Entry>, LookupError> {
    // A host without it (Alpine) has no NSS modules either.
    let Some(program) = program() else { return Ok(None) };
    let answer = ask(program, &["passwd", "--", key], TIMEOUT)?;
    answer.map(|answer| entry(program, &answer, uid)).transpose()
}

/// The groups of a user without the primary one; none if the host has no `getent`.
pub(super) fn groups(name: &str) -> Result<Vec<u32>, LookupError> {
    let Some(program) = program() else { return Ok(Vec::new()) };
    match ask(program, &["initgroups", "--", name], TIMEOUT)? {
        Some(answer) => gids(program, &answer, name),
        None => Ok(Vec::new()),
    }
}

fn program() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|path| Path::new(path).exists())
}

pub(super) fn entry(program: &'static str, answer: &[u8], uid: Option<u32>) -> Result<Entry, LookupError> {
    match files::line(answer) {
        Some(entry) if uid.is_none_or(|uid| uid == entry.uid) => Ok(entry),
        _ => Err(unreadable(program, answer)),
    }
}

/// `name  gid gid gid`, with the name from the query.
pub(super) fn gids(program: &'static str, answer: &[u8], name: &str) -> Result<Vec<u32>, LookupError> {
    let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let numbers = str::from_utf8(line).ok().and_then(|line| line.strip_prefix(name));
    let parsed = numbers
        .filter(|rest| rest.is_empty() || rest.starts_with(' '))
        .map(|rest| rest.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>());
    match parsed {
        Some(Ok(gids)) => Ok(gids),
        _ => Err(unreadable(program, answer)),
    }
}

fn unreadable(program: &'static str, answer: &[u8]) -> LookupError {
    let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    LookupError::Answer { program, line: String::from_utf8_lossy(line).into_owned() }
}

/// Runs the program and returns its output; `None` if it does not know the key.
fn ask(program: &'static str, args: &[&str], timeout: Duration) -> Result<Option<Vec<u8>>, LookupError> {
    let failed = |e: &std::io::Error| LookupError::Spawn { program, errno: crate::sys::errno_of(e) };
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
            // After a timeout or an error no process is left behind.
            Ok(None) | Err(_) => {
                end(child);
                break None;
            }
        }
    };
    let output = output.map_err(|e| failed(&e))?;
    let (Some(output), Some(status)) = (output, status) else { return Err(timed_out()) };
    match status.code() {
        Some(0) => Ok(Some(output)),
        Some(NOT_FOUND) => Ok(None),
        _ => Err(LookupError::Failed { program, status }),
    }
}

/// Kills the program. It is reaped on a separate thread: a process that hangs in the kernel (NFS) would block the caller.
fn end(mut child: Child) {
    let _ = child.kill();
    let reap = move || {
        let _ = child.wait();
    };
    if let Err(error) = std::thread::Builder::new().name("getent".into()).spawn(reap) {
        tracing::warn!(%error, "failed to reap getent: it stays a zombie until the plugin ends");
    }
}

/// Reads up to the end of the pipe; `None` after a timeout, or if the output is too long.
fn read_until(mut pipe: File, until: Instant) -> std::io::Result<Option<Vec<u8>>> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if !crate::sys::poll::readable(&pipe, until)? {
            return Ok(None);
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

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    const SH: &str = "/bin/sh";
    const ANN: &str = "ann:x:1000:100::/home/ann:/bin/sh";

    fn sh(script: &str, timeout: Duration) -> Result<Option<Vec<u8>>, LookupError> {
        ask(SH, &["-c", script, "sh", "key"], timeout)
    }

    fn answer(script: &str, uid: Option<u32>) -> Result<Option<Entry>, LookupError> {
        sh(script, TIMEOUT)?.map(|answer| entry(SH, &answer, uid)).transpose()
    }

    #[test]
    fn answers_of_the_program() {
        assert_eq!(answer(&format!("echo {ANN}"), None).unwrap().unwrap().uid, 1000);
        assert_eq!(answer(&format!("echo {ANN}"), Some(1000)).unwrap().unwrap().name, "ann");
        assert_eq!(answer("exit 2", None).unwrap(), None);
        assert!(matches!(answer("exit 3", None), Err(LookupError::Failed { .. })));
        assert!(matches!(answer("kill -9 $$", None), Err(LookupError::Failed { .. })));
        assert!(matches!(answer("echo hello", None), Err(LookupError::Answer { .. })));
        let other = answer("echo bob:x:1001:100::/home/bob:/bin/sh", Some(1000));
        assert!(matches!(other, Err(LookupError::Answer { .. })), "{other:?}");
        let missing = ask("/nonexistent/getent", &[], TIMEOUT);
        assert!(matches!(missing, Err(LookupError::Spawn { errno: Errno::ENOENT, .. })), "{missing:?}");
    }

    #[test]
    fn groups_follow_the_name() {
        let of = |answer: &str, name: &str| gids(SH, answer.as_bytes(), name);
        assert_eq!(of("ann                   4 27 1000\n", "ann").unwrap(), [4, 27, 1000]);
        assert!(of("ann\n", "ann").unwrap().is_empty());
        assert_eq!(of("DOMAIN\\jane doe 7\n", "DOMAIN\\jane doe").unwrap(), [7]);
        for (answer, name) in
            [("anna 4", "ann"), ("bob 4", "ann"), ("ann x", "ann"), ("ann -1", "ann"), ("", "ann")]
        {
            assert!(matches!(of(answer, name), Err(LookupError::Answer { .. })), "{answer}");
        }
    }

    #[test]
    fn never_longer_than_the_limit() {
        let short = Duration::from_millis(100);
        // Silent, endless, and one that closes its output but does not exit. These are shell builtins: with an empty
        // environment no other program is found if /bin has none.
        let endless = "while :; do echo ann:x:1:1::/:; done";
        for script in ["while :; do :; done", endless, "exec >&-; while :; do :; done"] {
            let begin = Instant::now();
            let got = sh(script, short);
            assert!(matches!(got, Err(LookupError::Timeout { .. })), "{script}: {got:?}");
            assert!(begin.elapsed() < Duration::from_secs(10), "{script}");
        }
    }

    #[test]
    fn the_environment_is_empty() {
        let script = r#"[ -z "$HOME$CARGO" ] && echo "ann:x:1:1::$1:/bin/sh""#;
        assert_eq!(answer(script, None).unwrap().unwrap().home, Path::new("key"));
    }
}
