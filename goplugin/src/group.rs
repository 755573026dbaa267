//! Groups by name, from /etc/group only: the C library's lookup may wait for a name service without a limit.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::unistd::Gid;

const GROUP_FILE: &str = "/etc/group";

/// Largest file that is read, bytes. A larger one is an error, because a group after the limit would count as unknown.
const FILE_MAX: u64 = 32 << 20;

/// The gid of the first group of this name; none if there is none.
///
/// # Errors
/// The file cannot be read, is not a regular file, or is larger than [`FILE_MAX`].
pub(crate) fn by_name(name: &str) -> io::Result<Option<Gid>> {
    Ok(gid(&read(Path::new(GROUP_FILE))?, name).map(Gid::from_raw))
}

/// The file's bytes; none if it does not exist.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // O_NONBLOCK: a FIFO in place of the file must not block the start.
    let file = match File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(io::Error::other(format!("larger than {FILE_MAX} bytes")));
    }
    Ok(bytes)
}

/// Lines as glibc's "files" source reads them, group(5): `name:password:gid:member,member`. Comments and NIS entries (`+`, `-`) are
/// ignored, and a line with a NUL byte, which programs read differently.
fn gid(bytes: &[u8], name: &str) -> Option<u32> {
    bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_start)
        .filter(|line| !matches!(line.first(), None | Some(b'#' | b'+' | b'-')) && !line.contains(&0))
        .find_map(|line| match line.split(|byte| *byte == b':').collect::<Vec<_>>()[..] {
            [found, _, gid, ..] if found == name.as_bytes() => {
                str::from_utf8(gid).ok()?.trim_start().parse().ok()
            }
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_group_of_a_name_counts() {
        let file = b"# few:x:1:\n\nroot:x:0:\n  ssl:!:104:a,b\nssl:x:7:\n+nis:x:8:\nno-gid:x::\nshort:x\nnul\0:x:9:\n";
        assert_eq!(gid(file, "root"), Some(0));
        assert_eq!(gid(file, "ssl"), Some(104));
        for absent in ["few", "", "nis", "+nis", "no-gid", "short", "nul", "a", "SSL"] {
            assert_eq!(gid(file, absent), None, "{absent:?}");
        }
    }

    #[test]
    fn a_missing_file_has_no_groups_and_a_fifo_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&dir.path().join("missing")).unwrap(), b"");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&fifo).unwrap_err().to_string().contains("not a regular file"));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, name in "[a-c:+#]{0,3}") {
            let _ = gid(&bytes, &name);
        }
    }

    #[test]
    fn this_machine_has_root() {
        assert_eq!(by_name("root").unwrap().map(Gid::as_raw), Some(0));
        assert_eq!(by_name("no-such-group-here").unwrap(), None);
    }
}
