//! The socket file: private, with a path that fits, and removed with the plugin.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, UnlinkatFlags, fchown, fchownat, geteuid, unlinkat};
use thiserror::Error;

use crate::group;

/// Longest path that `sockaddr_un` holds (unix(7)): 108 bytes with the final NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Follows the plugin's name in the name of the directory; mkdtemp(3) fills the X's. Short, because of [`MAX_SOCKET_PATH`].
const DIR_SUFFIX: &str = "-XXXXXX";
const SOCKET_NAME: &str = "plugin.sock";

/// With a group, its members may pass through the directory without listing it.
const DIR_MODE_WITH_GROUP: Mode = Mode::S_IRWXU.union(Mode::S_IXGRP);
const SOCKET_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);
const SOCKET_MODE_WITH_GROUP: Mode = SOCKET_MODE.union(Mode::S_IRGRP).union(Mode::S_IWGRP);

/// Sockets of killed plugins are removed when they are that old: on a younger one its plugin may not listen yet.
const SWEEP_AGE: Duration = Duration::from_secs(60);
/// Entries of the directory that are examined at most: a huge /tmp must not keep a thread busy.
const SWEEP_ENTRIES_MAX: usize = 20_000;

/// Why there is no socket. The texts name the variable of the host's environment that has to change.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The path does not fit into a `sockaddr_un`.
    #[error(
        "the socket's path {path:?} has {} bytes, and the kernel's limit is {MAX_SOCKET_PATH}: set TMPDIR (or PLUGIN_UNIX_SOCKET_DIR) \
         in the environment of the program that starts the plugin to a shorter directory", path.as_os_str().len()
    )]
    PathTooLong {
        /// With the X's of the directory's name.
        path: PathBuf,
    },
    /// The host would read another path.
    #[error(
        "the socket's path {path:?} does not fit into the handshake line: set TMPDIR (or PLUGIN_UNIX_SOCKET_DIR) in \
         the environment of the program that starts the plugin to a directory of plain UTF-8 without `|` and control characters"
    )]
    PathUnprintable {
        /// With the X's of the directory's name.
        path: PathBuf,
    },
    /// The directory of the socket cannot be made.
    #[error(
        "failed to create a directory for the socket in {parent:?}: {reason}; TMPDIR (or PLUGIN_UNIX_SOCKET_DIR) in \
         the environment of the program that starts the plugin must name a writable directory"
    )]
    MakeDir {
        /// Where.
        parent: PathBuf,
        /// The kernel's.
        reason: io::Error,
    },
    /// `PLUGIN_UNIX_SOCKET_GROUP` names no group.
    #[error(
        "PLUGIN_UNIX_SOCKET_GROUP: there is no group {group:?} in /etc/group; write a name from there or a number"
    )]
    NoGroup {
        /// Its value.
        group: OsString,
    },
    /// The groups cannot be read.
    #[error("failed to look up PLUGIN_UNIX_SOCKET_GROUP {group:?}: failed to read /etc/group: {reason}")]
    Groups {
        /// The variable's value.
        group: OsString,
        /// Of /etc/group.
        reason: io::Error,
    },
    /// Another process exchanged the directory.
    #[error(
        "{path:?} was replaced while the plugin made it: TMPDIR must be a directory in which others cannot rename"
    )]
    Replaced {
        /// The directory.
        path: PathBuf,
    },
    /// Another step failed.
    #[error("failed to {step} {path:?}: {reason}")]
    Step {
        /// A verb phrase.
        step: &'static str,
        /// Of the socket or its directory.
        path: PathBuf,
        /// The kernel's.
        reason: io::Error,
    },
}

/// A listening socket in a directory of its own. Dropping it removes both.
///
/// The directory is held open since it was made and checked; all that is done to it, or in it, goes by that descriptor.
#[derive(Debug)]
pub(crate) struct SocketFile {
    parent: OwnedFd,
    /// The directory below `parent`: one component.
    name: OsString,
    dir: OwnedFd,
    path: PathBuf,
    /// The path once more, for the handshake line.
    text: String,
}

impl SocketFile {
    /// Binds a socket in a new directory below `parent`, named after the plugin. Only root and the plugin's own user can reach it, and
    /// the members of `group` if there is one.
    pub(crate) fn bind(
        parent: &Path,
        plugin: &str,
        group: Option<&OsStr>,
    ) -> Result<(Self, UnixListener), SocketError> {
        let make_dir = |reason: io::Error| SocketError::MakeDir { parent: parent.to_path_buf(), reason };
        // A relative TMPDIR means the host's working directory, which is also the plugin's, but may change.
        let absolute = std::path::absolute(parent).map_err(make_dir)?;
        let template = absolute.join(format!("{plugin}{DIR_SUFFIX}"));
        printable(&template.join(SOCKET_NAME))?;
        let gid = group.map(find_group).transpose()?;
        let opened =
            open_dir(AT_FDCWD, absolute.as_os_str(), false).map_err(|errno| make_dir(errno.into()))?;

        // 0700 by mkdtemp: nobody else can reach the socket, whatever its mode is at first.
        let dir_path = nix::unistd::mkdtemp(&template).map_err(|errno| make_dir(errno.into()))?;
        let name = dir_path.file_name().unwrap_or_default().to_owned();
        let dir = open_own(&opened, &name, &dir_path)?;
        let path = dir_path.join(SOCKET_NAME);
        let text = printable(&path)?;
        let this = Self { parent: opened, name, dir, path, text };

        // The same file by the descriptor's path: the name may mean another directory by now.
        let listener =
            UnixListener::bind(through(&this.dir).join(SOCKET_NAME)).map_err(step("bind", &this.path))?;
        this.give_to(gid)?;
        listener.set_nonblocking(true).map_err(step("make non-blocking", &this.path))?;
        Ok((this, listener))
    }

    fn give_to(&self, gid: Option<Gid>) -> Result<(), SocketError> {
        let mode = if gid.is_some() { SOCKET_MODE_WITH_GROUP } else { SOCKET_MODE };
        if gid.is_some() {
            fchownat(&self.dir, SOCKET_NAME, None, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(errno("change the group of", &self.path))?;
        }
        // Only this process's user can have replaced the socket by a link: the directory is still 0700.
        fchmodat(&self.dir, SOCKET_NAME, mode, FchmodatFlags::FollowSymlink)
            .map_err(errno("change the mode of", &self.path))?;
        if gid.is_some() {
            let path = self.path.parent().unwrap_or(&self.path);
            fchown(&self.dir, None, gid).map_err(errno("change the group of", path))?;
            fchmod(&self.dir, DIR_MODE_WITH_GROUP).map_err(errno("change the mode of", path))?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // They may have been removed already.
        let _ = unlinkat(&self.dir, SOCKET_NAME, UnlinkatFlags::NoRemoveDir);
        let _ = unlinkat(&self.parent, &*self.name, UnlinkatFlags::RemoveDir);
    }
}

/// Removes what killed plugins of this name left in `parent`: directories of this process's user with nothing but a socket on which
/// nobody listens. Never follows a link, and never touches a directory that another user made or can write to.
pub(crate) fn sweep_dead(parent: &Path, plugin: &str) {
    let Ok(opened) = open_dir(AT_FDCWD, parent.as_os_str(), false) else { return };
    let Ok(entries) = std::fs::read_dir(through(&opened)) else { return };
    for entry in entries.flatten().take(SWEEP_ENTRIES_MAX) {
        let name = entry.file_name();
        if is_socket_dir(&name, plugin) && sweep_one(&opened, &name).is_some() {
            tracing::info!(directory = %parent.join(&name).display(), "removed the socket of a killed plugin");
        }
    }
}

/// None: it is kept.
fn sweep_one(parent: &OwnedFd, name: &OsStr) -> Option<()> {
    let dir = open_dir(parent.as_fd(), name, true).ok()?;
    let found = fstat(&dir).ok()?;
    let mode = Mode::from_bits_truncate(found.st_mode);
    let private = mode == Mode::S_IRWXU || mode == DIR_MODE_WITH_GROUP;
    let age = SystemTime::now()
        .duration_since(UNIX_EPOCH + Duration::from_secs(u64::try_from(found.st_mtime).ok()?));
    if found.st_uid != geteuid().as_raw() || !private || age.ok()? < SWEEP_AGE {
        return None;
    }
    let names: Vec<_> =
        std::fs::read_dir(through(&dir)).ok()?.take(2).flatten().map(|entry| entry.file_name()).collect();
    match &names[..] {
        [] => {}
        [only] if only == SOCKET_NAME && nobody_listens(&dir) => {
            unlinkat(&dir, SOCKET_NAME, UnlinkatFlags::NoRemoveDir).ok()?;
        }
        _ => return None,
    }
    unlinkat(parent, name, UnlinkatFlags::RemoveDir).ok()
}

/// A socket whose listener is gone refuses connections; a listener whose queue is full, or a file of another kind, does not.
fn nobody_listens(dir: &OwnedFd) -> bool {
    let Ok(found) = fstatat(dir, SOCKET_NAME, AtFlags::AT_SYMLINK_NOFOLLOW) else { return false };
    let is_socket = found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits();
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(socket) = socket(AddressFamily::Unix, SockType::Stream, flags, None) else { return false };
    let Ok(address) = UnixAddr::new(&through(dir).join(SOCKET_NAME)) else { return false };
    is_socket && connect(socket.as_raw_fd(), &address) == Err(Errno::ECONNREFUSED)
}

/// Whether mkdtemp(3) can have made `name` of the plugin's name and [`DIR_SUFFIX`].
fn is_socket_dir(name: &OsStr, plugin: &str) -> bool {
    let rest = name.as_bytes().strip_prefix(plugin.as_bytes()).and_then(|rest| rest.strip_prefix(b"-"));
    rest.is_some_and(|rest| rest.len() == DIR_SUFFIX.len() - 1 && rest.iter().all(u8::is_ascii_alphanumeric))
}

fn open_dir(at: BorrowedFd<'_>, name: &OsStr, no_follow: bool) -> nix::Result<OwnedFd> {
    let mut flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    flags.set(OFlag::O_NOFOLLOW, no_follow);
    openat(at, name, flags, Mode::empty())
}

/// Opens the directory that was just made, and makes sure that it is that one.
fn open_own(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<OwnedFd, SocketError> {
    let dir = open_dir(parent.as_fd(), name, true).map_err(errno("open", path))?;
    let found = fstat(&dir).map_err(errno("stat", path))?;
    let private = Mode::from_bits_truncate(found.st_mode) == Mode::S_IRWXU;
    match private && found.st_uid == geteuid().as_raw() {
        true => Ok(dir),
        false => Err(SocketError::Replaced { path: path.to_path_buf() }),
    }
}

/// An open directory's path for interfaces that take only paths.
fn through(dir: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()))
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

/// A number as it is, otherwise a name in /etc/group.
fn find_group(group: &OsStr) -> Result<Gid, SocketError> {
    let unknown = || SocketError::NoGroup { group: group.to_owned() };
    let name = std::str::from_utf8(group.as_bytes()).map_err(|_| unknown())?;
    match name.parse() {
        // To chown(2) this one means "leave the group as it is".
        Ok(u32::MAX) => return Err(unknown()),
        Ok(number) => return Ok(Gid::from_raw(number)),
        Err(_) => {}
    }
    let found = group::by_name(name).map_err(|reason| SocketError::Groups { group: name.into(), reason })?;
    found.ok_or_else(unknown)
}

fn errno(step: &'static str, path: &Path) -> impl FnOnce(Errno) -> SocketError {
    let path = path.to_path_buf();
    move |errno| SocketError::Step { step, path, reason: errno.into() }
}

fn step(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    move |reason| SocketError::Step { step, path: path.to_path_buf(), reason }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
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
        let (socket, listener) = SocketFile::bind(parent.path(), "exec2", None).unwrap();
        let dir = socket.path().parent().unwrap();
        assert_eq!(dir.parent().unwrap(), parent.path());
        assert_eq!(mode(dir), 0o700);
        assert_eq!(mode(socket.path()), 0o600);
        assert_eq!(socket.as_str(), socket.path().to_str().unwrap());
        UnixStream::connect(socket.path()).unwrap();

        let (other, _other_listener) = SocketFile::bind(parent.path(), "exec2", None).unwrap();
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
            SocketFile::bind(parent.path(), "exec2", Some(OsStr::new(&gid.to_string()))).unwrap();
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
        SocketFile::bind(parent.path(), "exec2", Some(OsStr::new("no-such-group-here"))).unwrap_err();
        assert_eq!(entries(parent.path()), 0);
    }

    #[test]
    fn a_path_of_107_bytes_is_the_longest() {
        let parent = tempfile::tempdir().unwrap();
        let fixed = parent.path().as_os_str().len() + "//exec2-XXXXXX/plugin.sock".len();
        let fits = parent.path().join("d".repeat(107 - fixed));
        fs::create_dir(&fits).unwrap();
        let (socket, _listener) = SocketFile::bind(&fits, "exec2", None).unwrap();
        assert_eq!(socket.path().as_os_str().len(), 107);
        UnixStream::connect(socket.path()).unwrap();

        let too_long = parent.path().join("d".repeat(108 - fixed));
        fs::create_dir(&too_long).unwrap();
        let error = SocketFile::bind(&too_long, "exec2", None).unwrap_err();
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
            let error = SocketFile::bind(&dir, "exec2", None).unwrap_err();
            assert!(matches!(error, SocketError::PathUnprintable { .. }), "{error}");
        }
    }

    #[test]
    fn a_missing_parent_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let missing = parent.path().join("missing");
        let error = SocketFile::bind(&missing, "exec2", None).unwrap_err().to_string();
        assert!(error.contains(missing.to_str().unwrap()) && error.contains("TMPDIR"), "{error}");
    }

    /// A directory as a plugin has it, an hour old.
    fn left_behind(parent: &Path, name: &str, fill: impl FnOnce(&Path)) -> PathBuf {
        let dir = parent.join(name);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        fill(&dir);
        age(&dir);
        dir
    }

    fn age(dir: &Path) {
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        fs::File::open(dir).unwrap().set_modified(hour_ago).unwrap();
    }

    fn dead_socket(dir: &Path) {
        drop(UnixListener::bind(dir.join(SOCKET_NAME)).unwrap());
    }

    #[test]
    fn sockets_of_killed_plugins_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let dead = left_behind(parent.path(), "exec2-aB3xyz", dead_socket);
        let empty = left_behind(parent.path(), "exec2-000000", |_| {});
        let of_group = left_behind(parent.path(), "exec2-grouped", dead_socket);
        fs::rename(&of_group, parent.path().join("exec2-grpABC")).unwrap();
        fs::set_permissions(parent.path().join("exec2-grpABC"), fs::Permissions::from_mode(0o710)).unwrap();
        sweep_dead(parent.path(), "exec2");
        assert!(!dead.exists() && !empty.exists());
        assert_eq!(entries(parent.path()), 0);
    }

    #[test]
    fn sockets_in_use_and_other_files_are_kept() {
        let parent = tempfile::tempdir().unwrap();
        let (live, _listener) = SocketFile::bind(parent.path(), "exec2", None).unwrap();
        age(live.path().parent().unwrap());
        let new = left_behind(parent.path(), "exec2-newest", dead_socket);
        fs::File::open(&new).unwrap().set_modified(SystemTime::now()).unwrap();
        left_behind(parent.path(), "exec2-run-XX", dead_socket);
        left_behind(parent.path(), "exec2-toolong", dead_socket);
        left_behind(parent.path(), "exec2-opened", |dir| {
            dead_socket(dir);
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        });
        left_behind(parent.path(), "exec2-filled", |dir| {
            dead_socket(dir);
            fs::write(dir.join("other"), "").unwrap();
        });
        left_behind(parent.path(), "exec2-plainf", |dir| fs::write(dir.join(SOCKET_NAME), "").unwrap());
        let elsewhere = tempfile::tempdir().unwrap();
        let target = left_behind(elsewhere.path(), "exec2-target", dead_socket);
        symlink(&target, parent.path().join("exec2-linked")).unwrap();
        left_behind(parent.path(), "exec2-tolink", |dir| {
            symlink(target.join(SOCKET_NAME), dir.join(SOCKET_NAME)).unwrap();
        });
        let before = entries(parent.path());
        sweep_dead(parent.path(), "exec2");
        assert_eq!(entries(parent.path()), before);
        assert!(target.join(SOCKET_NAME).exists());
        UnixStream::connect(live.path()).unwrap();
        sweep_dead(&parent.path().join("missing"), "exec2");
    }

    #[test]
    fn a_directory_that_was_exchanged_is_not_given_away() {
        let parent = tempfile::tempdir().unwrap();
        let gid = Gid::current().to_string();
        let (socket, _listener) = SocketFile::bind(parent.path(), "exec2", Some(OsStr::new(&gid))).unwrap();
        let dir = socket.path().parent().unwrap().to_owned();
        let (moved, victim) = (parent.path().join("moved"), parent.path().join("victim"));
        fs::rename(&dir, &moved).unwrap();
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join(SOCKET_NAME), "").unwrap();
        symlink(&victim, &dir).unwrap();
        socket.give_to(Some(Gid::current())).unwrap();
        assert_ne!(mode(&victim.join(SOCKET_NAME)), 0o660);
        drop(socket);
        assert!(victim.join(SOCKET_NAME).exists(), "nothing is removed by the name");
        assert!(!moved.join(SOCKET_NAME).exists());
    }
}
