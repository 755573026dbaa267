//! Volumes: files and directories of the host at paths of the task's root that the job chooses. What Nomad sends is judged here, without a
//! system call; the shim opens and mounts them.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::root::OWN;
use super::unveil::{Access, Unveil};
use crate::quote::quote;

const RX: Access = Access::READ.union(Access::EXECUTE);
const RWXC: Access = RX.union(Access::WRITE).union(Access::CREATE);

/// What is the kernel's or the driver's in every root.
const RESERVED: [&str; 4] = ["/proc", "/dev", "/sys/fs/cgroup", OWN];
/// The host's /proc has nothing of a device that the task's own has not.
const PROC: &str = "/proc";
/// The task's directories in which nobody else can rename or remove a mount point.
const OWN_DIRECTORIES: [&str; 3] = ["local", "secrets", "tmp"];

/// A mount as Nomad asks for it: for a `volume_mount` of the job, or for a device plugin.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AskedVolume {
    pub source: String,
    pub destination: String,
    pub read_only: bool,
    /// Empty if a device plugin asks for it: the job's are never empty.
    pub propagation: String,
    pub selinux_label: String,
}

/// A volume of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// A path of the host, which the agent or one of its plugins names.
    #[serde(with = "crate::os_path")]
    pub source: PathBuf,
    /// Where the task sees it: absolute, without superfluous components.
    #[serde(with = "crate::os_path")]
    pub path: PathBuf,
    #[serde(default)]
    pub read_only: bool,
    #[serde(default)]
    pub propagation: Propagation,
    /// Whether the owner of the source appears as the task's user.
    #[serde(default)]
    pub mapped: bool,
}

/// Whether what the host mounts in a volume later appears in the task. mount_namespaces(7)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Propagation {
    #[default]
    Private,
    HostToTask,
}

/// `volume_idmap`: whether volumes are mounted so that their owner on disk appears as the task's dynamic user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VolumeIdmap {
    #[default]
    Auto,
    Never,
}

/// Why a volume cannot be mounted as the job asks. Every message says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {}: {problem}", if *.of_device { "mount of a device plugin at" } else { "volume at" }, quote(.destination))]
pub struct VolumeError {
    pub destination: String,
    pub of_device: bool,
    pub problem: VolumeProblem,
}

/// The rule that a volume breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeProblem {
    #[error(
        "with root = \"host\" a task sees the host's tree, in which nothing can be mounted for one task alone; set root = \"private\" in the \
         agent's plugin \"nomad-driver-exec2\" block, or unveil the path on the host instead"
    )]
    HostRoot,
    #[error(
        "the destination must be an absolute path without `..`; write for example \"/data\" or \"${{NOMAD_TASK_DIR}}/data\""
    )]
    Destination,
    #[error("the path on the host, {}, must be absolute and without `..`", quote(.0))]
    Source(String),
    #[error("{0} is the kernel's or the driver's in every task; write another path, for example \"/data\"")]
    Reserved(&'static str),
    #[error(
        "all tasks of the group can rename and remove what is in the alloc directory, and with its mount point the volume; write a path outside \
         it, for example \"/data\" or \"${{NOMAD_TASK_DIR}}/data\""
    )]
    Alloc,
    #[error(
        "it would hide the task's own directories; write a path outside them, for example \"/data\", or below one of them, for example \
         \"${{NOMAD_TASK_DIR}}/data\""
    )]
    TaskDirectories,
    #[error("another volume of the task has the same destination; write a different one")]
    Twice,
    #[error("it would hide the path of unveil \"{0}\"; write another destination, or remove the unveil")]
    OverUnveil(Unveil),
    #[error(
        "propagation_mode \"bidirectional\" is not supported, because what a task mounts would stay on the host after its end; write \"private\", or \
         \"host-to-task\" to see what the host mounts later"
    )]
    Bidirectional,
    #[error("propagation_mode {} is unknown; write \"private\" or \"host-to-task\"", quote(.0))]
    Propagation(String),
    #[error(
        "selinux_label is not supported, because it would change the labels of all files on the host; remove it, and where SELinux is on, label the \
         path on the host (semanage fcontext, restorecon)"
    )]
    SelinuxLabel,
}

/// What a volume must not get in the way of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub own_root: bool,
    pub task_dir: &'a Path,
    pub unveils: [&'a [Unveil]; 2],
    /// Whether volumes of the job are mapped.
    pub mapped: bool,
}

impl Surroundings<'_> {
    pub(super) fn judge(&self, asked: &[AskedVolume]) -> Result<Vec<Volume>, VolumeError> {
        let mut paths = BTreeSet::new();
        let mut volumes = Vec::new();
        for asked in asked {
            let refused = |problem| VolumeError {
                destination: asked.destination.clone(),
                of_device: asked.is_of_device(),
                problem,
            };
            let Some(volume) = self.volume(asked).map_err(refused)? else { continue };
            if !paths.insert(volume.path.clone()) {
                return Err(refused(VolumeProblem::Twice));
            }
            volumes.push(volume);
        }
        Ok(volumes)
    }

    /// None if the task has it already.
    fn volume(&self, asked: &AskedVolume) -> Result<Option<Volume>, VolumeProblem> {
        if !self.own_root {
            return Err(VolumeProblem::HostRoot);
        }
        let source = plain(&asked.source).ok_or_else(|| VolumeProblem::Source(asked.source.clone()))?;
        let path = plain(&asked.destination).ok_or(VolumeProblem::Destination)?;
        if asked.is_of_device() && source == path && path.starts_with(PROC) {
            return Ok(None);
        }
        self.may_be_at(&path)?;
        if !asked.selinux_label.is_empty() {
            return Err(VolumeProblem::SelinuxLabel);
        }
        let propagation = match asked.propagation.as_str() {
            "" | "private" => Propagation::Private,
            "host-to-task" => Propagation::HostToTask,
            "bidirectional" => return Err(VolumeProblem::Bidirectional),
            other => return Err(VolumeProblem::Propagation(other.to_owned())),
        };
        // What a device plugin mounts is the host's: its owner means nothing.
        let mapped = self.mapped && !asked.is_of_device();
        Ok(Some(Volume { source, path, read_only: asked.read_only, propagation, mapped }))
    }

    fn may_be_at(&self, path: &Path) -> Result<(), VolumeProblem> {
        let meets = |other: &Path| path.starts_with(other) || other.starts_with(path);
        if self.task_dir.starts_with(path) {
            return Err(VolumeProblem::TaskDirectories);
        }
        if let Ok(below) = path.strip_prefix(self.task_dir) {
            let inside = |name: &&str| below.starts_with(name) && below != Path::new(*name);
            return match OWN_DIRECTORIES.iter().any(inside) {
                true => Ok(()),
                false if below.starts_with("alloc") => Err(VolumeProblem::Alloc),
                false => Err(VolumeProblem::TaskDirectories),
            };
        }
        if let Some(reserved) = RESERVED.into_iter().find(|reserved| meets(Path::new(reserved))) {
            return Err(VolumeProblem::Reserved(reserved));
        }
        match self.unveils.into_iter().flatten().find(|unveil| unveil.path.starts_with(path)) {
            Some(unveil) => Err(VolumeProblem::OverUnveil(unveil.clone())),
            None => Ok(()),
        }
    }
}

impl AskedVolume {
    /// Of a device plugin, not of the job.
    fn is_of_device(&self) -> bool {
        self.propagation.is_empty()
    }
}

impl Volume {
    /// What Landlock grants in it.
    pub(crate) fn access(&self) -> Access {
        if self.read_only { RX } else { RWXC }
    }
}

/// The path without superfluous slashes and dots, if it is absolute and has no `..`.
pub(super) fn plain(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let plain = path.is_absolute()
        && !text.contains('\0')
        && !path.components().any(|part| matches!(part, Component::ParentDir));
    plain.then(|| path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK_DIR: &str = "/opt/nomad/alloc_mounts/1-web";

    fn asked(destination: &str) -> AskedVolume {
        AskedVolume {
            source: "/srv/volume".into(),
            destination: destination.into(),
            propagation: "private".into(),
            ..AskedVolume::default()
        }
    }

    fn judge_among(unveils: &[&str], asked: &[AskedVolume]) -> Result<Vec<Volume>, VolumeProblem> {
        let unveils: Vec<Unveil> = unveils.iter().map(|rule| rule.parse().unwrap()).collect();
        let unveils = [unveils.as_slice(), &[]];
        Surroundings { own_root: true, task_dir: Path::new(TASK_DIR), unveils, mapped: true }
            .judge(asked)
            .map_err(|error| error.problem)
    }

    fn judge(asked: &[AskedVolume]) -> Result<Vec<Volume>, VolumeProblem> {
        judge_among(&[], asked)
    }

    #[test]
    fn a_volume_may_be_at_any_path_that_is_nobody_elses() {
        let below = |name: &str| format!("{TASK_DIR}/{name}");
        for destination in
            ["/data/", "/data/./x", "/srv/volume", "/usr/share/app", "/var", "/tmp", "/tmp/x", "/sys/class/x"]
                .map(str::to_owned)
                .into_iter()
                .chain([
                    below("local/data"),
                    below("tmp/a/b"),
                    below("secrets/x"),
                    "/opt/nomad/alloc_mounts/2".into(),
                ])
        {
            let volumes = judge(&[asked(&destination)]).unwrap();
            assert_eq!(
                volumes[0].path,
                destination.trim_end_matches('/').replace("/./", "/"),
                "{destination}"
            );
        }
    }

    #[test]
    fn a_destination_that_would_hide_or_lose_something_is_refused() {
        use VolumeProblem::{Alloc, Destination, Reserved, TaskDirectories};
        let below = |name: &str| format!("{TASK_DIR}{name}");
        for (destination, problem) in [
            ("data".to_owned(), Destination),
            (String::new(), Destination),
            ("/data/../etc".into(), Destination),
            ("/data\0".into(), Destination),
            ("/".into(), TaskDirectories),
            ("/opt/nomad/alloc_mounts".into(), TaskDirectories),
            (below(""), TaskDirectories),
            (below("/local"), TaskDirectories),
            (below("/private"), TaskDirectories),
            (below("/private/x"), TaskDirectories),
            (below("/localother/x"), TaskDirectories),
            (below("/alloc"), Alloc),
            (below("/alloc/data"), Alloc),
            ("/proc/sys".into(), Reserved("/proc")),
            ("/dev".into(), Reserved("/dev")),
            ("/dev/shm/x".into(), Reserved("/dev")),
            ("/sys".into(), Reserved("/sys/fs/cgroup")),
            ("/.task/etc".into(), Reserved("/.task")),
        ] {
            assert_eq!(judge(&[asked(&destination)]), Err(problem), "{destination}");
        }
    }

    #[test]
    fn two_volumes_may_lie_in_each_other_but_not_at_the_same_path() {
        assert_eq!(judge(&[asked("/a"), asked("/a/b")]).unwrap().len(), 2);
        assert_eq!(judge(&[asked("/a"), asked("/a/")]), Err(VolumeProblem::Twice));
    }

    #[test]
    fn an_unveil_is_never_hidden() {
        for destination in ["/srv", "/srv/www"] {
            let error = judge_among(&["r:/srv/www"], &[asked(destination)]).unwrap_err();
            assert!(matches!(error, VolumeProblem::OverUnveil(_)), "{error}");
        }
        assert!(judge_among(&["r:/srv/www"], &[asked("/srv/www/data")]).is_ok());
        assert!(judge_among(&["r:/srv/www"], &[asked("/srv/ww")]).is_ok());
    }

    #[test]
    fn propagation_and_labels_are_never_ignored() {
        let with = |propagation: &str, selinux_label: &str| {
            let asked = AskedVolume {
                propagation: propagation.into(),
                selinux_label: selinux_label.into(),
                ..asked("/a")
            };
            judge(&[asked]).map(|volumes| volumes[0].propagation)
        };
        assert_eq!(with("private", ""), Ok(Propagation::Private));
        assert_eq!(with("host-to-task", ""), Ok(Propagation::HostToTask));
        assert_eq!(with("bidirectional", ""), Err(VolumeProblem::Bidirectional));
        assert_eq!(with("rslave", ""), Err(VolumeProblem::Propagation("rslave".into())));
        assert_eq!(with("private", "z"), Err(VolumeProblem::SelinuxLabel));
    }

    #[test]
    fn what_a_device_plugin_mounts_is_not_mapped_and_may_be_there_already() {
        let of_device = |source: &str, destination: &str| AskedVolume {
            source: source.into(),
            propagation: String::new(),
            ..asked(destination)
        };
        assert!(judge(&[asked("/a")]).unwrap()[0].mapped);
        assert!(!judge(&[of_device("/usr/lib/x.so", "/usr/lib/x.so")]).unwrap()[0].mapped);
        let driver = "/proc/driver/nvidia";
        assert_eq!(judge(&[of_device(driver, driver)]), Ok(Vec::new()));
        assert_eq!(judge(&[of_device("/srv/x", driver)]), Err(VolumeProblem::Reserved("/proc")));
        let of_job = AskedVolume { source: driver.into(), ..asked(driver) };
        assert_eq!(judge(&[of_job]), Err(VolumeProblem::Reserved("/proc")));
    }

    #[test]
    fn a_source_that_is_not_a_plain_path_is_refused() {
        for source in ["", "srv", "/srv/../etc"] {
            let asked = AskedVolume { source: source.into(), ..asked("/a") };
            assert_eq!(judge(&[asked]), Err(VolumeProblem::Source(source.into())));
        }
    }

    #[test]
    fn a_root_that_is_the_hosts_has_no_volumes() {
        let surroundings = Surroundings {
            own_root: false,
            task_dir: Path::new(TASK_DIR),
            unveils: [&[], &[]],
            mapped: false,
        };
        assert_eq!(surroundings.judge(&[]), Ok(Vec::new()));
        let error = surroundings.judge(&[asked("/a")]).unwrap_err();
        assert_eq!(error.problem, VolumeProblem::HostRoot);
        assert!(error.to_string().starts_with("volume at \"/a\": "), "{error}");
    }
}
