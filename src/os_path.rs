//! The form of a path between processes and in records: a string, or its bytes if it is not UTF-8. The host's file names are
//! bytes, and serde encodes no other path than a string: one such name among the default paths would fail every task start.
//!
//! For `#[serde(with = "crate::os_path")]`; [`option`] and [`list`] are for fields that have more or less than one path.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => to.serialize_str(text),
        None => to.serialize_bytes(path.as_os_str().as_bytes()),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    from.deserialize_any(Form)
}

/// A borrowed path, to be written.
struct Written<'a>(&'a Path);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        serialize(self.0, to)
    }
}

/// A path that was read.
struct Found(PathBuf);

impl<'de> Deserialize<'de> for Found {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        deserialize(from).map(Self)
    }
}

struct Form;

impl<'de> Visitor<'de> for Form {
    type Value = PathBuf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PathBuf, E> {
        Ok(text.into())
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<PathBuf, E> {
        Ok(OsString::from_vec(bytes.to_owned()).into())
    }

    /// As JSON has bytes.
    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<PathBuf, A::Error> {
        let mut found = Vec::new();
        while let Some(byte) = bytes.next_element()? {
            found.push(byte);
        }
        Ok(OsString::from_vec(found).into())
    }
}

pub(crate) mod option {
    use super::{Deserialize, Deserializer, Found, PathBuf, Serialize, Serializer, Written};

    #[allow(clippy::ref_option, reason = "serde calls it with a reference to the field")]
    pub(crate) fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        path.as_deref().map(Written).serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Ok(Option::<Found>::deserialize(from)?.map(|found| found.0))
    }
}

pub(crate) mod list {
    use super::{Deserialize, Deserializer, Found, PathBuf, Serializer, Written};

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| Written(path)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        let found = Vec::<Found>::deserialize(from)?;
        Ok(found.into_iter().map(|found| found.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Record {
        #[serde(with = "crate::os_path")]
        one: PathBuf,
        #[serde(with = "crate::os_path::option")]
        maybe: Option<PathBuf>,
        #[serde(with = "crate::os_path::list")]
        some: Vec<PathBuf>,
    }

    /// As serde writes it without help.
    #[derive(Serialize)]
    struct Plain<'a> {
        one: &'a str,
        maybe: Option<&'a str>,
        some: [&'a str; 2],
    }

    #[test]
    fn a_path_that_is_not_utf_8_survives_in_both_formats() {
        let odd = || PathBuf::from(OsStr::from_bytes(b"/etc/php/\xff\xfe/cli"));
        let record = Record { one: odd(), maybe: Some(odd()), some: vec!["/a".into(), odd()] };
        assert!(serde_json::to_vec(&odd()).is_err(), "serde itself encodes no such path");
        let packed = rmp_serde::to_vec(&record).unwrap();
        assert_eq!(rmp_serde::from_slice::<Record>(&packed).unwrap(), record);
        let json = serde_json::to_vec(&record).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&json).unwrap(), record);
    }

    #[test]
    fn any_other_path_has_the_form_that_earlier_versions_wrote() {
        let record =
            Record { one: "/ä".into(), maybe: Some("/b".into()), some: vec!["/".into(), "".into()] };
        let plain = Plain { one: "/ä", maybe: Some("/b"), some: ["/", ""] };
        assert_eq!(rmp_serde::to_vec(&record).unwrap(), rmp_serde::to_vec(&plain).unwrap());
        assert_eq!(serde_json::to_string(&record).unwrap(), serde_json::to_string(&plain).unwrap());
        let none = Record { maybe: None, ..record };
        assert_eq!(rmp_serde::from_slice::<Record>(&rmp_serde::to_vec(&none).unwrap()).unwrap(), none);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for other in ["7", "null", "{}", r#"["a"]"#, "[256]"] {
            let json = format!(r#"{{"one":{other},"maybe":null,"some":[]}}"#);
            assert!(serde_json::from_str::<Record>(&json).is_err(), "{other}");
        }
    }
}
