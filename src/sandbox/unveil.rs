//! One unveil rule: which access to which path. The written form is `mode:path`, for example `rx:/opt/app`.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::quote::quote;

/// What a task may do with a path: any of read, write, execute and create.
///
/// `src/sandbox` maps each to its Landlock rights; `create` covers removing and renaming too.
///
/// Serialized as its letters.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Access(u8);

impl Access {
    /// Nothing. Never the access of a parsed rule.
    pub const NONE: Self = Self(0);
    /// `r`: read files, list directories.
    pub const READ: Self = Self(1);
    /// `w`: write to and truncate existing files.
    pub const WRITE: Self = Self(2);
    /// `x`: execute files.
    pub const EXECUTE: Self = Self(4);
    /// `c`: create, remove and rename below a directory.
    pub const CREATE: Self = Self(8);

    /// The letters in the order in which they are printed.
    const LETTERS: [(char, Self); 4] =
        [('r', Self::READ), ('w', Self::WRITE), ('x', Self::EXECUTE), ('c', Self::CREATE)];

    /// Has `r`.
    pub const fn read(self) -> bool {
        self.contains(Self::READ)
    }

    /// Has `w`.
    pub const fn write(self) -> bool {
        self.contains(Self::WRITE)
    }

    /// Has `x`.
    pub const fn execute(self) -> bool {
        self.contains(Self::EXECUTE)
    }

    /// Has `c`.
    pub const fn create(self) -> bool {
        self.contains(Self::CREATE)
    }

    /// Has everything that `other` has.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Has the access that both have.
    pub(crate) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Has the access of either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Has the access that the other does not have.
    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Grants nothing.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Reads mode letters: in any order, repeated or not. Fails with the first other letter.
    fn from_letters(letters: &str) -> Result<Self, char> {
        letters.chars().try_fold(Self::NONE, |access, letter| {
            let (_, bit) = Self::LETTERS.into_iter().find(|(known, _)| *known == letter).ok_or(letter)?;
            Ok(access | bit)
        })
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl BitOrAssign for Access {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Self::LETTERS
            .into_iter()
            .filter(|(_, bit)| self.contains(*bit))
            .try_for_each(|(letter, _)| fmt::Write::write_char(f, letter))
    }
}

impl TryFrom<String> for Access {
    type Error = UnknownLetter;

    fn try_from(letters: String) -> Result<Self, UnknownLetter> {
        Self::from_letters(&letters).map_err(UnknownLetter)
    }
}

impl From<Access> for String {
    fn from(access: Access) -> Self {
        access.to_string()
    }
}

/// A letter other than r, w, x, c.
#[derive(Debug, thiserror::Error)]
#[error("unknown mode letter {0:?}")]
pub struct UnknownLetter(char);

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Access({self})")
    }
}

/// An access to a path and, for a directory, to everything below it.
///
/// A parsed rule has at least one mode and an absolute path without `.`, `..`, empty components or NUL.
/// `..` is refused rather than resolved: the kernel resolves it after following symlinks, so folding it in the
/// text could name another path than the kernel would open, and a rule could leave the directory that its text
/// seems to stay in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Unveil {
    /// What is granted.
    pub access: Access,
    /// Where.
    pub path: PathBuf,
}

/// Why a text is not an unveil rule. Every message repeats the whole text and says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnveilError {
    /// No colon at all.
    #[error("{}: the mode is missing; {FORM}", quote(.0))]
    NoColon(String),
    /// Nothing before the colon.
    #[error("{}: the mode before the colon is empty; {FORM}", quote(.0))]
    EmptyMode(String),
    /// A mode letter other than r, w, x, c.
    #[error("{}: unknown mode letter {letter:?}; {FORM}", quote(.rule))]
    UnknownMode {
        /// The whole text.
        rule: String,
        /// The first letter that is not a mode.
        letter: char,
    },
    /// Nothing after the colon.
    #[error("{}: the path after the colon is empty; {FORM}", quote(.0))]
    EmptyPath(String),
    /// The path does not start with a slash.
    #[error("{}: the path is relative; write an absolute path", quote(.0))]
    RelativePath(String),
    /// A `..` component.
    #[error("{}: the path has a `..`, which means different places before and after symlinks; write the path itself", quote(.0))]
    ParentComponent(String),
    /// A NUL byte, which no path can have.
    #[error("{}: a NUL byte cannot be part of a path; remove it", quote(.0))]
    Nul(String),
}

const FORM: &str = r#"write mode:path with modes r, w, x, c, for example "r:/etc/ssl""#;

impl FromStr for Unveil {
    type Err = UnveilError;

    /// Splits at the first colon: a mode has none, a path may have some.
    fn from_str(rule: &str) -> Result<Self, UnveilError> {
        let whole = || rule.to_owned();
        if rule.contains('\0') {
            return Err(UnveilError::Nul(whole()));
        }
        let (mode, path) = rule.split_once(':').ok_or_else(|| UnveilError::NoColon(whole()))?;
        if mode.is_empty() {
            return Err(UnveilError::EmptyMode(whole()));
        }
        let access = Access::from_letters(mode)
            .map_err(|letter| UnveilError::UnknownMode { rule: whole(), letter })?;
        if path.is_empty() {
            return Err(UnveilError::EmptyPath(whole()));
        }
        let path = Path::new(path);
        if !path.is_absolute() {
            return Err(UnveilError::RelativePath(whole()));
        }
        if path.components().any(|c| c == Component::ParentDir) {
            return Err(UnveilError::ParentComponent(whole()));
        }
        // Drops `.`, double and trailing slashes, which never change what an absolute path names.
        Ok(Self { access, path: path.components().collect() })
    }
}

impl fmt::Display for Unveil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.access, self.path.display())
    }
}

impl TryFrom<String> for Unveil {
    type Error = UnveilError;

    fn try_from(rule: String) -> Result<Self, UnveilError> {
        rule.parse()
    }
}

impl From<Unveil> for String {
    fn from(unveil: Unveil) -> Self {
        unveil.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ok(rule: &str) -> (String, String) {
        let unveil: Unveil = rule.parse().unwrap();
        (unveil.access.to_string(), unveil.path.to_str().unwrap().to_owned())
    }

    fn err(rule: &str) -> String {
        rule.parse::<Unveil>().unwrap_err().to_string()
    }

    #[test]
    fn modes_in_any_order_print_in_one() {
        for (rule, access) in
            [("r:/", "r"), ("cxwr:/", "rwxc"), ("xr:/", "rx"), ("rrr:/", "r"), ("wc:/", "wc")]
        {
            assert_eq!(ok(rule), (access.to_owned(), "/".to_owned()));
        }
        let access: Access = "wx:/".parse::<Unveil>().unwrap().access;
        assert!(!access.read() && access.write() && access.execute() && !access.create());
        assert!(Access::NONE.is_empty() && Access::NONE.to_string().is_empty());
    }

    #[test]
    fn paths_keep_colons_and_spaces() {
        assert_eq!(ok("r:/a:b").1, "/a:b");
        assert_eq!(ok("rw:/a:rw:/c").1, "/a:rw:/c");
        assert_eq!(ok("r:/a b/ ").1, "/a b/ ");
        assert_eq!(ok("r:/ä/…").1, "/ä/…");
        assert_eq!(ok("r:/...").1, "/...");
    }

    #[test]
    fn paths_lose_only_what_never_matters() {
        for rule in ["r:/etc/ssl", "r:/etc/ssl/", "r://etc///ssl//", "r:/./etc/./ssl/."] {
            let unveil: Unveil = rule.parse().unwrap();
            assert_eq!(unveil.path.to_str(), Some("/etc/ssl"));
        }
        assert_eq!(ok("r://").1, "/");
    }

    #[test]
    fn errors_quote_the_rule_and_say_the_form() {
        assert_eq!(
            err("q:/etc"),
            r#""q:/etc": unknown mode letter 'q'; write mode:path with modes r, w, x, c, for example "r:/etc/ssl""#
        );
        assert!(err("/etc").starts_with(r#""/etc": the mode is missing; write mode:path"#));
        assert!(err("").starts_with(r#""": the mode is missing"#));
        assert!(err(":/etc").starts_with(r#"":/etc": the mode before the colon is empty"#));
        assert!(err("r:").starts_with(r#""r:": the path after the colon is empty"#));
        assert!(err("R:/etc").contains("unknown mode letter 'R'"));
        assert!(err(" r:/etc").contains("unknown mode letter ' '"));
        assert!(err("/etc:r").contains("unknown mode letter '/'"));
        assert_eq!(err("r:etc"), r#""r:etc": the path is relative; write an absolute path"#);
        assert!(err("r:${NOMAD_TASK_DIR}/x").contains("is relative"));
        assert!(err("r:~/x").contains("is relative"));
        assert!(err("r: /x").contains("is relative"));
        assert!(err("r:/a/../b").contains("has a `..`"));
        assert!(err("r:/..").contains("has a `..`"));
        assert!(err("r:/a\0b").starts_with(r#""r:/a\0b": a NUL byte"#));
    }

    #[test]
    fn serde_uses_the_written_form() {
        let unveil: Unveil = serde_json::from_str(r#""xr:/opt/app/""#).unwrap();
        assert_eq!(serde_json::to_string(&unveil).unwrap(), r#""rx:/opt/app""#);
        assert!(serde_json::from_str::<Unveil>(r#""/opt""#).is_err());
    }

    proptest! {
        #[test]
        fn parser_is_total(rule in any::<String>()) {
            if let Ok(unveil) = rule.parse::<Unveil>() {
                prop_assert!(unveil.path.is_absolute() && !unveil.access.is_empty());
            }
        }

        #[test]
        fn display_parses_back(mode in "[rwxc]{1,6}", path in "(/[^/\0]{0,8}){1,6}") {
            let rule = format!("{mode}:{path}");
            match rule.parse::<Unveil>() {
                Ok(unveil) => prop_assert_eq!(unveil.to_string().parse::<Unveil>(), Ok(unveil)),
                Err(e) => prop_assert!(path.contains("/.."), "{}", e),
            }
        }
    }
}
