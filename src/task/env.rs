//! The environment of a task: Nomad's, less what belongs to the agent, plus who and where the task is.

use std::collections::HashMap;
use std::path::Path;

use crate::users::User;

/// Variables of the agent's login session that mean nothing to a task.
const DROPPED: [&str; 5] = ["LS_COLORS", "XAUTHORITY", "DISPLAY", "COLORTERM", "MAIL"];
/// The dynamic linker's variables (ld.so(8)), which would let the agent's surroundings load code into every task.
const DROPPED_PREFIX: &str = "LD_";

/// `KEY=value` in the order of the keys. `root` is the task's own directory, with `tmp` in it.
pub fn environment(env: &HashMap<String, String>, user: &User, root: &Path) -> Vec<String> {
    let own = [
        ("USER", user.name.clone()),
        ("HOME", user.home.display().to_string()),
        ("TMPDIR", root.join("tmp").display().to_string()),
    ];
    let kept = env.iter().filter(|(key, _)| {
        let key = key.as_str();
        !key.is_empty()
            && !key.contains('=')
            && !key.starts_with(DROPPED_PREFIX)
            && !DROPPED.contains(&key)
            && own.iter().all(|(name, _)| *name != key)
    });
    let mut entries: Vec<String> = kept.map(|(key, value)| format!("{key}={value}")).collect();
    entries.extend(own.iter().map(|(key, value)| format!("{key}={value}")));
    entries.sort_unstable();
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Vec<String> {
        let env = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let user = User { name: "nomad-80000".into(), uid: 80_000, gid: 80_000, home: "/nonexistent".into() };
        environment(&env, &user, Path::new("/m/1-web"))
    }

    #[test]
    fn the_task_learns_who_and_where_it_is() {
        let own = ["HOME=/nonexistent", "TMPDIR=/m/1-web/tmp", "USER=nomad-80000"];
        assert_eq!(of(&[]), own);
        assert_eq!(of(&[("USER", "root"), ("HOME", "/root"), ("TMPDIR", "/tmp")]), own);
    }

    #[test]
    fn the_agents_session_and_the_linkers_variables_are_left_out() {
        let env = of(&[
            ("LD_PRELOAD", "/tmp/x.so"),
            ("LD_LIBRARY_PATH", "/tmp"),
            ("DISPLAY", ":0"),
            ("MAIL", "x"),
            ("", "x"),
            ("A=B", "x"),
            ("LDAP", "kept"),
            ("EMPTY", ""),
        ]);
        assert_eq!(
            env,
            ["EMPTY=", "HOME=/nonexistent", "LDAP=kept", "TMPDIR=/m/1-web/tmp", "USER=nomad-80000"]
        );
    }
}
