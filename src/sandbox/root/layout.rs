//! What a template offers: computed once from the default unveils and the host, and sent to each start.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sandbox::names::{OF_HOST, Reachable};
use crate::sandbox::unveil::Access;
use crate::sys::mount::Refuse;

/// The parts of the default unveils that this host has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// Directories that a root takes as a whole, one mount call each.
    pub trees: Vec<Tree>,
    /// What a root takes one by one.
    pub parts: Vec<Part>,
    pub links: Vec<Link>,
    /// Of the host's name servers, for tasks with a network namespace.
    pub name_servers: Reachable,
}

/// A directory that has nothing in it but mount points, links and copies.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Tree {
    #[serde(with = "crate::os_path")]
    pub path: PathBuf,
    pub parts: Vec<Part>,
    pub links: Vec<Link>,
    /// Empty directories, on which each root mounts something of its own.
    #[serde(with = "crate::os_path::list")]
    pub directories: Vec<PathBuf>,
    /// Names of the files that are copies of the host's, refreshed when those change.
    #[serde(with = "crate::os_path::list")]
    pub copies: Vec<PathBuf>,
    /// Names of the files whose content the driver makes, refreshed likewise.
    #[serde(with = "crate::os_path::list")]
    pub made: Vec<PathBuf>,
}

impl Tree {
    /// The host's file of a copy. Those in [`OF_HOST`] have another name there, because each root decides what has that name.
    pub(crate) fn source(&self, copy: &Path) -> PathBuf {
        self.path.join(copy.strip_prefix(OF_HOST).unwrap_or(copy))
    }
}

/// A file or directory of the host, at the path where it really is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    #[serde(with = "crate::os_path")]
    pub path: PathBuf,
    pub access: Access,
    pub directory: bool,
}

impl Part {
    /// Nobody executes what a default only lets read.
    pub(crate) fn refuse(&self) -> Refuse {
        Refuse {
            write: !self.access.write() && !self.access.create(),
            exec: !self.access.execute(),
            devices: !self.path.starts_with("/dev"),
        }
    }
}

/// A symbolic link, with the text that it has on the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Link {
    #[serde(with = "crate::os_path")]
    pub path: PathBuf,
    #[serde(with = "crate::os_path")]
    pub target: PathBuf,
}
