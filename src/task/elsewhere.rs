//! Where else the host has mounted what no task may have: a bind mount below an unveiled directory shows it by another path.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A list of mounts that can be polled: proc_pid_mountinfo(5).
pub(super) const MOUNTS: &str = "/proc/self/mountinfo";

/// The other paths of these, and of those that are not there.
pub(crate) fn elsewhere(paths: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let text = std::fs::read(MOUNTS)?;
    let mounts: Vec<_> = text.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect();
    let mut others: Vec<_> = paths.iter().flat_map(|path| other_paths(&mounts, &real(path))).collect();
    others.sort();
    others.dedup();
    Ok(others)
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// MAJOR:MINOR of the file system.
    device: Vec<u8>,
    /// Which directory or file of it is mounted.
    root: PathBuf,
    path: PathBuf,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let device = fields.next()?.to_owned();
        Some(Self { device, root: unescape(fields.next()?), path: unescape(fields.next()?) })
    }
}

/// A space, for example, is written `\040`.
fn unescape(mut field: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    while let [first, rest @ ..] = field {
        let code = rest.get(..3).filter(|_| *first == b'\\').and_then(|code| str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                field = &rest[3..];
            }
            None => {
                bytes.push(*first);
                field = rest;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

fn other_paths(mounts: &[Mount], path: &Path) -> Vec<PathBuf> {
    // Of mounts at one path, the last one is in sight.
    let around = mounts.iter().filter(|mount| path.starts_with(&mount.path));
    let Some(here) = around.max_by_key(|mount| mount.path.as_os_str().len()) else { return Vec::new() };
    let Some(inside) = joined(&here.root, path, &here.path) else { return Vec::new() };
    let same = mounts.iter().filter(|mount| mount.device == here.device);
    let others = same.filter_map(|mount| joined(&mount.path, &inside, &mount.root));
    others.filter(|other| other != path).collect()
}

/// `path` with `to` in the place of `from`.
fn joined(to: &Path, path: &Path, from: &Path) -> Option<PathBuf> {
    // Without the slash that an empty path would add.
    Some(to.join(path.strip_prefix(from).ok()?).components().collect())
}

/// The path without links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let there = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    there.and_then(|(above, real)| joined(&real, path, above)).unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
20 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
21 20 0:20 / /run rw shared:2 - tmpfs tmpfs rw
22 20 8:1 / /mnt/whole\\040disk rw shared:1 - ext4 /dev/sda1 rw
23 20 8:1 /etc /srv/chroot/etc rw shared:1 - ext4 /dev/sda1 rw
24 20 8:1 /home /srv/home rw shared:1 - ext4 /dev/sda1 rw
25 20 0:40 / /persist rw shared:3 - btrfs /dev/sdb rw,subvol=/
26 20 0:40 /keep/nomad.d /etc/nomad.d rw shared:3 - btrfs /dev/sdb rw
27 20 0:40 /keep/key /etc/key rw shared:3 - btrfs /dev/sdb rw
28 24 0:20 / /srv/chroot/run rw shared:2 - tmpfs tmpfs rw
";

    fn others(path: &str) -> Vec<String> {
        let mounts: Vec<_> = LINES.as_bytes().split(|byte| *byte == b'\n').filter_map(Mount::parse).collect();
        assert_eq!(mounts.len(), 9);
        let others = other_paths(&mounts, Path::new(path));
        others.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect()
    }

    #[test]
    fn bind_mounts_of_a_path_and_of_what_is_above_it_are_found() {
        assert_eq!(others("/etc/shadow"), ["/mnt/whole disk/etc/shadow", "/srv/chroot/etc/shadow"]);
        assert_eq!(others("/run/docker.sock"), ["/srv/chroot/run/docker.sock"]);
        assert_eq!(others("/etc/nomad.d"), ["/persist/keep/nomad.d"]);
        assert_eq!(others("/etc/key"), ["/persist/keep/key"], "of a file");
        assert_eq!(others("/persist/keep/key/x"), ["/etc/key/x"]);
        assert_eq!(others("/opt/none"), ["/mnt/whole disk/opt/none"]);
    }

    #[test]
    fn escapes_are_undone() {
        for (field, path) in
            [(r"/a\040b\011", "/a b\t"), (r"/\134040", r"/\040"), (r"/a\", r"/a\"), (r"/\9", r"/\9")]
        {
            assert_eq!(unescape(field.as_bytes()), Path::new(path));
        }
    }

    #[test]
    fn the_hosts_mounts_are_read() {
        let link = tempfile::tempdir().unwrap();
        let path = link.path().join("none/either");
        assert_eq!(real(&path), link.path().canonicalize().unwrap().join("none/either"));
        assert!(elsewhere(std::slice::from_ref(&path)).unwrap().iter().all(|other| *other != path));
    }
}
