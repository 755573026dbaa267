//! The Landlock rules of a root: on its own directories where these contain only what was granted, elsewhere on the opened
//! object.
//!
//! A rule belongs to an inode. One on a directory of the root keeps working when the host replaces what is mounted below it;
//! one on the object does not.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::candidate::{Candidate, Kind};
use crate::sandbox::unveil::Access;

/// Access to a path of the root, which is opened when the root is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootRule {
    #[serde(with = "crate::os_path")]
    pub path: PathBuf,
    pub access: Access,
    pub directory: bool,
}

#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<OsString, Node>,
    /// What is granted on it.
    access: Access,
    /// Whether it has content of its own, beside its children.
    content: bool,
    file: bool,
}

/// The fewest rules that grant each candidate what it asks for, and nothing else anything.
pub(super) fn rules(candidates: &[Candidate]) -> Vec<RootRule> {
    let mut root = Node::default();
    for candidate in
        candidates.iter().filter(|candidate| !matches!(candidate.kind, Kind::Skeleton | Kind::Cover))
    {
        let mut node = &mut root;
        for name in candidate.path.iter().filter(|name| *name != OsStr::new("/")) {
            node = node.children.entry(name.to_owned()).or_default();
        }
        node.content = true;
        node.file = !candidate.directory;
        node.access |= candidate.access.unwrap_or(Access::NONE);
    }
    let mut rules = Vec::new();
    root.add_rules(Path::new("/"), Access::NONE, false, &mut rules);
    rules
}

impl Node {
    /// What is granted on all that is in it.
    fn common(&self) -> Access {
        if self.content {
            return self.access;
        }
        self.children.values().map(Self::common).reduce(Access::intersection).unwrap_or(Access::NONE)
    }

    /// `inherited` is what the rules above grant; `in_content` says that something else than this node's siblings may be
    /// beside it.
    fn add_rules(&self, path: &Path, inherited: Access, in_content: bool, rules: &mut Vec<RootRule>) {
        let access = if in_content && !self.content { Access::NONE } else { self.common() };
        if !inherited.contains(access) {
            rules.push(RootRule { path: path.to_owned(), access, directory: !self.file });
        }
        for (name, child) in &self.children {
            child.add_rules(&path.join(name), inherited | access, in_content || self.content, rules);
        }
    }
}
