//! The list of rules of one task, out of the defaults, the agent's configuration and the job.

use std::path::{Path, PathBuf};

use super::defaults::DEFAULTS;
use super::place::{Missing, Place, Rule};
use super::unveil::{Access, Unveil};

const R: Access = Access::READ;
const RX: Access = Access::READ.union(Access::EXECUTE);
const RWXC: Access = R.union(Access::WRITE).union(Access::EXECUTE).union(Access::CREATE);

/// What a task's rules are made of.
#[derive(Debug)]
pub struct Sources<'a> {
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

/// The rules, the task's own directories first. Paths that a task could have tampered with are opened from above.
pub fn rules(sources: &Sources<'_>) -> Vec<Rule> {
    let asked = || sources.agent.iter().chain(sources.job);
    let writable: Vec<&Path> = writable(sources.root, asked()).collect();
    let asked = asked().map(|unveil| Rule {
        access: unveil.access,
        place: Place::of(&unveil.path, writable.iter().copied()),
        missing: Missing::Fail,
    });

    let mut rules = Vec::new();
    if sources.defaults {
        let own = |access, path: &str| Rule {
            access,
            place: Place::beneath(sources.root, path),
            missing: Missing::Fail,
        };
        rules.extend(["local", "alloc", "secrets", "tmp"].map(|directory| own(RWXC, directory)));
        rules.push(own(RX, "alloc/logs"));
        // So that runtimes (Go, the JVM) size themselves by the task's limits, not by the host.
        rules.extend(sources.cgroup.map(|cgroup| Rule {
            access: R,
            place: Place::host(cgroup),
            missing: Missing::Skip,
        }));
        rules.extend(DEFAULTS.iter().flat_map(|default| {
            default.paths().into_iter().map(|path| Rule {
                access: default.mode,
                place: Place::of(&path, writable.iter().copied()),
                missing: Missing::Skip,
            })
        }));
    }
    rules.extend(asked);
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

/// `work_dir` is absolute, or relative to the task's own directory; outside of it only if `outside` allows it.
pub fn work_dir(sources: &Sources<'_>, asked: Option<&Path>, outside: bool) -> Result<Place, WorkDirError> {
    let root = sources.root;
    let path = root.join(asked.unwrap_or(Path::new("local")));
    if !path.starts_with(root) && !outside {
        return Err(WorkDirError::Outside(path));
    }
    Ok(Place::of(&path, writable(root, sources.agent.iter().chain(sources.job))))
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
        work_dir(&sources, asked.map(Path::new), outside)
    }

    fn planned(defaults: bool, agent: &[&str], job: &[&str]) -> Vec<Rule> {
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
}
