//! The task's own root: what it needs is opened while the host can be seen, then put together in an empty mount namespace.
//!
//! A mount can only be copied in the namespace that it belongs to. So the shim passes through three: the template's (what all
//! tasks have), the host's (what this task has of its own), and an empty one, of which it makes the task's.

mod build;
mod sources;
mod volumes;

use std::ffi::OsStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::Result;
use super::devices::{Node, find_devices, limit_devices};
use super::landlock::not_unveiled;
use super::paths::{file_type, find_place, is_directory, may_list};
use super::unveil_policy::{Judge, Verdict};
use crate::sandbox::names::{NAMES, RESOLV_CONF};
use crate::sandbox::place::{NamedBy, Rule};
use crate::sandbox::root::layout::Link;
use crate::sandbox::root::{OWN, Opened, Request, RootRule, Unbounded};
use crate::sandbox::unveil::Access;
use crate::sandbox::volume::Volume;
use crate::shim::report::{Failure, Step};
use crate::shim::spec::{PrivateRoot, ShimSpec};
use crate::shim::template::survey::ETC;
use crate::shim::walk::DirId;
use crate::sys::clone::SingleThreaded;
use volumes::Volumes;

/// The namespaces that the plugin hands to a shim, as descriptors.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Its root directory is empty, and read-only.
    pub empty: OwnedFd,
    /// None without `unveil_defaults`.
    pub template: Option<OwnedFd>,
}

fn failed(path: impl Into<PathBuf>) -> impl FnOnce(Errno) -> Failure {
    let path = path.into();
    move |errno| Failure::new(Step::Root, path.display().to_string(), errno)
}

/// Makes the task's root and enters it. Returns the Landlock rules that it needs.
pub(crate) fn enter_root(
    spec: &ShimSpec,
    root: &PrivateRoot,
    namespaces: Namespaces,
    writable: &[DirId],
    single: SingleThreaded,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Vec<RootRule>> {
    let Unveils { places, opened, links, in_proc, .. } = open_unveils(spec, root, writable)?;
    behind_no_link(spec, root, &links)?;
    let mut volumes = Volumes::open(spec, single, writable)?;
    let devices = find_devices(spec, writable)?;
    if let Some(cgroup) = cgroup.filter(|_| !devices.nodes.is_empty()) {
        limit_devices(spec, cgroup, &devices, &with_nodes(&opened, &places)?)?;
    }
    let mut assembly = Request {
        layout: root.layout.as_ref(),
        task_dir: &spec.plan.task_dir,
        cgroup: root.cgroup_root.as_deref().zip(spec.plan.resources.cgroup.as_deref()),
        unveils: &opened,
        volumes: &volumes.opened(),
        devices: &devices.devices,
        links: &links,
        in_proc: &in_proc,
        names: &own_names(root),
        privileged: spec.is_privileged(),
        in_namespace: spec.plan.namespaces.network.is_some(),
        work_dir: &spec.plan.work_dir.place.display(),
    }
    .assemble();
    if let Some(unbounded) = &assembly.unbounded {
        return Err(too_much(unbounded, &opened));
    }
    if let Some((volume, below)) = &assembly.writable_later {
        return Err(writable_later(&spec.plan.volumes[*volume], below));
    }
    let mut sources = sources::Sources::new(assembly.mounts.len());
    if let Some(template) = namespaces.template {
        // First, for the root of cgroup2: mountinfo lists mounts by their age, and the JVM takes the first cgroup2 for the root.
        let host = open("/proc/self/ns/mnt", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(failed("the host's mount namespace"))?;
        setns(template, CloneFlags::CLONE_NEWNS).map_err(failed("the template"))?;
        sources.copy_from_template(&assembly)?;
        setns(host, CloneFlags::CLONE_NEWNS).map_err(failed("the host's mount namespace"))?;
    }
    sources.copy_volumes(&assembly, &mut volumes)?;
    sources.copy_from_host(spec, root, &assembly, &places)?;
    setns(namespaces.empty, CloneFlags::CLONE_NEWNS)
        .and_then(|()| unshare(CloneFlags::CLONE_NEWNS))
        .map_err(failed("an empty mount namespace"))?;
    sources.make_own(spec, root, &assembly)?;
    let left_out = build::build(spec, root, &assembly, sources, &devices)?;
    assembly.rules.retain(|rule| !left_out.contains(&rule.path));
    Ok(assembly.rules)
}

/// A volume may not replace a link that programs need, such as /lib of a merged /usr, by a directory.
fn behind_no_link(spec: &ShimSpec, root: &PrivateRoot, of_unveils: &[Link]) -> Result<()> {
    let of_layout = root
        .layout
        .iter()
        .flat_map(|layout| layout.trees.iter().flat_map(|tree| &tree.links).chain(&layout.links));
    let links: Vec<_> = of_layout.chain(of_unveils).collect();
    for volume in &spec.plan.volumes {
        let Some(link) = links.iter().find(|link| volume.path.starts_with(&link.path)) else { continue };
        let (path, target) = (link.path.display(), link.target.display());
        let text = format!(
            "{path} is a symbolic link to {target} in the task's root; write a destination elsewhere, for example \"/data\""
        );
        return Err(volumes::refused(volume, text));
    }
    Ok(())
}

fn writable_later(volume: &Volume, below: &Path) -> Failure {
    let below = below.display();
    let text = format!(
        "the task may write {below}, and so what the host mounts later in this read-only volume; write propagation_mode = \"private\", or a \
         destination outside {below}"
    );
    volumes::refused(volume, text)
}

/// Which of [`NAMES`] the task has of its own.
fn own_names(root: &PrivateRoot) -> Vec<&str> {
    NAMES.into_iter().filter(|name| root.files.iter().any(|(file, _)| file == name)).collect()
}

/// Whether an unveil is one of [`NAMES`], to be read, which this root has anyway.
fn is_name(root: &PrivateRoot, path: &Path, access: Access) -> bool {
    let name = NAMES.iter().find(|name| path == Path::new(ETC).join(name));
    let has = |name: &&str| root.layout.is_some() || own_names(root).contains(name);
    Access::READ.contains(access) && name.is_some_and(has)
}

/// An unveil that puts the host's resolv.conf in the place of the task's own.
fn hides_own(root: &PrivateRoot, path: &Path) -> bool {
    own_names(root).contains(&RESOLV_CONF) && Path::new(ETC).join(RESOLV_CONF).starts_with(path)
}

/// Which of the unveils are devices.
fn with_nodes<'a>(opened: &'a [Opened], places: &[OwnedFd]) -> Result<Vec<(&'a Opened, Option<Node>)>> {
    let node =
        |(found, place): (&'a Opened, &OwnedFd)| Ok((found, Node::of(place).map_err(failed(&found.path))?));
    opened.iter().zip(places).map(node).collect()
}

fn too_much(Unbounded { unveil, below, gets }: &Unbounded, opened: &[Opened]) -> Failure {
    let Opened { path, access, .. } = &opened[*unveil];
    let below = below.display();
    let text = format!(
        "it would get {gets}, because the task may do that in its own {below}; write r, rx, rwc or rwxc, or use a path outside {below}"
    );
    Failure::text(Step::Unveil, format!("{access}:{}", path.display()), text)
}

/// What the agent and the job unveiled.
#[derive(Debug)]
struct Unveils<'a> {
    spec: &'a ShimSpec,
    root: &'a PrivateRoot,
    judge: Judge<'a>,
    places: Vec<OwnedFd>,
    opened: Vec<Opened>,
    links: Vec<Link>,
    in_proc: Vec<Opened>,
}

/// Opens each with the rights of the party that named it. Of /proc only the names are used: the host's is not the task's.
fn open_unveils<'a>(spec: &'a ShimSpec, root: &'a PrivateRoot, writable: &[DirId]) -> Result<Unveils<'a>> {
    let mut unveils = Unveils::new(spec, root);
    for rule in spec.plan.landlock.rules.iter().filter(|rule| rule.named_by != NamedBy::Driver) {
        let path = rule.place.display();
        let found = find_place(spec, &rule.place, rule.named_by, writable)
            .map_err(|error| not_unveiled(rule, error))?;
        let verdict = unveils.judge.judge(spec, rule, &found)?;
        if is_name(root, &path, rule.access) {
            continue;
        }
        let whole = verdict == Verdict::Whole;
        if whole && [&path, &found.path].iter().any(|path| hides_own(root, path)) {
            return Err(other_names(rule));
        }
        let named_in_proc = path.starts_with("/proc");
        if !named_in_proc {
            unveils.links.extend(found.links);
        }
        if named_in_proc || found.path.starts_with("/proc") {
            let path = if named_in_proc { path } else { found.path };
            let directory = is_directory(&found.place).map_err(|errno| refused(rule, errno))?;
            unveils.in_proc.push(Opened { path, access: rule.access, directory });
        } else if !whole || found.path == Path::new("/") {
            let before = unveils.opened.len();
            unveils.add_entries(rule, &found.path, &found.place).map_err(|errno| too_many(rule, errno))?;
            if unveils.opened[before..].iter().any(|entry| hides_own(root, &entry.path)) {
                return Err(other_names(rule));
            }
        } else {
            unveils.add(rule, found.path, found.place).map_err(|errno| refused(rule, errno))?;
        }
    }
    Ok(unveils)
}

impl<'a> Unveils<'a> {
    fn new(spec: &'a ShimSpec, root: &'a PrivateRoot) -> Self {
        let (places, opened, links, in_proc) = Default::default();
        Self { spec, root, judge: Judge::new(&spec.plan), places, opened, links, in_proc }
    }

    fn add(&mut self, rule: &Rule, path: PathBuf, place: OwnedFd) -> nix::Result<()> {
        self.opened.push(Opened { path, access: rule.access, directory: is_directory(&place)? });
        self.places.push(place);
        Ok(())
    }

    /// All that is in a directory, but for what is denied. The task's root still has its own /proc and /tmp, and its own names in /etc.
    ///
    /// What the task's user cannot list is left out: the directories of the root itself do not have the host's permissions.
    fn add_entries(&mut self, rule: &Rule, directory: &Path, place: &OwnedFd) -> nix::Result<()> {
        if !may_list(self.spec, place)? {
            return Ok(());
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut listed = Dir::openat(place, ".", flags, Mode::empty())?;
        let id = DirId::of(&fstat(place)?);
        for entry in listed.iter() {
            let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
            let path = directory.join(&name);
            if [".", ".."].iter().any(|own| name == *own) || self.is_own(rule, &path) {
                continue;
            }
            self.judge.take_entry()?;
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let entry = match openat(place, name.as_os_str(), flags, Mode::empty()) {
                // Removed in the meantime.
                Err(Errno::ENOENT) => continue,
                opened => opened?,
            };
            if file_type(&entry)? == SFlag::S_IFLNK {
                self.links.push(Link { path, target: readlinkat(&entry, "")?.into() });
                continue;
            }
            match self.judge.of_entry(id, &name, DirId::of(&fstat(&entry)?)) {
                Verdict::Nothing => {}
                Verdict::Around => self.add_entries(rule, &path, &entry)?,
                Verdict::Whole => self.add(rule, path, entry)?,
            }
        }
        Ok(())
    }

    /// Whether the task's root has something of its own at this path, whatever is unveiled above.
    fn is_own(&self, rule: &Rule, path: &Path) -> bool {
        ["/proc", "/tmp", OWN].iter().any(|own| path == Path::new(own))
            || is_name(self.root, path, rule.access)
    }
}

fn other_names(rule: &Rule) -> Failure {
    let text = "it has the host's resolv.conf, but the job or its network has DNS settings (network dns); remove dns, or unveil only what the task needs of /etc";
    Failure::text(Step::Unveil, rule.to_string(), text.into())
}

fn refused(rule: &Rule, errno: Errno) -> Failure {
    Failure::new(Step::Unveil, rule.to_string(), errno)
}

/// E2BIG is [`Judge::take_entry`]'s.
fn too_many(rule: &Rule, errno: Errno) -> Failure {
    let failure = refused(rule, errno);
    match errno {
        Errno::E2BIG => failure
            .with_note("beside what unveil_deny denies there is too much in it; unveil directories in it"),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::place::{Missing, Place};
    use crate::sandbox::plan::{Landlock, Plan};
    use crate::sandbox::unveil::Unveil;
    use crate::shim::spec::{Command, Stdio, TaskDirs};
    use crate::users::User;

    #[test]
    #[ignore = "needs root, to look as the task's user"]
    fn the_hosts_name_servers_do_not_replace_those_of_the_job() {
        let rule = Rule {
            access: "r:/".parse::<Unveil>().unwrap().access,
            place: Place::host("/"),
            named_by: NamedBy::Job,
            missing: Missing::Fail,
        };
        let denied = vec!["/not_there".into()];
        let landlock = Landlock { rules: vec![rule], denied, ..Landlock::default() };
        let command = Command {
            program: "true".into(),
            args: Vec::new(),
            env: Vec::new(),
            stdio: Stdio::Null,
            foreground: None,
        };
        let spec = ShimSpec {
            user: User::unknown("nomad-80000", 80_000, 80_000),
            plan: Plan { landlock, ..Plan::default() },
            command,
            root: None,
        };
        let mut root = PrivateRoot {
            layout: None,
            dirs: TaskDirs::Scratch,
            files: Vec::new(),
            hostname: None,
            shm_size: None,
            cgroup_root: None,
        };
        assert!(open_unveils(&spec, &root, &[]).is_ok());
        root.files = vec![(RESOLV_CONF.into(), "nameserver 192.0.2.1".into())];
        let error = open_unveils(&spec, &root, &[]).unwrap_err();
        assert!(error.note.unwrap().contains("DNS settings"));
    }
}
