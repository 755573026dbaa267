//! User lookups never wait for nscd, which musl's C library queries implicitly.

#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nomad_driver_exec2::users::{self, LookupError, User, UserError};

/// Where musl's C library and glibc look for nscd.
const SOCKET: &str = "/var/run/nscd/socket";
/// Longer than `getent` may take on this host, whose directory service, if there is one, is out of reach.
const PATIENCE: Duration = Duration::from_secs(30);
/// Not in any host's user database.
const NOBODYS: u32 = 2_147_483_646;

/// Creates, in a mount namespace of this thread, an nscd that accepts connections and never answers. None without the right to
/// create one.
fn silent_nscd() -> Option<UnixListener> {
    match unshare(CloneFlags::CLONE_NEWNS) {
        Err(Errno::EPERM | Errno::ENOSYS) => return None,
        made => made.unwrap(),
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let run = std::fs::canonicalize("/var/run").unwrap_or_else(|_| "/run".into());
    mount(Some("nscd"), &run, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let socket = run.join("nscd/socket");
    std::fs::create_dir(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    Some(listener)
}

/// Needs CAP_SYS_ADMIN to install the socket; without it only the next test checks the rule.
#[test]
fn a_silent_nscd_is_never_queried() {
    let (done, outcome) = mpsc::channel();
    // Not a scoped thread: a hanging one must not block the test.
    std::thread::spawn(move || {
        let Some(_listener) = silent_nscd() else {
            done.send(None).unwrap();
            return;
        };
        // A host with a directory service queries it through getent, which waits for nscd, with its time limit.
        let answers = ["root", &format!("nomad-{NOBODYS}"), "no-such-user-of-exec2"].map(users::lookup);
        done.send(Some(answers)).unwrap();
    });
    let outcome = outcome.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        // A failed test would end in exit(3), which waits for the same lock of the C library as the lookup.
        eprintln!("the look-up waits for nscd");
        std::process::abort()
    });
    let Some([root, dynamic, unknown]) = outcome else { return };
    assert!(matches!(root, Ok(user) if user.groups.first() == Some(&0)));
    assert!(matches!(&dynamic, Ok(user) if user.uid == NOBODYS) || timed_out(&dynamic), "{dynamic:?}");
    assert!(matches!(unknown, Err(UserError::NotFound { .. })) || timed_out(&unknown), "{unknown:?}");
}

fn timed_out(answer: &Result<User, UserError>) -> bool {
    matches!(answer, Err(UserError::Lookup { source: LookupError::Timeout { .. }, .. }))
}

/// The C library's nscd client is not even linked. A binary with a shared C library cannot be checked.
#[test]
fn the_binary_has_no_client_of_nscd() {
    let binary = std::fs::read(env!("CARGO_BIN_EXE_nomad-driver-exec2")).unwrap();
    let found = |text: &[u8]| binary.windows(text.len()).any(|window| window == text);
    assert!(found(b"/etc/passwd"), "the look-up of users is in it");
    assert!(!found(SOCKET.as_bytes()), "something calls getpwnam(3) or a relative of it");
}
