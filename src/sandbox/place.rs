//! The path of a rule, a log or a working directory, and the directory from which it is safe to open it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::unveil::Access;

/// A path, split at the point from which a task could have tampered with it.
///
/// A task may have renamed, or replaced by a symbolic link, what it can write (its alloc, a directory that is unveiled for
/// creating). So only the part above is trusted: it is opened first, and the rest from there, by openat2(2) with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`. Links on the trusted part are followed by
/// the rules of `shim::walk`, which check their owners: the text of a path does not show who can change it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// A path of the host; symbolic links that only root can have made are followed.
    Host(#[serde(with = "crate::os_path")] PathBuf),
    /// `path` (relative) below `root` (as [`Place::Host`]), where no symbolic link is followed.
    Beneath {
        #[serde(with = "crate::os_path")]
        root: PathBuf,
        #[serde(with = "crate::os_path")]
        path: PathBuf,
    },
}

impl Place {
    pub fn host(path: impl Into<PathBuf>) -> Self {
        Self::Host(path.into())
    }

    pub fn beneath(root: impl Into<PathBuf>, path: impl Into<PathBuf>) -> Self {
        Self::Beneath { root: root.into(), path: path.into() }
    }

    /// `path` as seen from the outermost of `writable`, the directories in which tasks can create and rename.
    pub fn of<'a>(path: &Path, writable: impl IntoIterator<Item = &'a Path>) -> Self {
        let outermost = writable
            .into_iter()
            .filter(|root| path.starts_with(root) && path != *root)
            .min_by_key(|root| root.components().count());
        match outermost.and_then(|root| Some((root, path.strip_prefix(root).ok()?))) {
            Some((root, below)) => Self::beneath(root, below),
            None => Self::host(path),
        }
    }

    /// The whole path, for messages: never to be opened.
    pub fn display(&self) -> PathBuf {
        match self {
            Self::Host(path) => path.clone(),
            Self::Beneath { root, path } => root.join(path),
        }
    }
}

/// What to do when the place of a rule does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// A default: nothing to grant.
    Skip,
    /// The agent or the job asked for it: the task must not start without it.
    Fail,
}

/// Who named a path, which decides with whose rights it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NamedBy {
    /// This driver: a default, a directory of the task. Opened as root.
    Driver,
    /// The agent's configuration: opened as the task's user, and as root if that fails.
    Agent,
    /// The job: opened as the task's user only, so that no job learns what is in a directory of root.
    Job,
}

/// One Landlock rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub access: Access,
    pub place: Place,
    pub named_by: NamedBy,
    pub missing: Missing,
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.access, self.place.display().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_opened_from_the_outermost_writable_directory() {
        let writable = ["/a/alloc", "/a", "/srv/shared"].map(Path::new);
        let of = |path: &str| Place::of(Path::new(path), writable);
        assert_eq!(of("/a/alloc/logs"), Place::beneath("/a", "alloc/logs"));
        assert_eq!(of("/srv/shared/x/y"), Place::beneath("/srv/shared", "x/y"));
        assert_eq!(of("/srv/shared"), Place::host("/srv/shared"));
        assert_eq!(of("/srv/sharedother/x"), Place::host("/srv/sharedother/x"));
        assert_eq!(of("/etc/ssl"), Place::host("/etc/ssl"));
    }
}
