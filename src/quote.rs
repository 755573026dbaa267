//! Quoting of values in error messages.

/// The most characters of a foreign value that an error message repeats. Messages travel in gRPC trailers and end in task
/// events and logs; 200 characters show any reasonable path or name.
pub(crate) const QUOTED_CHARS_MAX: usize = 200;

/// The value in double quotes, with control characters escaped, shortened to [`QUOTED_CHARS_MAX`] characters: a job cannot
/// forge or flood log lines.
pub(crate) fn quote(value: &str) -> String {
    match value.char_indices().nth(QUOTED_CHARS_MAX) {
        None => format!("{value:?}"),
        Some((end, _)) => format!("{:?}… ({} bytes)", &value[..end], value.len()),
    }
}

/// Shortens the text to about `max` bytes by cutting out its middle: a message begins with what failed and ends with the cause.
pub(crate) fn shorten(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let boundary = |at: usize| (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (head, tail) = (boundary(max / 4 * 3), boundary(text.len() - max / 4));
    format!("{}… ({} bytes left out) …{}", &text[..head], tail - head, &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_shortens() {
        assert_eq!(quote("r:/etc"), r#""r:/etc""#);
        assert_eq!(quote("a\nb\0\u{1b}[0m\""), r#""a\nb\0\u{1b}[0m\"""#);
        let long = "ä".repeat(QUOTED_CHARS_MAX + 1);
        let short = quote(&long);
        assert!(short.ends_with("… (402 bytes)"), "{short}");
        assert_eq!(short.chars().filter(|c| *c == 'ä').count(), QUOTED_CHARS_MAX);
        assert_eq!(quote(&"ä".repeat(QUOTED_CHARS_MAX)).chars().count(), QUOTED_CHARS_MAX + 2);
    }

    #[test]
    fn a_long_text_keeps_its_beginning_and_its_end() {
        assert_eq!(shorten("ä: b", 5), "ä: b");
        let text = format!("failed to open {}: ENOENT", "ä".repeat(1000));
        let short = shorten(&text, 100);
        assert!(short.starts_with("failed to open ä") && short.ends_with("ä: ENOENT"), "{short}");
        assert!(short.len() < 140, "{short}");
        for max in 0..50 {
            assert!(shorten(&text, max).len() < max + 50);
        }
    }
}
