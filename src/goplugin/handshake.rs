//! What the host says in the environment, and the one line of stdout that answers it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Nomad's sign that it, and not a person, started the program. No secret: it only tells the two apart.
const MAGIC_COOKIE_KEY: &str = "NOMAD_PLUGIN_MAGIC_COOKIE";
const MAGIC_COOKIE_VALUE: &str = "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255";

/// Version of go-plugin's handshake itself.
const CORE_PROTOCOL_VERSION: u32 = 1;

/// Version of Nomad's use of it: 2 is gRPC, since Nomad 0.9.
const PROTOCOL_VERSION: u32 = 2;

/// Comma-separated protocol versions that the host speaks.
const PROTOCOL_VERSIONS_KEY: &str = "PLUGIN_PROTOCOL_VERSIONS";

/// A PEM certificate here asks for mutual TLS.
const CLIENT_CERT_KEY: &str = "PLUGIN_CLIENT_CERT";

/// Present when the host reads a seventh field of the handshake line: whether the plugin multiplexes brokered
/// connections over the first one.
const MULTIPLEX_KEY: &str = "PLUGIN_MULTIPLEX_GRPC";

const SOCKET_DIR_KEY: &str = "PLUGIN_UNIX_SOCKET_DIR";
const SOCKET_GROUP_KEY: &str = "PLUGIN_UNIX_SOCKET_GROUP";

/// Who started the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// A Nomad agent: speak the protocol.
    Host,
    /// A person: say what the program is.
    Hand,
}

/// Looks for Nomad's cookie in the environment.
#[must_use]
pub fn launched_by() -> Launch {
    launch(env::var_os(MAGIC_COOKIE_KEY))
}

fn launch(cookie: Option<OsString>) -> Launch {
    if cookie.is_some_and(|value| value == MAGIC_COOKIE_VALUE) { Launch::Host } else { Launch::Hand }
}

#[derive(Debug, Error)]
pub enum HandshakeError {
    #[error(
        "{CLIENT_CERT_KEY} is set: the host asks for mutual TLS, which this plugin does not speak. Nomad needs none for \
         a driver, the socket is private to its user; remove {CLIENT_CERT_KEY} from the agent's environment"
    )]
    MutualTls,
}

/// What the host asks of the plugin, by go-plugin's environment variables. An empty variable counts as an absent one,
/// as it does in go-plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRequest {
    /// Where to make the directory of the socket.
    pub socket_dir: PathBuf,
    /// A group, by name or number, that may connect besides the owner.
    pub socket_group: Option<OsString>,
    /// The host reads a seventh field.
    pub wants_multiplex_field: bool,
    /// The host's list does not have our version. It is the host who reports that, with both versions, when it has
    /// read ours from the handshake line; here it only makes a log line.
    pub unknown_versions: Option<OsString>,
}

impl HostRequest {
    /// Reads the environment of the process.
    ///
    /// # Errors
    /// If the host asks for what the plugin does not speak.
    pub fn from_env() -> Result<Self, HandshakeError> {
        Self::from_vars(|key| env::var_os(key), &env::temp_dir())
    }

    fn from_vars(get: impl Fn(&str) -> Option<OsString>, temp_dir: &Path) -> Result<Self, HandshakeError> {
        let get = |key| get(key).filter(|value| !value.is_empty());
        if get(CLIENT_CERT_KEY).is_some() {
            return Err(HandshakeError::MutualTls);
        }
        Ok(Self {
            socket_dir: get(SOCKET_DIR_KEY).map_or_else(|| temp_dir.to_path_buf(), PathBuf::from),
            socket_group: get(SOCKET_GROUP_KEY),
            wants_multiplex_field: get(MULTIPLEX_KEY).is_some(),
            unknown_versions: get(PROTOCOL_VERSIONS_KEY).filter(|versions| !lists_our_version(versions)),
        })
    }
}

fn lists_our_version(versions: &OsString) -> bool {
    versions.to_string_lossy().split(',').any(|version| version.trim().parse() == Ok(PROTOCOL_VERSION))
}

/// The handshake line, with its newline.
///
/// The sixth field is a certificate and always empty. The seventh is there only on request, as older hosts choke on it.
/// It says `false`: a host that multiplexes speaks yamux below HTTP/2, and this plugin does not. A host that insists then
/// says so by itself; one that merely inherited the variable does not care.
pub(super) fn line(socket: &str, wants_multiplex_field: bool) -> String {
    let multiplex = if wants_multiplex_field { "|false" } else { "" };
    format!("{CORE_PROTOCOL_VERSION}|{PROTOCOL_VERSION}|unix|{socket}|grpc|{multiplex}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(vars: &[(&str, &str)]) -> Result<HostRequest, HandshakeError> {
        let get = |key: &str| vars.iter().find(|(k, _)| *k == key).map(|(_, value)| OsString::from(value));
        HostRequest::from_vars(get, Path::new("/tmp/of/agent"))
    }

    #[test]
    fn only_the_right_cookie_is_a_host() {
        assert_eq!(launch(Some(MAGIC_COOKIE_VALUE.into())), Launch::Host);
        assert_eq!(launch(Some("e4327c2e".into())), Launch::Hand);
        assert_eq!(launch(Some("".into())), Launch::Hand);
        assert_eq!(launch(None), Launch::Hand);
    }

    #[test]
    fn what_nomad_sends() {
        let vars =
            [("PLUGIN_PROTOCOL_VERSIONS", "2"), ("PLUGIN_MIN_PORT", "10000"), ("PLUGIN_MAX_PORT", "25000")];
        let expected = HostRequest {
            socket_dir: "/tmp/of/agent".into(),
            socket_group: None,
            wants_multiplex_field: false,
            unknown_versions: None,
        };
        assert_eq!(request(&vars).unwrap(), expected);
    }

    #[test]
    fn what_a_host_may_send() {
        let vars = [
            ("PLUGIN_UNIX_SOCKET_DIR", "/run/plugins"),
            ("PLUGIN_UNIX_SOCKET_GROUP", "nomad"),
            ("PLUGIN_MULTIPLEX_GRPC", "true"),
        ];
        let expected = HostRequest {
            socket_dir: "/run/plugins".into(),
            socket_group: Some("nomad".into()),
            wants_multiplex_field: true,
            unknown_versions: None,
        };
        assert_eq!(request(&vars).unwrap(), expected);
    }

    #[test]
    fn empty_is_absent() {
        let keys = [SOCKET_DIR_KEY, SOCKET_GROUP_KEY, MULTIPLEX_KEY, PROTOCOL_VERSIONS_KEY, CLIENT_CERT_KEY];
        assert_eq!(request(&keys.map(|key| (key, ""))).unwrap(), request(&[]).unwrap());
    }

    #[test]
    fn mutual_tls_is_refused() {
        let error = request(&[("PLUGIN_CLIENT_CERT", "-----BEGIN CERTIFICATE-----")]).unwrap_err();
        assert!(error.to_string().contains("remove PLUGIN_CLIENT_CERT"), "{error}");
    }

    #[test]
    fn versions() {
        let unknown = |list| request(&[("PLUGIN_PROTOCOL_VERSIONS", list)]).unwrap().unknown_versions;
        assert_eq!(unknown("2"), None);
        assert_eq!(unknown("3,2"), None);
        assert_eq!(unknown("1, 2"), None);
        assert_eq!(unknown("3"), Some("3".into()));
        assert_eq!(unknown("22,x"), Some("22,x".into()));
    }

    #[test]
    fn lines() {
        assert_eq!(line("/tmp/x/s", false), "1|2|unix|/tmp/x/s|grpc|\n");
        assert_eq!(line("/tmp/x/s", true), "1|2|unix|/tmp/x/s|grpc||false\n");
    }
}
