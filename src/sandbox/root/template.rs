//! What a root takes from the template: whole trees, or entry by entry where the task has something of its own.

use std::path::{Path, PathBuf};

use super::assembly::{Assembly, Source};
use super::candidate::{Candidate, Kind, part};
use super::layout::{Layout, Link, Part, Tree};
use super::{EMPTY, KERNEL_READ_ONLY, OWN, Request};
use crate::sandbox::names::{NAMES, NAMESPACE_RESOLV_CONF, OF_HOST, RESOLV_CONF};
use crate::sandbox::unveil::Access;
use crate::sys::mount::Refuse;

/// Where systemd-resolved can be asked by unix sockets.
const RESOLVED: &str = "/run/systemd/resolve";

impl Request<'_> {
    /// What comes from the template: whole trees, and the parts of those in which this task has something of its own.
    pub(super) fn add_template(
        &self,
        layout: &Layout,
        candidates: &mut Vec<Candidate>,
        assembly: &mut Assembly,
    ) {
        let parts = layout.parts.iter().filter(|found| !self.is_other_resolver(found));
        candidates.extend(parts.map(|found| part(found, Kind::Host)));
        assembly.links.extend(layout.links.iter().cloned());
        assembly.add_directory(Path::new(EMPTY));
        for tree in &layout.trees {
            let whole = Candidate {
                path: tree.path.clone(),
                source: Source::Tree(tree.path.clone()),
                refuse: Refuse::default(),
                access: None,
                kind: Kind::Skeleton,
                directory: true,
            };
            let opened_up = self.is_opened_up(tree);
            let own = Path::new(OWN).join(tree.path.strip_prefix("/").unwrap_or(&tree.path));
            if tree.path == Path::new("/etc") {
                self.add_host_names(if opened_up { &own } else { &tree.path }, assembly);
            }
            if !opened_up {
                candidates.push(whole);
                candidates.extend(tree.parts.iter().map(|found| part(found, Kind::InTree)));
                continue;
            }
            candidates.extend(tree.parts.iter().map(|found| part(found, Kind::Host)));
            assembly.links.extend(tree.links.iter().cloned());
            tree.directories.iter().for_each(|path| assembly.add_directory(path));
            if !tree.copies.is_empty() {
                // Reached by links, so that a copy that the host's change replaces stays reachable.
                let others = tree.copies.iter().filter(|name| !name.starts_with(OF_HOST));
                let link = |name: &PathBuf| Link { path: tree.path.join(name), target: own.join(name) };
                assembly.links.extend(others.map(link));
                let source = Source::Part(tree.path.clone());
                candidates.push(Candidate {
                    path: own,
                    source,
                    refuse: KERNEL_READ_ONLY,
                    access: Some(Access::READ),
                    kind: Kind::Own,
                    ..whole
                });
            }
        }
    }

    /// [`NAMES`] of /etc lead to [`OWN`], and from there to the host's if the task has none of its own.
    fn add_host_names(&self, etc: &Path, assembly: &mut Assembly) {
        for name in NAMES.iter().filter(|name| !self.names.contains(name)) {
            let hosts = if *name == RESOLV_CONF && self.in_namespace { NAMESPACE_RESOLV_CONF } else { name };
            let target = etc.join(OF_HOST).join(hosts);
            assembly.links.insert(Link { path: Path::new(OWN).join(name), target });
        }
    }

    /// Whether a part of the template is left out: programs would ask the host's resolver by its socket there, instead of the task's name servers.
    fn is_other_resolver(&self, part: &Part) -> bool {
        self.names.contains(&RESOLV_CONF) && part.path.starts_with(RESOLVED)
    }

    /// Whether something is unveiled in the tree, or above it, for which the template has no mount point.
    fn is_opened_up(&self, tree: &Tree) -> bool {
        let lacks = |path: &Path| {
            let in_part = || tree.parts.iter().any(|part| path.starts_with(&part.path));
            tree.path.starts_with(path) || path.starts_with(&tree.path) && !in_part()
        };
        // A link that the template has as well needs nothing.
        let other_link = |link: &&Link| !tree.links.contains(link);
        self.unveils.iter().any(|unveil| lacks(&unveil.path))
            || self.volumes.iter().any(|found| lacks(&found.volume.path))
            || self.devices.iter().any(|device| lacks(&device.path))
            || self.links.iter().filter(other_link).any(|link| lacks(&link.path))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{layout, link, opened, part, request, with, with_volumes};
    use super::super::{Ground, Mount};
    use super::*;

    /// Of a task that has these files of [`NAMES`] of its own.
    fn with_names(
        layout: Option<&Layout>,
        unveils: &[&str],
        names: &[&'static str],
        in_namespace: bool,
    ) -> Assembly {
        Request { layout, unveils: &opened(unveils), names, in_namespace, ..request() }.assemble()
    }

    #[test]
    fn an_unveil_inside_a_tree_takes_it_apart_for_this_task() {
        let root = with(&["r:/etc/app"]);
        assert_eq!(root.mounted("/etc"), [] as [&Mount; 0]);
        assert_eq!(root.mounted("/etc/ssl/certs")[0].source, Source::Part("/etc/ssl/certs".into()));
        assert_eq!(root.mounted("/.task/etc")[0].source, Source::Part("/etc".into()));
        assert!(root.links.contains(&link("/etc/hosts", "/.task/etc/hosts")));
        assert!(root.has_link("/etc/localtime"));
        assert!(root.directories.contains(Path::new("/etc/app")));
        assert_eq!(root.mounted("/usr")[0].source, Source::Tree("/usr".into()), "the others stay whole");
    }

    #[test]
    fn an_unveil_above_a_tree_shows_the_hosts() {
        let root = with(&["r:/etc"]);
        assert_eq!(root.mounted("/etc")[0].source, Source::Unveil(0));
        assert_eq!(root.mounted("/etc/ssl/certs"), [] as [&Mount; 0]);
        assert!(!root.has_link("/etc/hosts") && !root.has_link("/etc/localtime"));
    }

    #[test]
    fn a_volume_in_a_tree_takes_it_apart_unless_the_host_has_the_directory() {
        let root = with_volumes(&[], &[("rw", "/etc/app")]);
        assert_eq!(root.mounted("/etc"), [] as [&Mount; 0]);
        assert_eq!(root.mounted("/etc/app")[0].ground, Ground::Own);
        let root = with_volumes(&[], &[("rw", "/usr/lib/app")]);
        assert_eq!(root.mounted("/usr")[0].source, Source::Tree("/usr".into()));
        assert_eq!(root.mounted("/usr/lib/app")[0].ground, Ground::Lasting("/usr/lib".into()));
    }

    #[test]
    fn names_lead_to_the_hosts_files_unless_the_task_has_its_own() {
        let target = |root: &Assembly, name: &str| {
            let link = root.links.iter().find(|link| link.path == Path::new("/.task").join(name));
            link.map(|link| link.target.display().to_string())
        };
        let layout = layout();
        let host = with_names(Some(&layout), &[], &[], false);
        assert_eq!(target(&host, "resolv.conf").unwrap(), "/etc/.host/resolv.conf");
        assert_eq!(target(&host, "hosts").unwrap(), "/etc/.host/hosts");
        let bridge = with_names(Some(&layout), &[], &[], true);
        assert_eq!(target(&bridge, "resolv.conf").unwrap(), "/etc/.host/resolv.conf.netns");
        assert_eq!(target(&bridge, "hosts").unwrap(), "/etc/.host/hosts");
        let own = with_names(Some(&layout), &[], &["resolv.conf"], true);
        assert_eq!((target(&own, "resolv.conf"), target(&own, "hosts").is_some()), (None, true));
        assert_eq!(own.mounts.len(), bridge.mounts.len(), "no mount more");
        let opened_up = with_names(Some(&layout), &["r:/etc/app"], &[], true);
        assert_eq!(target(&opened_up, "resolv.conf").unwrap(), "/.task/etc/.host/resolv.conf.netns");
    }

    #[test]
    fn without_defaults_only_a_file_of_its_own_is_there() {
        let own = with_names(None, &["r:/srv"], &["resolv.conf"], true);
        assert!(own.links.contains(&link("/etc/resolv.conf", "/.task/resolv.conf")));
        assert!(!own.has_link("/etc/hosts"));
        assert!(own.directories.contains(Path::new(OWN)));
        assert!(own.granted("/.task/resolv.conf").contains(Access::READ));
        assert_eq!(own.granted("/etc/shadow"), Access::NONE);
        let none = with_names(None, &["r:/srv"], &[], true);
        assert!(!none.has_link("/etc/resolv.conf") && !none.directories.contains(Path::new(OWN)));
    }

    #[test]
    fn a_task_with_name_servers_of_its_own_cannot_ask_the_hosts_resolver() {
        let mut layout = layout();
        layout.parts.push(part("r", "/run/systemd/resolve"));
        let shown = |root: &Assembly| !root.mounted("/run/systemd/resolve").is_empty();
        assert!(shown(&with_names(Some(&layout), &[], &[], true)));
        assert!(shown(&with_names(Some(&layout), &[], &["hosts"], true)));
        assert!(!shown(&with_names(Some(&layout), &[], &["resolv.conf"], true)));
        assert!(shown(&with_names(Some(&layout), &["rw:/run/systemd/resolve"], &["resolv.conf"], true)));
    }
}
