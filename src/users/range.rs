//! The uids that Nomad assigns to tasks without a user.

use std::fmt;
use std::str::FromStr;

use super::{DYNAMIC_MAX, number};

/// The range from `dynamic_user_min` to `dynamic_user_max` in the `users` block of Nomad's client configuration, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DynamicRange {
    min: u32,
    max: u32,
}

/// A string that is not a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not MIN-MAX in plain decimal numbers with 0 < MIN <= MAX <= {DYNAMIC_MAX}")]
pub struct RangeError;

impl DynamicRange {
    pub(crate) const fn contains(self, id: u32) -> bool {
        self.min <= id && id <= self.max
    }
}

impl Default for DynamicRange {
    /// Nomad's own defaults.
    fn default() -> Self {
        Self { min: 80_000, max: 89_999 }
    }
}

impl FromStr for DynamicRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (min, max) = text.split_once('-').ok_or(RangeError)?;
        let range = number(min, DYNAMIC_MAX).zip(number(max, DYNAMIC_MAX));
        range
            .map(|(min, max)| Self { min, max })
            .filter(|range| 0 < range.min && range.min <= range.max)
            .ok_or(RangeError)
    }
}

impl fmt::Display for DynamicRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_included() {
        let range = DynamicRange::default();
        assert_eq!(range.to_string(), "80000-89999");
        assert_eq!("80000-89999".parse(), Ok(range));
        let inside = [79_999, 80_000, 89_999, 90_000].map(|id| range.contains(id));
        assert_eq!(inside, [false, true, true, false]);
        assert!("7-7".parse::<DynamicRange>().unwrap().contains(7));
        assert!("1-2147483647".parse::<DynamicRange>().is_ok());
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "-",
            "80000",
            "80000-",
            "-80000",
            "0-5",
            "6-5",
            " 1-2",
            "1 - 2",
            "01-2",
            "1-2147483648",
            "1-2-3",
            "a-b",
        ] {
            assert_eq!(bad.parse::<DynamicRange>(), Err(RangeError), "{bad:?}");
        }
    }
}
