//! The socket file: private, short enough, gone when the plugin is.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::unistd::Gid;
use thiserror::Error;

use crate::users;

/// Longest path that `sockaddr_un` holds (unix(7)): 108 bytes with the final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// mkdtemp(3) fills the X's. Short, for the sake of [`MAX_SOCKET_PATH`].
const DIR_TEMPLATE: &str = "exec2-XXXXXX";
const SOCKET_NAME: &str = "plugin.sock";

/// With a group, its members may pass through the directory without listing it.
const DIR_MODE_WITH_GROUP: u32 = 0o710;
const SOCKET_MODE: u32 = 0o600;
const SOCKET_MODE_WITH_GROUP: u32 = 0o660;

#[derive(Debug, Error)]
pub enum SocketError {
    #[error(
        "the socket's path {path:?} has {} bytes, and the kernel takes {MAX_SOCKET_PATH}: set TMPDIR (or \
         PLUGIN_UNIX_SOCKET_DIR) in the agent's environment to a shorter directory", path.as_os_str().len()
    )]
    PathTooLong { path: PathBuf },
    #[error(
        "the socket's path {path:?} cannot go into the handshake line: set TMPDIR (or PLUGIN_UNIX_SOCKET_DIR) in the \
         agent's environment to a directory of plain UTF-8 without `|`, line breaks and spaces at its end"
    )]
    PathUnprintable { path: PathBuf },
    #[error(
        "cannot make a directory for the socket in {parent:?}: {source}; TMPDIR (or PLUGIN_UNIX_SOCKET_DIR) in the \
         agent's environment must name a directory that it may write to"
    )]
    MakeDir { parent: PathBuf, source: io::Error },
    #[error(
        "PLUGIN_UNIX_SOCKET_GROUP: there is no group {group:?} in /etc/group; give a name from there or a number"
    )]
    NoGroup { group: OsString },
    #[error("failed to look up PLUGIN_UNIX_SOCKET_GROUP {group:?}: {source}")]
    Groups { group: OsString, source: users::LookupError },
    #[error("cannot {step} {path:?}: {source}")]
    Step { step: &'static str, path: PathBuf, source: io::Error },
}

/// A listening socket in a directory of its own. Dropping it removes both.
#[derive(Debug)]
pub(super) struct SocketFile {
    dir: PathBuf,
    path: PathBuf,
    /// The path once more, for the handshake line.
    text: String,
}

impl SocketFile {
    /// Binds a socket in a fresh directory below `parent`. Only root and the plugin's own user can reach it, and the
    /// members of `group` if there is one.
    pub(super) fn bind(parent: &Path, group: Option<&OsStr>) -> Result<(Self, UnixListener), SocketError> {
        // A relative TMPDIR means the agent's working directory, which is also ours, but need not stay so.
        let parent = std::path::absolute(parent)
            .map_err(|source| SocketError::MakeDir { parent: parent.to_path_buf(), source })?;
        let template = parent.join(DIR_TEMPLATE);
        let text = printable(&template.join(SOCKET_NAME))?;
        let gid = group.map(find_group).transpose()?;

        // 0700 by mkdtemp: whatever mode the socket is born with, nobody else can get at it.
        let dir = nix::unistd::mkdtemp(&template)
            .map_err(|errno| SocketError::MakeDir { parent, source: errno.into() })?;
        let path = dir.join(SOCKET_NAME);
        let mut this = Self { dir, path, text };
        this.text = printable(&this.path)?;

        let listener = UnixListener::bind(&this.path).map_err(step("bind", &this.path))?;
        match gid {
            None => chmod(&this.path, SOCKET_MODE)?,
            Some(gid) => {
                chgrp(&this.path, gid)?;
                chmod(&this.path, SOCKET_MODE_WITH_GROUP)?;
                chgrp(&this.dir, gid)?;
                chmod(&this.dir, DIR_MODE_WITH_GROUP)?;
            }
        }
        listener.set_nonblocking(true).map_err(step("make non-blocking", &this.path))?;
        Ok((this, listener))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed them before us did our work.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(&self.dir);
    }
}

/// The path as text that survives the handshake line: the host trims the line and splits it at `|`.
fn printable(path: &Path) -> Result<String, SocketError> {
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(SocketError::PathTooLong { path: path.to_path_buf() });
    }
    match path.to_str() {
        Some(text) if !text.contains('|') && !text.contains(char::is_control) => Ok(text.to_owned()),
        _ => Err(SocketError::PathUnprintable { path: path.to_path_buf() }),
    }
}

/// A number as it is, else a name in /etc/group.
fn find_group(group: &OsStr) -> Result<Gid, SocketError> {
    let unknown = || SocketError::NoGroup { group: group.to_owned() };
    let name = std::str::from_utf8(group.as_bytes()).map_err(|_| unknown())?;
    match name.parse() {
        // To chown(2) this one means "leave the group as it is".
        Ok(u32::MAX) => return Err(unknown()),
        Ok(number) => return Ok(Gid::from_raw(number)),
        Err(_) => {}
    }
    let found = users::group_id(name).map_err(|source| SocketError::Groups { group: name.into(), source })?;
    found.map(Gid::from_raw).ok_or_else(unknown)
}

fn chmod(path: &Path, mode: u32) -> Result<(), SocketError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(step("change the mode of", path))
}

fn chgrp(path: &Path, gid: Gid) -> Result<(), SocketError> {
    std::os::unix::fs::lchown(path, None, Some(gid.as_raw())).map_err(step("change the group of", path))
}

fn step(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError::Step { step, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn entries(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn private_and_gone_when_dropped() {
        let parent = tempfile::tempdir().unwrap();
        let (socket, listener) = SocketFile::bind(parent.path(), None).unwrap();
        let dir = socket.path().parent().unwrap();
        assert_eq!(dir.parent().unwrap(), parent.path());
        assert_eq!(mode(dir), 0o700);
        assert_eq!(mode(socket.path()), 0o600);
        assert_eq!(socket.as_str(), socket.path().to_str().unwrap());
        UnixStream::connect(socket.path()).unwrap();

        let (other, _other_listener) = SocketFile::bind(parent.path(), None).unwrap();
        assert_ne!(other.path(), socket.path());
        drop(other);
        assert!(socket.path().exists(), "another one's socket stays");
        drop(listener);
        drop(socket);
        assert_eq!(entries(parent.path()), 0);
    }

    #[test]
    fn a_group_may_enter() {
        let parent = tempfile::tempdir().unwrap();
        let gid = Gid::current();
        let (socket, _listener) =
            SocketFile::bind(parent.path(), Some(OsStr::new(&gid.to_string()))).unwrap();
        let dir = socket.path().parent().unwrap();
        assert_eq!(mode(dir), 0o710);
        assert_eq!(mode(socket.path()), 0o660);
        assert_eq!(fs::metadata(dir).unwrap().gid(), gid.as_raw());
        assert_eq!(fs::metadata(socket.path()).unwrap().gid(), gid.as_raw());
    }

    #[test]
    fn groups_by_name() {
        assert_eq!(find_group(OsStr::new("root")).unwrap().as_raw(), 0);
        assert_eq!(find_group(OsStr::new("4711")).unwrap().as_raw(), 4711);
        assert!(find_group(OsStr::new("4294967295")).is_err());
        let error = find_group(OsStr::new("no-such-group-here")).unwrap_err();
        assert!(error.to_string().contains("no-such-group-here"), "{error}");
    }

    #[test]
    fn an_unknown_group_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        SocketFile::bind(parent.path(), Some(OsStr::new("no-such-group-here"))).unwrap_err();
        assert_eq!(entries(parent.path()), 0);
    }

    #[test]
    fn a_path_of_107_bytes_is_the_longest() {
        let parent = tempfile::tempdir().unwrap();
        let fixed = parent.path().as_os_str().len() + "//exec2-XXXXXX/plugin.sock".len();
        let fits = parent.path().join("d".repeat(107 - fixed));
        fs::create_dir(&fits).unwrap();
        let (socket, _listener) = SocketFile::bind(&fits, None).unwrap();
        assert_eq!(socket.path().as_os_str().len(), 107);
        UnixStream::connect(socket.path()).unwrap();

        let too_long = parent.path().join("d".repeat(108 - fixed));
        fs::create_dir(&too_long).unwrap();
        let error = SocketFile::bind(&too_long, None).unwrap_err();
        assert!(matches!(error, SocketError::PathTooLong { .. }), "{error}");
        assert!(error.to_string().contains("has 108 bytes"), "{error}");
        assert_eq!(entries(&too_long), 0);
    }

    #[test]
    fn a_path_that_would_break_the_line_is_refused() {
        for name in ["a|b", "a\nb"] {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join(name);
            fs::create_dir(&dir).unwrap();
            let error = SocketFile::bind(&dir, None).unwrap_err();
            assert!(matches!(error, SocketError::PathUnprintable { .. }), "{error}");
        }
    }

    #[test]
    fn a_missing_parent_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let missing = parent.path().join("missing");
        let error = SocketFile::bind(&missing, None).unwrap_err().to_string();
        assert!(error.contains(missing.to_str().unwrap()) && error.contains("TMPDIR"), "{error}");
    }
}
