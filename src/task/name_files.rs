//! The files that say how a task resolves names, where they are its own and not the host's.

use std::path::Path;

use crate::sandbox::names::{HOSTNAME, HOSTS, Names, RESOLV_CONF, UPSTREAM, for_namespace};
use crate::sys::read;

/// Name and content of each. What Nomad does not say is as the host has it now.
pub(crate) fn name_files(names: &Names, in_namespace: bool) -> Vec<(String, String)> {
    let mut files = Vec::new();
    if let Some(dns) = &names.dns {
        let host = if dns.is_partial() { resolv_conf(in_namespace) } else { String::new() };
        files.push((RESOLV_CONF.to_owned(), dns.resolv_conf(&host)));
    }
    if let Some(hosts) = &names.hosts {
        let host = read::text(Path::new("/etc/hosts"));
        let host = (!host.is_empty()).then_some(host.as_str());
        files.push((HOSTS.to_owned(), hosts.file(host)));
        files.push((HOSTNAME.to_owned(), format!("{}\n", hosts.hostname)));
    }
    files
}

/// The host's, as the task can use it.
fn resolv_conf(in_namespace: bool) -> String {
    let host = read::text(Path::new("/etc/resolv.conf"));
    match in_namespace {
        true => for_namespace(&host, &UPSTREAM.map(|path| (path, read::text(Path::new(path))))).1,
        false => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::names::{Dns, Hosts};

    #[test]
    fn only_what_nomad_sends_is_the_tasks_own() {
        assert_eq!(name_files(&Names::default(), true), []);
        let dns = Dns::new(&["192.0.2.53".into()], &["a".into()], &["rotate".into()]).unwrap();
        let hosts = Hosts::new("web-1", "192.0.2.1").unwrap();
        let names =
            |files: Vec<(String, String)>| files.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let only_dns = name_files(&Names { dns: dns.clone(), ..Names::default() }, true);
        assert_eq!(only_dns[0].1, "nameserver 192.0.2.53\nsearch a\noptions rotate\n");
        assert_eq!(names(only_dns), ["resolv.conf"]);
        let only_hosts = name_files(&Names { hosts: hosts.clone(), ..Names::default() }, true);
        assert!(only_hosts[0].1.starts_with("192.0.2.1\tweb-1\n"), "{only_hosts:?}");
        assert_eq!(names(only_hosts), ["hosts", "hostname"]);
        assert_eq!(
            names(name_files(&Names { dns, hosts, reaches_others: true }, false)),
            ["resolv.conf", "hosts", "hostname"]
        );
    }
}
