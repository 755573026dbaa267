//! nsswitch.conf(5): whether the host's C library uses other sources than its files.

use std::fs::File;
use std::io::Read;

const PATH: &str = "/etc/nsswitch.conf";

/// Only so many bytes are read; nsswitch.conf has a few hundred. A longer one is cut instead of ignored, so that its sources are
/// still asked.
const BYTES_MAX: u64 = 64 << 10;

/// The host's configuration.
pub(super) struct Nsswitch(String);

impl Nsswitch {
    pub(super) fn read() -> Self {
        let mut bytes = Vec::new();
        // If it is absent or unreadable, glibc uses the files, and other C libraries have no other source.
        if let Ok(file) = File::open(PATH) {
            let _ = file.take(BYTES_MAX).read_to_end(&mut bytes);
        }
        Self(String::from_utf8_lossy(&bytes).into_owned())
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn of(text: String) -> Self {
        Self(text)
    }

    /// Whether there may be users that /etc/passwd does not have.
    pub(super) fn users_of_service(&self) -> bool {
        self.sources("passwd").any(|source| !is_local(source))
    }

    /// Whether a user may be in groups that /etc/group does not have. If there is a line `initgroups`, it replaces `group`.
    pub(super) fn groups_of_service(&self) -> bool {
        let own = self.lines("initgroups").next().is_some();
        self.sources(if own { "initgroups" } else { "group" }).any(|source| !is_local(source))
    }

    fn lines<'a>(&'a self, database: &'a str) -> impl Iterator<Item = &'a str> {
        let lines = self.0.lines().map(|line| line.split('#').next().unwrap_or("").trim_start());
        lines.filter_map(move |line| line.strip_prefix(database)?.trim_start().strip_prefix(':'))
    }

    /// The sources of a database, without actions such as `[NOTFOUND=return]`, which may contain blanks.
    fn sources<'a>(&'a self, database: &'a str) -> impl Iterator<Item = &'a str> {
        let mut in_action = false;
        self.lines(database).flat_map(str::split_whitespace).filter(move |word| {
            in_action |= word.starts_with('[');
            let source = !in_action;
            if word.ends_with(']') {
                in_action = false;
            }
            source
        })
    }
}

/// `systemd` counts as local: it has the users of running units, whose ids (61184-65519) are outside of Nomad's range; `compat`
/// and `db` read the files.
fn is_local(source: &str) -> bool {
    matches!(source, "files" | "systemd" | "compat" | "db")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (bool, bool) {
        let nsswitch = Nsswitch::of(text.to_owned());
        (nsswitch.users_of_service(), nsswitch.groups_of_service())
    }

    #[test]
    fn directory_services() {
        for text in [
            "passwd: files sss\n",
            "passwd:\tfiles systemd ldap # x\n",
            "# c\ngroup: files\npasswd: winbind files\n",
            "passwd: files [NOTFOUND = continue SUCCESS=return] sss",
            "passwd : nis",
        ] {
            assert_eq!(of(text), (true, false), "{text}");
        }
        for text in
            ["group: files sss", "initgroups: sss\ngroup: files", "passwd: files\ngroup: [X=return] ldap"]
        {
            assert_eq!(of(text), (false, true), "{text}");
        }
        for text in [
            "",
            "passwd: files\n",
            "passwd: files systemd [SUCCESS=merge]\ngroup: files [SUCCESS=merge] systemd\n",
            "passwd: files [ NOTFOUND = return ] systemd # sss\n",
            "# passwd: sss\nshadow: sss\npasswd_compat: sss\n",
            "group: sss\ninitgroups: files",
        ] {
            assert_eq!(of(text), (false, false), "{text}");
        }
    }
}
