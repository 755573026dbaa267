//! openat2(2): opening files below a directory.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::Result;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Tries of an openat2(2) that met a concurrent rename (EAGAIN).
const TRIES: u32 = 16;

/// Opens `path`, which is relative, below `dir`, without following any symbolic link. `also` adds to these restrictions. EXDEV, ELOOP: the
/// path leaves the directory, or has a link.
pub(crate) fn beneath(dir: impl AsFd, path: &Path, flags: OFlag, also: ResolveFlag) -> Result<OwnedFd> {
    let plain = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(plain | also);
    retry(|| openat2(dir.as_fd(), path, how))
}

/// Repeats an open that a signal interrupted or that met a concurrent rename.
pub(crate) fn retry<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match attempt() {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            done => return done,
        }
    }
    attempt()
}

#[cfg(test)]
mod tests {
    use std::fs::{File, create_dir, write};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_plain_paths_below_the_directory_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        create_dir(dir.path().join("in")).unwrap();
        write(dir.path().join("in/file"), "").unwrap();
        symlink("in", dir.path().join("link")).unwrap();
        let at = File::open(dir.path()).unwrap();
        let open =
            |path: &str| beneath(&at, Path::new(path), OFlag::O_RDONLY, ResolveFlag::empty()).map(drop);
        assert_eq!(open("in/file"), Ok(()));
        assert_eq!(open("link/file"), Err(Errno::ELOOP));
        assert_eq!(open("../x"), Err(Errno::EXDEV));
        assert_eq!(open("/etc"), Err(Errno::EXDEV));
        assert_eq!(open("missing"), Err(Errno::ENOENT));
    }

    #[test]
    fn what_keeps_failing_ends() {
        let mut tries = 0;
        let result: Result<()> = retry(|| {
            tries += 1;
            Err(Errno::EAGAIN)
        });
        assert_eq!((result, tries), (Err(Errno::EAGAIN), TRIES));
    }
}
