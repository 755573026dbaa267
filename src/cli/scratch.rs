//! The directories of a task that Nomad does not know: made for one `run`, removed after it.

use std::ffi::CString;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::mkdtemp;

use crate::users::User;

/// `alloc`, `local`, `secrets` and `tmp` below a fresh directory, as Nomad lays them out.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
}

impl Scratch {
    pub fn new(user: &User) -> io::Result<Self> {
        let template = std::env::temp_dir().join("exec2-run-XXXXXX");
        let template = CString::new(template.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let root = mkdtemp(template.as_c_str())?;
        let scratch = Self { root };
        // Others may pass through to what is theirs, as in Nomad's alloc_mounts.
        std::fs::set_permissions(&scratch.root, Permissions::from_mode(0o711))?;
        for (name, mode) in
            [("alloc", 0o755), ("alloc/logs", 0o755), ("local", 0o755), ("secrets", 0o700), ("tmp", 0o700)]
        {
            let path = scratch.root.join(name);
            DirBuilder::new().mode(mode).create(&path)?;
            chown(&path, Some(user.uid), Some(user.gid))?;
        }
        Ok(scratch)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Nomad's variables for them.
    pub fn variables(&self) -> [(String, String); 3] {
        [("NOMAD_ALLOC_DIR", "alloc"), ("NOMAD_TASK_DIR", "local"), ("NOMAD_SECRETS_DIR", "secrets")]
            .map(|(name, dir)| (name.to_owned(), self.root.join(dir).display().to_string()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.root) {
            super::say(&format!("nomad-driver-exec2: remove {}: {error}\n", self.root.display()));
        }
    }
}
