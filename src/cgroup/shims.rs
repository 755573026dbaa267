//! The cgroup of the shims: beside Nomad's partitions, so that neither a task's limits nor a stop of the agent's
//! service reach them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Cgroup, CgroupError, Mount};

/// Name of the shims' cgroup below Nomad's parent cgroup. Nomad makes and removes only what it named itself
/// (`share.slice`, `reserve.slice` and the tasks' scopes in them), so a further child is left alone.
pub(crate) const SHIMS_CGROUP: &str = "nomad-driver-exec2.scope";

/// From a task's cgroup, `<mount>/PARENT/PARTITION/TASK`, to the shims': `<mount>/PARENT/nomad-driver-exec2.scope`.
/// PARENT (`nomad.slice`, or whatever `cgroup_parent` of the client says) may have several components. `None` for a
/// path that is not of this form.
pub(crate) fn shims_path(mount: &Path, task: &Path) -> Option<PathBuf> {
    let parent = task.parent()?.parent()?;
    let below = parent.strip_prefix(mount).ok()?;
    if below.as_os_str().is_empty() { None } else { Some(parent.join(SHIMS_CGROUP)) }
}

impl Cgroup {
    /// Opens the shims' cgroup that belongs to a task's, and creates it if it is missing. It gets no controllers and no
    /// limits. On an error the caller leaves the shims in the plugin's own cgroup.
    pub(crate) fn shims_for(task: &Path) -> Result<Cgroup, CgroupError> {
        Cgroup::shims_in(&Mount::shared()?, task)
    }

    /// The path of the shims' cgroup that belongs to this one, a task's; see [`shims_path`].
    pub(crate) fn path_of_shims(&self) -> Option<PathBuf> {
        shims_path(self.mount.root(), self.path())
    }

    /// As [`Cgroup::shims_for`], by the path of the shims' cgroup itself.
    pub(crate) fn shims_at(path: &Path) -> Result<Cgroup, CgroupError> {
        Ok(Cgroup::create_in(&Mount::shared()?, path, &[])?.cgroup)
    }

    pub(super) fn shims_in(mount: &Arc<Mount>, task: &Path) -> Result<Cgroup, CgroupError> {
        // Refuses `..` and paths elsewhere before anything is made.
        mount.relative(task)?;
        let path = shims_path(mount.root(), task)
            .ok_or_else(|| CgroupError::NoSlice { path: task.to_owned(), mount: mount.root().to_owned() })?;
        Ok(Cgroup::create_in(mount, &path, &[])?.cgroup)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::TempTree;
    use super::*;

    #[test]
    fn beside_the_partition() {
        let mount = Path::new("/sys/fs/cgroup");
        let path = |task: &str| shims_path(mount, Path::new(task)).map(|p| p.display().to_string());
        let want = Some("/sys/fs/cgroup/nomad.slice/nomad-driver-exec2.scope".to_owned());
        assert_eq!(path("/sys/fs/cgroup/nomad.slice/share.slice/a.t.scope"), want);
        assert_eq!(path("/sys/fs/cgroup/nomad.slice/reserve.slice/a.t.scope"), want);
        assert_eq!(
            path("/sys/fs/cgroup/x/y/share.slice/a.t.scope").unwrap(),
            "/sys/fs/cgroup/x/y/nomad-driver-exec2.scope"
        );
        for bad in
            ["/sys/fs/cgroup/share.slice/a.scope", "/sys/fs/cgroup/a.scope", "/sys/fs/cgroup", "/a/b/c/d", ""]
        {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn made_once_then_opened() {
        let tree = TempTree::new();
        tree.dir("nomad.slice/share.slice/a.scope");
        let task = tree.root().join("nomad.slice/share.slice/a.scope");
        let want = tree.root().join("nomad.slice").join(SHIMS_CGROUP);
        for _ in 0..2 {
            assert_eq!(Cgroup::shims_in(tree.mount(), &task).unwrap().path(), want);
        }
        assert!(want.is_dir());
        let up = tree.root().join("nomad.slice/share.slice/../../a/b");
        assert!(matches!(Cgroup::shims_in(tree.mount(), &up), Err(CgroupError::Path { .. })));
        let short = tree.root().join("share.slice/a.scope");
        assert!(matches!(Cgroup::shims_in(tree.mount(), &short), Err(CgroupError::NoSlice { .. })));
    }
}
