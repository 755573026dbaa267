//! The environment that `run` gives to its command.
//!
//! As under Nomad, the command inherits nothing of the caller's session: root's shell may hold tokens and keys.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, bail};

use super::say;
use crate::task::spec::TaskSpec;

/// Variables that a program needs to find other programs and to use the terminal and the user's language.
const INHERITED: [&str; 4] = ["PATH", "TERM", "LANG", "TZ"];
/// The variables of locale(7) beside LANG.
const INHERITED_PREFIX: &[u8] = b"LC_";

/// A variable that `--env` asks for, and its value.
type Asked = (String, String);

/// The inherited variables. Tasks only take text, so a variable that is not UTF-8 is left out and reported.
pub(super) fn inherited(
    caller: impl IntoIterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (String, String)> {
    let wanted = |name: &OsStr| {
        INHERITED.iter().any(|known| name == *known) || name.as_bytes().starts_with(INHERITED_PREFIX)
    };
    caller.into_iter().filter(move |(name, _)| wanted(name)).filter_map(|(name, value)| {
        let name = name.to_string_lossy().into_owned();
        let text = value.into_string().ok();
        if text.is_none() {
            say(&format!(
                "nomad-driver-exec2: left out of the environment, because it is not UTF-8: {name}\n"
            ));
        }
        Some((name, text?))
    })
}

/// The variables of `--env NAME=VALUE`, and those of `--env NAME` that the caller has set.
pub(super) fn asked(
    options: &[OsString],
    caller: impl Fn(&str) -> Option<OsString>,
) -> anyhow::Result<Vec<Asked>> {
    let text = |what: &OsStr| {
        what.to_str()
            .map(ToOwned::to_owned)
            .with_context(|| format!("--env {what:?} is not UTF-8; write a name and a value in UTF-8"))
    };
    let mut found = Vec::new();
    for option in options {
        let option = text(option)?;
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => {
                let value = caller(&option);
                let value = value.map(|value| value.into_string());
                let value = value.transpose().ok().with_context(|| {
                    format!("the value of {option} is not UTF-8; write --env {option}=VALUE with text")
                })?;
                (option.as_str(), value)
            }
        };
        if name.is_empty() {
            bail!("--env {option:?} has no name; write --env NAME or --env NAME=VALUE");
        }
        found.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(found)
}

/// Both together; `--env` has priority.
pub(super) fn of_command(
    asked: &[Asked],
    caller: impl IntoIterator<Item = (OsString, OsString)>,
) -> HashMap<String, String> {
    inherited(caller).chain(asked.iter().cloned()).collect()
}

/// Checks that the command gets the variables of `--env` unchanged: the driver sets some variables itself and withholds others.
pub(super) fn check(asked: &[Asked], spec: &TaskSpec) -> anyhow::Result<()> {
    // The last value of a name counts.
    let last: HashMap<&str, &str> =
        asked.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for (name, value) in last {
        if spec.command.env(name) != Some(value) {
            bail!(
                "--env {name} has no effect, because the driver sets or withholds this variable; leave it out"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn os(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn nothing_of_the_callers_session_is_inherited() {
        let mut caller = os(&[
            ("PATH", "/bin"),
            ("TERM", "xterm"),
            ("LANG", "C"),
            ("TZ", "UTC"),
            ("LC_ALL", "C.UTF-8"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("NOMAD_TOKEN", "x"),
            ("SUDO_USER", "x"),
            ("SSH_AUTH_SOCK", "x"),
            ("LANGUAGE", "x"),
            ("PATHS", "x"),
        ]);
        caller.push(("LC_TIME".into(), OsString::from_vec(vec![0xff])));
        let mut names: Vec<String> = of_command(&[], caller).into_keys().collect();
        names.sort();
        assert_eq!(names, ["LANG", "LC_ALL", "PATH", "TERM", "TZ"]);
    }

    #[test]
    fn a_name_takes_the_callers_value_and_an_assignment_its_own() {
        let caller = |name: &str| (name == "TOKEN").then(|| OsString::from("t=1"));
        let options = ["TOKEN", "MISSING", "A=b=c", "EMPTY=", "A=d"].map(OsString::from);
        let asked = asked(&options, caller).unwrap();
        let env = of_command(&asked, os(&[("TZ", "UTC"), ("TOKEN", "t=1")]));
        let of = |name: &str| env.get(name).map(String::as_str);
        assert_eq!(of("TOKEN"), Some("t=1"));
        assert_eq!(of("MISSING"), None);
        assert_eq!(of("A"), Some("d"));
        assert_eq!(of("EMPTY"), Some(""));
        assert_eq!(of("TZ"), Some("UTC"));
    }

    #[test]
    fn unusable_variables_are_refused() {
        let none = |_: &str| None;
        for option in ["=x", ""] {
            let error = asked(&[option.into()], none).unwrap_err().to_string();
            assert!(error.contains("write --env NAME"), "{error}");
        }
        assert!(asked(&[OsString::from_vec(b"A=\xff".to_vec())], none).is_err());
        assert!(asked(&["A".into()], |_| Some(OsString::from_vec(vec![0xff]))).is_err());
    }
}
