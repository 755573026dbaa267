//! What every task may do when `unveil_defaults` is on. `docs/security.md` has the same table for people; a test compares.

use super::unveil::Access;

/// A default unveil: granted if the path exists when the task starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Default {
    pub mode: Access,
    pub path: &'static str,
}

const R: Access = Access::READ;
const W: Access = Access::WRITE;
const RW: Access = Access::READ.union(Access::WRITE);
const RX: Access = Access::READ.union(Access::EXECUTE);

const fn d(mode: Access, path: &'static str) -> Default {
    Default { mode, path }
}

/// In the order of the table in `docs/security.md`.
pub const DEFAULTS: &[Default] = &[
    // Programs.
    d(RX, "/bin"),
    d(RX, "/usr/bin"),
    d(RX, "/usr/local/bin"),
    // Shared objects and what the dynamic linker reads.
    d(RX, "/lib"),
    d(RX, "/lib64"),
    d(RX, "/usr/lib"),
    d(RX, "/usr/lib64"),
    d(RX, "/usr/libexec"),
    d(RX, "/usr/local/lib"),
    d(RX, "/usr/local/lib64"),
    d(R, "/etc/ld.so.conf"),
    d(R, "/etc/ld.so.cache"),
    d(R, "/etc/ld.so.conf.d"),
    // NixOS: everything is in the store; setuid wrappers (/run/wrappers) are not part of it.
    d(RX, "/nix/store"),
    d(RX, "/run/current-system/sw"),
    // Devices.
    d(RW, "/dev/null"),
    d(RW, "/dev/full"),
    d(R, "/dev/zero"),
    d(R, "/dev/random"),
    d(R, "/dev/urandom"),
    d(W, "/dev/log"),
    // Locale, time, licences, names of types and alternatives.
    d(R, "/usr/share/locale"),
    d(R, "/usr/share/zoneinfo"),
    d(R, "/etc/localtime"),
    d(R, "/usr/share/common-licenses"),
    d(R, "/etc/alternatives"),
    d(R, "/etc/mime.types"),
    // Name resolution.
    d(R, "/etc/hosts"),
    d(R, "/etc/host.conf"),
    d(R, "/etc/hostname"),
    d(R, "/etc/nsswitch.conf"),
    d(R, "/etc/gai.conf"),
    d(R, "/etc/services"),
    d(R, "/etc/protocols"),
    d(R, "/etc/resolv.conf"),
    d(R, "/run/systemd/resolve"),
    // Certificates.
    d(R, "/etc/ssl/certs"),
    d(R, "/etc/ssl/ca-bundle.pem"),
    d(R, "/etc/ssl/cert.pem"),
    d(R, "/etc/pki/tls/certs"),
    d(R, "/etc/pki/tls/cacert.pem"),
    d(R, "/etc/pki/ca-trust/extracted"),
    d(R, "/usr/share/ca-certificates"),
    // The kernel's view of the task: /proc is the private one of its pid namespace.
    d(R, "/proc"),
    d(R, "/sys/devices/system/cpu"),
    // By this file the JVM tells that the cgroups are version 2; only then does it look at the task's own limits.
    d(R, "/sys/fs/cgroup/cgroup.controllers"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_is_listed_twice_and_all_are_absolute() {
        let mut paths: Vec<_> = DEFAULTS.iter().map(|default| default.path).collect();
        assert!(paths.iter().all(|path| path.starts_with('/') && !path.ends_with('/')));
        paths.sort_unstable();
        let count = paths.len();
        paths.dedup();
        assert_eq!(paths.len(), count);
    }

    #[test]
    fn nothing_is_granted_that_holds_secrets_or_can_be_changed() {
        for default in DEFAULTS {
            assert!(!default.mode.create(), "{}", default.path);
            assert!(!default.mode.write() || default.path.starts_with("/dev/"), "{}", default.path);
            for secret in
                ["/etc/passwd", "/etc/shadow", "/root", "/home", "/etc/ssl/private", "/run/wrappers"]
            {
                assert!(!secret.starts_with(&format!("{}/", default.path)), "{} in {}", secret, default.path);
                assert_ne!(secret, default.path);
            }
        }
    }

    /// The rows `| mode | path | why |` of docs/security.md between its two markers are this table.
    #[test]
    fn the_table_in_the_documentation_is_the_same() {
        let text = include_str!("../../docs/security.md");
        let (_, rest) = text.split_once("<!-- default unveils -->").expect("the first marker");
        let (table, _) = rest.split_once("<!-- end of default unveils -->").expect("the second marker");
        let documented: Vec<(String, String)> = table
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split(" | ");
                let mode = cells.next()?.trim_end_matches('`').to_owned();
                let path = cells.next()?.trim_matches('`').to_owned();
                assert!(cells.next().is_some_and(|why| why.len() > 10), "no reason: {line}");
                Some((mode, path))
            })
            .collect();
        let ours: Vec<_> = DEFAULTS.iter().map(|d| (d.mode.to_string(), d.path.to_owned())).collect();
        assert_eq!(documented, ours);
    }
}
