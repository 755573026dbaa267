//! The user database of a task's own root: the task's user, root and nobody, nothing of the host.

use crate::users::User;

/// passwd(5) and group(5), for a task with this environment.
pub(crate) fn user_files(user: &User, env: &[String]) -> Vec<(String, String)> {
    let home = env.iter().find_map(|entry| entry.strip_prefix("HOME=")).map_or("/nonexistent", field);
    let name = name(user);
    let mut passwd = String::new();
    let mut group = String::new();
    let mut add = |name: &str, uid: u32, gid: u32, group_name: &str, home: &str, shell: &str| {
        passwd += &format!("{name}:x:{uid}:{gid}::{home}:{shell}\n");
        group += &format!("{group_name}:x:{gid}:\n");
    };
    if user.uid != ROOT {
        add("root", ROOT, ROOT, "root", "/root", "/usr/sbin/nologin");
    }
    if user.uid != NOBODY {
        add("nobody", NOBODY, NOBODY, "nogroup", "/nonexistent", "/usr/sbin/nologin");
    }
    add(&name, user.uid, user.gid, &name, home, "/bin/sh");
    vec![("passwd".into(), passwd), ("group".into(), group)]
}

const ROOT: u32 = 0;
const NOBODY: u32 = 65534;

/// A name that passwd(5) can have. A user without a name in the host's database is called by what the job wrote, which may be
/// `1000:1000`.
fn name(user: &User) -> String {
    let usable = |name: &str| !name.is_empty() && !name.contains([':', '\n']) && name.parse::<u32>().is_err();
    if usable(&user.name) { user.name.clone() } else { format!("uid-{}", user.uid) }
}

/// A field cannot have these characters; the program finds its home in the environment.
fn field(value: &str) -> &str {
    if value.is_empty() || value.contains([':', '\n']) { "/nonexistent" } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(user: &User, env: &[&str]) -> (String, String) {
        let env: Vec<_> = env.iter().map(ToString::to_string).collect();
        let mut files = user_files(user, &env).into_iter();
        let (passwd, group) = (files.next().unwrap(), files.next().unwrap());
        assert_eq!((passwd.0.as_str(), group.0.as_str()), ("passwd", "group"));
        (passwd.1, group.1)
    }

    #[test]
    fn the_tasks_user_root_and_nobody_are_known() {
        let (passwd, group) = files(&User::unknown("nomad-80001", 80_001, 80_001), &["HOME=/m/1-web/local"]);
        assert!(passwd.ends_with("\nnomad-80001:x:80001:80001::/m/1-web/local:/bin/sh\n"), "{passwd}");
        assert!(passwd.contains("root:x:0:0:") && passwd.contains("nobody:x:65534:65534:"));
        assert_eq!(group, "root:x:0:\nnogroup:x:65534:\nnomad-80001:x:80001:\n");
    }

    #[test]
    fn a_task_of_root_or_nobody_is_listed_once() {
        for (name, id) in [("root", 0), ("nobody", 65534)] {
            let (passwd, _) = files(&User::unknown(name, id, id), &["HOME=/root"]);
            assert_eq!(passwd.lines().filter(|line| line.starts_with(&format!("{name}:"))).count(), 1);
            assert_eq!(passwd.lines().count(), 2);
        }
    }

    #[test]
    fn nothing_can_add_a_line() {
        for name in ["1000:1000", "a\nroot", "1000", ""] {
            let (passwd, _) = files(&User::unknown(name, 1000, 1000), &["HOME=/x:0:0\nevil"]);
            assert_eq!(passwd.lines().last().unwrap(), "uid-1000:x:1000:1000::/nonexistent:/bin/sh");
            assert_eq!(passwd.lines().count(), 3);
        }
    }
}
