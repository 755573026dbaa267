//! How a task ended, as the shim writes it and the plugin reads it: one line in a file that only root can reach.
//!
//! `v1 code=7 signal=0 oom=0 at=1764000000123456` and a newline: exit code (128 + signal if a signal ended it), signal
//! number or 0, how many of the task's processes the OOM killer killed, and the time in µs since the epoch.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Length of the file. It is filled with spaces before the task starts, and the line overwrites their beginning: so the space is
/// reserved. A longer file was not written by a shim.
pub const MAX_LINE: usize = 128;

/// The file before the task's end.
pub const BLANK: [u8; MAX_LINE] = [b' '; MAX_LINE];

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + `signal`.
    pub code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// Processes of the task that the OOM killer killed (`oom_kill` of memory.events). It does not say whether the first
    /// process was one of them.
    pub oom_kills: u64,
    pub at: SystemTime,
}

impl Exit {
    pub fn exited(code: i32) -> Self {
        Self { code, signal: 0, oom_kills: 0, at: now() }
    }

    pub fn signalled(signal: i32) -> Self {
        Self { code: 128 + signal, signal, oom_kills: 0, at: now() }
    }

    /// From a status of wait(2), with the current time.
    pub fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::exited(status >> 8 & 0xff),
            signal => Self::signalled(signal),
        }
    }

    /// Whether the OOM killer ended it: it was killed by SIGKILL, and there were more OOM kills than the task has survived.
    pub fn is_out_of_memory(&self, outlived: u64) -> bool {
        self.signal == libc::SIGKILL && self.oom_kills > outlived
    }

    /// Reads the content of the file; none before the task has ended.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        if bytes == BLANK {
            return Ok(None);
        }
        if bytes.len() > MAX_LINE {
            return Err(Malformed);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
        let line = match text.find('\n') {
            Some(end) if text.len() == MAX_LINE && text[end + 1..].bytes().all(|b| b == b' ') => {
                &text[..=end]
            }
            _ => text,
        };
        line.parse().map(Some)
    }

    /// One write at offset 0, so that a reader sees all of it or nothing.
    pub fn write(&self, file: &File) -> std::io::Result<()> {
        file.write_all_at(self.to_string().as_bytes(), 0)
    }
}

/// The current time, truncated to the µs of the line.
fn now() -> SystemTime {
    let micros = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
    UNIX_EPOCH + Duration::from_micros(micros)
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.at.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_micros());
        writeln!(f, "v1 code={} signal={} oom={} at={micros}", self.code, self.signal, self.oom_kills)
    }
}

/// The line is damaged, or was not written by a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the exit status is not of the form \"v1 code=N signal=N oom=N at=MICROSECONDS\"")]
pub struct Malformed;

impl std::str::FromStr for Exit {
    type Err = Malformed;

    fn from_str(line: &str) -> Result<Self, Malformed> {
        let rest = line.strip_prefix("v1 ").and_then(|rest| rest.strip_suffix('\n')).ok_or(Malformed)?;
        let mut fields = rest.split(' ');
        let mut number = |name: &str| -> Result<u64, Malformed> {
            let value = fields.next().and_then(|f| f.strip_prefix(name)).ok_or(Malformed)?;
            if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Malformed);
            }
            value.parse().map_err(|_| Malformed)
        };
        let (code, signal) = (number("code=")?, number("signal=")?);
        let (oom_kills, micros) = (number("oom=")?, number("at=")?);
        let mut right = match signal {
            0 => code <= 255,
            1..=64 => code == 128 + signal,
            _ => false,
        };
        // A later version may append fields of the form name=value.
        let mut later = 0;
        for field in fields {
            later += field.len() + 1;
            right &= field.bytes().all(|byte| byte.is_ascii_graphic())
                && field.split_once('=').is_some_and(|(name, _)| !name.is_empty());
        }
        if !right {
            return Err(Malformed);
        }
        let at = UNIX_EPOCH.checked_add(Duration::from_micros(micros)).ok_or(Malformed)?;
        let small = |number: u64| i32::try_from(number).map_err(|_| Malformed);
        let exit = Self { code: small(code)?, signal: small(signal)?, oom_kills, at };
        // Each number has only one spelling.
        let ours = &line[..line.len() - later - 1];
        if exit.to_string().trim_end() == ours { Ok(exit) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_shim_writes_the_plugin_reads() {
        let out_of_memory = Exit { oom_kills: u64::MAX, ..Exit::signalled(9) };
        for exit in [Exit::exited(0), Exit::exited(255), Exit::signalled(64), out_of_memory] {
            let line = exit.to_string();
            assert!(line.len() <= MAX_LINE);
            assert_eq!(line.parse(), Ok(exit));
        }
    }

    #[test]
    fn a_wait_status_has_the_code_or_the_signal() {
        let of = |status| {
            let exit = Exit::from_wait_status(status);
            (exit.code, exit.signal)
        };
        assert_eq!(of(7 << 8), (7, 0));
        assert_eq!(of(9), (137, 9));
        assert_eq!(of(11 | 0x80), (139, 11), "with a core dump");
        assert_eq!(of(64), (192, 64), "a real-time signal");
    }

    #[test]
    fn only_a_kill_that_was_not_outlived_is_behind_a_sigkill() {
        let killed = Exit { oom_kills: 2, ..Exit::signalled(libc::SIGKILL) };
        assert!(killed.is_out_of_memory(1));
        assert!(!killed.is_out_of_memory(2));
        assert!(!Exit { oom_kills: 2, ..Exit::signalled(libc::SIGTERM) }.is_out_of_memory(1));
        assert!(!Exit { oom_kills: 2, ..Exit::exited(137) }.is_out_of_memory(1));
    }

    #[test]
    fn a_file_is_blank_or_one_line_and_spaces() {
        assert_eq!(Exit::read(&BLANK), Ok(None));
        let exit = Exit::signalled(9);
        let file = |line: &str, length: usize| format!("{line:<length$}").into_bytes();
        assert_eq!(Exit::read(&file(&exit.to_string(), MAX_LINE)), Ok(Some(exit)));
        for bytes in [
            file(&exit.to_string(), MAX_LINE + 1),
            file(&exit.to_string(), MAX_LINE - 1),
            file(&format!(" {exit}"), MAX_LINE),
            file(&format!("{exit}{exit}"), MAX_LINE),
            file("v1 code=0 signal=0 oom=0 at=1 e=", MAX_LINE - 1).into_iter().chain(*b"x\n").collect(),
            vec![b' '; MAX_LINE - 1],
            vec![0; MAX_LINE],
            vec![0xff; MAX_LINE],
            Vec::new(),
        ] {
            assert_eq!(Exit::read(&bytes), Err(Malformed), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "",
            "\n",
            "v1 code=0 signal=0 oom=0 at=1",
            "v2 code=0 signal=0 oom=0 at=1\n",
            "v1 code=256 signal=0 oom=0 at=1\n",
            "v1 code=0 signal=9 oom=0 at=1\n",
            "v1 code=193 signal=65 oom=0 at=1\n",
            "v1 code=-1 signal=0 oom=0 at=1\n",
            "v1 code=+1 signal=0 oom=0 at=1\n",
            "v1 code=007 signal=0 oom=0 at=1\n",
            "v1 code=7 signal=0 oom=00 at=1\n",
            "v1 code=7 signal=0 oom=0 at=01\n",
            "v1 code=0 signal=0 oom=0 at=01 more=1\n",
            "v1 code=0 signal=0 oom=0 at=1 more\n",
            "v1 code=0 signal=0 oom=0 at=1 =1\n",
            "v1 code=0 signal=0 oom=0 at=1 \n",
            "v1 code=0 signal=0 oom=0 at=1  more=1\n",
            "v1 code=0 signal=0 oom=0 at=1 more=\0\n",
            "v1 code=0 signal=0 oom=0 at=1 more=1\n\n",
            "v1 code=0 signal=0 at=1\n",
            "v1 code=0 signal=0 oom=0 at=99999999999999999999\n",
            "v1 signal=0 code=0 oom=0 at=1\n",
        ] {
            assert_eq!(line.parse::<Exit>(), Err(Malformed), "{line:?}");
        }
    }

    #[test]
    fn fields_of_a_later_version_are_ignored() {
        let line = "v1 code=137 signal=9 oom=1 at=5 core=1 note=x\n";
        let exit = line.parse::<Exit>().unwrap();
        assert_eq!((exit.code, exit.signal, exit.oom_kills), (137, 9, 1));
        assert_eq!(exit.at, UNIX_EPOCH + Duration::from_micros(5));
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "\\PC*") {
            let _ = line.parse::<Exit>();
        }

        #[test]
        fn whatever_is_read_is_written_the_same(
            code in 0u64..300, signal in 0u64..70, oom in any::<u64>(), at in any::<u64>(),
        ) {
            let line = format!("v1 code={code} signal={signal} oom={oom} at={at}\n");
            if let Ok(exit) = line.parse::<Exit>() {
                prop_assert_eq!(exit.to_string(), line);
            }
        }
    }
}
