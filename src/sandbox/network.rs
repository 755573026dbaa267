//! Which ports a task may bind and connect to: `network_policy`, from its lists to numbers. Landlock enforces them, landlock(7).

use std::fmt;

use landlock::AccessNet;
use serde::{Deserialize, Serialize};

use super::landlock::kernel_of;
use crate::quote::quote;

/// Ports of one list. Each costs a start a rule, about 1 µs, and the kernel some memory.
const PORTS_MAX: usize = 4096;

/// Stands for all ports that Nomad gave the allocation. No label has an `@`.
const ALLOCATED: &str = "@allocated";

/// What a list limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    Bind,
    Connect,
    BindUdp,
    ConnectUdp,
}

impl Right {
    /// In the order of [`Lists`].
    pub(crate) const ALL: [Self; 4] = [Self::Bind, Self::Connect, Self::BindUdp, Self::ConnectUdp];

    /// The list in `network_policy`.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Connect => "connect",
            Self::BindUdp => "bind_udp",
            Self::ConnectUdp => "connect_udp",
        }
    }

    pub(crate) fn access(self) -> AccessNet {
        match self {
            Self::Bind => AccessNet::BindTcp,
            Self::Connect => AccessNet::ConnectTcp,
            Self::BindUdp => AccessNet::BindUdp,
            Self::ConnectUdp => AccessNet::ConnectSendUdp,
        }
    }

    /// The first Landlock ABI with the right.
    fn abi(self) -> u32 {
        match self {
            Self::Bind | Self::Connect => 4,
            Self::BindUdp | Self::ConnectUdp => 10,
        }
    }

    fn is_connect(self) -> bool {
        matches!(self, Self::Connect | Self::ConnectUdp)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "network_policy.{}", self.option())
    }
}

/// One element of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortName {
    /// From the first to the last.
    Range(u16, u16),
    /// Of a port in the job's `network` block.
    Label(String),
    /// All of those.
    Allocated,
}

impl std::str::FromStr for PortName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == ALLOCATED {
            return Ok(Self::Allocated);
        }
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        {
            return Err("it is neither a port nor a label");
        }
        if !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
            return Ok(Self::Label(text.to_owned()));
        }
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        match (low.parse(), high.parse()) {
            (Ok(low), Ok(high)) if low <= high => Ok(Self::Range(low, high)),
            (Ok(_), Ok(_)) => Err("its first port is above its last"),
            _ => Err("it is not a port from 0 to 65535"),
        }
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range(low, high) if low == high => write!(f, "{low}"),
            Self::Range(low, high) => write!(f, "{low}-{high}"),
            Self::Label(label) => f.write_str(label),
            Self::Allocated => f.write_str(ALLOCATED),
        }
    }
}

/// The lists of a policy, by [`Right`]. None: no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lists<'a>(pub [Option<&'a [PortName]>; 4]);

impl Lists<'_> {
    fn is_empty(self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}

/// A port that Nomad gave the allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllocatedPort {
    pub label: String,
    /// In the task's network.
    pub inside: u16,
    /// On the host.
    pub host: u16,
}

impl AllocatedPort {
    /// What a task that uses the port has to be allowed. It may reach another task of its group by either address.
    fn ports(&self, right: Right) -> impl Iterator<Item = (u16, u16)> + use<> {
        let host = right.is_connect().then_some(self.host);
        [Some(self.inside), host].into_iter().flatten().map(|port| (port, port))
    }
}

/// Ports as ranges, in order, with a gap between any two.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ports(Vec<(u16, u16)>);

impl FromIterator<(u16, u16)> for Ports {
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for (low, high) in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(low) <= u32::from(last.1) + 1 => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }
}

impl Ports {
    fn difference(&self, other: &Self) -> Self {
        let mut rest = self.0.clone();
        for &(low, high) in &other.0 {
            let outside = |(from, to): (u16, u16)| {
                let below = (from < low).then(|| (from, to.min(low - 1)));
                let above = (to > high).then(|| (from.max(high + 1), to));
                [below, above].into_iter().flatten()
            };
            rest = rest.into_iter().flat_map(outside).collect();
        }
        Self(rest)
    }

    fn with(&self, port: u16) -> Self {
        self.0.iter().copied().chain([(port, port)]).collect()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn count(&self) -> usize {
        self.0.iter().map(|&(low, high)| usize::from(high - low) + 1).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().flat_map(|&(low, high)| low..=high)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> =
            self.0.iter().map(|&(low, high)| PortName::Range(low, high).to_string()).collect();
        f.write_str(if ranges.is_empty() { "none" } else { "" })?;
        f.write_str(&ranges.join(", "))
    }
}

/// What a task may bind and connect to, in its plan.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkRules {
    /// By [`Right`]; none: no limit.
    limits: [Option<Ports>; 4],
    /// What the task was to be denied, and this kernel cannot deny.
    pub(crate) ignored: Vec<Right>,
}

impl NetworkRules {
    /// The rights that are denied for all other ports.
    pub(crate) fn limits(&self) -> impl Iterator<Item = (Right, &Ports)> {
        let limits = Right::ALL.into_iter().zip(&self.limits);
        limits.filter_map(|(right, ports)| Some((right, ports.as_ref()?)))
    }

    /// Whether ports of TCP are limited. If so, the task must not use a variant of TCP for which there is no right.
    pub(crate) fn limits_tcp(&self) -> bool {
        self.limits().any(|(right, _)| matches!(right, Right::Bind | Right::Connect))
    }
}

/// To which abstract unix sockets a task in the host's network namespace may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AbstractSockets {
    /// To those that its own processes have made.
    #[default]
    Own,
    /// To all of the host's.
    Host,
}

/// What to do about a limit that the kernel does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unsupported {
    /// The task does not start.
    #[default]
    Error,
    /// The task starts without it, and an event says so.
    Ignore,
}

/// What a network policy depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub ports: &'a [AllocatedPort],
    pub landlock_abi: fn() -> u32,
    pub unsupported: Unsupported,
}

/// Why a task may not have the network policy of its job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("{right} has {}, which is not the label of a port of the allocation (those are: {known}); write one of them, or a port", quote(.label))]
    Label { right: Right, label: String, known: String },
    #[error(
        "{right} has {refused}, and the agent's plugin option network_policy allows {allowed}; remove them from the task, or add them in the agent's plugin \
         \"nomad-driver-exec2\" block"
    )]
    Outside { right: Right, refused: Ports, allowed: Ports },
    #[error("{right} has {count} ports; write {PORTS_MAX} at most, or all (0-65535)")]
    TooMany { right: Right, count: usize },
    #[error(
        "{right} cannot be enforced here: it needs Landlock ABI {needed} (Linux {}), and this kernel has ABI {abi}; boot a newer kernel, remove the list, or set \
         unsupported = \"ignore\" in network_policy of the agent's plugin \"nomad-driver-exec2\" block",
        kernel_of(*needed)
    )]
    Unsupported { right: Right, needed: u32, abi: u32 },
}

impl Surroundings<'_> {
    /// What the agent and the job want, as numbers. A job may narrow what the agent allows.
    pub(crate) fn judge(self, agent: Lists<'_>, job: Lists<'_>) -> Result<NetworkRules, NetworkError> {
        let mut rules = NetworkRules::default();
        if agent.is_empty() && job.is_empty() {
            return Ok(rules);
        }
        let abi = (self.landlock_abi)();
        for (number, right) in Right::ALL.into_iter().enumerate() {
            let Some(ports) = self.allowed(right, agent.0[number], job.0[number])? else { continue };
            let needed = right.abi();
            match self.unsupported {
                _ if abi >= needed => rules.limits[number] = Some(ports),
                Unsupported::Ignore => rules.ignored.push(right),
                Unsupported::Error => return Err(NetworkError::Unsupported { right, needed, abi }),
            }
        }
        // What sends, or connects, has a port of its own first; the kernel chooses one, as bind(2) to port 0 does.
        let [_, _, bind, connect] = &mut rules.limits;
        if let Some(bind) = bind.as_mut().filter(|_| connect.as_ref().is_none_or(|ports| !ports.is_empty())) {
            *bind = bind.with(0);
        }
        Ok(rules)
    }

    /// The ports of one right; none: all.
    fn allowed(
        self,
        right: Right,
        agent: Option<&[PortName]>,
        job: Option<&[PortName]>,
    ) -> Result<Option<Ports>, NetworkError> {
        let agent = agent.map(|names| self.resolve(right, names)).transpose()?;
        let job = job.map(|names| self.resolve(right, names)).transpose()?;
        if let (Some(allowed), Some(asked)) = (&agent, &job) {
            let refused = asked.difference(allowed);
            if !refused.is_empty() {
                return Err(NetworkError::Outside { right, refused, allowed: allowed.clone() });
            }
        }
        let Some(ports) = job.or(agent) else { return Ok(None) };
        // Nothing listens on port 0.
        let lowest = u16::from(right.is_connect());
        if Ports(vec![(lowest, u16::MAX)]).difference(&ports).is_empty() {
            return Ok(None);
        }
        match ports.count() {
            count if count > PORTS_MAX => Err(NetworkError::TooMany { right, count }),
            _ => Ok(Some(ports)),
        }
    }

    fn resolve(self, right: Right, names: &[PortName]) -> Result<Ports, NetworkError> {
        let mut ranges = Vec::new();
        for name in names {
            match name {
                PortName::Range(low, high) => ranges.push((*low, *high)),
                PortName::Allocated => ranges.extend(self.ports.iter().flat_map(|port| port.ports(right))),
                PortName::Label(label) => {
                    let port = self.ports.iter().find(|port| port.label == *label);
                    let port = port.ok_or_else(|| self.unknown(right, label))?;
                    ranges.extend(port.ports(right));
                }
            }
        }
        Ok(ranges.into_iter().collect())
    }

    fn unknown(self, right: Right, label: &str) -> NetworkError {
        let labels: Vec<_> = self.ports.iter().map(|port| port.label.as_str()).collect();
        let known = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
        NetworkError::Label { right, label: label.to_owned(), known }
    }
}

#[cfg(test)]
mod tests;
