//! What the host says in the environment, and the line of stdout that is the answer.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Version of go-plugin's handshake itself.
const CORE_PROTOCOL_VERSION: u32 = 1;

/// Comma-separated application protocol versions that the host speaks.
const PROTOCOL_VERSIONS_KEY: &str = "PLUGIN_PROTOCOL_VERSIONS";

/// A PEM certificate here asks for mutual TLS.
const CLIENT_CERT_KEY: &str = "PLUGIN_CLIENT_CERT";

/// Set if the host reads a seventh field of the handshake line: whether the plugin multiplexes brokered connections over the first one.
const MULTIPLEX_KEY: &str = "PLUGIN_MULTIPLEX_GRPC";

const SOCKET_DIR_KEY: &str = "PLUGIN_UNIX_SOCKET_DIR";
const SOCKET_GROUP_KEY: &str = "PLUGIN_UNIX_SOCKET_GROUP";

/// What a plugin and its hosts have agreed on; go-plugin's `HandshakeConfig`, and a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Begins the name of the socket's directory, so it should be short and must not contain `/`, `|` or control characters.
    pub name: &'static str,
    /// The environment variable of the magic cookie.
    pub cookie_key: &'static str,
    /// Its value. Not a secret: it only tells a host from a person.
    pub cookie_value: &'static str,
    /// Version of the application protocol, which is what the plugin's own services are.
    pub protocol_version: u32,
}

/// Who started the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// A host: call [`serve`](crate::serve).
    Host,
    /// A person: print what the program is.
    Person,
}

impl Plugin {
    /// Looks for the cookie in the environment.
    #[must_use]
    pub fn launched_by(&self) -> Launch {
        self.launch(env::var_os(self.cookie_key).as_deref())
    }

    fn launch(&self, cookie: Option<&OsStr>) -> Launch {
        if cookie.is_some_and(|value| value == self.cookie_value) { Launch::Host } else { Launch::Person }
    }

    /// The handshake line, with its newline.
    ///
    /// The sixth field is a certificate and always empty. The seventh is written only on request, because older hosts reject it. It is
    /// `false`: a host that multiplexes speaks yamux below HTTP/2, and this crate does not. A host that depends on it then reports that;
    /// one that merely inherited the variable ignores the field.
    pub(crate) fn handshake_line(&self, socket: &str, wants_multiplex_field: bool) -> String {
        let multiplex = if wants_multiplex_field { "|false" } else { "" };
        format!("{CORE_PROTOCOL_VERSION}|{}|unix|{socket}|grpc|{multiplex}\n", self.protocol_version)
    }
}

/// Why the plugin cannot do what the host asks for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// `PLUGIN_CLIENT_CERT` is set.
    #[error(
        "{CLIENT_CERT_KEY} is set: the host asks for mutual TLS, which this plugin does not support. The socket is private to \
         the plugin's user, so none is needed; remove {CLIENT_CERT_KEY} from the environment of the program that starts the plugin"
    )]
    MutualTls,
}

/// What the host asks for, by go-plugin's environment variables. An empty variable counts as an absent one, as it does in go-plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRequest {
    /// Where to make the directory of the socket: `PLUGIN_UNIX_SOCKET_DIR`, otherwise the directory for temporary files.
    pub socket_dir: PathBuf,
    /// A group, by name or number, that may connect besides the owner: `PLUGIN_UNIX_SOCKET_GROUP`.
    pub socket_group: Option<OsString>,
    /// The host reads a seventh field: `PLUGIN_MULTIPLEX_GRPC` is set.
    pub wants_multiplex_field: bool,
    /// `PLUGIN_PROTOCOL_VERSIONS`, if it does not list [`Plugin::protocol_version`]. The host reports that, with both versions, when it
    /// has read the handshake line; the plugin only logs it.
    pub unknown_versions: Option<OsString>,
}

impl HostRequest {
    /// Reads the environment of the process.
    ///
    /// # Errors
    /// If the host asks for what the plugin does not support.
    pub fn from_env(plugin: &Plugin) -> Result<Self, HandshakeError> {
        Self::from_vars(plugin, |key| env::var_os(key), &env::temp_dir())
    }

    fn from_vars(
        plugin: &Plugin,
        get: impl Fn(&str) -> Option<OsString>,
        temp_dir: &Path,
    ) -> Result<Self, HandshakeError> {
        let get = |key| get(key).filter(|value| !value.is_empty());
        if get(CLIENT_CERT_KEY).is_some() {
            return Err(HandshakeError::MutualTls);
        }
        let lists_ours = |versions: &OsString| {
            let versions = versions.to_string_lossy();
            versions.split(',').any(|version| version.trim().parse() == Ok(plugin.protocol_version))
        };
        Ok(Self {
            socket_dir: get(SOCKET_DIR_KEY).map_or_else(|| temp_dir.to_path_buf(), PathBuf::from),
            socket_group: get(SOCKET_GROUP_KEY),
            wants_multiplex_field: get(MULTIPLEX_KEY).is_some(),
            unknown_versions: get(PROTOCOL_VERSIONS_KEY).filter(|versions| !lists_ours(versions)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLUGIN: Plugin =
        Plugin { name: "t", cookie_key: "T_COOKIE", cookie_value: "e4327c2e01", protocol_version: 2 };

    fn request(vars: &[(&str, &str)]) -> Result<HostRequest, HandshakeError> {
        let get = |key: &str| vars.iter().find(|(k, _)| *k == key).map(|(_, value)| OsString::from(value));
        HostRequest::from_vars(&PLUGIN, get, Path::new("/tmp/of/host"))
    }

    #[test]
    fn only_the_exact_cookie_is_a_host() {
        assert_eq!(PLUGIN.launch(Some(OsStr::new("e4327c2e01"))), Launch::Host);
        assert_eq!(PLUGIN.launch(Some(OsStr::new("e4327c2e"))), Launch::Person);
        assert_eq!(PLUGIN.launch(Some(OsStr::new(""))), Launch::Person);
        assert_eq!(PLUGIN.launch(None), Launch::Person);
    }

    #[test]
    fn variables_of_nomad() {
        let vars =
            [("PLUGIN_PROTOCOL_VERSIONS", "2"), ("PLUGIN_MIN_PORT", "10000"), ("PLUGIN_MAX_PORT", "25000")];
        let expected = HostRequest {
            socket_dir: "/tmp/of/host".into(),
            socket_group: None,
            wants_multiplex_field: false,
            unknown_versions: None,
        };
        assert_eq!(request(&vars).unwrap(), expected);
    }

    #[test]
    fn optional_variables() {
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
    fn an_empty_variable_is_an_absent_one() {
        let keys = [SOCKET_DIR_KEY, SOCKET_GROUP_KEY, MULTIPLEX_KEY, PROTOCOL_VERSIONS_KEY, CLIENT_CERT_KEY];
        assert_eq!(request(&keys.map(|key| (key, ""))).unwrap(), request(&[]).unwrap());
    }

    #[test]
    fn mutual_tls_is_refused() {
        let error = request(&[("PLUGIN_CLIENT_CERT", "-----BEGIN CERTIFICATE-----")]).unwrap_err();
        assert!(error.to_string().contains("remove PLUGIN_CLIENT_CERT"), "{error}");
    }

    #[test]
    fn versions_without_ours_are_kept_for_the_log() {
        let unknown = |list| request(&[("PLUGIN_PROTOCOL_VERSIONS", list)]).unwrap().unknown_versions;
        assert_eq!(unknown("2"), None);
        assert_eq!(unknown("3,2"), None);
        assert_eq!(unknown("1, 2"), None);
        assert_eq!(unknown("3"), Some("3".into()));
        assert_eq!(unknown("22,x"), Some("22,x".into()));
    }

    #[test]
    fn the_seventh_field_is_written_on_request() {
        assert_eq!(PLUGIN.handshake_line("/tmp/x/s", false), "1|2|unix|/tmp/x/s|grpc|\n");
        assert_eq!(PLUGIN.handshake_line("/tmp/x/s", true), "1|2|unix|/tmp/x/s|grpc||false\n");
    }
}
