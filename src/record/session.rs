//! What a session in a running task needs beside the stored specification, written by the task's shim when it is known.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::sandbox::root::RootRule;

/// The environment and the Landlock rules that the task itself has. Only root can read it, as /proc/PID/environ.
///
/// JSON with named fields, like the specification: unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionRecord<'a> {
    /// `KEY=value`.
    pub env: Cow<'a, [String]>,
    /// The rules of the task's own root, as they were at the start; none if the task sees the host's tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<Cow<'a, [RootRule]>>,
}

impl SessionRecord<'_> {
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> serde_json::Result<SessionRecord<'static>> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::sandbox::unveil::Access;

    #[test]
    fn a_rule_may_have_a_name_that_is_not_utf8() {
        let path = OsStr::from_bytes(b"/dev/snd/\xff").into();
        let rule = RootRule { path, access: Access::READ, directory: false };
        let record = SessionRecord { env: Vec::new().into(), rules: Some(vec![rule].into()) };
        assert_eq!(SessionRecord::decode(&record.encode().unwrap()).unwrap(), record);
    }
}
