//! Task events, for Nomad's TaskEvents stream and the `run` verb.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::broadcast::{self, error::SendError};

use super::id::TaskId;
use super::owners::Foreign;
use super::signal::SignalNumber;
use crate::quote::shorten;
use crate::sandbox::network::Right;
use crate::sandbox::place::{NamedBy, Rule};
use crate::sandbox::plan::{Plan, Root};

/// Events that a slow listener may be behind before it loses the oldest; this limits their memory.
const BACKLOG: usize = 256;

/// Longest reason of a failed start, bytes. Nomad's servers keep it as an event of the allocation.
const REASON_MAX: usize = 2048;

/// Limits for the rules of a job in an event, in number and bytes: a job may have hundreds of thousands.
const RULES_SHOWN: usize = 16;
const RULES_BYTES: usize = 1024;

/// Something that happened to a task.
#[derive(Debug, Clone)]
pub(crate) struct TaskEvent {
    pub task: TaskId,
    pub at: SystemTime,
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Its program runs.
    Started { user: String, uid: u32, landlock_abi: u32, unveiled: Unveiled },
    /// It failed to start, for this reason.
    NotStarted(String),
    /// The OOM killer killed processes of the task. `limit` and `peak` in bytes.
    OomKill { kills: u64, limit: Option<u64>, peak: Option<u64> },
    /// It was killed because it still ran at the end of its grace period.
    Killed { signal: SignalNumber, grace: Duration },
    /// A volume that is shown as the task's has a file of another owner.
    ForeignFile(Foreign),
    /// Nomad destroyed it while it was running.
    Destroyed,
    /// The kill_signal of the job is not a signal.
    BadKillSignal(String),
    /// The kernel cannot deny what these lists of the network policy were to deny.
    PortsNotLimited(Vec<Right>),
    /// It has a network namespace, and no name server that can be reached from there.
    NoNameServer,
    /// It was recovered after a restart of the plugin.
    Recovered { running: bool },
}

impl Event {
    pub(crate) fn not_started(error: &impl std::fmt::Display) -> Self {
        Self::NotStarted(shorten(&error.to_string(), REASON_MAX))
    }
}

/// What a task sees, as far as the job submitter may know: the agent's `unveil_paths` are counted, not named.
#[derive(Debug, Clone)]
pub(crate) struct Unveiled {
    pub defaults: bool,
    pub agent: usize,
    /// The first rules of the job.
    job: Vec<String>,
    /// Rules of the job that are not in `job`.
    more: usize,
}

impl Unveiled {
    pub(crate) fn of(plan: &Plan) -> Self {
        let rules = &plan.landlock.rules;
        let named_by = |who| rules.iter().filter(move |rule| rule.named_by == who);
        let mut bytes = 0;
        let fits = |rule: &String| {
            bytes += rule.len();
            bytes <= RULES_BYTES
        };
        let job: Vec<String> =
            named_by(NamedBy::Job).map(Rule::to_string).take(RULES_SHOWN).take_while(fits).collect();
        Self {
            defaults: match plan.root {
                Root::Host => named_by(NamedBy::Driver).next().is_some(),
                Root::Private { defaults } => defaults,
            },
            agent: named_by(NamedBy::Agent).count(),
            more: named_by(NamedBy::Job).count() - job.len(),
            job,
        }
    }

    /// Rules of the job, shown or not.
    pub(crate) fn of_job(&self) -> usize {
        self.job.len() + self.more
    }
}

impl std::fmt::Display for Unveiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths = |number: usize| if number == 1 { "path" } else { "paths" };
        let mut parts = Vec::new();
        parts.extend(self.defaults.then(|| "the defaults".to_owned()));
        parts.extend((self.agent > 0).then(|| format!("{} {} of the agent", self.agent, paths(self.agent))));
        parts.extend(self.job.iter().cloned());
        parts.extend((self.more > 0).then(|| match self.job.len() {
            0 => format!("{} {} of the job", self.more, paths(self.more)),
            _ => format!("and {} more", self.more),
        }));
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Started { user, uid, landlock_abi, unveiled } => {
                write!(f, "Sandbox: user {user} ({uid}), Landlock ABI {landlock_abi}, unveiled: {unveiled}")
            }
            Self::NotStarted(why) => f.write_str(why),
            Self::OomKill { kills, limit, peak } => {
                let processes = if *kills == 1 { "a process" } else { "processes" };
                write!(f, "Out of memory: the kernel killed {processes} of the task (kills: {kills}")?;
                if let Some(limit) = limit {
                    write!(f, ", limit: {}", Mib(*limit))?;
                }
                if let Some(peak) = peak {
                    write!(f, ", peak: {}", Mib(*peak))?;
                }
                f.write_str(")")
            }
            Self::Killed { signal, grace } => {
                write!(f, "Killed: the task was still running {grace:?} after {signal}")
            }
            Self::ForeignFile(Foreign { path, owner, of_volume }) => write!(
                f,
                "Volume: {path:?} belongs to {owner} on the host, not to {of_volume} as the volume does, so the task can neither write nor remove it; \
                 give all of the volume to {of_volume} (chown -R), or write a user in the task"
            ),
            Self::Destroyed => f.write_str("Killed: Nomad destroyed the task while it was running"),
            Self::BadKillSignal(why) => write!(f, "kill_signal: {why}; stopping with SIGINT instead"),
            Self::PortsNotLimited(rights) => {
                let rights: Vec<_> = rights.iter().map(Right::to_string).collect();
                write!(f, "Network: this kernel cannot enforce {}; all ports are allowed", rights.join(", "))
            }
            Self::NoNameServer => f.write_str(
                "DNS: the task's network namespace cannot reach the host's name servers, which have loopback addresses, and the \
                 host has no list of others; name some in the job: network { dns { servers = [\"192.0.2.53\"] } }",
            ),
            Self::Recovered { running: true } => {
                f.write_str("Recovered: the driver was restarted, the task kept running")
            }
            Self::Recovered { running: false } => {
                f.write_str("Recovered: the task ended while the driver was restarted")
            }
        }
    }
}

/// Bytes in MiB.
struct Mib(u64);

impl std::fmt::Display for Mib {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}

/// One broadcast for all tasks; clones share it. Events without a listener are kept for the first one, because a new
/// plugin recovers its tasks before Nomad subscribes.
#[derive(Debug, Clone)]
pub struct EventBus {
    sender: broadcast::Sender<TaskEvent>,
    missed: Arc<Mutex<Missed>>,
}

/// Events without a listener: the newest, and how many older ones were dropped.
#[derive(Debug, Default)]
struct Missed {
    kept: VecDeque<TaskEvent>,
    lost: u64,
}

impl Default for EventBus {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG), missed: Arc::default() }
    }
}

impl EventBus {
    pub(crate) fn send(&self, task: &TaskId, event: Event) {
        tracing::info!(%task, "{event}");
        let event = TaskEvent { task: task.clone(), at: SystemTime::now(), event };
        // Locked meanwhile, so that a new listener gets either the event itself or what was missed.
        let mut missed = self.missed();
        if let Err(SendError(event)) = self.sender.send(event) {
            if missed.kept.len() == BACKLOG {
                missed.kept.pop_front();
                missed.lost += 1;
            }
            missed.kept.push_back(event);
        }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<TaskEvent> {
        let mut missed = self.missed();
        let receiver = self.sender.subscribe();
        let Missed { kept, lost } = std::mem::take(&mut *missed);
        if lost > 0 {
            tracing::warn!(lost, "the oldest task events were dropped, because nothing subscribed to them");
        }
        for event in kept {
            // There is at least the receiver created above.
            let _ = self.sender.send(event);
        }
        receiver
    }

    fn missed(&self) -> MutexGuard<'_, Missed> {
        self.missed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::place::{Missing, Place};
    use crate::sandbox::unveil::Unveil;

    fn unveiled(defaults: bool, agent: usize, job: &[&str]) -> Unveiled {
        let rule = |named_by, text: &str| {
            let Unveil { access, path } = text.parse().unwrap();
            Rule { access, place: Place::host(path), named_by, missing: Missing::Fail }
        };
        let by_driver = (0..usize::from(defaults) * 3).map(|_| rule(NamedBy::Driver, "r:/usr"));
        let by_agent = (0..agent).map(|_| rule(NamedBy::Agent, "r:/opt"));
        let by_job = job.iter().map(|text| rule(NamedBy::Job, text));
        let mut plan = Plan::default();
        plan.landlock.rules = by_driver.chain(by_agent).chain(by_job).collect();
        Unveiled::of(&plan)
    }

    #[test]
    fn sentences() {
        let started = |defaults, agent, job: &[&str]| {
            let unveiled = unveiled(defaults, agent, job);
            Event::Started { user: "nomad-80000".into(), uid: 80_000, landlock_abi: 6, unveiled }.to_string()
        };
        assert_eq!(
            started(true, 0, &["r:/srv"]),
            "Sandbox: user nomad-80000 (80000), Landlock ABI 6, unveiled: the defaults, r:/srv"
        );
        assert!(started(false, 0, &[]).ends_with("unveiled: nothing"));
        assert!(started(true, 2, &[]).ends_with("unveiled: the defaults, 2 paths of the agent"));
        assert!(
            started(false, 1, &["rw:/a", "r:/b"]).ends_with("unveiled: 1 path of the agent, rw:/a, r:/b")
        );
        let oom = Event::OomKill { kills: 1, limit: Some(50 << 20), peak: None };
        assert_eq!(
            oom.to_string(),
            "Out of memory: the kernel killed a process of the task (kills: 1, limit: 50.0 MiB)"
        );
    }

    #[test]
    fn a_long_list_of_rules_and_a_long_reason_are_cut() {
        let of = |count, length| unveiled(false, 0, &vec![&*format!("r:/{}", "x".repeat(length)); count]);
        let many = of(100_000, 1);
        assert_eq!(many.of_job(), 100_000);
        assert!(many.to_string().ends_with("r:/x, and 99984 more"), "{many}");
        assert!(of(10, 100).to_string().ends_with("and 1 more"), "{}", of(10, 100));
        assert_eq!(of(3, 4000).to_string(), "3 paths of the job");
        assert_eq!(of(1, 4000).to_string(), "1 path of the job");
        let Event::NotStarted(why) = Event::not_started(&"x".repeat(1 << 20)) else {
            panic!("another event")
        };
        assert!(why.len() < REASON_MAX + 100);
    }

    fn send(bus: &EventBus, task: &str) {
        bus.send(&TaskId::new(task, "", "").unwrap(), Event::Recovered { running: true });
    }

    #[tokio::test]
    async fn the_first_listener_gets_the_events_without_a_listener() {
        let bus = EventBus::default();
        for task in 0..BACKLOG + 3 {
            send(&bus, &task.to_string());
        }
        let (mut first, mut second) = (bus.subscribe(), bus.subscribe());
        for task in 3..BACKLOG + 3 {
            assert_eq!(first.recv().await.unwrap().task.as_str(), task.to_string());
        }
        send(&bus, "new");
        assert_eq!(first.recv().await.unwrap().task.as_str(), "new");
        assert_eq!(second.recv().await.unwrap().task.as_str(), "new");
    }

    #[tokio::test]
    async fn a_slow_listener_loses_the_oldest_and_learns_how_many() {
        let bus = EventBus::default();
        let mut slow = bus.subscribe();
        for number in 0..BACKLOG + 3 {
            send(&bus, &number.to_string());
        }
        assert!(matches!(slow.recv().await, Err(broadcast::error::RecvError::Lagged(3))));
        assert_eq!(slow.recv().await.unwrap().task.as_str(), "3");
    }
}
