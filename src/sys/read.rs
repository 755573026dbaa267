//! Reading no more than is sensible.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Everything from `source`.
///
/// # Errors
/// `FileTooLarge`: it has more than `max` bytes. Nothing is cut off silently.
pub(crate) fn bounded(source: impl Read, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {max} bytes")));
    }
    Ok(bytes)
}

/// The largest file of /etc that is read for its text. Lists of blocked hosts may have some MiB.
const TEXT_MAX: u64 = 16 << 20;

/// A file of the host's as text; empty if there is none, or none that can be used.
pub(crate) fn text(path: &Path) -> String {
    // Not blocked by a FIFO.
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let bytes = open.and_then(|file| bounded(file, TEXT_MAX)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_not_there_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hosts"), b"127.0.0.1 a\xff\n").unwrap();
        assert_eq!(text(&dir.path().join("hosts")), "127.0.0.1 a\u{fffd}\n");
        assert_eq!([text(dir.path()), text(&dir.path().join("none"))], ["", ""]);
    }

    #[test]
    fn the_limit_is_the_last_size_that_is_read() {
        assert_eq!(bounded(&b"abc"[..], 3).unwrap(), b"abc");
        assert_eq!(bounded(io::repeat(0), 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(bounded(io::empty(), 0).unwrap(), b"");
    }
}
