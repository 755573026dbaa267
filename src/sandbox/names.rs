//! How a task resolves names: the contents of its /etc/resolv.conf and /etc/hosts, as text.

use std::net::{IpAddr, Ipv6Addr};

use crate::quote::quote;

/// The files of /etc that a task may have of its own, instead of the host's.
pub(crate) const NAMES: [&str; 3] = [RESOLV_CONF, HOSTS, HOSTNAME];
pub(crate) const RESOLV_CONF: &str = "resolv.conf";
pub(crate) const HOSTS: &str = "hosts";
pub(crate) const HOSTNAME: &str = "hostname";

/// The directory in the roots' /etc that has the host's [`NAMES`].
pub(crate) const OF_HOST: &str = ".host";
/// Beside them, the resolv.conf for a task with a network namespace, see [`for_namespace`].
pub(crate) const NAMESPACE_RESOLV_CONF: &str = "resolv.conf.netns";

/// Where the programs that answer on a loopback address keep the servers that they ask, in resolv.conf(5) form: systemd-resolved,
/// NetworkManager with dnsmasq, and dnsmasq with resolvconf or openresolv.
pub(crate) const UPSTREAM: [&str; 4] = [
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
    "/run/dnsmasq/resolv.conf",
    "/etc/dnsmasq-resolv.conf",
];

/// The longest host name, of `__NEW_UTS_LEN` in uts.h.
const HOSTNAME_MAX: usize = 64;

/// Says that answers are authenticated, resolv.conf(5): true of the host's own stub at most.
const TRUST_AD: &str = "trust-ad";

/// What Nomad sends for a task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// None: as the host.
    pub(crate) dns: Option<Dns>,
    pub(crate) hosts: Option<Hosts>,
    /// Whether the task has a network namespace from which other hosts can be reached.
    pub(crate) reaches_others: bool,
}

/// `network { dns { … } }`: at least one list has something. What a list does not say is as on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dns {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

/// The name of an allocation, and its address in its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hosts {
    pub hostname: String,
    pub address: Option<IpAddr>,
}

impl Dns {
    /// None if nothing is set.
    pub(crate) fn new(
        servers: &[String],
        searches: &[String],
        options: &[String],
    ) -> Result<Option<Self>, String> {
        if let Some(server) = servers.iter().find(|server| address(server).is_none()) {
            return Err(format!("DNS server {}, which is not an IP address", quote(server)));
        }
        for (what, values) in [("search domain", searches), ("option", options)] {
            let one_word = |value: &&String| {
                !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c.is_control())
            };
            if let Some(value) = values.iter().find(|value| !one_word(value)) {
                return Err(format!("DNS {what} {}, which is not one word", quote(value)));
            }
        }
        let dns = Self { servers: servers.into(), searches: searches.into(), options: options.into() };
        Ok([servers, searches, options].iter().any(|list| !list.is_empty()).then_some(dns))
    }

    /// Whether the host's file is needed for [`Self::resolv_conf`].
    pub(crate) fn is_partial(&self) -> bool {
        [&self.servers, &self.searches, &self.options].iter().any(|list| list.is_empty())
    }

    /// The file, which completes what was asked for by `host`, the file of the host.
    pub(crate) fn resolv_conf(&self, host: &str) -> String {
        let mut file = ResolvConf::parse(host);
        if !self.servers.is_empty() {
            file.servers.clone_from(&self.servers);
            file.options.retain(|option| option != TRUST_AD);
        }
        if !self.searches.is_empty() {
            file.searches.clone_from(&self.searches);
        }
        if !self.options.is_empty() {
            file.options.clone_from(&self.options);
        }
        file.text()
    }
}

impl Hosts {
    /// None without a name. An address is there only if the network has one.
    pub(crate) fn new(hostname: &str, address: &str) -> Result<Option<Self>, String> {
        if hostname.is_empty() {
            return Ok(None);
        }
        let usable = |c: char| c.is_ascii_alphanumeric() || ['-', '.', '_'].contains(&c);
        if hostname.len() > HOSTNAME_MAX || !hostname.chars().all(usable) {
            return Err(format!(
                "host name {}, which is none of at most {HOSTNAME_MAX} characters",
                quote(hostname)
            ));
        }
        let address = match address {
            "" => None,
            text => Some(text.parse().map_err(|_| {
                format!(
                    "address {} of the host name {}, which is not an IP address",
                    quote(text),
                    quote(hostname)
                )
            })?),
        };
        Ok(Some(Self { hostname: hostname.to_owned(), address }))
    }

    /// The file: the allocation's line before those of the host, because the first one with a name counts.
    pub(crate) fn file(&self, host: Option<&str>) -> String {
        let own = self.address.map(|address| format!("{address}\t{}\n", self.hostname)).unwrap_or_default();
        own + host.unwrap_or("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
    }
}

/// What a network namespace can reach of the host's name servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) enum Reachable {
    /// All that are in the host's file.
    #[default]
    Listed,
    /// Not those on loopback addresses, but others are known.
    Others,
    None,
}

/// The host's resolv.conf for a network namespace, in which the host's loopback addresses are not the host's: with the servers
/// from one of `upstream`, path and content, if it lists no others.
pub(crate) fn for_namespace(host: &str, upstream: &[(&str, String)]) -> (Reachable, String) {
    let mut file = ResolvConf::parse(host);
    let listed = file.servers.len();
    file.servers.retain(|server| !is_loopback(server));
    if listed > 0 && file.servers.len() == listed {
        return (Reachable::Listed, host.to_owned());
    }
    file.options.retain(|option| option != TRUST_AD);
    if !file.servers.is_empty() {
        let comment = "# Without the host's loopback addresses, which this network namespace cannot reach.\n";
        return (Reachable::Others, comment.to_owned() + &file.text());
    }
    for (path, content) in upstream {
        let mut other = ResolvConf::parse(content);
        other.servers.retain(|server| !is_loopback(server));
        if other.servers.is_empty() {
            continue;
        }
        file.servers = other.servers;
        if file.searches.is_empty() {
            file.searches = other.searches;
        }
        let comment =
            format!("# From {path}: this network namespace cannot reach the host's loopback addresses.\n");
        return (Reachable::Others, comment + &file.text());
    }
    (Reachable::None, host.to_owned())
}

/// What counts in a resolv.conf(5).
#[derive(Debug, Default)]
struct ResolvConf {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl ResolvConf {
    fn parse(text: &str) -> Self {
        let mut file = Self::default();
        for line in text.lines() {
            // A comment begins a line.
            let mut words = line.split_whitespace();
            let key = words.next();
            let mut values = words.map(str::to_owned);
            match key {
                Some("nameserver") => file.servers.extend(values.next()),
                // The last one counts.
                Some("search") => file.searches = values.collect(),
                Some("domain") => file.searches = values.next().into_iter().collect(),
                Some("options") => file.options.extend(values),
                _ => {}
            }
        }
        file
    }

    fn text(&self) -> String {
        let mut text: String = self.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        for (key, values) in [("search", &self.searches), ("options", &self.options)] {
            if !values.is_empty() {
                text += &format!("{key} {}\n", values.join(" "));
            }
        }
        text
    }
}

/// An address, which may have a zone: resolv.conf(5).
fn address(server: &str) -> Option<IpAddr> {
    match server.split_once('%') {
        Some((address, zone)) => {
            let address: Ipv6Addr = address.parse().ok()?;
            (!zone.is_empty() && zone.chars().all(|c| c.is_ascii_graphic())).then_some(address.into())
        }
        None => server.parse().ok(),
    }
}

/// Whether a server is on the host itself: also by the address that means all of its own.
fn is_loopback(server: &str) -> bool {
    // One that the resolver cannot read is none.
    address(server).is_none_or(|address| {
        let address = address.to_canonical();
        address.is_loopback() || address.is_unspecified()
    })
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    const STUB: &str = "# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch corp.example\n";

    fn list(values: &[&str]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> Dns {
        Dns::new(&list(servers), &list(searches), &list(options)).unwrap().unwrap()
    }

    #[test]
    fn each_list_stands_alone_and_the_host_has_the_others() {
        let host = "nameserver 192.0.2.1\nnameserver 192.0.2.2\ndomain old\nsearch a b\noptions rotate\noptions ndots:2\n";
        for (dns, expected) in [
            (dns(&["2001:db8::1"], &[], &[]), "nameserver 2001:db8::1\nsearch a b\noptions rotate ndots:2\n"),
            (
                dns(&[], &["c"], &[]),
                "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch c\noptions rotate ndots:2\n",
            ),
            (
                dns(&[], &[], &["timeout:1"]),
                "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch a b\noptions timeout:1\n",
            ),
        ] {
            assert!(dns.is_partial());
            assert_eq!(dns.resolv_conf(host), expected);
        }
        let whole = dns(&["192.0.2.9"], &["c"], &["rotate"]);
        assert!(!whole.is_partial());
        assert_eq!(whole.resolv_conf(""), "nameserver 192.0.2.9\nsearch c\noptions rotate\n");
        assert_eq!(Dns::new(&[], &[], &[]), Ok(None));
    }

    #[test]
    fn another_server_is_not_trusted_with_authenticated_answers() {
        assert!(!dns(&["192.0.2.9"], &[], &[]).resolv_conf(STUB).contains(TRUST_AD));
        assert!(dns(&[], &["c"], &[]).resolv_conf(STUB).contains(TRUST_AD), "the host's own");
        assert!(dns(&["192.0.2.9"], &[], &[TRUST_AD]).resolv_conf("").contains(TRUST_AD), "asked for");
    }

    #[test]
    fn nothing_can_add_a_line() {
        for server in
            ["", "dns.example", "192.0.2.1\nnameserver 192.0.2.2", "192.0.2.1:53", "fe80::1%", "fe80::1%a b"]
        {
            let error = Dns::new(&list(&[server]), &[], &[]).unwrap_err();
            assert!(error.ends_with("which is not an IP address"), "{error}");
        }
        assert!(Dns::new(&list(&["fe80::1%eth0"]), &[], &[]).is_ok());
        for word in ["", "a b", "a\nnameserver 192.0.2.2", "a\0"] {
            assert!(Dns::new(&[], &list(&[word]), &[]).is_err());
            assert!(Dns::new(&[], &[], &list(&[word])).is_err());
        }
        for name in ["a b", "a\n", "ä", &"a".repeat(65)] {
            assert!(Hosts::new(name, "").is_err());
        }
        assert!(Hosts::new("web", "192.0.2.1\n").is_err());
    }

    #[test]
    fn servers_that_can_be_reached_stay_as_they_are() {
        let host = "# mine\nnameserver 192.0.2.1\noptions trust-ad\n";
        let upstream = [("/up", "nameserver 192.0.2.7\n".to_owned())];
        assert_eq!(for_namespace(host, &upstream), (Reachable::Listed, host.to_owned()));
    }

    #[test]
    fn loopback_stubs_are_replaced() {
        let upstream = [
            ("/empty", "nameserver ::1\n".to_owned()),
            ("/up", "nameserver 192.0.2.7\nnameserver 127.0.0.1\nsearch up.example\n".to_owned()),
        ];
        let (found, text) = for_namespace(STUB, &upstream);
        assert_eq!(found, Reachable::Others);
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines, ["nameserver 192.0.2.7", "search corp.example", "options edns0"]);
        assert!(text.contains("/up"), "{text}");
        for stub in ["127.0.0.1", "127.0.0.53", "127.1.2.3", "::1", "0.0.0.0", "::", "::ffff:127.0.0.53"] {
            let (found, text) = for_namespace(&format!("nameserver {stub}"), &upstream);
            assert_eq!(found, Reachable::Others, "{stub}");
            assert!(text.contains("192.0.2.7") && text.contains("search up.example"), "{text}");
        }
    }

    #[test]
    fn a_stub_beside_others_is_left_out() {
        let (found, text) = for_namespace("nameserver 127.0.0.1\nnameserver 192.0.2.1\n", &[]);
        assert_eq!(found, Reachable::Others);
        assert!(text.ends_with("\nnameserver 192.0.2.1\n"), "{text}");
    }

    #[test]
    fn without_another_server_the_hosts_file_stays() {
        for host in ["", "search a\n", STUB] {
            let upstream = [("/up", String::new())];
            assert_eq!(for_namespace(host, &upstream), (Reachable::None, host.to_owned()));
        }
    }

    #[test]
    fn the_allocations_line_is_the_first() {
        let hosts = Hosts::new("web-1", "192.0.2.1").unwrap().unwrap();
        assert_eq!(hosts.file(Some("192.0.2.2 db\n")), "192.0.2.1\tweb-1\n192.0.2.2 db\n");
        assert!(hosts.file(None).contains("\n127.0.0.1\tlocalhost\n"));
        assert_eq!(Hosts::new("web-1", "").unwrap().unwrap().file(Some("x\n")), "x\n");
        assert_eq!(Hosts::new("", "192.0.2.1"), Ok(None));
    }
}
