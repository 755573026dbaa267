//! The /etc of all tasks: one directory of the host, in the run directory, with copies of the single files that tasks may
//! read. Each root has it mounted read-only, so a copy that is replaced here is replaced in all of them at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

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
/// one. What fails keeps its old state; the first error is returned at the end. Names that the tree does not have are removed
/// if it is `whole`. Before each file is read, `at` is called: a file system that does not answer must be named.
pub(crate) fn update(
    directory: &Path,
    tree: &Tree,
    made: &BTreeMap<PathBuf, String>,
    whole: bool,
    mut at: impl FnMut(&Path),
) -> Result<(), CopyError> {
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
        note(&name, mount_point(directory, &name, part.directory));
    }
    for Link { path, target } in &tree.links {
        let name = relative(path);
        note(&name, update_link(directory, &name, target));
    }
    for name in &tree.copies {
        let source = tree.source(name);
        at(&source);
        note(name, update_copy(&source, directory, name));
    }
    for (name, content) in made.iter().filter(|(name, _)| tree.made.contains(name)) {
        note(name, update_made(content, directory, name));
    }
    if !whole {
        return first;
    }
    let names = tree.links.iter().map(|link| relative(&link.path)).chain(tree.copies.iter().cloned());
    let names = names.chain(tree.made.iter().cloned()).collect();
    note(Path::new("."), remove_others(directory, Path::new(""), &names, tree));
    first
}

fn mount_point(base: &Path, name: &Path, directory: bool) -> io::Result<()> {
    if directory {
        return make_below(base, name);
    }
    match File::options().write(true).create_new(true).open(place(base, name)?) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The path of a name, in a directory that exists.
fn place(base: &Path, name: &Path) -> io::Result<PathBuf> {
    name.parent().map_or(Ok(()), |parent| make_below(base, parent))?;
    Ok(base.join(name))
}

/// Makes directories below `base`, also where the host had a file or a link before: a link that is left leads out of `base`.
fn make_below(base: &Path, name: &Path) -> io::Result<()> {
    let mut path = base.to_owned();
    for part in name {
        path.push(part);
        if !is_directory(&path) {
            remove(&path)?;
            make_directory(&path)?;
        }
    }
    Ok(())
}

/// Whether there is a directory, not a link to one.
fn is_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Readable for all whatever the umask is.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_directory(path) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)),
    }
}

/// A name beside `path` that nobody else uses.
fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{UNFINISHED}{}-{name}", std::process::id()))
}

fn update_link(base: &Path, name: &Path, target: &Path) -> io::Result<()> {
    let path = place(base, name)?;
    if std::fs::read_link(&path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let new = unfinished(&path);
    let _ = std::fs::remove_file(&new);
    symlink(target, &new)?;
    finish(&new, &path)
}

/// Puts what is finished in its place. If the host had a directory there, its mount points are removed, and with them the mounts
/// in the roots that have them.
fn finish(new: &Path, path: &Path) -> io::Result<()> {
    if is_directory(path) {
        std::fs::remove_dir_all(path)?;
    }
    std::fs::rename(new, path)
}

/// With owner and mode, so that who may not read the host's file may not read its copy.
fn update_copy(source: &Path, base: &Path, name: &Path) -> io::Result<()> {
    let path = place(base, name)?;
    let mut file = match File::open(source) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return remove(&path),
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
    if is_current(&path, &meta, &content) {
        return Ok(());
    }
    let new = unfinished(&path);
    let copy = create(&new, &content)?;
    fchown(copy.as_fd(), Some(meta.uid()), Some(meta.gid()))?;
    copy.set_permissions(PermissionsExt::from_mode(meta.mode() & 0o777))?;
    copy.set_modified(meta.modified()?)?;
    finish(&new, &path)
}

/// A file of the driver's own, readable for all.
fn update_made(content: &str, base: &Path, name: &Path) -> io::Result<()> {
    let path = place(base, name)?;
    if std::fs::read(&path).is_ok_and(|found| found == content.as_bytes()) {
        return Ok(());
    }
    let new = unfinished(&path);
    create(&new, content.as_bytes())?.set_permissions(PermissionsExt::from_mode(0o644))?;
    finish(&new, &path)
}

fn create(path: &Path, content: &[u8]) -> io::Result<File> {
    let _ = std::fs::remove_file(path);
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(content)?;
    Ok(file)
}

fn is_current(path: &Path, meta: &Metadata, content: &[u8]) -> bool {
    let same = |found: &Metadata| {
        found.is_file()
            && (found.uid(), found.gid()) == (meta.uid(), meta.gid())
            && found.mode() & 0o777 == meta.mode() & 0o777
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
            if !unfinished || entry.metadata().is_ok_and(|meta| is_given_up(&meta)) {
                remove(&directory.join(&name))?;
            }
        }
    }
    Ok(())
}

/// How long after its last change an unfinished copy has been given up.
const UNFINISHED_AGE: Duration = Duration::from_secs(600);

/// Goes by the inode's change: a copy has its source's time of modification before it has its name.
fn is_given_up(meta: &Metadata) -> bool {
    let changed = UNIX_EPOCH + Duration::from_secs(meta.ctime().try_into().unwrap_or(0));
    changed.elapsed().is_ok_and(|age| age > UNFINISHED_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::root::layout::Part;
    use crate::sandbox::unveil::Access;

    struct Host {
        source: tempfile::TempDir,
        copies: tempfile::TempDir,
        tree: Tree,
        made: BTreeMap<PathBuf, String>,
    }

    impl Host {
        fn new(copies: &[&str]) -> Self {
            let source = tempfile::tempdir().unwrap();
            let tree = Tree {
                path: source.path().to_owned(),
                copies: copies.iter().map(PathBuf::from).collect(),
                ..Tree::default()
            };
            Self { source, copies: tempfile::tempdir().unwrap(), tree, made: BTreeMap::new() }
        }

        fn write(&self, name: &str, content: &str) -> &Self {
            let path = self.source.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
            self
        }

        fn update(&self) -> Result<(), CopyError> {
            update(self.copies.path(), &self.tree, &self.made, true, |_| {})
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
            std::fs::set_permissions(host.source.path().join("secret"), PermissionsExt::from_mode(mode))
                .unwrap();
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

    #[test]
    fn a_name_that_roots_decide_about_is_copied_beside_them() {
        let mut host = Host::new(&[".host/hosts"]);
        host.tree.made = vec![".host/made".into()];
        host.made.insert(".host/made".into(), "m1".into());
        host.made.insert(".host/other".into(), "not of this tree".into());
        host.write("hosts", "1").update().unwrap();
        assert_eq!(
            (host.read(".host/hosts"), host.read(".host/made")),
            (Some("1".into()), Some("m1".into()))
        );
        assert_eq!((host.read("hosts"), host.read(".host/other")), (None, None));
        host.made.insert(".host/made".into(), "m2".into());
        host.update().unwrap();
        assert_eq!(host.read(".host/made").unwrap(), "m2");
        host.tree.made.clear();
        host.update().unwrap();
        assert_eq!(host.read(".host/made"), None);
    }

    #[test]
    fn a_part_of_the_tree_removes_nothing() {
        let host = Host::new(&["hosts"]);
        std::fs::write(host.copies.path().join("resolv.conf"), "old").unwrap();
        host.write("hosts", "1");
        let mut looked = Vec::new();
        update(host.copies.path(), &host.tree, &host.made, false, |path| looked.push(path.to_owned()))
            .unwrap();
        assert_eq!(looked, [host.source.path().join("hosts")]);
        assert_eq!((host.read("hosts"), host.read("resolv.conf")), (Some("1".into()), Some("old".into())));
        host.update().unwrap();
        assert_eq!(host.read("resolv.conf"), None, "the whole tree does");
    }

    #[test]
    fn a_name_may_become_a_directory_and_a_directory_a_link_or_a_file() {
        let mut host = Host::new(&["certs"]);
        let certs = host.source.path().join("certs");
        let copy = host.copies.path().join("certs");
        let empty = Tree { path: host.tree.path.clone(), ..Tree::default() };
        let file = host.tree.clone();
        let mut directory = empty.clone();
        directory.parts = vec![Part { path: certs.join("below"), access: Access::READ, directory: true }];
        let mut link = empty;
        link.links = vec![Link { path: certs, target: "/nowhere".into() }];
        host.write("certs", "1").update().unwrap();
        for tree in [&directory, &file, &link, &directory, &link, &file] {
            host.tree.clone_from(tree);
            host.update().unwrap();
            let found = std::fs::symlink_metadata(&copy).unwrap().file_type();
            let expected = (!tree.parts.is_empty(), !tree.links.is_empty());
            assert_eq!((found.is_dir(), found.is_symlink()), expected, "{tree:?}");
        }
    }

    #[test]
    fn nothing_is_written_where_a_former_link_leads() {
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::set_permissions(elsewhere.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let host = Host::new(&["php/php.ini"]);
        symlink(elsewhere.path(), host.copies.path().join("php")).unwrap();
        host.write("php/php.ini", "1").update().unwrap();
        assert_eq!(host.read("php/php.ini").unwrap(), "1");
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        assert_eq!(std::fs::metadata(elsewhere.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_another_process_is_writing_is_left_alone() {
        let host = Host::new(&[]);
        let unfinished = host.copies.path().join(format!("{UNFINISHED}1-hosts"));
        File::create(&unfinished).unwrap().set_modified(UNIX_EPOCH).unwrap();
        host.update().unwrap();
        assert!(unfinished.exists());
    }
}
