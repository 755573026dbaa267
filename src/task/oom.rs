//! Counting OOM kills: which have been seen, which the task survived, and whether one of them ended it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::end::{End, Ended, Verdict};
use super::events::{Event, EventBus};
use super::id::TaskId;
use crate::cgroup::{Cgroup, OomCounts, OomWatch};
use crate::record::identity::{Identity, is_dying};
use crate::record::run_dir::RunDir;

/// How long after an OOM kill was counted a task that was killed by it is certainly dying: the kernel counts first and
/// sends SIGKILL then, and on a busy host it may be preempted in between.
const AFTERMATH: Duration = Duration::from_secs(1);

/// The shortest time between two events about OOM kills of one task: a task whose children are killed in a loop must not
/// displace its other events in Nomad. Kills in between are counted in the next event.
const PAUSE: Duration = Duration::from_secs(10);

/// How long `memory.events` is ignored after a read that found no new OOM kill. The kernel changes the file up to 100
/// times a second while a task reclaims at its limit, which a task whose page cache has filled the limit always does. A kill
/// that ends the task is counted by its shim, so this only delays reports of killed children.
const REST: Duration = Duration::from_millis(250);

/// The OOM kills of one task.
#[derive(Debug)]
pub(super) struct OomLedger {
    task: TaskId,
    cgroup: Option<Arc<Cgroup>>,
    run_dir: RunDir,
    /// The task's first process.
    leader: Option<Identity>,
    /// The cgroup's counters before the start: it may be that of an earlier run of the task.
    before: OomCounts,
    /// From the task's start on: seen, and survived by its first process.
    kills: AtomicU64,
    survived: AtomicU64,
    /// Whether this plugin sent SIGKILL.
    killed_by_plugin: AtomicBool,
}

impl OomLedger {
    pub(super) fn new(
        task: TaskId,
        cgroup: Option<Arc<Cgroup>>,
        run_dir: RunDir,
        leader: Option<Identity>,
        before: OomCounts,
    ) -> Self {
        let survived = run_dir.outlived();
        Self {
            task,
            cgroup,
            run_dir,
            leader,
            before,
            kills: AtomicU64::new(survived),
            survived: AtomicU64::new(survived),
            killed_by_plugin: AtomicBool::new(false),
        }
    }

    pub(super) fn kills_before(&self) -> u64 {
        self.before.oom_kill
    }

    /// From now on a SIGKILL is attributed to this plugin.
    pub(super) fn plugin_kills(&self) {
        self.killed_by_plugin.store(true, Ordering::Relaxed);
    }

    /// The verdict on an exit. The cgroup counts too: the shim may have been killed together with the task.
    pub(super) fn judge(&self, mut ended: Ended) -> Ended {
        let counted = self.cgroup.as_ref().and_then(|cgroup| cgroup.oom().ok().flatten());
        let kills = self.see(counted.unwrap_or(self.before)).max(ended.exit.oom_kills);
        ended.exit.oom_kills = self.kills.fetch_max(kills, Ordering::Relaxed).max(kills);
        let survived = self.survived.load(Ordering::Relaxed);
        if !self.killed_by_plugin.load(Ordering::Relaxed) && ended.exit.is_out_of_memory(survived) {
            // Also where the exit record is lost: the kernel's count says more than that.
            ended.verdict = Verdict::OomKilled;
        }
        ended
    }

    /// Reads the cgroup's counters and returns the kills since the task's start.
    fn see(&self, counts: OomCounts) -> u64 {
        let kills = counts.oom_kill.saturating_sub(self.before.oom_kill);
        self.kills.fetch_max(kills, Ordering::Relaxed).max(kills)
    }

    /// Checks whether the task keeps running after this many OOM kills: then they were of children.
    async fn survive(&self, kills: u64, end: &End) {
        if kills <= self.survived.load(Ordering::Relaxed) {
            return;
        }
        let ended = timeout(AFTERMATH, end.wait()).await.is_ok();
        if ended || self.leader.is_none_or(|leader| is_dying(leader.pid)) {
            return;
        }
        self.survived.store(kills, Ordering::Relaxed);
        if let Err(error) = self.run_dir.outlives(kills) {
            tracing::warn!(task = %self.task, %error, "failed to record survived OOM kills; the next plugin reports them again");
        }
    }

    /// Reports the OOM kills of a task that ended before this plugin was started.
    pub(super) fn report_late(&self, bus: &EventBus) {
        self.report(&mut self.survived.load(Ordering::Relaxed), bus);
    }

    fn report(&self, reported: &mut u64, bus: &EventBus) {
        let seen = self.kills.load(Ordering::Relaxed);
        if seen <= *reported {
            return;
        }
        let kills = seen - std::mem::replace(reported, seen);
        let limit = self.cgroup.as_ref().and_then(|cgroup| cgroup.memory_limit().ok().flatten());
        let peak = self.cgroup.as_ref().and_then(|cgroup| cgroup.stats().ok()?.memory.peak);
        bus.send(&self.task, Event::OomKill { kills, limit, peak });
    }

    /// The counters of the cgroup, if it has them. A task can run without them: its end is still judged correctly.
    pub(super) fn events(&self) -> Option<OomWatch> {
        self.cgroup.as_ref()?.watch_oom().unwrap_or_else(|error| {
            // A cgroup that is gone has no more OOM kills.
            if !error.is_gone() {
                tracing::warn!(task = %self.task, %error, "failed to watch for OOM kills; only those that end the task are reported");
            }
            None
        })
    }

    /// Reports every OOM kill, also of a child whose parent keeps running, until the task ends.
    pub(super) async fn watch(&self, mut events: OomWatch, end: End, bus: EventBus) {
        let mut reported = self.survived.load(Ordering::Relaxed);
        let mut seen = reported;
        let mut pause = Instant::now();
        let mut next_look = Instant::now();
        loop {
            let unreported = self.kills.load(Ordering::Relaxed) > reported;
            let look = async {
                sleep_until(next_look).await;
                events.changed().await
            };
            let changed = tokio::select! {
                changed = look => changed,
                () = sleep_until(pause), if unreported => {
                    self.report(&mut reported, &bus);
                    pause = Instant::now() + PAUSE;
                    continue;
                }
                // Reads the counters once more, to report the kill that ended the task, too.
                _ = end.wait() => {
                    self.report(&mut reported, &bus);
                    return;
                }
            };
            match changed {
                Ok(counts) => {
                    let kills = self.see(counts);
                    if Instant::now() >= pause && kills > reported {
                        self.report(&mut reported, &bus);
                        pause = Instant::now() + PAUSE;
                    }
                    self.survive(kills, &end).await;
                    if kills == std::mem::replace(&mut seen, kills) {
                        events.rest();
                        next_look = Instant::now() + REST;
                    }
                }
                Err(error) if error.is_gone() => return,
                // Temporarily out of memory or descriptors.
                Err(error) if error.is_transient() => next_look = Instant::now() + REST,
                Err(error) => {
                    tracing::warn!(task = %self.task, %error, "failed to watch for OOM kills; only those that end the task are reported");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::FakeProcess;
    use crate::shim::exit::Exit;

    /// The ledger of a task without a cgroup, with another process in place of its first.
    struct Stand {
        ledger: OomLedger,
        leader: FakeProcess,
        end: End,
        _publish: super::super::end::EndSender,
        _dir: tempfile::TempDir,
    }

    impl Stand {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let task = TaskId::new("a/t/1", "a", "t").unwrap();
            let run_dir = RunDir::of(&dir.path().join("run"), task.key());
            run_dir.create().unwrap();
            let leader = FakeProcess::new();
            let before = OomCounts { oom_kill: 3, oom: 5 };
            let ledger = OomLedger::new(task, None, run_dir, Some(leader.identity), before);
            let (publish, end) = End::unknown();
            Self { ledger, leader, end, _publish: publish, _dir: dir }
        }

        async fn see(&self, oom_kill: u64) {
            let kills = self.ledger.see(OomCounts { oom_kill, oom: 0 });
            self.ledger.survive(kills, &self.end).await;
        }

        /// The verdict on a SIGKILL before which the shim counted so many kills.
        fn verdict(&self, oom_kills: u64) -> Verdict {
            let exit = Exit { oom_kills, ..Exit::signalled(libc::SIGKILL) };
            self.ledger.judge(Ended { exit, verdict: Verdict::Exited }).verdict
        }
    }

    #[tokio::test]
    async fn a_survived_oom_kill_did_not_end_the_task() {
        let stand = Stand::new();
        stand.see(3).await;
        assert_eq!(stand.ledger.run_dir.outlived(), 0, "an earlier run's");
        stand.see(4).await;
        assert_eq!(stand.ledger.run_dir.outlived(), 1, "a child's, and the next plugin knows");
        assert_eq!(stand.verdict(1), Verdict::Exited);
    }

    #[tokio::test]
    async fn an_oom_kill_of_the_first_process_ended_the_task() {
        let mut stand = Stand::new();
        stand.see(4).await;
        stand.leader.kill();
        // Seen while it is on its way out, however long that takes.
        stand.see(5).await;
        assert_eq!(stand.ledger.run_dir.outlived(), 1);
        assert_eq!(stand.verdict(2), Verdict::OomKilled);
    }

    #[tokio::test]
    async fn killed_by_plugin_is_not_oom() {
        let stand = Stand::new();
        stand.ledger.plugin_kills();
        assert_eq!(stand.verdict(1), Verdict::Exited);
    }

    #[tokio::test]
    async fn a_kill_that_only_the_shim_counted_is_oom() {
        assert_eq!(Stand::new().verdict(1), Verdict::OomKilled);
    }
}
