//! Opens a path of the host without following symbolic links that an unprivileged user could have placed.
//!
//! A symbolic link is followed only if root created it, in a directory where only root can create links, or if everything behind
//! it belongs to its owner; and never below a directory in which this task's rules let
//! tasks create, where a task of root could have made it. The text of a path proves nothing: another link or a bind
//! mount may lead to a directory that a task can write.
//!
//! A directory or a file on the way is taken as it is. The owner of a directory can move its entries, even those of
//! others, so a rule for a path below a user's directory is for what that user puts there; file permissions still decide.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::sandbox::root::layout::Link;
use crate::sys::open::retry;

/// The most symbolic links on the way to a place, MAXSYMLINKS of path_resolution(7).
pub(super) const MAX_LINKS: usize = 40;

/// Why a path could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum WalkError {
    #[error("{}", .0.desc())]
    Errno(Errno),
    #[error(
        "the symbolic link {link:?} belongs to uid {owner}, who could lead root anywhere by it; name the target itself, or \
         create the link as root in a directory where only root can write"
    )]
    Link { link: PathBuf, owner: u32 },
    #[error(
        "the symbolic link {link:?} of uid {owner} leads to {path:?}, which belongs to uid {found}; name that path itself"
    )]
    Elsewhere { link: PathBuf, owner: u32, path: PathBuf, found: u32 },
    #[error(
        "the symbolic link {0:?} is below a directory that is unveiled for creating (c), where a task could have made it; \
         name the target itself"
    )]
    Writable(PathBuf),
    #[error("{0:?} is a link of proc(5) to a file that a process has open; name the path of the file itself")]
    Magic(PathBuf),
}

impl From<Errno> for WalkError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// A directory, wherever it is mounted: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DirId(u64, u64);

impl DirId {
    pub(super) fn of(stat: &FileStat) -> Self {
        Self(stat.st_dev, stat.st_ino)
    }
}

/// What a path led to.
#[derive(Debug)]
pub(super) struct Found {
    pub place: OwnedFd,
    /// Its path without symbolic links.
    pub path: PathBuf,
    /// The links that were followed.
    pub links: Vec<Link>,
}

/// Opens `path`, which is absolute, `O_PATH`. No link at or below the directories `writable` is followed.
pub(super) fn find(path: &Path, writable: &[DirId]) -> Result<Found, WalkError> {
    // Most paths contain no link and need no walk.
    let plain = ResolveFlag::RESOLVE_NO_SYMLINKS;
    match retry(|| openat2(nix::fcntl::AT_FDCWD, path, path_only(plain))) {
        // EACCES is `fs.protected_symlinks`, which judges a last link before the flag does; the walk says which link it is.
        Err(Errno::ELOOP | Errno::EACCES) => Walk::new(writable)?.to(path),
        opened => Ok(Found { place: opened?, path: path.components().collect(), links: Vec::new() }),
    }
}

fn path_only(resolve: ResolveFlag) -> OpenHow {
    OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve)
}

/// The owner of a link that was followed, if users other than root can create one there.
#[derive(Debug, Clone)]
struct Maker {
    link: PathBuf,
    uid: u32,
}

/// Where a walk is.
#[derive(Debug)]
struct Walk<'a> {
    writable: &'a [DirId],
    /// Whether one of them has been entered since the root.
    below_writable: bool,
    here: OwnedFd,
    stat: FileStat,
    /// For messages.
    path: PathBuf,
    maker: Option<Maker>,
    links: Vec<Link>,
}

impl<'a> Walk<'a> {
    fn new(writable: &'a [DirId]) -> Result<Self, WalkError> {
        let here = open_root()?;
        let stat = fstat(&here)?;
        let below_writable = writable.contains(&DirId::of(&stat));
        Ok(Self {
            writable,
            below_writable,
            stat,
            here,
            path: PathBuf::from("/"),
            maker: None,
            links: Vec::new(),
        })
    }

    /// One component after the other, those of a link before the rest.
    fn to(mut self, path: &Path) -> Result<Found, WalkError> {
        let mut left = components(path);
        while let Some(name) = left.pop() {
            let child = retry(|| {
                let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(&self.here, name.as_os_str(), flags, Mode::empty())
            })?;
            let stat = fstat(&child)?;
            if kind(&stat) == SFlag::S_IFLNK {
                left.extend(self.follow(&name, &child, &stat)?);
            } else {
                // What is mounted only when somebody looks behind it (autofs) is mounted by the dot.
                let child = match left.is_empty() {
                    true => child,
                    false => self.enter(&name)?,
                };
                self.step(name.as_os_str(), child)?;
            }
        }
        Ok(Found { place: self.here, path: self.path, links: self.links })
    }

    fn enter(&self, name: &OsStr) -> Result<OwnedFd, WalkError> {
        let below = Path::new(name).join(".");
        let how = path_only(ResolveFlag::RESOLVE_NO_SYMLINKS);
        Ok(retry(|| openat2(&self.here, below.as_path(), how))?)
    }

    fn step(&mut self, name: &OsStr, child: OwnedFd) -> Result<(), WalkError> {
        match name.as_bytes() {
            b".." => drop(self.path.pop()),
            _ => self.path.push(name),
        }
        self.stat = fstat(&child)?;
        self.here = child;
        self.below_writable |= self.writable.contains(&DirId::of(&self.stat));
        match &self.maker {
            Some(Maker { link, uid }) if self.stat.st_uid != *uid => Err(WalkError::Elsewhere {
                link: link.clone(),
                owner: *uid,
                path: self.path.clone(),
                found: self.stat.st_uid,
            }),
            _ => Ok(()),
        }
    }

    /// The components that the link stands for, the first one last.
    fn follow(&mut self, name: &OsStr, child: &OwnedFd, stat: &FileStat) -> Result<Vec<OsString>, WalkError> {
        let link = self.path.join(name);
        if self.links.len() == MAX_LINKS {
            return Err(Errno::ELOOP.into());
        }
        if self.below_writable {
            return Err(WalkError::Writable(link));
        }
        if !may_follow(&self.stat, stat) {
            return Err(WalkError::Link { link, owner: stat.st_uid });
        }
        if is_proc(&self.here)? && self.is_magic(name) {
            return Err(WalkError::Magic(link));
        }
        let target = PathBuf::from(readlinkat(child, "")?);
        self.links.push(Link { path: link.clone(), target: target.clone() });
        if self.stat.st_uid != 0 {
            self.maker = Some(Maker { link, uid: stat.st_uid });
        }
        if target.is_absolute() {
            self.path = PathBuf::new();
            self.below_writable = false;
            self.step(OsStr::new("/"), open_root()?)?;
        }
        Ok(components(&target))
    }

    /// Whether a link of proc(5) leads to something that is open, and not to its own text.
    fn is_magic(&self, name: &OsStr) -> bool {
        let how = path_only(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        // Those of a process that the task may not trace are denied before they are refused.
        matches!(retry(|| openat2(&self.here, name, how)), Err(Errno::ELOOP | Errno::EACCES))
    }
}

fn open_root() -> nix::Result<OwnedFd> {
    open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// The names on the way, the last one first.
pub(super) fn components(path: &Path) -> Vec<OsString> {
    let named = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    named.rev().map(|part| part.as_os_str().to_owned()).collect()
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Whether a link in this directory was put there by root, or by the owner of both.
fn may_follow(directory: &FileStat, link: &FileStat) -> bool {
    let has = |bits: Mode| directory.st_mode & bits.bits() != 0;
    match directory.st_uid {
        0 if !has(Mode::S_IWGRP | Mode::S_IWOTH) => true,
        // Others can put links of their own there, and without the sticky bit exchange root's.
        0 => link.st_uid == 0 && (!has(Mode::S_IWOTH) || has(Mode::S_ISVTX)),
        owner => link.st_uid == owner,
    }
}

/// Whether it is in a file system of processes, proc(5).
pub(super) fn is_proc(directory: &OwnedFd) -> nix::Result<bool> {
    let found = nix::sys::statfs::fstatfs(directory)?;
    Ok(found.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    use super::*;

    const ALICE: u32 = 4001;
    const BOB: u32 = 4002;

    /// A directory whose way from / is root's and has no link, with `name`s in it that tests make.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            std::fs::set_permissions(tree.0.path(), PermissionsExt::from_mode(0o755)).unwrap();
            tree
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn dir(&self, name: &str, owner: u32, mode: u32) -> &Self {
            std::fs::create_dir_all(self.at(name)).unwrap();
            chown(self.at(name), Some(owner), Some(owner)).unwrap();
            std::fs::set_permissions(self.at(name), PermissionsExt::from_mode(mode)).unwrap();
            self
        }

        fn link(&self, name: &str, target: &str, owner: u32) -> &Self {
            let target = target.strip_prefix('=').map_or_else(|| target.into(), |name| self.at(name));
            symlink(target, self.at(name)).unwrap();
            lchown(self.at(name), Some(owner), Some(owner)).unwrap();
            self
        }

        /// What `name` leads to, as a path.
        fn opened(&self, name: &str) -> Result<PathBuf, WalkError> {
            self.opened_with(name, &[])
        }

        fn opened_with(&self, name: &str, writable: &[&str]) -> Result<PathBuf, WalkError> {
            let id = |name: &&str| DirId::of(&nix::sys::stat::stat(&self.at(name)).unwrap());
            let writable: Vec<_> = writable.iter().map(id).collect();
            let place = find(&self.at(name), &writable)?.place;
            Ok(std::fs::read_link(format!("/proc/self/fd/{}", place.as_raw_fd())).unwrap())
        }
    }

    #[test]
    #[ignore = "needs root, to make files of several owners"]
    fn root_links_are_followed() {
        let tree = Tree::new();
        tree.dir("real/below", 0, 0o755).link("abs", "=real", 0).link("rel", "real/../real", 0);
        tree.dir("sticky", 0, 0o1777).link("sticky/link", "=real", 0);
        tree.dir("staff", 0, 0o775).link("staff/link", "../abs", 0).link("given", "real", ALICE);
        for name in
            ["abs/below", "rel/below", "sticky/link/below", "staff/link/below", "given/below", "real/below"]
        {
            assert_eq!(tree.opened(name), Ok(tree.at("real/below")), "{name}");
        }
        assert_eq!(tree.opened("abs"), Ok(tree.at("real")));
    }

    #[test]
    #[ignore = "needs root, to make files of several owners"]
    fn links_that_others_can_make_are_refused() {
        let tree = Tree::new();
        tree.dir("real", 0, 0o755).dir("alice", ALICE, 0o755).dir("open", 0, 0o777).dir("tmp", 0, 0o1777);
        tree.link("alice/of_root", "=real", 0).link("alice/of_bob", "=real", BOB);
        tree.link("open/of_root", "=real", 0).link("open/of_alice", "=real", ALICE);
        tree.link("tmp/of_alice", "=real", ALICE);
        for name in ["alice/of_root", "alice/of_bob", "open/of_root", "open/of_alice", "tmp/of_alice"] {
            let error = tree.opened(name).unwrap_err();
            assert!(
                matches!(&error, WalkError::Link { link, .. } if *link == tree.at(name)),
                "{name}: {error}"
            );
        }
    }

    #[test]
    #[ignore = "needs root, to make files of several owners"]
    fn a_users_own_link_leads_only_to_the_users_own() {
        let tree = Tree::new();
        tree.dir("alice", ALICE, 0o755).dir("alice/releases/5", ALICE, 0o755).dir(
            "alice/releases",
            ALICE,
            0o755,
        );
        tree.link("alice/current", "releases/5", ALICE).link("alice/again", "./current", ALICE);
        tree.dir("alice/roots", 0, 0o755).link("alice/to_root", "roots", ALICE);
        tree.link("alice/absolute", "=alice/releases", ALICE)
            .link("alice/up", "../real", ALICE)
            .dir("real", 0, 0o755);
        for name in ["alice/current", "alice/again"] {
            assert_eq!(tree.opened(name), Ok(tree.at("alice/releases/5")), "{name}");
        }
        for name in ["alice/to_root", "alice/absolute", "alice/up"] {
            let error = tree.opened(name).unwrap_err();
            assert!(matches!(error, WalkError::Elsewhere { owner: ALICE, .. }), "{name}: {error}");
        }
    }

    #[test]
    #[ignore = "needs root, to make files of several owners"]
    fn another_spelling_of_a_writable_directory_changes_nothing() {
        let tree = Tree::new();
        tree.dir("real", ALICE, 0o755).link("alias", "=real", 0).link("real/x", "/", ALICE);
        for name in ["alias/x", "alias/x/etc"] {
            assert!(matches!(tree.opened(name), Err(WalkError::Elsewhere { .. })), "{name}");
        }
        assert_eq!(tree.opened("alias"), Ok(tree.at("real")));
    }

    #[test]
    #[ignore = "needs root, to make files of several owners"]
    fn not_even_roots_link_is_followed_below_a_directory_that_tasks_can_write() {
        let tree = Tree::new();
        tree.dir("shared/in/deep", 0, 0o755).link("alias", "=shared", 0).link("shared/out", "=real", 0);
        tree.dir("real", 0, 0o755).link("shared/in/deep/out", "=real", 0).link("beside", "=real", 0);
        for name in ["shared/out", "alias/out", "alias/in/deep/out"] {
            assert_eq!(tree.opened(name), Ok(tree.at("real")), "{name}");
            let error = tree.opened_with(name, &["shared"]).unwrap_err();
            assert!(matches!(error, WalkError::Writable(_)), "{name}: {error}");
        }
        assert_eq!(tree.opened_with("beside", &["shared"]), Ok(tree.at("real")));
        assert_eq!(tree.opened_with("alias/in", &["shared"]), Ok(tree.at("shared/in")));
    }

    #[test]
    #[ignore = "needs root, who owns the links of its own processes in /proc"]
    fn magic_links_are_refused_and_ordinary_ones_of_proc_are_not() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let error = find(Path::new(&path), &[]).unwrap_err();
        assert!(matches!(error, WalkError::Magic(_)), "{error}");
        find(Path::new("/proc/self/status"), &[]).unwrap();
        find(Path::new("/proc/mounts"), &[]).unwrap();
    }

    #[test]
    fn what_is_missing_is_an_errno() {
        let tree = Tree::new();
        std::fs::write(tree.at("file"), "").unwrap();
        assert_eq!(tree.opened("missing"), Err(Errno::ENOENT.into()));
        assert_eq!(tree.opened("file/x"), Err(Errno::ENOTDIR.into()));
        assert_eq!(tree.opened("file"), Ok(tree.at("file")));
    }

    #[test]
    #[ignore = "needs root, whose links are followed"]
    fn a_link_that_leads_nowhere_is_an_errno() {
        let tree = Tree::new();
        std::fs::write(tree.at("file"), "").unwrap();
        tree.link("round", "round", 0).link("dangling", "nowhere", 0).link("link", "file", 0);
        for (name, errno) in [
            ("round", Errno::ELOOP),
            ("dangling", Errno::ENOENT),
            ("link/x", Errno::ENOTDIR),
            ("link/..", Errno::ENOTDIR),
        ] {
            assert_eq!(tree.opened(name), Err(errno.into()), "{name}");
        }
    }

    #[test]
    fn who_can_have_made_a_link() {
        const FOLLOWED: bool = true;
        for (directory, mode, link, expected) in [
            (0, 0o755, 0, FOLLOWED),
            (0, 0o755, ALICE, FOLLOWED),
            (0, 0o775, 0, FOLLOWED),
            (0, 0o775, ALICE, !FOLLOWED),
            (0, 0o777, 0, !FOLLOWED),
            (0, 0o1777, 0, FOLLOWED),
            (0, 0o1777, ALICE, !FOLLOWED),
            (ALICE, 0o755, ALICE, FOLLOWED),
            (ALICE, 0o755, 0, !FOLLOWED),
            (ALICE, 0o755, BOB, !FOLLOWED),
        ] {
            let of = |uid, mode| {
                let mut stat = fstat(std::io::stdin()).unwrap();
                (stat.st_uid, stat.st_mode) = (uid, mode);
                stat
            };
            let found = may_follow(&of(directory, mode), &of(link, 0o777));
            assert_eq!(found, expected, "{directory} {mode:o} {link}");
        }
    }
}
