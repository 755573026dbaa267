//! Reads /etc/passwd and /etc/group directly.
//!
//! A C library does more than read the files: musl, with which this binary is linked, sends each name or number that they lack
//! to nscd and waits for the response without a limit. So getpwnam(3) and its relatives are not called anywhere (clippy.toml
//! refuses them). The lines are parsed as by glibc's "files" source (nss_files of glibc, passwd(5)).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::{Entry, LookupError};

pub(super) const PASSWD: &str = "/etc/passwd";
pub(super) const GROUP: &str = "/etc/group";

/// Largest file that is read, in bytes: about 300 000 users. A larger one is an error: a user after the limit would be treated
/// as unknown.
const FILE_MAX: u64 = 32 << 20;

/// Longest line, in bytes. The line of a group holds all its members: this is enough for 60 000.
const LINE_MAX: usize = 1 << 20;

/// The file's bytes; none if it does not exist.
pub(super) fn read(path: &'static str) -> Result<Vec<u8>, LookupError> {
    let failed = |error| LookupError::File { path, error };
    // O_NONBLOCK: a FIFO in place of the file must not block the start.
    let file = match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(failed)?,
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    bounded(file).map_err(failed)
}

/// Reads all of `source`, unless it or one of its lines is too long.
fn bounded(source: impl Read) -> io::Result<Vec<u8>> {
    let bytes = crate::sys::read::bounded(source, FILE_MAX)?;
    let too_long = |line: &[u8]| line.len() > LINE_MAX;
    match bytes.split(|byte| *byte == b'\n').position(too_long) {
        Some(index) => Err(io::Error::other(format!("line {} has more than {LINE_MAX} bytes", index + 1))),
        None => Ok(bytes),
    }
}

/// The fields of each line that describes a local user or group. Comments, empty lines and NIS entries (`+`, `-`) are skipped;
/// a line with a NUL byte means different things to different programs and is skipped, too.
fn records(bytes: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_start)
        .filter(|line| !matches!(line.first(), None | Some(b'#' | b'+' | b'-')) && !line.contains(&0))
        .map(|line| line.split(|byte| *byte == b':').collect())
}

/// Parses a whole field as a number. The signs and zeros that C's strtoul(3) accepts are accepted too, so that no id of the
/// file is overlooked.
fn number(field: &[u8]) -> Option<u32> {
    str::from_utf8(field).ok()?.trim_start().parse().ok()
}

/// A user of passwd(5): `name:password:uid:gid:gecos:home:shell`. As in glibc, the fields after the gid may be missing.
fn entry(fields: &[&[u8]]) -> Option<Entry> {
    let [name, _, uid, gid, rest @ ..] = fields else { return None };
    if name.is_empty() {
        return None;
    }
    Some(Entry {
        name: String::from_utf8_lossy(name).into_owned(),
        uid: number(uid)?,
        gid: number(gid)?,
        home: PathBuf::from(OsStr::from_bytes(rest.get(1).copied().unwrap_or_default())),
    })
}

/// One line of passwd(5), as `getent` prints it.
pub(super) fn line(bytes: &[u8]) -> Option<Entry> {
    records(bytes).next().and_then(|fields| entry(&fields))
}

/// The first user of this name.
pub(super) fn by_name(passwd: &[u8], name: &str) -> Option<Entry> {
    // Compared as bytes: a name that is not UTF-8 must not match one that is.
    records(passwd)
        .filter(|fields| fields.first() == Some(&name.as_bytes()))
        .find_map(|fields| entry(&fields))
}

/// The first user with this uid.
pub(super) fn by_uid(passwd: &[u8], uid: u32) -> Option<Entry> {
    records(passwd).filter_map(|fields| entry(&fields)).find(|entry| entry.uid == uid)
}

/// The gids of the groups that list `user` as a member, group(5): `name:password:gid:member,member`.
pub(super) fn memberships(group: &[u8], user: &str) -> Vec<u32> {
    let lists = |members: &[u8]| {
        members.split(|byte| *byte == b',').any(|member| member.trim_ascii() == user.as_bytes())
    };
    records(group)
        .filter_map(|fields| match fields[..] {
            [name, _, gid, members] if !name.is_empty() && !user.is_empty() && lists(members) => number(gid),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"# root:x:0:0::/wrong:/bin/sh\n\
        root:x:0:0:root:/root:/bin/sh\n\
        +nis::::::\n\
        -out:x:7:7::/:\n\
        \n  ann:x:1000:100:Ann,,:/home/ann:/bin/sh:more\n\
        ann:x:2000:100::/second:/bin/sh\n\
        short:x:1001:101\n\
        crlf:x:1002:102::/home/crlf:/bin/sh\r\n\
        nul\0:x:1003:103::/:\n\
        bad:x:-1:1::/:\n\
        big:x:4294967296:1::/:\n\
        :x:1004:1::/:\n\
        \xff\xfe:x:1005:105::/home/\xff:/bin/sh\n\
        last:x:00080001:1::/l:/bin/sh";

    #[test]
    fn users_are_found_as_glibc_finds_them() {
        let name = |name| by_name(TEXT, name).map(|entry| (entry.uid, entry.gid, entry.home));
        assert_eq!(name("root"), Some((0, 0, "/root".into())));
        assert_eq!(name("ann"), Some((1000, 100, "/home/ann".into())), "the first of two");
        assert_eq!(name("short"), Some((1001, 101, "".into())));
        assert_eq!(name("crlf"), Some((1002, 102, "/home/crlf".into())));
        assert_eq!(name("last"), Some((80_001, 1, "/l".into())));
        for absent in [
            "",
            "#",
            "+nis",
            "nis",
            "-out",
            "out",
            "nul",
            "nul\0",
            "bad",
            "big",
            "ANN",
            "an",
            "\u{fffd}\u{fffd}",
        ] {
            assert_eq!(name(absent), None, "{absent:?}");
        }
        let uid = |uid| by_uid(TEXT, uid).map(|entry| entry.name);
        assert_eq!(uid(1000).as_deref(), Some("ann"));
        assert_eq!(uid(80_001).as_deref(), Some("last"), "leading zeros do not hide an id");
        assert!(uid(1005).is_some(), "nor does a name that is not UTF-8");
        for absent in [7, 1003, 1004, 4_294_967_295] {
            assert_eq!(uid(absent), None, "{absent}");
        }
    }

    #[test]
    fn an_answer_is_one_line() {
        let found = line(b"ann:x:1000:100:Ann,,:/home/ann:/bin/sh\n").unwrap();
        assert_eq!(
            (found.name.as_str(), found.uid, found.home.as_path()),
            ("ann", 1000, Path::new("/home/ann"))
        );
        for bad in ["", "ann", "ann:x:1000", ":x:1:1::/:", "a:x:-1:1::/:", "+::::::", "a:x:1:4294967296::/:"]
        {
            assert_eq!(line(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn memberships_are_those_of_the_file() {
        let group =
            b"root:x:0:\nssl:x:104:www,postgres\n#no:x:1:ann\n+::0:ann\nvideo:x:44: ann , bob\nann:x:100:\n\
            docker:x:999:ann\r\nfew:x:5\nbad:x:x:ann\nmany:x:6:anna,xann,ann2\nzero:x:0:ann\nnul\0:x:8:ann\n";
        assert_eq!(memberships(group, "ann"), [44, 999, 0]);
        assert_eq!(memberships(group, "postgres"), [104]);
        assert!(memberships(group, "").is_empty() && memberships(group, "an").is_empty());
    }

    #[test]
    fn an_oversized_file_is_an_error() {
        let line = vec![b'a'; LINE_MAX];
        assert_eq!(bounded(&line[..]).unwrap().len(), LINE_MAX);
        let longer = [b"x:x:1:1::/:\n", &line[..], b"b"].concat();
        assert!(bounded(&longer[..]).unwrap_err().to_string().starts_with("line 2 has more than"));
        let endless = io::repeat(b'\n');
        assert!(bounded(endless).unwrap_err().to_string().starts_with("it has more than"));
    }

    #[test]
    fn a_file_that_is_absent_has_no_user_and_a_fifo_is_refused() {
        assert!(read("/nonexistent/passwd").unwrap().is_empty());
        assert!(read("/dev/null").unwrap_err().to_string().contains("not a regular file"));
        assert!(by_uid(&read(PASSWD).unwrap(), 0).is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, name in "[a-c:+#]{0,3}", uid: u32) {
            let _ = (by_name(&bytes, &name), by_uid(&bytes, uid), line(&bytes));
            let _ = memberships(&bytes, &name);
        }

        #[test]
        fn a_user_is_found_among_any_lines(noise in "[a-z:0-9#+\n\0]{0,80}") {
            // No line of the noise is a user with a capital letter.
            let text = format!("{noise}\nZoe:x:4000000000:7::/home/zoe:/bin/sh\n{noise}");
            prop_assert_eq!(by_name(text.as_bytes(), "Zoe").unwrap().uid, 4_000_000_000);
            prop_assert!(by_uid(text.as_bytes(), 4_000_000_000).is_some());
        }
    }
}
