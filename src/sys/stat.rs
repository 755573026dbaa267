//! The text of /proc/PID/stat, proc_pid_stat(5).

use std::str::FromStr;

/// The fields from the third on.
pub(crate) fn after_name(stat: &[u8]) -> Option<impl Iterator<Item = &str>> {
    // The second field is the name in parentheses: any bytes, including spaces and parentheses.
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    Some(std::str::from_utf8(&stat[name_ends + 1..]).ok()?.split_ascii_whitespace())
}

/// The field with this number, as the manual counts, from the third on.
pub(crate) fn field<T: FromStr>(stat: &[u8], number: usize) -> Option<T> {
    after_name(stat)?.nth(number.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) (b c) {}", fields.join(" "));
        for number in [3, 9, 22, 52] {
            assert_eq!(field(stat.as_bytes(), number), Some(number));
        }
        for number in [0, 2, 53] {
            assert_eq!(field::<u64>(stat.as_bytes(), number), None);
        }
        assert_eq!(field::<u64>(b"7 (a", 22), None);
        assert_eq!(field::<char>(b"7 (\xff) T 1", 3), Some('T'));
    }
}
