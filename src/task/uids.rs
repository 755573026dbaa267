//! Which allocation uses which uid.
//!
//! A job may write any dynamic user (`nomad-80001`), and Nomad passes it on; an agent that was restarted may assign a
//! number again while its first task still runs. Landlock separates two tasks with the same uid, but not their sockets, signals
//! or file modes. So a uid that is not in the user database belongs to one allocation at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::record::identity::Identity;
use crate::record::run_dir::RunDir;

/// Uids, allocations that have them, and how many of each allocation's tasks do.
type Holders = HashMap<u32, HashMap<String, usize>>;

/// The uids of all tasks that are being started or run.
#[derive(Debug, Default)]
pub(crate) struct Uids(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    holders: Holders,
    /// Processes that were running when this plugin was started. Nomad recovers their tasks, but may start another one first.
    found: Vec<Found>,
}

/// A process of a task of an earlier plugin.
#[derive(Debug)]
struct Found {
    run_dir: RunDir,
    process: Identity,
    uid: u32,
}

/// A task's hold on its uid, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    uids: Arc<Uids>,
    uid: u32,
    alloc: String,
}

impl Uids {
    /// Takes a uid that no other allocation has; none if one has it. Check and claim are one step, so only one of two
    /// concurrent starts gets it.
    pub(crate) fn claim_alone(self: &Arc<Self>, uid: u32, alloc: &str) -> Option<Claim> {
        let mut state = self.state();
        let others =
            state.holders.get(&uid).is_some_and(|allocs| allocs.keys().any(|holder| holder != alloc));
        let found = |found: &Found| {
            found.uid == uid
                && !found.run_dir.belongs_to(alloc)
                && Identity::of(found.process.pid).is_ok_and(|now| now == found.process)
        };
        let taken = others || state.found.iter().any(found);
        (!taken).then(|| self.enter(&mut state, uid, alloc))
    }

    /// Takes a uid even if another allocation has it: a user of the host's database may have many tasks, and a running task keeps
    /// its uid.
    pub(crate) fn claim(self: &Arc<Self>, uid: u32, alloc: &str) -> Claim {
        self.enter(&mut self.state(), uid, alloc)
    }

    /// Records which tasks of these run directories are running, before Nomad recovers them.
    pub(crate) fn note_running(&self, run_dirs: impl IntoIterator<Item = RunDir>) {
        let found = run_dirs.into_iter().filter_map(|run_dir| {
            let process = run_dir.shim().and_then(child)?;
            Some(Found { run_dir, process, uid: of_process(process)? })
        });
        let found = found.collect();
        self.state().found = found;
    }

    fn enter(self: &Arc<Self>, state: &mut State, uid: u32, alloc: &str) -> Claim {
        *state.holders.entry(uid).or_default().entry(alloc.to_owned()).or_default() += 1;
        Claim { uids: Arc::clone(self), uid, alloc: alloc.to_owned() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.uids.state();
        let Entry::Occupied(mut allocs) = state.holders.entry(self.uid) else { return };
        if let Entry::Occupied(mut count) = allocs.get_mut().entry(std::mem::take(&mut self.alloc)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        if allocs.get().is_empty() {
            allocs.remove();
        }
    }
}

/// The first child of a shim: the task, or one of its orphans. None if the kernel does not list children.
fn child(shim: Identity) -> Option<Identity> {
    let pid = shim.pid;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let child = Identity::of(children.split_whitespace().next()?.parse().ok()?).ok()?;
    // Checked last: the children were those of this shim.
    (Identity::of(pid).ok()? == shim).then_some(child)
}

/// The real uid of a process; none if it is gone. For a task whose handle does not contain it.
pub(crate) fn of_process(process: Identity) -> Option<u32> {
    let status = std::fs::read(format!("/proc/{}/status", process.pid)).ok()?;
    // Checked after the file was read: a reused PID is another process.
    let same = Identity::of(process.pid).ok()? == process;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let uid = str::from_utf8(line).ok()?.split_whitespace().next()?.parse().ok()?;
    same.then_some(uid)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::Barrier;

    use super::*;
    use crate::record::key::Key;

    #[test]
    fn a_uid_belongs_to_one_allocation_until_its_last_task_ends() {
        let uids = Arc::new(Uids::default());
        let first = uids.claim_alone(80_001, "a").unwrap();
        let second = uids.claim_alone(80_001, "a").unwrap();
        assert!(uids.claim_alone(80_001, "b").is_none());
        assert!(uids.claim_alone(80_002, "b").is_some(), "another uid is free");
        drop(first);
        assert!(uids.claim_alone(80_001, "b").is_none());
        drop(second);
        assert_eq!(uids.claim_alone(80_001, "b").unwrap().uid(), 80_001);
        assert!(uids.state().holders.is_empty(), "nothing is kept of the past");
    }

    #[test]
    fn a_recovered_task_and_a_known_user_hold_their_uid_too() {
        let uids = Arc::new(Uids::default());
        let held = [uids.claim(80_001, "a"), uids.claim(80_001, "b")];
        assert!(uids.claim_alone(80_001, "a").is_none(), "b has it as well");
        drop(held);
        assert!(uids.claim_alone(80_001, "a").is_some());
    }

    #[test]
    fn of_many_starts_at_once_one_gets_the_uid() {
        const STARTS: usize = 16;
        let (uids, at_once) = (Arc::new(Uids::default()), Barrier::new(STARTS));
        let claims: Vec<Option<Claim>> = std::thread::scope(|scope| {
            let start = |number: usize| {
                let (uids, at_once) = (&uids, &at_once);
                scope.spawn(move || {
                    at_once.wait();
                    uids.claim_alone(80_001, &format!("alloc{number}"))
                })
            };
            let starts: Vec<_> = (0..STARTS).map(start).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert_eq!(claims.iter().flatten().count(), 1);
    }

    #[test]
    fn a_task_that_nomad_has_not_recovered_yet_has_its_uid() {
        let dir = tempfile::tempdir().unwrap();
        // A shell in place of the shim; the task is its child. It ends with its input.
        let mut shim = Command::new("/bin/sh")
            .args(["-c", "cat >/dev/null; exit 0"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let shim_id = Identity::of(shim.id() as i32).unwrap();
        while child(shim_id).is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let run_dir = RunDir::of(&dir.path().join("run"), Key::new("a/web/1").unwrap());
        run_dir.create().unwrap();
        run_dir.record_shim(&shim_id).unwrap();
        let uids = Arc::new(Uids::default());
        uids.note_running([run_dir]);
        let uid = nix::unistd::getuid().as_raw();
        assert!(uids.claim_alone(uid, "b").is_none());
        assert!(uids.claim_alone(uid, "a").is_some());
        assert!(uids.claim_alone(uid + 1, "b").is_some());
        drop(shim.stdin.take());
        shim.wait().unwrap();
        assert!(uids.claim_alone(uid, "b").is_some());
    }

    #[test]
    fn a_process_tells_its_uid_and_a_reused_pid_does_not() {
        let own = Identity::of(std::process::id() as i32).unwrap();
        assert_eq!(of_process(own), Some(nix::unistd::getuid().as_raw()));
        assert_eq!(of_process(Identity { start_time: own.start_time + 1, ..own }), None);
        assert_eq!(of_process(Identity { pid: i32::MAX, start_time: 1 }), None);
    }
}
