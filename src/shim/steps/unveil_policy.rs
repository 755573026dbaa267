//! What may be unveiled, decided on what was opened and not on its name: `unveil_allow` and `unveil_deny`.
//!
//! An object is known by device and inode, so links, bind mounts and other spellings of a path change nothing. A directory that contains
//! something denied is granted entry by entry: Landlock has no rule that denies, and a mount that hides a file is detached when the host replaces
//! the file.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat, stat};

use super::Result;
use super::paths::{is_directory, open_trusted};
use crate::sandbox::place::{NamedBy, Place, Rule};
use crate::sandbox::plan::Plan;
use crate::sandbox::unveil::{Access, Unveil};
use crate::shim::report::{Failure, Step};
use crate::shim::walk::{DirId, Found};

/// The most entries of directories that contain something denied: each is a mount, or a rule. /etc has some 200.
const ENTRIES_MAX: usize = 4096;

/// The longest way from an object to the root directory: PATH_MAX has 2048 names.
const DEPTH_MAX: usize = 2048;

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
    /// The directories on the way to a denied path, whether that is there or not.
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
            above: BTreeSet::new(),
            allowed: None,
            allow: landlock.allowed.as_deref().unwrap_or_default(),
            entries_left: ENTRIES_MAX,
        };
        if !landlock.rules.iter().any(|rule| is_judged(plan, rule)) {
            return judge;
        }
        let mut seen = BTreeSet::new();
        for path in &landlock.denied {
            let real = real(path);
            if let Ok(found) = stat(&real) {
                judge.denied.insert(DirId::of(&found), path);
            }
            let new = |above: &&Path| seen.insert(above.to_path_buf());
            let above =
                real.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).take_while(new);
            judge.above.extend(above.filter_map(|above| Some(DirId::of(&stat(above).ok()?))));
        }
        judge.allowed = landlock.allowed.as_ref().map(|allowed| {
            let known = |unveil: &Unveil| Some((DirId::of(&stat(&unveil.path).ok()?), unveil.access));
            allowed.iter().filter_map(known).collect()
        });
        judge
    }

    /// How much of the rule is granted of what its path led to.
    pub(super) fn judge(&self, plan: &Plan, rule: &Rule, found: &Found) -> Result<Verdict> {
        if !is_judged(plan, rule) {
            return Ok(Verdict::Whole);
        }
        let refused = |text| Failure::text(Step::Unveil, rule.to_string(), text);
        let way = way_up(found).map_err(|errno| Failure::new(Step::Unveil, rule.to_string(), errno))?;
        if let Some(denied) = way.iter().find_map(|id| self.denied.get(id)) {
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
        let verdict = way.first().map_or(Verdict::Nothing, |id| self.of_entry(*id));
        if verdict == Verdict::Around && rule.access.create() && found.path != Path::new("/") {
            return Err(refused(format!(
                "{} contains a path that the agent's plugin option unveil_deny denies, so nothing can be created in it; unveil directories in it, or remove c",
                found.path.display()
            )));
        }
        Ok(verdict)
    }

    /// The same of something in a directory that was judged.
    pub(super) fn of_entry(&self, id: DirId) -> Verdict {
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

/// The path without links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    path.ancestors()
        .find_map(|above| {
            let real = std::fs::canonicalize(above).ok()?;
            Some(real.join(path.strip_prefix(above).ok()?))
        })
        .map_or_else(|| path.to_owned(), |real| real.components().collect())
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
    use super::*;
    use crate::sandbox::place::Missing;
    use crate::sandbox::plan::Landlock;
    use crate::shim::walk;

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

    fn judged(
        tree: &tempfile::TempDir,
        denied: &[&str],
        allowed: Option<&[&str]>,
        named_by: NamedBy,
        unveil: &str,
    ) -> Result<Verdict, String> {
        let (mode, name) = unveil.split_once(':').unwrap();
        let path = tree.path().join(name);
        let access = format!("{mode}:/x").parse::<Unveil>().unwrap().access;
        let rule = Rule { access, place: Place::host(&path), named_by, missing: Missing::Fail };
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
        Judge::new(&plan).judge(&plan, &rule, &found).map_err(|failure| failure.note.unwrap())
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
