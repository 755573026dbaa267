//! The network namespace of a task and its ports.

use std::path::PathBuf;

use super::{Ask, Denied, Host, Policy};
use crate::sandbox::network::{NetworkError, NetworkRules, Surroundings};

/// How Nomad isolates the network of an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    Host,
    /// A namespace that Nomad created for the allocation (bridge and CNI).
    Group,
    None,
    /// A namespace that the driver would have to create.
    Task,
}

/// The network namespace that Nomad created for the allocation; none = the host's.
///
/// A path is joined whatever the mode, and only a job with the host's network may have none: a request that is not understood
/// must not end in the host's network.
pub(crate) fn network(mode: NetworkMode, path: &str) -> Result<Option<PathBuf>, Denied> {
    match (mode, path) {
        (NetworkMode::Host, "") => Ok(None),
        // Nomad asks only drivers that create networks for this.
        (NetworkMode::Task, "") => Err(Denied::NetworkOfTask),
        (_, "") => Err(Denied::NoNetworkPath),
        (_, path) if !path.starts_with('/') => Err(Denied::RelativeNetworkPath(path.to_owned())),
        (_, path) => Ok(Some(path.into())),
    }
}

impl Policy<'_> {
    pub(super) fn network(&self, ask: &Ask<'_>, host: &Host<'_>) -> Result<NetworkRules, NetworkError> {
        let surroundings = Surroundings {
            ports: host.ports,
            landlock_abi: host.landlock_abi,
            unsupported: self.network_unsupported,
        };
        surroundings.judge(self.network, ask.network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_mode_without_a_path_is_the_hosts_network() {
        use NetworkMode::{Group, Host, None as NoNetwork, Task};
        assert_eq!(network(Host, ""), Ok(None));
        for (mode, denied) in [
            (Group, Denied::NoNetworkPath),
            (NoNetwork, Denied::NoNetworkPath),
            (Task, Denied::NetworkOfTask),
        ] {
            assert_eq!(network(mode, ""), Err(denied), "{mode:?} without a path");
        }
        for mode in [Host, Group, NoNetwork, Task] {
            let path = "/var/run/netns/a";
            assert_eq!(network(mode, path), Ok(Some(path.into())), "{mode:?}");
            assert_eq!(
                network(mode, "netns/a"),
                Err(Denied::RelativeNetworkPath("netns/a".into())),
                "{mode:?}"
            );
        }
    }
}
