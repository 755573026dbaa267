//! A task's id.

/// `alloc/task/invocation` as Nomad sends it, or `run-PID`: never empty, because it names the task's run directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key<'a>(&'a str);

/// A task id must not be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task id is empty; send the id that StartTask was called with")]
pub struct EmptyKey;

impl<'a> Key<'a> {
    pub fn new(id: &'a str) -> Result<Self, EmptyKey> {
        if id.is_empty() { Err(EmptyKey) } else { Ok(Self(id)) }
    }

    /// Like [`Key::new`], for an id that was checked before.
    pub(crate) fn unchecked(id: &'a str) -> Self {
        debug_assert!(!id.is_empty(), "an empty key");
        Self(id)
    }

    pub(crate) fn as_str(self) -> &'a str {
        self.0
    }

    /// `alloc/task/` of `alloc/task/invocation`; none for an id of another form.
    pub(crate) fn task_prefix(self) -> Option<&'a str> {
        let prefix = &self.0[..=self.0.rfind('/')?];
        (prefix.matches('/').count() == 2).then_some(prefix)
    }
}

impl std::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_id_is_none() {
        assert_eq!(Key::new(""), Err(EmptyKey));
        assert_eq!(Key::new("a").unwrap().as_str(), "a");
    }

    #[test]
    fn the_prefix_is_that_of_all_invocations() {
        let prefix = |id| Key::new(id).unwrap().task_prefix();
        assert_eq!(prefix("a/web/1"), Some("a/web/"));
        assert_eq!(prefix("a/web/"), Some("a/web/"));
        for other in ["a", "a/1", "a/web/1/2", "/"] {
            assert_eq!(prefix(other), None, "{other}");
        }
    }
}
