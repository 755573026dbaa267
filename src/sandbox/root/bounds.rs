//! Where a path would get more than it was granted: rules add up along a path, and the flags of a mount take away only some of that.

use std::path::{Path, PathBuf};

use super::assembly::{Source, Unbounded};
use super::candidate::{Candidate, Kind};
use super::{OpenedVolume, Request};
use crate::sandbox::unveil::Access;
use crate::sandbox::volume::Propagation;

/// Rules add up: what is unveiled inside a directory of the task's own, such as /tmp, gets what is granted on that too. There, the flags of
/// the mount have to take away the rest. Returns the first unveil for which they cannot.
pub(super) fn hold_to_modes(candidates: &mut [Candidate]) -> Option<Unbounded> {
    let own: Vec<(PathBuf, Access)> = candidates
        .iter()
        .filter(|found| matches!(found.kind, Kind::Own | Kind::Volume))
        .filter_map(|found| Some((found.path.clone(), found.access?)))
        .collect();
    let mut unbounded = None;
    for candidate in candidates {
        let (Source::Unveil(unveil), Some(wanted)) = (&candidate.source, candidate.access) else { continue };
        let around = own.iter().filter(|(path, _)| candidate.path.starts_with(path));
        // Parents come first.
        let Some((below, _)) = around.clone().next_back() else { continue };
        let granted = around.fold(Access::NONE, |all, (_, access)| all | *access);
        candidate.refuse.exec |= !wanted.execute();
        let mut refused = Access::NONE;
        if candidate.refuse.write {
            refused |= Access::WRITE | Access::CREATE;
        }
        if candidate.refuse.exec {
            refused |= Access::EXECUTE;
        }
        let gets = wanted | granted.without(refused);
        // On a file, `c` grants nothing.
        let harmless = if candidate.directory { Access::NONE } else { Access::CREATE };
        if !(wanted | harmless).contains(gets) && unbounded.is_none() {
            unbounded = Some(Unbounded { unveil: *unveil, below: below.clone(), gets });
        }
    }
    unbounded
}

impl Request<'_> {
    /// A mount that the host adds to a volume has the host's flags, so only the rules could keep a task from writing it.
    pub(super) fn writable_later(&self, candidates: &[Candidate]) -> Option<(usize, PathBuf)> {
        let write = Access::WRITE | Access::CREATE;
        let later = |found: &&OpenedVolume<'_>| {
            found.volume.read_only && found.volume.propagation == Propagation::HostToTask
        };
        let writable = |path: &Path| {
            let around =
                candidates.iter().filter(|found| path.starts_with(&found.path) && path != found.path);
            let mut writable =
                around.filter(|found| found.access.is_some_and(|access| access.without(write) != access));
            writable.next_back().map(|found| found.path.clone())
        };
        self.volumes
            .iter()
            .enumerate()
            .filter(|(_, found)| later(found))
            .find_map(|(number, found)| Some((number, writable(&found.volume.path)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{TASK_DIR, access, with, with_volumes};
    use super::super::{Assembly, Ground};
    use super::*;

    /// Whether a mount of the root refuses writing and executing.
    fn refuses(root: &Assembly, path: &str) -> (bool, bool) {
        let refuse = root.mounted(path)[0].refuse;
        (refuse.write, refuse.exec)
    }

    #[test]
    fn an_unveil_below_the_tasks_own_tmp_gets_no_more_than_its_modes() {
        for (mode, flags) in
            [("r", (true, true)), ("rx", (true, false)), ("rwc", (false, true)), ("rwxc", (false, false))]
        {
            for path in ["/tmp/shared", "/var/tmp/a/b"] {
                let root = with(&[&format!("{mode}:{path}")]);
                assert_eq!(root.unbounded, None, "{mode}");
                assert_eq!(refuses(&root, path), flags, "{mode}:{path}");
            }
            let root = with(&[&format!("{mode}:/srv/shared")]);
            assert!(!refuses(&root, "/srv/shared").1, "elsewhere Landlock refuses exec");
        }
        for (mode, gets) in
            [("w", "rwc"), ("c", "rwc"), ("rw", "rwc"), ("x", "rx"), ("wx", "rwxc"), ("rwx", "rwxc")]
        {
            let root = with(&[&format!("{mode}:/tmp/shared")]);
            let found = root.unbounded.expect("it cannot be held to its modes");
            assert_eq!(
                (found.unveil, found.below.as_path(), found.gets),
                (0, Path::new("/tmp"), access(gets)),
                "{mode}"
            );
            assert_eq!(with(&[&format!("{mode}:/srv/shared")]).unbounded, None, "{mode}");
            assert_eq!(with(&[&format!("{mode}:/tmp")]).unbounded, None, "in place of the task's own");
        }
    }

    #[test]
    fn a_single_file_below_the_tasks_own_tmp_needs_no_c() {
        for mode in ["r", "rw"] {
            assert_eq!(with(&[&format!("{mode}:/tmp/app.sock")]).unbounded, None, "{mode}");
        }
        assert!(with(&["w:/tmp/app.sock"]).unbounded.is_some());
    }

    #[test]
    fn what_lies_in_an_unveil_below_the_tasks_own_tmp_is_held_to_its_modes_too() {
        let root = with(&["r:/tmp/a", "rx:/tmp/a/bin"]);
        assert_eq!((refuses(&root, "/tmp/a"), refuses(&root, "/tmp/a/bin")), ((true, true), (true, false)));
    }

    #[test]
    fn an_unveil_that_a_link_leads_into_a_volume_gets_no_more_than_its_modes() {
        let root = with_volumes(&["r:/data/in"], &[("rw", "/data")]);
        assert_eq!(refuses(&root, "/data/in"), (true, true));
        assert_eq!(root.mounted("/data/in")[0].ground, Ground::Lasting("/data".into()));
        assert!(with_volumes(&["rw:/data/in"], &[("rw", "/data")]).unbounded.is_some());
    }

    #[test]
    fn an_unveil_in_nested_volumes_is_bounded_by_all_of_them() {
        let root = with_volumes(&["rw:/data/in/x"], &[("r", "/data"), ("rw", "/data/in")]);
        let found = root.unbounded.unwrap();
        assert_eq!((found.below, found.gets), ("/data/in".into(), access("rwc")));
        assert_eq!(with_volumes(&["rw:/data/in/x"], &[("r", "/data"), ("r", "/data/in")]).unbounded, None);
    }

    #[test]
    fn what_the_host_mounts_later_in_a_read_only_volume_must_not_be_writable() {
        let below =
            |unveils: &[&str], volumes: &[(&str, &str)]| with_volumes(unveils, volumes).writable_later;
        let local = format!("{TASK_DIR}/local");
        assert_eq!(below(&[], &[("r later", "/data")]), None);
        assert_eq!(below(&["r:/srv"], &[("r later", "/srv/data")]), None);
        assert_eq!(below(&[], &[("r", &format!("{local}/data"))]), None, "nothing is mounted later");
        assert_eq!(below(&[], &[("r later", &format!("{local}/data"))]), Some((0, local.into())));
        assert_eq!(below(&[], &[("rw", "/a"), ("r later", "/tmp/data")]), Some((1, "/tmp".into())));
        assert_eq!(below(&["rw:/srv"], &[("r later", "/srv/data")]), Some((0, "/srv".into())));
        assert_eq!(below(&[], &[("rw", "/data"), ("r later", "/data/in")]), Some((1, "/data".into())));
    }
}
