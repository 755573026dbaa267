//! Which allocation has which uid.
//!
//! A job may write any dynamic user (`nomad-80001`), and Nomad passes it on; an agent that was restarted may assign a
//! number again while its first task still runs. Landlock keeps two tasks of one uid apart, but not their sockets, signals
//! or file modes. So a uid that no user database knows belongs to one allocation at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::identity::Identity;

/// Uids, allocations that have them, and how many of each allocation's tasks do.
type Holders = HashMap<u32, HashMap<String, usize>>;

/// The uids of all tasks that are being started or run.
#[derive(Debug, Default)]
pub struct Uids(Mutex<Holders>);

/// A task's hold on its uid, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    uids: Arc<Uids>,
    uid: u32,
    alloc: String,
}

impl Uids {
    /// Takes a uid that no other allocation has; none if one has it. Looking and taking are one step, so of two starts at
    /// once only one gets it.
    pub fn claim_alone(self: &Arc<Self>, uid: u32, alloc: &str) -> Option<Claim> {
        let mut holders = self.holders();
        let others = holders.get(&uid).is_some_and(|allocs| allocs.keys().any(|holder| holder != alloc));
        (!others).then(|| self.enter(&mut holders, uid, alloc))
    }

    /// Takes a uid, whoever else has it: a user of the host's database may have many tasks, and a task that runs already
    /// has its uid.
    pub fn claim(self: &Arc<Self>, uid: u32, alloc: &str) -> Claim {
        self.enter(&mut self.holders(), uid, alloc)
    }

    fn enter(self: &Arc<Self>, holders: &mut Holders, uid: u32, alloc: &str) -> Claim {
        *holders.entry(uid).or_default().entry(alloc.to_owned()).or_default() += 1;
        Claim { uids: Arc::clone(self), uid, alloc: alloc.to_owned() }
    }

    fn holders(&self) -> MutexGuard<'_, Holders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    pub fn uid(&self) -> u32 {
        self.uid
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut holders = self.uids.holders();
        let Entry::Occupied(mut allocs) = holders.entry(self.uid) else { return };
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

/// The real uid of a process; none if it is gone. For a task whose handle is of a driver that did not note it.
pub fn of_process(process: Identity) -> Option<u32> {
    let status = std::fs::read(format!("/proc/{}/status", process.pid)).ok()?;
    // Asked after the file was read: a reused PID is another process.
    let same = Identity::of(process.pid).ok()? == process;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    let uid = str::from_utf8(line).ok()?.split_whitespace().next()?.parse().ok()?;
    same.then_some(uid)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

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
        assert!(uids.holders().is_empty(), "nothing is kept of the past");
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
    fn a_process_tells_its_uid_and_a_reused_pid_does_not() {
        let own = Identity::of(std::process::id() as i32).unwrap();
        assert_eq!(of_process(own), Some(nix::unistd::getuid().as_raw()));
        assert_eq!(of_process(Identity { start_time: own.start_time + 1, ..own }), None);
        assert_eq!(of_process(Identity { pid: i32::MAX, start_time: 1 }), None);
    }
}
