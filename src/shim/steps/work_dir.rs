//! Where the task starts.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{chdir, fchdir};

use super::Result;
use super::paths::{is_directory, open_place, path_of};
use crate::sandbox::plan::WorkDir;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;
use crate::shim::walk::{DirId, WalkError};

/// Opens it in the shim, with the rights of the party that named it.
pub(crate) fn open_work_dir(spec: &ShimSpec, writable: &[DirId]) -> Result<OwnedFd> {
    let WorkDir { place, named_by } = &spec.plan.work_dir;
    let failed = |errno| Failure::new(Step::WorkDir, path_of(place), errno);
    let dir = open_place(spec, place, *named_by, writable).map_err(|error| match error {
        WalkError::Errno(errno @ Errno::EXDEV) => {
            failed(errno).with_note("it leads out of the task's own directories")
        }
        WalkError::Errno(errno) => failed(errno),
        other => Failure::text(Step::WorkDir, path_of(place), other.to_string()),
    })?;
    match is_directory(&dir).map_err(failed)? {
        true => Ok(dir),
        false => Err(failed(Errno::ENOTDIR)),
    }
}

/// As the task's user, so that the kernel checks its permission. Without a descriptor, by its path: in a root of its own
/// nothing leads the task out.
pub(crate) fn enter_work_dir(spec: &ShimSpec, dir: Option<&OwnedFd>) -> Result<()> {
    let path = path_of(&spec.plan.work_dir.place);
    let entered = match dir {
        Some(dir) => fchdir(dir),
        None => chdir(Path::new(&path)),
    };
    entered.map_err(|errno| Failure::new(Step::WorkDir, path, errno))
}
