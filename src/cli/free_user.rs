//! Chooses a user for `run` without `--user`.

use std::collections::HashSet;
use std::ops::Range;

use anyhow::bail;

use crate::users::{self, User, UserError};

/// The uids of such users: above those that Nomad assigns to tasks (80000 to 89999 unless the client's `users` block says
/// otherwise), and below those that useradd(8) reserves for containers (100000 and up).
const RANGE: Range<u32> = 90_000..100_000;

/// Returns a user `nomad-N` whose uid neither the host's user database nor a process has. `seed` selects the first candidate,
/// so that several concurrent `run`s choose different ones.
pub(super) fn find(seed: u32) -> anyhow::Result<User> {
    search(seed, &running(), users::lookup)
}

fn search(
    seed: u32,
    running: &HashSet<u32>,
    lookup: impl Fn(&str) -> Result<User, UserError>,
) -> anyhow::Result<User> {
    let span = RANGE.end - RANGE.start;
    let all = (0..span).map(|step| RANGE.start + (seed % span + step) % span);
    for uid in all.filter(|uid| !running.contains(uid)) {
        match lookup(&format!("nomad-{uid}")) {
            Err(UserError::Taken { .. }) => {}
            found => return Ok(found?),
        }
    }
    bail!("every user from nomad-{} to nomad-{} is in use; name one with --user", RANGE.start, RANGE.end - 1)
}

/// The uids of all processes in /proc. Processes that end meanwhile are skipped.
fn running() -> HashSet<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashSet::new() };
    let statuses =
        entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    statuses.flat_map(|status| uids(&status)).collect()
}

/// Real, effective, saved and file system uid in /proc/PID/status.
fn uids(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    line.map(|line| line.split_whitespace().filter_map(|uid| uid.parse().ok()).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(name: &str) -> Result<User, UserError> {
        let uid = name.strip_prefix("nomad-").unwrap().parse().unwrap();
        match uid {
            90_010 | 99_999 => {
                Err(UserError::Taken { user: name.to_owned(), uid, owner: "somebody".to_owned() })
            }
            _ => Ok(User::unknown(name, uid, uid)),
        }
    }

    #[test]
    fn the_next_unused_uid_is_chosen() {
        let running = HashSet::from([90_011, 90_000]);
        let of = |seed| search(seed, &running, free).unwrap().uid;
        assert_eq!(of(7), 90_007);
        assert_eq!(of(10_007), 90_007);
        assert_eq!(of(10), 90_012, "one is in the database, the next one is running");
        assert_eq!(of(9_999), 90_001, "the search continues at the start of the range");
    }

    #[test]
    fn a_range_without_an_unused_uid_is_an_error() {
        let error = search(0, &RANGE.collect(), free).unwrap_err();
        assert!(error.to_string().contains("--user"), "{error}");
    }

    #[test]
    fn a_process_counts_with_each_of_its_uids() {
        assert_eq!(uids("Name:\tx\nUid:\t0\t90001\t7\t7\nGid:\t9\t9\t9\t9\n"), [0, 90_001, 7, 7]);
        assert!(uids("Name:\tx\n").is_empty());
        assert!(running().contains(&nix::unistd::getuid().as_raw()));
    }
}
