//! Reading no more than is sensible.

use std::io::{self, Read};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_last_size_that_is_read() {
        assert_eq!(bounded(&b"abc"[..], 3).unwrap(), b"abc");
        assert_eq!(bounded(io::repeat(0), 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(bounded(io::empty(), 0).unwrap(), b"");
    }
}
