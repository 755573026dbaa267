//! Which path a template process looks at: in a file in memory that plugin and process share. Most looks take microseconds, so
//! a message for each would be most of the work.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// PATH_MAX of limits.h, and the number.
const LONGEST: usize = 4096 + NUMBER;
const NUMBER: usize = size_of::<u64>();

/// One end of it.
#[derive(Debug)]
pub(crate) struct Progress {
    file: File,
    looks: u64,
}

impl Progress {
    pub(crate) fn new() -> nix::Result<Self> {
        memfd_create(c"exec2-progress", MFdFlags::MFD_CLOEXEC).map(Self::from)
    }

    /// Notes the next look.
    pub(crate) fn look_at(&mut self, path: &Path) {
        self.looks += 1;
        let mut bytes = self.looks.to_ne_bytes().to_vec();
        bytes.extend(path.as_os_str().as_bytes());
        bytes.push(0);
        // Without it only the name in a warning is wrong.
        let _ = self.file.write_all_at(&bytes, 0);
    }

    /// How many looks there were, and the last one's path: none before the first.
    pub(crate) fn last(&self) -> Option<(u64, PathBuf)> {
        let mut bytes = [0; LONGEST];
        let length = self.file.read_at(&mut bytes, 0).ok()?;
        let (number, path) = bytes[..length].split_first_chunk::<NUMBER>()?;
        let path = path.split(|byte| *byte == 0).next()?;
        Some((u64::from_ne_bytes(*number), PathBuf::from(OsStr::from_bytes(path))))
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl From<OwnedFd> for Progress {
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into(), looks: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_path_is_seen_at_the_other_end() {
        let ours = Progress::new().unwrap();
        let mut theirs = Progress::from(OwnedFd::from(ours.file().try_clone().unwrap()));
        assert_eq!(ours.last(), None);
        for (number, path) in (1..).zip(["/etc/resolv.conf", "/bin", "/", "/etc/resolv.conf"]) {
            theirs.look_at(Path::new(path));
            assert_eq!(ours.last(), Some((number, path.into())));
        }
    }
}
