//! The Landlock ruleset: landlock(7).

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::Result;
use super::logs::Logs;
use super::null::null_device;
use super::paths::{file_type, find_place, is_directory};
use super::unveil_policy::{Judge, Verdict};
use crate::sandbox::landlock::{DEVICE, SOCKETS, rights as rights_of};
use crate::sandbox::place::{Missing, NamedBy, Place, Rule};
use crate::sandbox::plan::Root;
use crate::sandbox::root::RootRule;
use crate::sandbox::unveil;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;
use crate::shim::walk::{DirId, WalkError};
use crate::sys;

/// Opens the paths of the rules and creates the ruleset, without enforcing it yet.
pub(crate) fn build_ruleset(
    spec: &ShimSpec,
    logs: Option<&Logs>,
    writable: &[DirId],
) -> Result<RulesetCreated> {
    let mut ruleset = new_ruleset(spec, logs)?;
    let mut judge = Judge::new(&spec.plan);
    for rule in &spec.plan.landlock.rules {
        ruleset = add_rule(ruleset, spec, rule, writable, &mut judge)?;
    }
    for path in &spec.plan.landlock.sockets {
        let place = match find_place(spec, &Place::host(path), NamedBy::Driver, writable) {
            Err(error) if is_absent(&error) => continue,
            found => found.map_err(|error| no_socket(path, error.to_string()))?.place,
        };
        ruleset = add_socket_rule(ruleset, spec, path, place)?;
    }
    Ok(ruleset)
}

/// The same in the task's own root.
pub(crate) fn build_root_ruleset(
    spec: &ShimSpec,
    logs: Option<&Logs>,
    rules: &[RootRule],
) -> Result<RulesetCreated> {
    add_root_rules(new_ruleset(spec, logs)?, spec, rules, Gone::Fails)
}

/// The same in the root of a running task. What the task has removed since, or put a link in place of, is not granted.
pub(crate) fn build_entered_ruleset(spec: &ShimSpec, rules: &[RootRule]) -> Result<RulesetCreated> {
    add_root_rules(new_ruleset(spec, None)?, spec, rules, Gone::Skipped)
}

/// What to do about a path that is not there, or is no longer of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    Fails,
    Skipped,
}

fn add_root_rules(
    mut ruleset: RulesetCreated,
    spec: &ShimSpec,
    rules: &[RootRule],
    gone: Gone,
) -> Result<RulesetCreated> {
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| Failure::new(Step::Landlock, "/", errno))?;
    for RootRule { path, access, directory } in rules {
        let subject = || format!("{access}:{}", path.display());
        let rights = rights(spec, *access, *directory);
        if rights.is_empty() {
            continue;
        }
        let place = match open_in(&root, path) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if gone == Gone::Skipped => continue,
            opened => opened.map_err(|errno| Failure::new(Step::Unveil, subject(), errno))?,
        };
        if gone == Gone::Skipped && is_directory(&place) != Ok(*directory) {
            continue;
        }
        ruleset = ruleset
            .add_rule(PathBeneath::new(place, rights))
            .map_err(|error| Failure::text(Step::Unveil, subject(), error.to_string()))?;
    }
    let ruleset = add_device_rules(ruleset, spec, &root, gone)?;
    add_socket_rules(ruleset, spec, &root)
}

/// The sockets of the host that are in the task's root.
fn add_socket_rules(mut ruleset: RulesetCreated, spec: &ShimSpec, root: &OwnedFd) -> Result<RulesetCreated> {
    for path in spec.plan.landlock.sockets.iter().filter(|path| !spec.plan.is_in_volume(path)) {
        let place = match open_in(root, path) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
            opened => opened.map_err(|errno| no_socket(path, errno.desc().into()))?,
        };
        ruleset = add_socket_rule(ruleset, spec, path, place)?;
    }
    Ok(ruleset)
}

fn add_socket_rule(
    ruleset: RulesetCreated,
    spec: &ShimSpec,
    path: &Path,
    place: OwnedFd,
) -> Result<RulesetCreated> {
    let rights = SOCKETS & handled(spec);
    if rights.is_empty() {
        return Ok(ruleset);
    }
    ruleset.add_rule(PathBeneath::new(place, rights)).map_err(|error| no_socket(path, error.to_string()))
}

fn no_socket(path: &Path, cause: String) -> Failure {
    Failure::text(Step::Unveil, path.display().to_string(), cause)
}

/// What a device grants beside its permissions. Root alone can change the directories that it is in; one of the host's that is unveiled loses a device
/// that is unplugged.
fn add_device_rules(
    mut ruleset: RulesetCreated,
    spec: &ShimSpec,
    root: &OwnedFd,
    gone: Gone,
) -> Result<RulesetCreated> {
    let rights = DEVICE & handled(spec);
    for device in spec.plan.devices.iter().filter(|_| !rights.is_empty()) {
        let subject = || device.path.display().to_string();
        let place = match open_in(root, &device.path) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if gone == Gone::Skipped => continue,
            opened => opened.map_err(|errno| Failure::new(Step::Device, subject(), errno))?,
        };
        ruleset = ruleset
            .add_rule(PathBeneath::new(place, rights))
            .map_err(|error| Failure::text(Step::Device, subject(), error.to_string()))?;
    }
    Ok(ruleset)
}

fn open_in(root: &OwnedFd, path: &Path) -> nix::Result<OwnedFd> {
    let below = path.strip_prefix("/").ok().filter(|below| !below.as_os_str().is_empty());
    sys::mount::open_below(root, below.unwrap_or(Path::new(".")), OFlag::O_PATH)
}

/// The rights of this ABI.
fn of_abi(abi: i32) -> BitFlags<AccessFs> {
    AccessFs::from_all(ABI::from(abi))
}

/// The rights that the task's ruleset can grant. An older version of the driver may have started the task.
fn handled(spec: &ShimSpec) -> BitFlags<AccessFs> {
    of_abi(spec.plan.landlock.handled_abi)
}

fn rights(spec: &ShimSpec, access: unveil::Access, directory: bool) -> BitFlags<AccessFs> {
    rights_of(access, directory) & handled(spec)
}

/// A ruleset that allows a task its own standard output and error.
fn new_ruleset(spec: &ShimSpec, logs: Option<&Logs>) -> Result<RulesetCreated> {
    let failed = |error: landlock::RulesetError| Failure::text(Step::Landlock, "ruleset", error.to_string());
    let plan = &spec.plan.landlock;
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(of_abi(plan.required_abi))
        .map_err(failed)?;
    let ports: BitFlags<AccessNet> = plan.network.limits().map(|(right, _)| right.access()).collect();
    if !ports.is_empty() {
        ruleset = ruleset.handle_access(ports).map_err(failed)?;
    }
    ruleset = ruleset.set_compatibility(CompatLevel::BestEffort);
    if plan.own_abstract_sockets {
        ruleset = ruleset.scope(Scope::AbstractUnixSocket).map_err(failed)?;
    }
    let mut ruleset =
        ruleset.handle_access(of_abi(plan.handled_abi)).map_err(failed)?.create().map_err(failed)?;
    for (right, ports) in plan.network.limits() {
        for port in ports.iter() {
            ruleset = ruleset.add_rule(NetPort::new(port, right.access())).map_err(failed)?;
        }
    }
    for log in logs.iter().filter(|logs| logs.fifos).flat_map(|logs| [&logs.stdout, &logs.stderr]) {
        let write = rights(spec, unveil::Access::WRITE, false);
        ruleset = ruleset.add_rule(PathBeneath::new(log, write)).map_err(failed)?;
    }
    let read_write = rights(spec, unveil::Access::READ | unveil::Access::WRITE, false);
    if let Some(terminal) = spec.command.terminal() {
        // As the log FIFOs: the task can open /dev/stdout again.
        let terminal = sys::terminal::standard(terminal)
            .map_err(|errno| Failure::new(Step::Session, "the terminal", errno))?;
        ruleset = ruleset.add_rule(PathBeneath::new(terminal, read_write)).map_err(failed)?;
    }
    // The same for the host's /dev/null, which is no path of the task's own root.
    if spec.plan.root != Root::Host
        && let Some(null) = (0..=2).find_map(null_device)
    {
        ruleset = ruleset.add_rule(PathBeneath::new(null, read_write)).map_err(failed)?;
    }
    Ok(ruleset)
}

fn add_rule(
    ruleset: RulesetCreated,
    spec: &ShimSpec,
    rule: &Rule,
    writable: &[DirId],
    judge: &mut Judge<'_>,
) -> Result<RulesetCreated> {
    let found = match find_place(spec, &rule.place, rule.named_by, writable) {
        Ok(found) => found,
        Err(error) if rule.missing == Missing::Skip && is_absent(&error) => return Ok(ruleset),
        Err(error) => return Err(not_unveiled(rule, error)),
    };
    match judge.judge(spec, rule, &found)? {
        Verdict::Whole => grant(ruleset, spec, rule, &found.place),
        _ => add_entries(ruleset, spec, rule, &found.place, judge),
    }
}

/// The rule for all that is in a directory, but for what is denied. The directory itself cannot be listed: that right would hold for what is denied too.
fn add_entries(
    mut ruleset: RulesetCreated,
    spec: &ShimSpec,
    rule: &Rule,
    place: &OwnedFd,
    judge: &mut Judge<'_>,
) -> Result<RulesetCreated> {
    let failed = |errno| Failure::new(Step::Unveil, rule.to_string(), errno);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listed = Dir::openat(place, ".", flags, Mode::empty()).map_err(failed)?;
    let directory = DirId::of(&fstat(place).map_err(failed)?);
    for entry in listed.iter() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        judge.take_entry().map_err(failed)?;
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let entry = match openat(place, name, flags, Mode::empty()) {
            // Removed in the meantime.
            Err(Errno::ENOENT) => continue,
            opened => opened.map_err(failed)?,
        };
        let id = DirId::of(&fstat(&entry).map_err(failed)?);
        let name = OsStr::from_bytes(name.to_bytes());
        ruleset = match judge.of_entry(directory, name, id) {
            Verdict::Nothing => ruleset,
            _ if file_type(&entry).map_err(failed)? == SFlag::S_IFLNK => ruleset,
            Verdict::Around => add_entries(ruleset, spec, rule, &entry, judge)?,
            Verdict::Whole => grant(ruleset, spec, rule, &entry)?,
        };
    }
    Ok(ruleset)
}

fn grant(ruleset: RulesetCreated, spec: &ShimSpec, rule: &Rule, place: &OwnedFd) -> Result<RulesetCreated> {
    let directory = is_directory(place).map_err(|errno| not_unveiled(rule, errno.into()))?;
    let mut rights = rights(spec, rule.access, directory);
    if rule.named_by == NamedBy::Driver && rule.place.display().starts_with("/dev") {
        // /dev/urandom and the like, which in a root of the task's own may be written.
        rights |= DEVICE & handled(spec);
    }
    if rights.is_empty() {
        // `c` alone on a file: nothing can be created in it.
        return Ok(ruleset);
    }
    ruleset
        .add_rule(PathBeneath::new(place, rights))
        .map_err(|error| Failure::text(Step::Unveil, rule.to_string(), error.to_string()))
}

/// A default path that does not exist, or is behind a symbolic link that a task could have made, is skipped. A rule for a
/// directory above it still applies.
fn is_absent(error: &WalkError) -> bool {
    match error {
        WalkError::Errno(errno) => {
            matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV)
        }
        WalkError::Link { .. }
        | WalkError::Elsewhere { .. }
        | WalkError::Writable(_)
        | WalkError::Magic(_) => true,
    }
}

pub(crate) fn not_unveiled(rule: &Rule, error: WalkError) -> Failure {
    let WalkError::Errno(errno) = error else {
        return Failure::text(Step::Unveil, rule.to_string(), error.to_string());
    };
    let failure = Failure::new(Step::Unveil, rule.to_string(), errno);
    match (errno, &rule.place, rule.named_by) {
        (Errno::ELOOP | Errno::EXDEV, Place::Beneath { root, .. }, _) => failure.with_note(format!(
            "symbolic links below {} are not followed: a task could have made them",
            root.display()
        )),
        (Errno::EACCES, _, NamedBy::Job) => {
            failure.with_note("the task's user has no permission to search a directory of the path")
        }
        _ => failure,
    }
}

/// Enforces the ruleset for the calling process and its descendants.
pub(crate) fn restrict(ruleset: RulesetCreated) -> Result<()> {
    let status = ruleset
        .restrict_self()
        .map_err(|error| Failure::text(Step::Landlock, "restrict_self", error.to_string()))?;
    match status.ruleset {
        RulesetStatus::NotEnforced => {
            Err(Failure::text(Step::Landlock, "restrict_self", "the kernel does not enforce Landlock".into()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::plan::{Landlock, Plan};
    use crate::sandbox::unveil::Access;
    use crate::shim::spec::{Command, Stdio};
    use crate::users::User;

    #[test]
    fn a_session_has_the_rights_that_its_task_was_started_with() {
        let of = |handled_abi| {
            let landlock = Landlock { handled_abi, ..Landlock::default() };
            let (args, env) = Default::default();
            let command = Command { program: "true".into(), args, env, stdio: Stdio::Null, foreground: None };
            let user = User::unknown("1234", 1234, 1234);
            let spec = ShimSpec { user, plan: Plan { landlock, ..Plan::default() }, command, root: None };
            (rights(&spec, Access::WRITE, false), handled(&spec) & SOCKETS)
        };
        let (before, sockets) = of(5);
        assert!(!before.contains(AccessFs::ResolveUnix) && sockets.is_empty());
        let (now, sockets) = of(9);
        assert_eq!((now, sockets), (before | AccessFs::ResolveUnix, SOCKETS));
    }
}
