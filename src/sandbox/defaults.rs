//! The paths that every task gets with `unveil_defaults`. A test compares them with the table in `docs/security.md`.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::unveil::Access;

/// Limit for the paths of one pattern. A host has a few versions of PHP or Java, and each rule costs every task start some
/// microseconds.
const MATCHES_MAX: usize = 32;

/// A default unveil: granted if the path exists when the task starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Default {
    pub mode: Access,
    /// An absolute path. One of its names may have one `*`, which stands for any characters but `/`: distributions put
    /// versions into names.
    pub path: &'static str,
}

impl Default {
    /// The paths on this host: those that match a pattern, or the path as it is, whether it exists or not.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        matches(Path::new("/"), self.path)
    }
}

/// The paths below `root` that match `pattern`; of too many, the last ones by name, usually the newest versions.
fn matches(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = pattern.trim_start_matches('/');
    let Some((before, after)) = pattern.split_once('*') else { return vec![root.join(pattern)] };
    let (directory, prefix) = before.rsplit_once('/').unwrap_or(("", before));
    let (suffix, rest) = after.split_once('/').unwrap_or((after, ""));
    let directory = root.join(directory);
    let matching = |name: &OsStr| {
        name.len() >= prefix.len() + suffix.len()
            && name.as_encoded_bytes().starts_with(prefix.as_bytes())
            && name.as_encoded_bytes().ends_with(suffix.as_bytes())
    };
    let mut names: Vec<_> = match std::fs::read_dir(&directory) {
        Ok(entries) => {
            entries.flatten().map(|entry| entry.file_name()).filter(|name| matching(name)).collect()
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Vec::new(),
        Err(error) => {
            tracing::warn!("failed to list {directory:?}, so its default paths are not unveiled: {error}");
            Vec::new()
        }
    };
    names.sort_unstable();
    names.drain(..names.len().saturating_sub(MATCHES_MAX));
    let below = Path::new(rest).components();
    names.iter().map(|name| directory.join(name).components().chain(below.clone()).collect()).collect()
}

const R: Access = Access::READ;
const W: Access = Access::WRITE;
const RW: Access = Access::READ.union(Access::WRITE);
const RX: Access = Access::READ.union(Access::EXECUTE);

const fn d(mode: Access, path: &'static str) -> Default {
    Default { mode, path }
}

/// In the order of the table in `docs/security.md`, which has the reason for each, and for what is left out.
pub(crate) const DEFAULTS: &[Default] = &[
    // Programs.
    d(RX, "/bin"),
    d(RX, "/sbin"),
    d(RX, "/usr/bin"),
    d(RX, "/usr/sbin"),
    d(RX, "/usr/games"),
    d(RX, "/usr/local/bin"),
    d(RX, "/usr/local/sbin"),
    // Shared objects and what the dynamic linker reads.
    d(RX, "/lib"),
    d(RX, "/lib64"),
    d(RX, "/usr/lib"),
    d(RX, "/usr/lib32"),
    d(RX, "/usr/lib64"),
    d(RX, "/usr/libexec"),
    d(RX, "/usr/local/lib"),
    d(RX, "/usr/local/lib64"),
    d(RX, "/usr/local/libexec"),
    d(R, "/etc/ld.so.conf"),
    d(R, "/etc/ld.so.cache"),
    d(R, "/etc/ld.so.conf.d"),
    // Machine-independent files of programs. Not all of /usr: /usr/local/etc and /usr/src may have secrets.
    d(RX, "/usr/share"),
    d(RX, "/usr/local/share"),
    d(R, "/usr/include"),
    d(R, "/usr/local/include"),
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
    // Time, names of types, alternatives and the distribution.
    d(R, "/etc/localtime"),
    d(R, "/etc/timezone"),
    d(R, "/etc/alternatives"),
    d(R, "/etc/mime.types"),
    d(R, "/etc/magic"),
    d(R, "/etc/*-release"),
    d(R, "/etc/debian_version"),
    // Configuration without which programs of the distribution fail or lose features.
    d(R, "/etc/gitconfig"),
    d(R, "/etc/java"),
    d(R, "/etc/java-*openjdk"),
    d(R, "/etc/perl"),
    d(R, "/etc/php.ini"),
    d(R, "/etc/php.d"),
    d(R, "/etc/php*/php.ini"),
    d(R, "/etc/php*/conf.d"),
    d(R, "/etc/php*/cli"),
    d(R, "/etc/php/*/cli"),
    d(R, "/etc/php/*/mods-available"),
    d(R, "/etc/python3*"),
    d(R, "/etc/fonts"),
    d(R, "/var/cache/fontconfig"),
    d(R, "/etc/manpath.config"),
    d(R, "/etc/man_db.conf"),
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
    d(R, "/run/resolvconf"),
    d(R, "/run/netconfig"),
    // Certificates, and how OpenSSL and others use them.
    d(R, "/etc/ssl/certs"),
    d(R, "/etc/ssl/ca-bundle.pem"),
    d(R, "/etc/ssl/cert.pem"),
    d(R, "/etc/pki/tls/certs"),
    d(R, "/etc/pki/tls/cacert.pem"),
    d(R, "/etc/pki/ca-trust/extracted"),
    d(R, "/etc/ca-certificates/extracted"),
    d(R, "/var/lib/ca-certificates"),
    d(R, "/etc/ssl/openssl.cnf"),
    d(R, "/etc/ssl/engines*.d"),
    d(R, "/etc/ssl/engdef*.d"),
    d(R, "/etc/pki/tls/openssl.cnf"),
    d(R, "/etc/pki/tls/openssl.d"),
    d(R, "/etc/crypto-policies"),
    // The kernel's view of the task: /proc is the private one of its pid namespace.
    d(R, "/proc"),
    d(R, "/sys/devices/system/cpu"),
    // The JVM detects cgroup v2 by this file; only then does it read the task's own limits.
    d(R, "/sys/fs/cgroup/cgroup.controllers"),
];

/// Sockets, and directories of sockets, by which programs look up names and write to the journal. A task that sees one may connect to it: with
/// the host's root, or if it is unveiled for reading.
pub(crate) const SOCKETS: &[&str] = &[
    "/run/systemd/resolve",
    "/run/systemd/userdb",
    "/run/nscd",
    "/var/lib/sss/pipes",
    "/run/systemd/journal/socket",
    "/run/systemd/journal/stdout",
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

    /// What the defaults grant on `path`, compared as text: the paths may not exist.
    fn granted(path: &str) -> Option<Access> {
        let covers = |pattern: &str| {
            let mut names = pattern.split('/').zip(path.split('/'));
            pattern.split('/').count() <= path.split('/').count()
                && names.all(|(pattern, name)| match pattern.split_once('*') {
                    None => pattern == name,
                    Some((prefix, suffix)) => {
                        name.len() >= prefix.len() + suffix.len()
                            && name.starts_with(prefix)
                            && name.ends_with(suffix)
                    }
                })
        };
        DEFAULTS
            .iter()
            .filter(|default| covers(default.path))
            .map(|default| default.mode)
            .reduce(Access::union)
    }

    #[test]
    fn programs_of_each_distribution_find_what_they_read() {
        for path in [
            "/etc/ssl/openssl.cnf",
            "/etc/pki/tls/openssl.cnf",
            "/etc/pki/tls/openssl.d/pkcs11-provider.conf",
            "/etc/ssl/engines3.d",
            "/etc/crypto-policies/back-ends/opensslcnf.config",
            "/etc/gitconfig",
            "/usr/share/git-core/templates",
            "/usr/share/perl/5.36/JSON/PP.pm",
            "/etc/php/8.4/cli/php.ini",
            "/etc/php/8.4/cli/conf.d/20-mbstring.ini",
            "/etc/php/8.4/mods-available/mbstring.ini",
            "/etc/php.d/20-mbstring.ini",
            "/etc/php8/cli/php.ini",
            "/etc/php8/conf.d/mbstring.ini",
            "/etc/php83/php.ini",
            "/etc/php/php.ini",
            "/etc/java-17-openjdk/security/java.security",
            "/etc/java-openjdk",
            "/etc/java/java-21-openjdk",
            "/etc/python3.13/sitecustomize.py",
            "/etc/debian_version",
            "/etc/redhat-release",
            "/usr/local/share/ca-certificates/company.crt",
            "/etc/ca-certificates/extracted/cadir",
            "/var/lib/ca-certificates/pem",
            "/usr/include/stdc-predef.h",
            "/run/resolvconf/resolv.conf",
        ] {
            assert!(granted(path).is_some_and(Access::read), "{path}");
        }
        for path in [
            "/usr/sbin/nginx",
            "/sbin/ldconfig",
            "/usr/share/postgresql-common/pg_wrapper",
            "/usr/lib32/libc.so.6",
        ] {
            assert!(granted(path).is_some_and(Access::execute), "{path}");
        }
    }

    #[test]
    fn secrets_and_configuration_of_services_are_not_granted() {
        for path in [
            "/etc/passwd",
            "/etc/shadow",
            "/root",
            "/home",
            "/run/wrappers",
            "/etc/ssl/private",
            "/etc/ssl/private/server.key",
            "/etc/ssl/openssl-ca.cnf",
            "/etc/pki/tls/private/server.key",
            "/etc/php/8.4/fpm/pool.d/www.conf",
            "/etc/php/8.4/apache2/php.ini",
            "/etc/php-fpm.d/www.conf",
            "/etc/php83/php-fpm.d/www.conf",
            "/etc/java-keystores/app.jks",
            "/etc/npmrc",
            "/etc/pip.conf",
            "/etc/wgetrc",
            "/etc/profile.d/proxy.sh",
            "/etc/maven/settings.xml",
            "/etc/ca-certificates/update.d",
            "/usr/local/etc/app.conf",
            "/usr/src/linux/certs/signing_key.pem",
            "/run/NetworkManager/system-connections/wifi.nmconnection",
            "/var/lib/dkms/mok.key",
        ] {
            assert_eq!(granted(path), None, "{path}");
        }
    }

    #[test]
    fn a_pattern_stands_for_the_names_that_match_and_for_no_others() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "etc/php/8.2/cli",
            "etc/php/8.4/cli",
            "etc/php/8.4/fpm",
            "etc/php/mods/x",
            "etc/java-9-openjdk",
            "etc/java-openjdk",
            "etc/java-openjdk.old",
            "etc/xjava-9-openjdk",
        ] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::write(dir.path().join("etc/php/README"), "").unwrap();
        let of = |pattern: &str| -> Vec<String> {
            let relative =
                |path: PathBuf| path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
            matches(dir.path(), pattern).into_iter().map(relative).collect()
        };
        // What follows the pattern need not exist, as a path without one need not.
        assert_eq!(
            of("/etc/php/*/cli"),
            ["etc/php/8.2/cli", "etc/php/8.4/cli", "etc/php/README/cli", "etc/php/mods/cli"]
        );
        assert_eq!(of("/etc/java-*openjdk"), ["etc/java-9-openjdk", "etc/java-openjdk"]);
        assert_eq!(of("/etc/ruby*"), [""; 0]);
        assert_eq!(of("/no/such*/x"), [""; 0]);
        assert_eq!(of("/etc/php/README/*"), [""; 0]);
        assert_eq!(of("/etc/hosts"), ["etc/hosts"]);
    }

    #[test]
    fn a_pattern_grants_no_more_than_its_bound_and_then_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..MATCHES_MAX + 5 {
            std::fs::create_dir(dir.path().join(format!("v{number:03}"))).unwrap();
        }
        let found = matches(dir.path(), "/v*");
        assert_eq!(found.len(), MATCHES_MAX);
        assert_eq!(found.first(), Some(&dir.path().join("v005")));
    }

    #[test]
    fn a_path_has_at_most_one_pattern_and_it_names_its_directory() {
        for path in DEFAULTS.iter().map(|default| default.path).filter(|path| path.contains('*')) {
            assert_eq!(path.matches('*').count(), 1, "{path}");
            // Nothing but /etc is listed at a start: it is small, and only root can add names to it.
            assert!(path.starts_with("/etc/"), "{path}");
        }
    }

    #[test]
    fn nothing_is_granted_that_can_be_changed() {
        for default in DEFAULTS {
            assert!(!default.mode.create(), "{}", default.path);
            assert!(!default.mode.write() || default.path.starts_with("/dev/"), "{}", default.path);
        }
    }

    #[test]
    fn the_sockets_in_the_documentation_are_the_same() {
        let text = include_str!("../../docs/security.md");
        let rows = text.lines().skip_while(|line| *line != "| socket of the host | why |").skip(2);
        let documented = rows.map_while(|line| line.strip_prefix("| `")?.split('`').next());
        assert!(documented.eq(SOCKETS.iter().copied()));
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
