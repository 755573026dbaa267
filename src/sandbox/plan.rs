//! The list of rules of one task, out of the defaults, the agent's configuration and the job.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::defaults::DEFAULTS;
use super::place::{Missing, NamedBy, Place, Rule};
use super::unveil::{Access, Unveil};

const R: Access = Access::READ;
const RX: Access = Access::READ.union(Access::EXECUTE);
const RWXC: Access = R.union(Access::WRITE).union(Access::EXECUTE).union(Access::CREATE);

/// What a task's rules are made of.
#[derive(Debug)]
pub(crate) struct Sources<'a> {
    /// The task's own directory: `alloc_mounts/<alloc>-<task>` with `alloc`, `local`, `secrets` and `tmp` in it.
    pub root: &'a Path,
    /// The task's cgroup; none = there is none.
    pub cgroup: Option<&'a Path>,
    /// Whether the defaults and the task's own directories are granted.
    pub defaults: bool,
    /// The agent's `unveil_paths`.
    pub agent: &'a [Unveil],
    /// The job's `unveil`.
    pub job: &'a [Unveil],
}

/// The directories in which tasks can create and rename, as far as they are known here: the task's own, and what the
/// agent's and this job's rules say. What another job was unveiled, or what the host's permissions let others write, is
/// not known.
fn writable<'a>(root: &'a Path, unveils: impl Iterator<Item = &'a Unveil>) -> impl Iterator<Item = &'a Path> {
    unveils.filter(|unveil| unveil.access.create()).map(|unveil| unveil.path.as_path()).chain([root])
}

/// A rule that cannot mean what it says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(
        "unveil \"{0}\" is about one process, and the programs that it starts have others; write \"{access}:/proc\": a task's \
         /proc has no processes but its own",
        access = .0.access
    )]
    ProcSelf(Unveil),
    #[error(
        "unveil \"{0}\" leads through a link of proc(5) to whatever a process has open; unveil the place itself"
    )]
    Magic(Unveil),
}

/// Links to the directory of whichever process looks, proc(5).
const PROC_SELF: [&str; 2] = ["/proc/self", "/proc/thread-self"];

/// Names below such a directory that are links, or directories of links, to what the process has open.
const MAGIC: [&str; 6] = ["root", "cwd", "exe", "fd", "map_files", "ns"];

/// Links into /proc/self/fd, each to a descriptor of whichever process looks. A task may use its own in any case: standard
/// input is /dev/null, and the pipes of output and error are granted for writing.
const OWN_STREAMS: [&str; 4] = ["/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd"];

/// The rules, the task's own directories first. Paths that a task could have tampered with are opened from above.
pub(crate) fn rules(sources: &Sources<'_>) -> Result<Vec<Rule>, PlanError> {
    let writable: Vec<&Path> = writable(sources.root, sources.agent.iter().chain(sources.job)).collect();
    let mut rules = if sources.defaults { defaults(sources, &writable) } else { Vec::new() };
    let by_agent = sources.agent.iter().map(|unveil| (NamedBy::Agent, unveil));
    let by_job = sources.job.iter().map(|unveil| (NamedBy::Job, unveil));
    for (named_by, unveil) in by_agent.chain(by_job) {
        if OWN_STREAMS.iter().any(|stream| unveil.path.starts_with(stream)) {
            continue;
        }
        if let Some(below) = PROC_SELF.iter().find_map(|link| unveil.path.strip_prefix(link).ok()) {
            if MAGIC.iter().any(|name| below.starts_with(name)) {
                return Err(PlanError::Magic(unveil.clone()));
            }
            if !has_proc(sources, unveil.access) {
                return Err(PlanError::ProcSelf(unveil.clone()));
            }
            continue;
        }
        rules.push(Rule {
            access: unveil.access,
            place: Place::of(&unveil.path, writable.iter().copied()),
            named_by,
            missing: Missing::Fail,
        });
    }
    Ok(rules)
}

/// Whether the whole of /proc is granted, with this access, by another rule.
fn has_proc(sources: &Sources<'_>, access: Access) -> bool {
    let proc = Path::new("/proc");
    let default = DEFAULTS.iter().find(|default| sources.defaults && Path::new(default.path) == proc);
    let asked = sources.agent.iter().chain(sources.job).filter(|unveil| proc.starts_with(&unveil.path));
    let granted =
        asked.fold(default.map_or(Access::NONE, |default| default.mode), |all, unveil| all | unveil.access);
    granted.contains(access)
}

/// The task's own directories, its cgroup, and the default paths.
fn defaults(sources: &Sources<'_>, writable: &[&Path]) -> Vec<Rule> {
    let rule = |access, place, missing| Rule { access, place, named_by: NamedBy::Driver, missing };
    let own = |access, path: &str| rule(access, Place::beneath(sources.root, path), Missing::Fail);
    let mut rules = Vec::from(["local", "alloc", "secrets", "tmp"].map(|directory| own(RWXC, directory)));
    rules.push(own(RX, "alloc/logs"));
    // So that runtimes (Go, the JVM) size themselves by the task's limits, not by the host.
    rules.extend(sources.cgroup.map(|cgroup| rule(R, Place::host(cgroup), Missing::Skip)));
    rules.extend(DEFAULTS.iter().flat_map(|default| {
        let place = |path: &PathBuf| Place::of(path, writable.iter().copied());
        default.paths().into_iter().map(move |path| rule(default.mode, place(&path), Missing::Skip))
    }));
    rules
}

/// Where a task starts: `$NOMAD_TASK_DIR`, or what the job asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkDirError {
    #[error(
        "work_dir {0:?} is outside the task's own directories, which the agent's plugin option unveil_by_task does not \
         allow; write a path relative to the task, for example \"local/app\""
    )]
    Outside(PathBuf),
}

/// Where a task starts, and who named it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkDir {
    pub place: Place,
    pub named_by: NamedBy,
}

/// `work_dir` is absolute, or relative to the task's own directory; outside of it only if `outside` allows it.
pub(crate) fn work_dir(
    sources: &Sources<'_>,
    asked: Option<&Path>,
    outside: bool,
) -> Result<WorkDir, WorkDirError> {
    let root = sources.root;
    let path = root.join(asked.unwrap_or(Path::new("local")));
    if !path.starts_with(root) && !outside {
        return Err(WorkDirError::Outside(path));
    }
    Ok(WorkDir {
        place: Place::of(&path, writable(root, sources.agent.iter().chain(sources.job))),
        named_by: if asked.is_some() { NamedBy::Job } else { NamedBy::Driver },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "/data/alloc_mounts/1-web";

    fn parse(rules: &[&str]) -> Vec<Unveil> {
        rules.iter().map(|rule| rule.parse().unwrap()).collect()
    }

    fn placed(
        asked: Option<&str>,
        outside: bool,
        agent: &[&str],
        job: &[&str],
    ) -> Result<Place, WorkDirError> {
        let (agent, job) = (&parse(agent), &parse(job));
        let sources = Sources { root: Path::new(ROOT), cgroup: None, defaults: true, agent, job };
        work_dir(&sources, asked.map(Path::new), outside).map(|dir| dir.place)
    }

    fn planned(defaults: bool, agent: &[&str], job: &[&str]) -> Vec<Rule> {
        plan(defaults, agent, job).unwrap()
    }

    fn plan(defaults: bool, agent: &[&str], job: &[&str]) -> Result<Vec<Rule>, PlanError> {
        rules(&Sources {
            root: Path::new(ROOT),
            cgroup: Some(Path::new("/sys/fs/cgroup/nomad.slice/share.slice/1.web.scope")),
            defaults,
            agent: &parse(agent),
            job: &parse(job),
        })
    }

    fn find<'a>(rules: &'a [Rule], text: &str) -> &'a Rule {
        rules.iter().find(|rule| rule.to_string() == text).unwrap_or_else(|| panic!("no {text} in {rules:?}"))
    }

    #[test]
    fn without_defaults_only_what_was_asked_for() {
        assert_eq!(planned(false, &[], &[]), []);
        let texts: Vec<_> =
            planned(false, &["r:/etc/mime.types"], &["rx:/opt/app"]).iter().map(Rule::to_string).collect();
        assert_eq!(texts, ["r:/etc/mime.types", "rx:/opt/app"]);
    }

    #[test]
    fn the_tasks_own_directories_are_opened_from_its_root() {
        let rules = planned(true, &[], &[]);
        for directory in ["local", "alloc", "secrets", "tmp"] {
            let rule = find(&rules, &format!("rwxc:{ROOT}/{directory}"));
            assert_eq!(rule.place, Place::beneath(ROOT, directory));
            assert_eq!(rule.missing, Missing::Fail);
        }
        assert_eq!(find(&rules, &format!("rx:{ROOT}/alloc/logs")).place, Place::beneath(ROOT, "alloc/logs"));
    }

    #[test]
    fn a_path_below_one_that_tasks_can_change_follows_no_symlink() {
        let rules =
            planned(true, &["rwc:/srv/shared", "r:/srv/shared/in"], &["r:/data/alloc_mounts/1-web/local/x"]);
        assert_eq!(find(&rules, "r:/srv/shared/in").place, Place::beneath("/srv/shared", "in"));
        assert_eq!(find(&rules, &format!("r:{ROOT}/local/x")).place, Place::beneath(ROOT, "local/x"));
        assert_eq!(find(&rules, "rwc:/srv/shared").place, Place::host("/srv/shared"));
    }

    #[test]
    fn asked_for_must_exist_and_defaults_need_not() {
        let rules = planned(true, &["r:/srv/www"], &[]);
        assert_eq!(find(&rules, "r:/srv/www").missing, Missing::Fail);
        assert_eq!(find(&rules, "rx:/usr/bin").missing, Missing::Skip);
        assert_eq!(
            find(&rules, "r:/sys/fs/cgroup/nomad.slice/share.slice/1.web.scope").missing,
            Missing::Skip
        );
    }

    #[test]
    fn the_working_directory_stays_inside_unless_allowed() {
        let of = |asked: Option<&str>, outside| placed(asked, outside, &[], &[]);
        assert_eq!(of(None, false), Ok(Place::beneath(ROOT, "local")));
        assert_eq!(of(Some("alloc/data"), false), Ok(Place::beneath(ROOT, "alloc/data")));
        assert_eq!(of(Some("/data/alloc_mounts/1-web/tmp"), false), Ok(Place::beneath(ROOT, "tmp")));
        assert_eq!(of(Some("/srv"), false), Err(WorkDirError::Outside("/srv".into())));
        assert_eq!(of(Some("/srv"), true), Ok(Place::host("/srv")));
        assert!(of(Some("/data/alloc_mounts/1-web-other"), false).is_err());
    }

    #[test]
    fn the_working_directory_is_opened_from_above_what_tasks_can_change() {
        let beneath = Ok(Place::beneath("/srv/shared", "app/run"));
        let of = |agent: &[&str], job: &[&str]| placed(Some("/srv/shared/app/run"), true, agent, job);
        assert_eq!(of(&["rwc:/srv/shared"], &[]), beneath);
        assert_eq!(of(&[], &["rwc:/srv/shared"]), beneath);
        assert_eq!(of(&["rwc:/srv/shared/app"], &["c:/srv/shared"]), beneath);
        assert_eq!(of(&["rw:/srv/shared"], &["r:/srv"]), Ok(Place::host("/srv/shared/app/run")));
    }

    #[test]
    fn each_path_is_opened_for_whoever_named_it() {
        let rules = planned(true, &["r:/srv/agent"], &["r:/srv/job"]);
        let named_by = |text: &str| find(&rules, text).named_by;
        assert_eq!(named_by("rx:/usr/bin"), NamedBy::Driver);
        assert_eq!(named_by(&format!("rwxc:{ROOT}/local")), NamedBy::Driver);
        assert_eq!(named_by("r:/srv/agent"), NamedBy::Agent);
        assert_eq!(named_by("r:/srv/job"), NamedBy::Job);
        let sources = Sources { root: Path::new(ROOT), cgroup: None, defaults: true, agent: &[], job: &[] };
        let of = |asked: Option<&str>| work_dir(&sources, asked.map(Path::new), true).unwrap().named_by;
        assert_eq!(
            (of(None), of(Some("local")), of(Some("/srv"))),
            (NamedBy::Driver, NamedBy::Job, NamedBy::Job)
        );
    }

    #[test]
    fn proc_self_needs_the_whole_of_proc() {
        for path in ["/proc/self/mountinfo", "/proc/thread-self", "/proc/self"] {
            let rule = format!("r:{path}");
            let error = plan(false, &[], &[&rule]).unwrap_err().to_string();
            assert!(error.contains(&rule) && error.contains("write \"r:/proc\""), "{error}");
            for (defaults, agent, job) in [
                (true, &[][..], &[&*rule][..]),
                (false, &["r:/proc"], &[&rule]),
                (false, &[&rule], &["rx:/"]),
            ] {
                let rules = plan(defaults, agent, job).unwrap();
                assert!(rules.iter().all(|found| found.to_string() != rule), "{rules:?}");
            }
        }
        assert!(plan(true, &[], &["rw:/proc/self/comm"]).is_err(), "the default is for reading only");
        for path in ["root/etc/passwd", "cwd", "exe", "fd/3", "ns/net"] {
            let error = plan(true, &[], &[&format!("r:/proc/self/{path}")]).unwrap_err();
            assert!(matches!(error, PlanError::Magic(_)), "{path}: {error}");
        }
        find(&planned(false, &[], &["r:/proc/selfish"]), "r:/proc/selfish");
    }

    #[test]
    fn the_tasks_own_streams_need_no_rule() {
        let rules = planned(
            false,
            &["rw:/dev/stdout"],
            &["r:/dev/fd", "r:/dev/fd/0", "w:/dev/stderr", "r:/dev/stdin"],
        );
        assert_eq!(rules, []);
        find(&planned(false, &[], &["r:/dev/fdx"]), "r:/dev/fdx");
    }
}
