//! The environment of a task: Nomad's, without the agent's variables, with the task's user and directories.
//!
//! Nomad sends one map, in which the agent's own environment and the job's `env` block are no longer distinguishable. The
//! plugin inherits the agent's environment, so a value that equals the plugin's own is the agent's, and any other value the
//! job's: so a job may set variables that must not come from the agent.

use std::collections::HashMap;
use std::path::Path;

use crate::users::User;

/// Never passed on: the dynamic linker's variables (ld.so(8)), which would let the agent's surroundings load code into
/// every task.
const DROPPED_PREFIX: &str = "LD_";

/// Never passed on, from the agent or the job. The first five are the Go driver's list; the others mean the agent's own
/// processes, descriptors and directory, so no value of them is right for a task. A plugin may outlive the agent that
/// started it, and the next agent's values differ, so that comparing them would not find them.
const DROPPED: [&str; 25] = [
    "LS_COLORS",
    "XAUTHORITY",
    "DISPLAY",
    "COLORTERM",
    "MAIL",
    // The shell in which the agent was started.
    "PWD",
    "OLDPWD",
    // systemd.exec(5): this invocation of nomad.service, its journal stream, its first process.
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "MANAGERPID",
    "MANAGERPIDFDID",
    // sd_listen_fds(3), sd_watchdog_enabled(3): a task inherits no descriptor, and is not the agent's process.
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    // go-plugin: how an agent starts and reaches a plugin.
    "NOMAD_PLUGIN_MAGIC_COOKIE",
    "PLUGIN_PROTOCOL_VERSIONS",
    "PLUGIN_CLIENT_CERT",
    "PLUGIN_MULTIPLEX_GRPC",
    "PLUGIN_MIN_PORT",
    "PLUGIN_MAX_PORT",
    "PLUGIN_UNIX_SOCKET_DIR",
    "PLUGIN_UNIX_SOCKET_GROUP",
];

/// Not passed on from the agent, but a job may set them: a supervisor inside the task may use systemd's protocol, and a
/// program may look for its directories by systemd's names.
const AGENTS: [&str; 16] = [
    // systemd.exec(5), and systemd.resource-control(5) for memory pressure.
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "FDSTORE",
    "MAINPID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "CREDENTIALS_DIRECTORY",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "CACHE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    // The login session of an agent that was started in one: sockets and a directory of its user's.
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_ID",
    "DBUS_SESSION_BUS_ADDRESS",
    "SSH_AUTH_SOCK",
];

/// Not passed on from the agent either: its tokens, keys and licence. Nomad itself withholds some of them (`env.denylist` of the client), but an
/// operator who sets that option for something else loses its default. What Nomad makes for a task by these names (`NOMAD_TOKEN` of a workload
/// identity, `VAULT_TOKEN`) has another value.
const SECRETS: [&str; 24] = [
    "NOMAD_TOKEN",
    "NOMAD_LICENSE",
    "NOMAD_LICENSE_PATH",
    "NOMAD_CLIENT_KEY",
    "NOMAD_HTTP_AUTH",
    "CONSUL_TOKEN",
    "CONSUL_HTTP_TOKEN",
    "CONSUL_HTTP_TOKEN_FILE",
    "CONSUL_HTTP_AUTH",
    "CONSUL_CLIENT_KEY",
    "CONSUL_LICENSE",
    "VAULT_TOKEN",
    "VAULT_CLIENT_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AZURE_CLIENT_SECRET",
    "ARM_CLIENT_SECRET",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_CREDENTIALS",
    "DIGITALOCEAN_TOKEN",
    "GITHUB_TOKEN",
];

/// Not passed on from the agent either: where the C library reads code, tables and names from, or how it behaves. What ld.so(8) ignores in
/// set-user-ID programs, except `TMPDIR`, which is the task's own, and `LD_*`.
const C_LIBRARY: [&str; 12] = [
    "GLIBC_TUNABLES",
    "GCONV_PATH",
    "GETCONF_DIR",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "LOCPATH",
    "MALLOC_TRACE",
    "NIS_PATH",
    "NLSPATH",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "TZDIR",
];

/// Like [`AGENTS`]: `SYSTEMD_LOG_LEVEL` and the like, which systemd's programs read, and who called sudo for the agent.
const AGENTS_PREFIXES: [&str; 2] = ["SYSTEMD_", "SUDO_"];

/// The task's user and directories.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whereabouts<'a> {
    pub user: &'a User,
    /// The task's own directory, with `local` and `tmp` in it.
    pub root: &'a Path,
    pub work_dir: &'a Path,
}

/// `KEY=value` in the order of the keys. `plugins` looks a variable up in the plugin's own environment.
pub(crate) fn environment(
    env: &HashMap<String, String>,
    plugins: impl Fn(&str) -> Option<String>,
    task: Whereabouts<'_>,
) -> Vec<String> {
    let of_agent = |key: &str, value: &str| plugins(key).as_deref() == Some(value);
    let user = &task.user.name;
    let mut own = vec![
        ("USER", user.clone()),
        ("LOGNAME", user.clone()),
        ("TMPDIR", task.root.join("tmp").display().to_string()),
        ("NOMAD_WORK_DIR", task.work_dir.display().to_string()),
    ];
    let chosen = env.get("HOME").filter(|home| !home.is_empty() && !of_agent("HOME", home));
    if chosen.is_none() {
        // A user without a home gets a directory that exists and that it may write to.
        let home = task.user.home.clone().unwrap_or_else(|| task.root.join("local"));
        own.push(("HOME", home.display().to_string()));
    }
    let kept = env.iter().filter(|(key, value)| {
        let agents = is_agents(key) && of_agent(key, value);
        let replaced = own.iter().any(|(name, _)| name == key);
        !(is_dropped(key) || agents || replaced)
    });
    let mut entries: Vec<String> = kept.map(|(key, value)| format!("{key}={value}")).collect();
    entries.extend(own.iter().map(|(key, value)| format!("{key}={value}")));
    entries.sort_unstable();
    entries
}

/// Variables that no task gets, and names that an environment cannot have.
fn is_dropped(key: &str) -> bool {
    key.is_empty() || key.contains('=') || key.starts_with(DROPPED_PREFIX) || DROPPED.contains(&key)
}

fn is_agents(key: &str) -> bool {
    let listed = [&AGENTS[..], &SECRETS, &C_LIBRARY].iter().any(|names| names.contains(&key));
    listed || AGENTS_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The environment that the plugin has from the agent.
    const PLUGINS: [(&str, &str); 10] = [
        ("HOME", "/root"),
        ("NOTIFY_SOCKET", "/run/systemd/notify"),
        ("STATE_DIRECTORY", "/var/lib/nomad"),
        ("SYSTEMD_LOG_LEVEL", "debug"),
        ("SUDO_UID", "1000"),
        ("LANG", "C.UTF-8"),
        ("NOMAD_TOKEN", "agents"),
        ("VAULT_TOKEN", "agents"),
        ("AWS_SECRET_ACCESS_KEY", "agents"),
        ("GLIBC_TUNABLES", "glibc.malloc.check=3"),
    ];

    fn plugins(name: &str) -> Option<String> {
        PLUGINS.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    fn of_user(user: &User, pairs: &[(&str, &str)]) -> Vec<String> {
        let env = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (root, work_dir) = (Path::new("/m/1-web"), Path::new("/m/1-web/local/app"));
        environment(&env, plugins, Whereabouts { user, root, work_dir })
    }

    fn of(pairs: &[(&str, &str)]) -> Vec<String> {
        of_user(&User::unknown("nomad-80000", 80_000, 80_000), pairs)
    }

    const OWN: [&str; 5] = [
        "HOME=/m/1-web/local",
        "LOGNAME=nomad-80000",
        "NOMAD_WORK_DIR=/m/1-web/local/app",
        "TMPDIR=/m/1-web/tmp",
        "USER=nomad-80000",
    ];

    /// What a task has of these variables beside its own.
    fn left(pairs: &[(&str, &str)]) -> Vec<String> {
        of(pairs).into_iter().filter(|entry| !OWN.contains(&entry.as_str())).collect()
    }

    #[test]
    fn the_task_learns_who_and_where_it_is() {
        assert_eq!(of(&[]), OWN);
        let agents = [
            ("USER", "root"),
            ("LOGNAME", "root"),
            ("HOME", "/root"),
            ("TMPDIR", "/tmp"),
            ("NOMAD_WORK_DIR", "/"),
        ];
        assert_eq!(of(&agents), OWN);
    }

    #[test]
    fn a_named_user_has_the_home_of_the_database() {
        let ann = User { home: Some("/home/ann".into()), ..User::unknown("ann", 1000, 1000) };
        let home = |pairs| of_user(&ann, pairs)[0].clone();
        assert_eq!(home(&[("HOME", "/root")]), "HOME=/home/ann");
        assert_eq!(home(&[]), "HOME=/home/ann");
        assert_eq!(home(&[("HOME", "/srv/app")]), "HOME=/srv/app");
    }

    #[test]
    fn a_home_of_the_jobs_stands_and_the_agents_does_not() {
        assert_eq!(of(&[("HOME", "/srv/app")])[0], "HOME=/srv/app");
        assert_eq!(of(&[("HOME", "/root")])[0], OWN[0]);
        assert_eq!(of(&[("HOME", "")])[0], OWN[0], "an empty one is none");
    }

    #[test]
    fn the_agents_session_and_the_linkers_variables_are_left_out() {
        let env = left(&[
            ("LD_PRELOAD", "/tmp/x.so"),
            ("LD_LIBRARY_PATH", "/tmp"),
            ("DISPLAY", ":0"),
            ("MAIL", "x"),
            ("PWD", "/"),
            ("OLDPWD", "/root"),
            ("", "x"),
            ("A=B", "x"),
            ("LDAP", "kept"),
            ("EMPTY", ""),
            ("LANG", "C.UTF-8"),
        ]);
        assert_eq!(env, ["EMPTY=", "LANG=C.UTF-8", "LDAP=kept"]);
    }

    #[test]
    fn what_the_service_manager_gave_the_agent_is_left_out() {
        for (name, value) in PLUGINS.iter().filter(|(name, _)| *name != "LANG") {
            assert!(left(&[(name, value)]).is_empty(), "{name}");
        }
        // Of this invocation of the agent; the plugin may have been started by an earlier one.
        for name in [
            "INVOCATION_ID",
            "JOURNAL_STREAM",
            "SYSTEMD_EXEC_PID",
            "LISTEN_PID",
            "LISTEN_FDS",
            "WATCHDOG_PID",
        ] {
            assert!(left(&[(name, "7")]).is_empty(), "{name}");
        }
        for name in ["NOMAD_PLUGIN_MAGIC_COOKIE", "PLUGIN_CLIENT_CERT", "PLUGIN_UNIX_SOCKET_DIR"] {
            assert!(left(&[(name, "x")]).is_empty(), "{name}");
        }
    }

    #[test]
    fn secrets_and_tunables_of_the_agent_are_left_out_and_those_of_the_task_stay() {
        let agents = ["NOMAD_TOKEN", "VAULT_TOKEN", "AWS_SECRET_ACCESS_KEY"].map(|key| (key, "agents"));
        assert_eq!(left(&agents), [""; 0]);
        assert_eq!(left(&[("GLIBC_TUNABLES", "glibc.malloc.check=3")]), [""; 0]);
        let tasks = ["AWS_SECRET_ACCESS_KEY", "NOMAD_TOKEN", "VAULT_TOKEN"].map(|key| (key, "tasks"));
        assert_eq!(left(&tasks), ["AWS_SECRET_ACCESS_KEY=tasks", "NOMAD_TOKEN=tasks", "VAULT_TOKEN=tasks"]);
        let tunables = "GLIBC_TUNABLES=glibc.malloc.arena_max=2";
        assert_eq!(left(&[tunables.split_once('=').unwrap()]), [tunables]);
    }

    #[test]
    fn a_job_may_set_them_to_its_own_values() {
        let own = [
            ("MEMORY_PRESSURE_WATCH", "/sys/fs/cgroup/own/memory.pressure"),
            ("NOTIFY_SOCKET", "/alloc/notify"),
            ("PLUGIN_SETTINGS", "x"),
            ("REMOTE_ADDR", "10.0.0.1"),
            ("STATE_DIRECTORY", "/alloc/data"),
            ("SYSTEMD_LOG_LEVEL", "info"),
        ];
        let kept: Vec<String> = own.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(left(&own), kept);
    }
}
