//! The /etc of all tasks: one directory of the host, in the run directory, with copies of the single files that tasks may
//! read. Each root has it mounted read-only, so a copy that is replaced here is replaced in all of them at once.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

use crate::sandbox::root::layout::{Link, Tree};

/// The most bytes of one file: the largest, ld.so.cache, has some 100 KiB.
const COPY_MAX: u64 = 16 << 20;
/// How names of files begin that are not finished.
const UNFINISHED: &str = ".new-";

/// A name of /etc that could not be brought up to date.
#[derive(Debug, thiserror::Error)]
#[error("failed to copy /etc/{name} for the tasks: {error}", name = name.display())]
pub(crate) struct CopyError {
    pub name: PathBuf,
    pub error: io::Error,
}

/// Makes `directory` what the tree describes, in which every name is changed by rename: a reader sees the old file or the new
/// one. What fails keeps its old state; the first error is returned at the end.
pub(crate) fn update(directory: &Path, tree: &Tree) -> Result<(), CopyError> {
    let mut first = Ok(());
    let mut note = |name: &Path, done: io::Result<()>| {
        if let Err(error) = done
            && first.is_ok()
        {
            first = Err(CopyError { name: name.to_owned(), error });
        }
    };
    let relative = |path: &Path| path.strip_prefix(&tree.path).unwrap_or(path).to_owned();
    for part in &tree.parts {
        let name = relative(&part.path);
        note(&name, mount_point(&directory.join(&name), part.directory));
    }
    for Link { path, target } in &tree.links {
        let name = relative(path);
        note(&name, update_link(&directory.join(&name), target));
    }
    for name in &tree.copies {
        note(name, update_copy(&tree.path.join(name), &directory.join(name)));
    }
    let names: BTreeSet<_> =
        tree.links.iter().map(|link| relative(&link.path)).chain(tree.copies.iter().cloned()).collect();
    note(Path::new("."), remove_others(directory, Path::new(""), &names, tree));
    first
}

fn mount_point(path: &Path, directory: bool) -> io::Result<()> {
    if directory {
        return make_directory(path);
    }
    make_parent(path)?;
    match File::options().write(true).create_new(true).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), make_directory)
}

/// With all above it, readable for all whatever the umask is.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    make_parent(path)?;
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)),
    }
}

/// A name beside `path` that nobody else uses.
fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{UNFINISHED}{}-{name}", std::process::id()))
}

fn update_link(path: &Path, target: &Path) -> io::Result<()> {
    if std::fs::read_link(path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    make_parent(path)?;
    let new = unfinished(path);
    let _ = std::fs::remove_file(&new);
    symlink(target, &new)?;
    std::fs::rename(new, path)
}

/// With owner and mode, so that who may not read the host's file may not read its copy.
fn update_copy(source: &Path, path: &Path) -> io::Result<()> {
    let mut file = match File::open(source) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return remove(path),
        Err(error) => return Err(error),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("this is no regular file"));
    }
    let mut content = Vec::new();
    Read::by_ref(&mut file).take(COPY_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > COPY_MAX {
        return Err(io::Error::other(format!("it has more than {COPY_MAX} bytes")));
    }
    if is_current(path, &meta, &content) {
        return Ok(());
    }
    make_parent(path)?;
    let new = unfinished(path);
    let _ = std::fs::remove_file(&new);
    let mut copy = File::options().write(true).create_new(true).open(&new)?;
    copy.write_all(&content)?;
    fchown(copy.as_fd(), Some(meta.uid()), Some(meta.gid()))?;
    copy.set_permissions(PermissionsExt::from_mode(meta.mode() & 0o777))?;
    copy.set_modified(meta.modified()?)?;
    std::fs::rename(new, path)
}

fn is_current(path: &Path, meta: &Metadata, content: &[u8]) -> bool {
    let same = |found: &Metadata| {
        found.is_file() && (found.uid(), found.gid()) == (meta.uid(), meta.gid()) && found.mode() & 0o777 == meta.mode() & 0o777
    };
    std::fs::symlink_metadata(path).is_ok_and(|found| same(&found) && found.len() == content.len() as u64)
        && std::fs::read(path).is_ok_and(|found| found == content)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes files and links that the tree does not have. Directories stay: in a root that runs they may be mount points.
fn remove_others(directory: &Path, below: &Path, names: &BTreeSet<PathBuf>, tree: &Tree) -> io::Result<()> {
    for entry in std::fs::read_dir(directory.join(below))? {
        let entry = entry?;
        let name = below.join(entry.file_name());
        let is_part = tree.parts.iter().any(|part| part.path == tree.path.join(&name));
        if entry.file_type()?.is_dir() {
            if !is_part {
                remove_others(directory, &name, names, tree)?;
            }
        } else if !names.contains(&name) && !is_part {
            // Another process may be about to rename an unfinished one.
            let unfinished = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
            let old = || entry.metadata().ok().and_then(|meta| meta.modified().ok()?.elapsed().ok());
            if !unfinished || old().is_some_and(|age| age.as_secs() > UNFINISHED_AGE) {
                remove(&directory.join(&name))?;
            }
        }
    }
    Ok(())
}

/// Seconds after which an unfinished copy has been given up.
const UNFINISHED_AGE: u64 = 600;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::root::layout::Part;
    use crate::sandbox::unveil::Access;

    struct Host {
        source: tempfile::TempDir,
        copies: tempfile::TempDir,
        tree: Tree,
    }

    impl Host {
        fn new(copies: &[&str]) -> Self {
            let source = tempfile::tempdir().unwrap();
            let tree = Tree {
                path: source.path().to_owned(),
                copies: copies.iter().map(PathBuf::from).collect(),
                ..Tree::default()
            };
            Self { source, copies: tempfile::tempdir().unwrap(), tree }
        }

        fn write(&self, name: &str, content: &str) -> &Self {
            let path = self.source.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
            self
        }

        fn update(&self) -> Result<(), CopyError> {
            update(self.copies.path(), &self.tree)
        }

        fn read(&self, name: &str) -> Option<String> {
            std::fs::read_to_string(self.copies.path().join(name)).ok()
        }
    }

    #[test]
    fn copies_follow_the_hosts_files() {
        let host = Host::new(&["hosts", "ssl/openssl.cnf"]);
        host.write("hosts", "1").write("ssl/openssl.cnf", "a").update().unwrap();
        assert_eq!((host.read("hosts"), host.read("ssl/openssl.cnf")), (Some("1".into()), Some("a".into())));
        host.write("hosts", "2").update().unwrap();
        assert_eq!(host.read("hosts").unwrap(), "2");
        std::fs::remove_file(host.source.path().join("hosts")).unwrap();
        host.update().unwrap();
        assert_eq!(host.read("hosts"), None);
    }

    #[test]
    fn a_copy_has_the_mode_of_its_source() {
        let host = Host::new(&["secret"]);
        host.write("secret", "x");
        for mode in [0o600, 0o640, 0o644] {
            std::fs::set_permissions(host.source.path().join("secret"), PermissionsExt::from_mode(mode)).unwrap();
            host.update().unwrap();
            let found = std::fs::metadata(host.copies.path().join("secret")).unwrap();
            assert_eq!(found.mode() & 0o777, mode);
        }
    }

    #[test]
    fn an_unchanged_file_is_left_alone() {
        let host = Host::new(&["hosts"]);
        host.write("hosts", "1").update().unwrap();
        let inode = || std::fs::metadata(host.copies.path().join("hosts")).unwrap().ino();
        let before = inode();
        host.update().unwrap();
        assert_eq!(inode(), before);
        host.write("hosts", "2").update().unwrap();
        assert_ne!(inode(), before, "replaced, not rewritten: a reader keeps what it has opened");
    }

    #[test]
    fn links_and_mount_points_are_made_and_others_removed() {
        let mut host = Host::new(&[]);
        let at = |name: &str| host.source.path().join(name);
        host.tree.links = vec![Link { path: at("localtime"), target: "/usr/share/zoneinfo/UTC".into() }];
        host.tree.parts = vec![Part { path: at("ssl/certs"), access: Access::READ, directory: true }];
        std::fs::write(host.copies.path().join("stale"), "").unwrap();
        host.update().unwrap();
        let in_copies = |name: &str| host.copies.path().join(name);
        assert_eq!(std::fs::read_link(in_copies("localtime")).unwrap(), Path::new("/usr/share/zoneinfo/UTC"));
        assert!(in_copies("ssl/certs").is_dir() && !in_copies("stale").exists());
        let target = PathBuf::from("/usr/share/zoneinfo/Europe/Berlin");
        host.tree.links[0].target.clone_from(&target);
        host.update().unwrap();
        assert_eq!(std::fs::read_link(in_copies("localtime")).unwrap(), target);
    }

    #[test]
    fn one_file_that_fails_does_not_keep_the_others_old() {
        let host = Host::new(&["a", "b"]);
        std::fs::create_dir(host.source.path().join("a")).unwrap();
        let error = host.write("b", "1").update().unwrap_err();
        assert!(error.to_string().starts_with("failed to copy /etc/a"), "{error}");
        assert_eq!(host.read("b").unwrap(), "1");
    }
}
