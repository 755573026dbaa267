//! The uids that Nomad assigns to tasks without a user.

use std::fmt;
use std::str::FromStr;

use super::{DYNAMIC_MAX, ID_MAX, number};

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

/// The kernel's overflow uid and gid, and `nobody`, to whom Nomad gives the shared directory of every allocation.
const NOBODY: u32 = 65_534;

/// Ids that are listed one by one and as ranges: `0,100-999`. None unless listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdRanges(Vec<(u32, u32)>);

/// A string that is not a list of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a list of ids and ranges in plain decimal numbers up to {ID_MAX}")]
pub struct IdRangesError;

impl IdRanges {
    pub(crate) const NONE: Self = Self(Vec::new());

    pub(crate) fn nobody() -> Self {
        Self(vec![(NOBODY, NOBODY)])
    }

    /// Whether nobody but `nobody` is listed, if anyone.
    pub(crate) fn are_nobodys(&self) -> bool {
        self.0.iter().all(|range| *range == (NOBODY, NOBODY))
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.0.iter().any(|(min, max)| (*min..=*max).contains(&id))
    }
}

impl FromStr for IdRanges {
    type Err = IdRangesError;

    /// As in the options of Nomad's `exec`, blanks around a comma are ignored.
    fn from_str(text: &str) -> Result<Self, IdRangesError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let range = |item: &str| {
            let (min, max) = item.split_once('-').unwrap_or((item, item));
            number(min, ID_MAX).zip(number(max, ID_MAX)).filter(|(min, max)| min <= max).ok_or(IdRangesError)
        };
        text.split(',').map(str::trim).map(range).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for IdRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (min, max)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            if min == max { write!(f, "{comma}{min}")? } else { write!(f, "{comma}{min}-{max}")? }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_listed_one_by_one_and_as_ranges() {
        let listed: IdRanges = "0, 100-999,65534".parse().unwrap();
        assert_eq!(listed.to_string(), "0,100-999,65534");
        let inside = [0, 1, 99, 100, 999, 1000, 65_533, 65_534].map(|id| listed.contains(id));
        assert_eq!(inside, [true, false, false, true, true, false, false, true]);
        assert!("".parse::<IdRanges>().is_ok_and(|none| !none.contains(0) && none.to_string().is_empty()));
        for bad in [",", "1,", "a", "-1", "1-", "3-1", "01", "1--2", "1 2", "4294967294", "root"] {
            assert_eq!(bad.parse::<IdRanges>(), Err(IdRangesError), "{bad:?}");
        }
    }

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
