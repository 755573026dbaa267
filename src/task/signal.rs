//! Signals by name or number, as Nomad sends them: a job's `kill_signal`, a template's `change_signal`,
//! `nomad alloc signal -s`. See signal(7).

use std::fmt;
use std::str::FromStr;

use nix::sys::signal::Signal;

use crate::quote::quote;

/// The first real-time signal that programs may use: glibc reserves 32 and 33. musl also reserves 34, so
/// its `SIGRTMIN` is 35; signal programs built with musl by number.
const RTMIN: i32 = 34;

/// The last real-time signal, the kernel's `_NSIG` on all architectures but MIPS (128), which Nomad does not
/// support.
const RTMAX: i32 = 64;

/// A signal number as the kernel sees it, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignalNumber(i32);

impl SignalNumber {
    /// What StopTask sends when the job names no `kill_signal`, as Nomad's `exec` driver does.
    pub const SIGINT: Self = Self(libc::SIGINT);

    /// The number if it is that of a signal; 0 is none.
    pub(crate) const fn new(number: i32) -> Option<Self> {
        if 1 <= number && number <= RTMAX { Some(Self(number)) } else { None }
    }

    /// The number for kill(2) and pidfd_send_signal(2).
    pub(crate) const fn get(self) -> i32 {
        self.0
    }

    /// `SIGHUP`, `SIGRTMIN+3`, `SIGRTMAX-2`; the number itself for 32 and 33, which the C library keeps. Always
    /// something that [`parse`] reads.
    pub(crate) fn name(self) -> String {
        /// Names count from the nearer end, as the shells' `kill -l` does.
        const RTMID: i32 = RTMIN + (RTMAX - RTMIN) / 2;
        match self.0 {
            RTMIN => "SIGRTMIN".to_owned(),
            RTMAX => "SIGRTMAX".to_owned(),
            n if n > RTMIN && n <= RTMID => format!("SIGRTMIN+{}", n - RTMIN),
            n if n > RTMID => format!("SIGRTMAX-{}", RTMAX - n),
            n => Signal::try_from(n).map_or_else(|_| n.to_string(), |signal| signal.as_str().to_owned()),
        }
    }
}

impl fmt::Display for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

impl fmt::Debug for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

impl FromStr for SignalNumber {
    type Err = SignalError;

    fn from_str(signal: &str) -> Result<Self, SignalError> {
        parse(signal)
    }
}

/// The text is not a signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown signal {}; write a name such as \"SIGHUP\" or \"hup\", a number from 1 to 64, \
     \"SIGRTMIN+n\" or \"SIGRTMAX-n\" with n up to 30; `kill -l` lists the names",
    quote(.0)
)]
pub struct SignalError(pub String);

/// Reads a signal: a name with or without `SIG`, in any case; a number from 1 to 64; `SIGRTMIN+n`, `SIGRTMAX-n`
/// with n from 0 to 30; the aliases `SIGCLD`, `SIGIOT`, `SIGPOLL`. The empty text and 0 are no signals.
pub(crate) fn parse(signal: &str) -> Result<SignalNumber, SignalError> {
    number(signal).and_then(SignalNumber::new).ok_or_else(|| SignalError(signal.to_owned()))
}

fn number(signal: &str) -> Option<i32> {
    if let Some(number) = digits(signal) {
        return Some(number);
    }
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time_offset(offset, '+').map(|n| RTMIN + n);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time_offset(offset, '-').map(|n| RTMAX - n);
    }
    let name = match name {
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        name => name,
    };
    Signal::from_str(&format!("SIG{name}")).ok().map(|signal| signal as i32)
}

/// What follows `RTMIN` or `RTMAX`: nothing, or the sign and a number that stays within the real-time range.
fn real_time_offset(offset: &str, sign: char) -> Option<i32> {
    if offset.is_empty() {
        return Some(0);
    }
    digits(offset.strip_prefix(sign)?).filter(|n| *n <= RTMAX - RTMIN)
}

/// A number of ASCII digits only, without sign or blanks.
fn digits(text: &str) -> Option<i32> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ok(signal: &str) -> i32 {
        parse(signal).unwrap().get()
    }

    #[test]
    fn names_in_every_style() {
        for name in ["SIGHUP", "HUP", "sighup", "hup", "SigHup", "1", "01"] {
            assert_eq!(ok(name), libc::SIGHUP, "{name}");
        }
        for (name, number) in [
            ("SIGCLD", libc::SIGCHLD),
            ("SIGIOT", libc::SIGABRT),
            ("SIGPOLL", libc::SIGIO),
            ("SIGWINCH", libc::SIGWINCH),
            ("SIGCONT", libc::SIGCONT),
            ("SIGSTKFLT", 16),
            ("SIGSYS", libc::SIGSYS),
            ("SIGPWR", libc::SIGPWR),
            ("SIGURG", libc::SIGURG),
            ("9", libc::SIGKILL),
        ] {
            assert_eq!(ok(name), number, "{name}");
        }
    }

    #[test]
    fn real_time_signals() {
        for (name, number) in [
            ("SIGRTMIN", 34),
            ("rtmin", 34),
            ("SIGRTMIN+0", 34),
            ("SIGRTMIN+3", 37),
            ("SIGRTMIN+30", 64),
            ("SIGRTMAX", 64),
            ("SIGRTMAX-30", 34),
            ("rtmax-2", 62),
            ("32", 32),
            ("64", 64),
        ] {
            assert_eq!(ok(name), number, "{name}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "0",
            "00",
            "65",
            "-1",
            "+1",
            " 1",
            "1 ",
            "99999999999",
            "SIG",
            "SIG1",
            "SIGSIGHUP",
            "SIGFOO",
            "HUP ",
            "SIGRTMIN+31",
            "SIGRTMIN-1",
            "SIGRTMAX+1",
            "SIGRTMAX-31",
            "SIGRTMIN+",
            "SIGRTMIN3",
            "RTMIN+ 1",
            "ſIGHUP",
            "SIGRTMIN++1",
            "SIGHUP\0",
        ] {
            assert_eq!(parse(text), Err(SignalError(text.to_owned())), "{text}");
        }
        let message = parse("SIGFOO").unwrap_err().to_string();
        assert!(
            message.starts_with("unknown signal \"SIGFOO\"; write a name such as \"SIGHUP\""),
            "{message}"
        );
    }

    #[test]
    fn every_number_has_a_name_that_parses_back() {
        for number in 1..=64 {
            let signal = SignalNumber::new(number).unwrap();
            assert_eq!(parse(&signal.name()), Ok(signal));
            assert_eq!(parse(&number.to_string()), Ok(signal));
            assert_eq!(signal.name().starts_with("SIG"), !matches!(number, 32 | 33), "{signal:?}");
        }
        assert_eq!(SignalNumber::new(35).unwrap().name(), "SIGRTMIN+1");
        assert_eq!(SignalNumber::new(63).unwrap().name(), "SIGRTMAX-1");
        assert_eq!(SignalNumber::new(0), None);
        assert_eq!(SignalNumber::new(65), None);
        assert_eq!(format!("{:?}", SignalNumber::SIGINT), "SIGINT (2)");
    }

    proptest! {
        #[test]
        fn parser_is_total(text in any::<String>()) {
            let _ = parse(&text);
        }

        #[test]
        fn near_misses_never_panic(text in "(?i:sig)?(RTMIN|RTMAX|[A-Z0-9]{0,5})[+-]?[0-9]{0,12}") {
            if let Ok(signal) = parse(&text) {
                prop_assert!((1..=64).contains(&signal.get()));
            }
        }
    }
}
