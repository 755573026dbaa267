//! Any DNS settings of a job, on any files of a host.

use std::net::IpAddr;

use super::{Dns, Hosts, Reachable, for_namespace};
use crate::fuzzing::texts;

/// The host's resolv.conf and one behind it; the job's servers, search domains and options; its name and address; the host's hosts.
pub fn names(input: &str) {
    let [host, upstream, servers, searches, options, hostname, address, hosts] = texts(input, '\0');
    let (reachable, text) = for_namespace(host, &[("/up", upstream.to_owned())]);
    match reachable {
        Reachable::Listed | Reachable::None => assert_eq!(text, host),
        Reachable::Others => {
            only_settings(
                text.strip_prefix('#').and_then(|text| text.split_once('\n')).expect("a comment").1,
            );
            let servers: Vec<_> = values(&text, "nameserver").collect();
            assert!(!servers.is_empty() && servers.iter().all(|server| is_elsewhere(server)), "{text:?}");
        }
    }
    let list = |text: &str| -> Vec<String> {
        text.split('\u{1}').filter(|text| !text.is_empty()).map(Into::into).collect()
    };
    let [servers, searches, options] = [servers, searches, options].map(list);
    if let Ok(Some(dns)) = Dns::new(&servers, &searches, &options) {
        let text = dns.resolv_conf(host);
        only_settings(&text);
        for (key, asked) in [("nameserver", &servers), ("search", &searches), ("options", &options)] {
            let found: Vec<_> = values(&text, key).flat_map(|value| value.split(' ')).collect();
            assert!(asked.is_empty() || found == *asked, "{text:?}");
        }
    }
    if let Ok(Some(own)) = Hosts::new(hostname, address) {
        let line = own.address.map_or(String::new(), |address| format!("{address}\t{hostname}\n"));
        assert_eq!(own.file(Some(hosts)), line + hosts);
    }
}

/// Nothing in a value can begin another line.
fn only_settings(text: &str) {
    for line in text.lines() {
        assert!(["nameserver ", "search ", "options "].iter().any(|key| line.starts_with(key)), "{text:?}");
    }
}

fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix(' '))
}

/// Whether a server is on another machine than the host.
fn is_elsewhere(server: &str) -> bool {
    let address: IpAddr = server.split('%').next().unwrap_or_default().parse().expect("an address");
    !address.to_canonical().is_loopback() && !address.to_canonical().is_unspecified()
}
