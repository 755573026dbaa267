//! The specification that a task was started with, as stored in its run directory: a process that enters the task later must be
//! bound by the same plan, even if the agent's configuration has changed.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::sandbox::plan::Plan;
use crate::users::User;

/// Who a task is and what it may do. Without its command, arguments and environment, which may hold secrets.
///
/// JSON with named fields, like the handle: unknown fields are ignored, and fields that an earlier version did not write have a
/// default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSpec<'a> {
    /// The task's id, `alloc/task/invocation`.
    pub task: Cow<'a, str>,
    #[serde(default)]
    pub alloc: Cow<'a, str>,
    /// The task's name in the job.
    #[serde(default)]
    pub name: Cow<'a, str>,
    pub user: Cow<'a, User>,
    #[serde(default)]
    pub plan: Cow<'a, Plan>,
}

impl StoredSpec<'_> {
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    pub fn decode(bytes: &[u8]) -> serde_json::Result<StoredSpec<'static>> {
        serde_json::from_slice(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sandbox::capabilities::CapSet;
    use crate::sandbox::plan::Namespaces;

    #[test]
    fn a_field_that_is_absent_grants_nothing_and_an_unknown_one_is_ignored() {
        let written = br#"{"task":"a/web/1","user":{"uid":1,"gid":2,"shell":"/bin/sh"},"plan":{"later":{"log":true}},"new":1}"#;
        let read = StoredSpec::decode(written).unwrap();
        assert_eq!(*read.user, User::unknown("", 1, 2));
        let Plan { namespaces, landlock, capabilities, .. } = &*read.plan;
        assert_eq!((namespaces, *capabilities), (&Namespaces::default(), CapSet::EMPTY));
        assert_eq!((landlock.required_abi, landlock.rules.len()), (1, 0));
    }

    #[test]
    fn a_task_without_an_id_or_a_user_is_refused() {
        for written in [
            r#"{"user":{"uid":1,"gid":2}}"#,
            r#"{"task":"a/web/1"}"#,
            r#"{"task":"a/web/1","user":{"gid":2}}"#,
            r#"{"task":"a/web/1","user":{"uid":1}}"#,
        ] {
            assert!(StoredSpec::decode(written.as_bytes()).is_err(), "{written}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = include_bytes!("../../tests/fixtures/records/0.1.0/spec").to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(spec) = StoredSpec::decode(&bytes) {
                prop_assert_eq!(StoredSpec::decode(&spec.encode().unwrap()).unwrap(), spec);
            }
        }
    }
}
