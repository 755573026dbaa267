//! What may be unveiled, decided on what was opened and not on its name: `unveil_allow` and `unveil_deny`.
//!
//! An object is known by device and inode, so links, bind mounts and other spellings of a path change nothing. A directory that contains
//! something denied is granted entry by entry: Landlock has no rule that denies, and a mount that hides a file is detached when the host replaces
//! the file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, stat};

use super::Result;
use super::paths::{as_task, is_directory, open_trusted};
use crate::sandbox::place::{NamedBy, Place, Rule};
use crate::sandbox::plan::Plan;
use crate::sandbox::unveil::{Access, Unveil};
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;
use crate::shim::walk::{self, DirId, Found, MAX_LINKS, is_proc};

/// The most entries of directories that contain something denied: each is a mount, or a rule. /etc has some 200.
const ENTRIES_MAX: usize = 4096;

/// The longest way from an object to the root directory: PATH_MAX has 2048 names.
const DEPTH_MAX: usize = 2048;

/// A /proc that the host has mounted at another path.
const HOSTS_PROC: &str =
    "it shows the processes of the host; write \"r:/proc\" for those of the task, or unveil another path";

/// What of an object may be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Whole,
    /// What is in it, but for something denied.
    Around,
    Nothing,
}

/// The objects that the agent's options name.
#[derive(Debug)]
pub(super) struct Judge<'a> {
    denied: BTreeMap<DirId, &'a Path>,
    /// The denied paths, and those that links on them lead to: what is put there while the task starts has another inode.
    ways: Vec<(PathBuf, &'a Path)>,
    /// The same as names in directories. Of a path that is not there, it is the first name that is missing.
    names: BTreeSet<(DirId, OsString)>,
    /// The directories on these ways.
    above: BTreeSet<DirId>,
    /// None: whatever is not denied.
    allowed: Option<Vec<(DirId, Access)>>,
    allow: &'a [Unveil],
    entries_left: usize,
}

impl<'a> Judge<'a> {
    /// Looks up the paths of the options, if there is anything to judge.
    pub(super) fn new(plan: &'a Plan) -> Self {
        let landlock = &plan.landlock;
        let mut judge = Self {
            denied: BTreeMap::new(),
            ways: Vec::new(),
            names: BTreeSet::new(),
            above: BTreeSet::new(),
            allowed: None,
            allow: landlock.allowed.as_deref().unwrap_or_default(),
            entries_left: ENTRIES_MAX,
        };
        if !landlock.rules.iter().any(|rule| is_judged(plan, rule)) {
            return judge;
        }
        for path in &landlock.denied {
            judge.deny(path);
        }
        judge.allowed = landlock.allowed.as_deref().map(allowed);
        judge
    }

    fn deny(&mut self, path: &'a Path) {
        if let Ok(found) = stat(path) {
            // Errors name the path of the list: other paths of the same object come behind it.
            self.denied.entry(DirId::of(&found)).or_insert(path);
        }
        for way in ways(path) {
            let above: Vec<_> =
                way.ancestors().skip(1).filter_map(|above| Some((above, id_of(above)?))).collect();
            let next = above
                .first()
                .and_then(|(above, id)| Some((*id, way.strip_prefix(above).ok()?.iter().next()?)));
            self.names.extend(next.map(|(id, name)| (id, name.to_owned())));
            self.above.extend(above.into_iter().map(|(_, id)| id));
            self.ways.push((way, path));
        }
    }

    /// How much of the rule is granted of what its path led to.
    pub(super) fn judge(&self, spec: &ShimSpec, rule: &Rule, found: &Found) -> Result<Verdict> {
        if !is_judged(&spec.plan, rule) {
            return Ok(Verdict::Whole);
        }
        let refused = |text| Failure::text(Step::Unveil, rule.to_string(), text);
        let failed = |errno| Failure::new(Step::Unveil, rule.to_string(), errno);
        // Below /proc only the names are the host's.
        if !found.path.starts_with("/proc") && is_proc(&found.place).map_err(failed)? {
            return Err(refused(HOSTS_PROC.into()));
        }
        // As the task second: a file server that does not trust root admits only the task's user.
        let way = way_up(found).or_else(|_| as_task(spec, || way_up(found))?).map_err(failed)?;
        let named = rule.place.display();
        let is_way =
            |(way, _): &&(PathBuf, &Path)| [&named, &found.path].iter().any(|path| path.starts_with(way));
        let by_name = || self.ways.iter().find(is_way).map(|(_, denied)| denied);
        if let Some(denied) = way.iter().find_map(|id| self.denied.get(id)).or_else(by_name) {
            return Err(refused(format!(
                "{} is denied to all tasks, by the agent's plugin option unveil_deny or because Nomad or this driver keeps its own files there; unveil another path",
                denied.display()
            )));
        }
        if rule.named_by == NamedBy::Job
            && let Some(allowed) = &self.allowed
        {
            let within = allowed.iter().filter(|(id, _)| way.contains(id));
            let granted = within.fold(Access::NONE, |all, (_, access)| all | *access);
            if !granted.contains(rule.access) {
                return Err(refused(not_allowed(self.allow)));
            }
        }
        let verdict = way.first().map_or(Verdict::Nothing, |id| self.of(*id));
        if verdict == Verdict::Around && rule.access.create() && found.path != Path::new("/") {
            return Err(refused(format!(
                "{} contains a path that the agent's plugin option unveil_deny denies, so nothing can be created in it; unveil directories in it, or remove c",
                found.path.display()
            )));
        }
        Ok(verdict)
    }

    /// The same of something in a directory that was judged.
    pub(super) fn of_entry(&self, directory: DirId, name: &OsStr, id: DirId) -> Verdict {
        if self.names.contains(&(directory, name.to_owned())) { Verdict::Nothing } else { self.of(id) }
    }

    fn of(&self, id: DirId) -> Verdict {
        match id {
            _ if self.denied.contains_key(&id) => Verdict::Nothing,
            _ if self.above.contains(&id) => Verdict::Around,
            _ => Verdict::Whole,
        }
    }

    /// Counts an entry.
    pub(super) fn take_entry(&mut self) -> nix::Result<()> {
        self.entries_left = self.entries_left.checked_sub(1).ok_or(Errno::E2BIG)?;
        Ok(())
    }
}

fn not_allowed(allow: &[Unveil]) -> String {
    let allowed: Vec<_> = allow.iter().map(ToString::to_string).collect();
    format!(
        "the agent's plugin option unveil_allow does not allow it (it allows: {}); unveil less, or add it there",
        allowed.join(", ")
    )
}

/// Whether a path that a job or the agent's configuration names leads outside the task's own directories.
fn is_judged(plan: &Plan, rule: &Rule) -> bool {
    let own = matches!(&rule.place, Place::Beneath { root, .. } if *root == plan.task_dir);
    rule.named_by != NamedBy::Driver && !own && rule.place.display() != plan.task_dir
}

fn id_of(path: &Path) -> Option<DirId> {
    Some(DirId::of(&stat(path).ok()?))
}

/// What a list of unveils allows. A job may have made a link below a directory in which the list lets it create, so links are followed only as for
/// what is unveiled.
fn allowed(list: &[Unveil]) -> Vec<(DirId, Access)> {
    let id = |unveil: &Unveil, writable: &[DirId]| {
        let found = walk::find(&unveil.path, writable).ok()?;
        Some(DirId::of(&fstat(&found.place).ok()?))
    };
    let writable: Vec<_> =
        list.iter().filter(|unveil| unveil.access.create()).filter_map(|unveil| id(unveil, &[])).collect();
    list.iter().filter_map(|unveil| Some((id(unveil, &writable)?, unveil.access))).collect()
}

/// The path, and those that the symbolic links on it lead to, as far as it is there. The last one has no link.
fn ways(path: &Path) -> Vec<PathBuf> {
    let mut ways = vec![path.to_owned()];
    let mut here = PathBuf::from("/");
    let mut left = walk::components(path);
    while let Some(name) = left.pop() {
        if name == ".." {
            here.pop();
            continue;
        }
        here.push(&name);
        let Ok(target) = std::fs::read_link(&here) else { continue };
        if ways.len() > MAX_LINKS {
            break;
        }
        here.pop();
        if target.is_absolute() {
            here = PathBuf::from("/");
        }
        left.extend(walk::components(&target));
        ways.push(left.iter().rev().fold(here.clone(), |way, name| way.join(name)));
    }
    if ways.len() > 1 {
        ways.push(here);
    }
    ways
}

/// What was found and all directories in which it is, up to the root directory.
fn way_up(found: &Found) -> nix::Result<Vec<DirId>> {
    let mut way = vec![DirId::of(&fstat(&found.place)?)];
    let up = |dir: &OwnedFd| {
        openat(dir, "..", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
    };
    let mut here = if is_directory(&found.place)? { up(&found.place)? } else { directory_of(found)? };
    while way.len() <= DEPTH_MAX {
        let id = DirId::of(&fstat(&here)?);
        if way.last() == Some(&id) {
            return Ok(way);
        }
        way.push(id);
        here = up(&here)?;
    }
    Err(Errno::ELOOP)
}

/// The directory in which a file was found, if it is still there.
fn directory_of(found: &Found) -> nix::Result<OwnedFd> {
    let (Some(above), Some(name)) = (found.path.parent(), found.path.file_name()) else {
        return Err(Errno::ESTALE);
    };
    let above = open_trusted(above)?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let again = openat(&above, name, flags, Mode::empty())?;
    let id = |place: &OwnedFd| fstat(place).map(|found| DirId::of(&found));
    if id(&again)? == id(&found.place)? { Ok(above) } else { Err(Errno::ESTALE) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sandbox::place::Missing;
    use crate::sandbox::plan::Landlock;
    use crate::shim::spec::{Command, Stdio};
    use crate::sys::caps;
    use crate::users::User;

    /// `srv/app/file`, `srv/secret/key`, and `alias`, a link to `srv`.
    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        for (path, file) in [("srv/app", "file"), ("srv/secret", "key")] {
            std::fs::create_dir_all(tree.path().join(path)).unwrap();
            std::fs::write(tree.path().join(path).join(file), "").unwrap();
        }
        std::os::unix::fs::symlink(tree.path().join("srv"), tree.path().join("alias")).unwrap();
        tree
    }

    fn spec(plan: Plan) -> ShimSpec {
        let (args, env) = Default::default();
        let command = Command { program: "true".into(), args, env, stdio: Stdio::Null, foreground: None };
        ShimSpec { user: User::unknown("1234", 1234, 1234), plan, command, root: None }
    }

    fn rule(mode: &str, path: &Path) -> Rule {
        let access = format!("{mode}:/x").parse::<Unveil>().unwrap().access;
        Rule { access, place: Place::host(path), named_by: NamedBy::Job, missing: Missing::Fail }
    }

    fn judged(
        tree: &tempfile::TempDir,
        denied: &[&str],
        allowed: Option<&[&str]>,
        named_by: NamedBy,
        unveil: &str,
    ) -> Result<Verdict, String> {
        let (mode, name) = unveil.split_once(':').unwrap();
        let path = tree.path().join(name);
        let rule = Rule { named_by, ..rule(mode, &path) };
        let allow = |text: &&str| {
            let (mode, name) = text.split_once(':').unwrap();
            format!("{mode}:{}", tree.path().join(name).display()).parse().unwrap()
        };
        let plan = Plan {
            landlock: Landlock {
                rules: vec![rule.clone()],
                denied: denied.iter().map(|name| tree.path().join(name)).collect(),
                allowed: allowed.map(|allowed| allowed.iter().map(allow).collect()),
                ..Landlock::default()
            },
            ..Plan::default()
        };
        let found = walk::find(&path.canonicalize().unwrap(), &[]).unwrap();
        Judge::new(&plan).judge(&spec(plan.clone()), &rule, &found).map_err(|failure| failure.note.unwrap())
    }

    #[test]
    fn what_is_denied_is_denied_by_each_name() {
        let tree = tree();
        std::fs::hard_link(tree.path().join("srv/secret/key"), tree.path().join("srv/app/key")).unwrap();
        for denied in ["srv/secret", "alias/secret"] {
            for unveil in ["r:srv/secret", "r:srv/secret/key", "x:alias/secret", "rwxc:alias/secret/key"] {
                for by in [NamedBy::Job, NamedBy::Agent] {
                    let error = judged(&tree, &[denied], None, by, unveil).unwrap_err();
                    assert!(error.contains("unveil_deny"), "{denied} {unveil}: {error}");
                }
            }
            assert_eq!(judged(&tree, &[denied], None, NamedBy::Job, "rwxc:srv/app"), Ok(Verdict::Whole));
            assert_eq!(judged(&tree, &[denied], None, NamedBy::Job, "r:alias/app/file"), Ok(Verdict::Whole));
        }
        assert!(judged(&tree, &["srv/secret/key"], None, NamedBy::Job, "r:srv/app/key").is_err());
        let error =
            judged(&tree, &["srv/secret", "alias/secret"], None, NamedBy::Job, "r:alias/secret").unwrap_err();
        assert!(error.contains("/srv/secret is denied"), "{error}");
        assert_eq!(judged(&tree, &["srv/secret"], None, NamedBy::Driver, "r:srv/secret"), Ok(Verdict::Whole));
    }

    #[test]
    fn around_what_is_denied_nothing_can_be_created() {
        let tree = tree();
        for denied in ["srv/secret/key", "srv/app/not_there/either", "alias/secret/key"] {
            assert_eq!(
                judged(&tree, &[denied], None, NamedBy::Job, "rx:srv"),
                Ok(Verdict::Around),
                "{denied}"
            );
            let error = judged(&tree, &[denied], None, NamedBy::Job, "rc:srv").unwrap_err();
            assert!(error.contains("nothing can be created in it"), "{error}");
        }
    }

    #[test]
    fn what_takes_the_place_of_something_denied_is_denied() {
        let tree = tree();
        let path = |name: &str| tree.path().join(name);
        std::os::unix::fs::symlink("../secret/key", path("srv/app/link")).unwrap();
        // So that its inode is not used again.
        std::fs::hard_link(path("srv/secret/key"), path("old")).unwrap();
        let plan = Plan {
            landlock: Landlock {
                denied: ["srv/secret/key", "srv/app/link", "srv/app/none/key"].map(path).into(),
                rules: vec![rule("r", &path("srv/secret/key"))],
                ..Landlock::default()
            },
            ..Plan::default()
        };
        let judge = Judge::new(&plan);
        for replaced in ["srv/secret/key", "srv/app/link", "srv/app/none"] {
            // Beside the old one, so that the inode is another one.
            std::fs::write(path("new"), "").unwrap();
            std::fs::rename(path("new"), path(replaced)).unwrap();
            let [directory, id] =
                [path(replaced).parent().unwrap(), &path(replaced)].map(|path| id_of(path).unwrap());
            let name = path(replaced).file_name().unwrap().to_owned();
            assert_eq!(judge.of_entry(directory, &name, id), Verdict::Nothing, "{replaced}");
            assert_eq!(judge.of_entry(directory, OsStr::new("other"), id), Verdict::Whole, "{replaced}");
            assert_eq!(judge.of(directory), Verdict::Around, "{replaced}");
        }
        let spec = spec(plan.clone());
        for named in ["srv/secret/key", "srv/app/link"] {
            let found = walk::find(&path(named), &[]).unwrap();
            assert!(judge.judge(&spec, &rule("r", &path(named)), &found).is_err(), "{named}");
        }
    }

    #[test]
    fn a_link_of_a_job_allows_nothing() {
        let tree = tree();
        let link = tree.path().join("srv/app/link");
        std::os::unix::fs::symlink("../secret", &link).unwrap();
        let ask = |allowed: &[&str]| judged(&tree, &[], Some(allowed), NamedBy::Job, "r:srv/secret/key");
        assert_eq!(ask(&["r:srv/app/link"]), Ok(Verdict::Whole), "nobody can have changed it");
        assert!(ask(&["rwc:srv/app", "r:srv/app/link"]).is_err());
    }

    #[test]
    #[ignore = "needs root, to make files of several owners"]
    fn a_link_of_another_user_allows_nothing() {
        let tree = tree();
        let link = tree.path().join("srv/app/link");
        std::os::unix::fs::symlink("../secret", &link).unwrap();
        let ask = || judged(&tree, &[], Some(&["r:srv/app/link"]), NamedBy::Job, "r:srv/secret/key");
        assert_eq!(ask(), Ok(Verdict::Whole));
        std::os::unix::fs::lchown(&link, Some(1234), Some(1234)).unwrap();
        std::os::unix::fs::chown(tree.path().join("srv/app"), Some(1234), Some(1234)).unwrap();
        assert!(ask().is_err());
    }

    #[test]
    #[ignore = "needs root, to look as the task's user"]
    fn where_root_has_no_permission_the_task_looks() {
        let tree = tree();
        for (name, owner, mode) in [("", 0, 0o755), ("srv", 1234, 0o700), ("srv/app", 1234, 0o700)] {
            let path = tree.path().join(name);
            std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
        let rule = rule("r", &tree.path().join("srv/app/file"));
        let plan = Plan {
            landlock: Landlock { rules: vec![rule.clone()], ..Landlock::default() },
            ..Plan::default()
        };
        let found = walk::find(&rule.place.display(), &[]).unwrap();
        // Root on a file server that does not trust it has no CAP_DAC_OVERRIDE and no CAP_DAC_READ_SEARCH.
        let judged = std::thread::scope(|scope| {
            let look = || {
                let own = caps::get().unwrap();
                caps::set(caps::Sets { effective: own.effective & !0b110, ..own }).unwrap();
                assert_eq!(way_up(&found).unwrap_err(), Errno::EACCES);
                Judge::new(&plan).judge(&spec(plan.clone()), &rule, &found).map_err(|failure| failure.note)
            };
            scope.spawn(look).join().unwrap()
        });
        assert_eq!(judged, Ok(Verdict::Whole));
    }

    #[test]
    fn a_job_has_what_is_allowed_and_no_more() {
        let tree = tree();
        let ask = |allowed: &[&str], unveil| judged(&tree, &[], Some(allowed), NamedBy::Job, unveil);
        for unveil in ["r:srv/app", "x:srv/app/file", "rx:alias/app"] {
            assert_eq!(ask(&["rx:srv/app"], unveil), Ok(Verdict::Whole), "{unveil}");
        }
        for unveil in ["rw:srv/app", "r:srv", "r:srv/secret/key", "r:alias"] {
            assert!(ask(&["rx:srv/app"], unveil).unwrap_err().contains("it allows: rx:/"), "{unveil}");
        }
        assert_eq!(ask(&["r:srv", "w:alias/app"], "rw:srv/app/file"), Ok(Verdict::Whole), "they add up");
        assert!(ask(&["r:not_there"], "r:srv").is_err());
        assert_eq!(judged(&tree, &[], Some(&[]), NamedBy::Agent, "r:srv"), Ok(Verdict::Whole));
    }
}
