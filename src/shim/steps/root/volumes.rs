//! The task's volumes, as detached mounts: opened with the host's tree in sight, and shown with the task's user as their owner where the plan
//! says so.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::sandbox::place::{NamedBy, Place};
use crate::sandbox::root::OpenedVolume;
use crate::sandbox::volume::{Propagation, Volume};
use crate::shim::report::{Failure, Step};
use crate::shim::spec::ShimSpec;
use crate::shim::steps::Result;
use crate::shim::steps::paths::find_place;
use crate::shim::walk::{DirId, WalkError, is_proc};
use crate::sys::clone::SingleThreaded;
use crate::sys::mount::{self, Refuse};
use crate::sys::userns::{self, Shown};

/// What the shim has opened for the volumes, in the order of the plan.
pub(super) struct Volumes<'a> {
    spec: &'a ShimSpec,
    single: SingleThreaded,
    places: Vec<(OwnedFd, FileStat)>,
    /// Made so far, each with the owner on disk.
    maps: Vec<(Owner, OwnedFd)>,
}

/// Of a file on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    uid: u32,
    gid: u32,
}

pub(super) fn failed(volume: &Volume, errno: Errno) -> Failure {
    Failure::new(Step::Volume, volume.path.display().to_string(), errno)
}

pub(super) fn refused(volume: &Volume, why: String) -> Failure {
    Failure::text(Step::Volume, volume.path.display().to_string(), why)
}

impl<'a> Volumes<'a> {
    /// No symbolic link is followed at or below the directories `writable`, in which a task may have made it.
    pub(super) fn open(spec: &'a ShimSpec, single: SingleThreaded, writable: &[DirId]) -> Result<Self> {
        let open = |volume: &Volume| {
            let of_source =
                |errno| failed(volume, errno).with_note(format!("{:?} of the host", volume.source));
            let found = find_place(spec, &Place::host(&volume.source), NamedBy::Agent, writable).map_err(
                |error| match error {
                    WalkError::Errno(errno) => of_source(errno),
                    other => refused(volume, other.to_string()),
                },
            )?;
            let stat = fstat(&found.place).map_err(of_source)?;
            if is_proc(&found.place).map_err(of_source)? {
                let why =
                    format!("{:?} shows the processes of the host; mount another directory", volume.source);
                return Err(refused(volume, why));
            }
            Ok((found.place, stat))
        };
        let places = spec.plan.volumes.iter().map(open).collect::<Result<_>>()?;
        Ok(Self { spec, single, places, maps: Vec::new() })
    }

    pub(super) fn opened(&self) -> Vec<OpenedVolume<'a>> {
        let all = self.spec.plan.volumes.iter().zip(&self.places);
        all.map(|(volume, (_, stat))| OpenedVolume { volume, directory: is_directory(stat) }).collect()
    }

    /// A copy of a volume, with what is mounted in it. In the host's mount namespace.
    pub(super) fn copy(&mut self, number: usize, refuse: Refuse) -> Result<OwnedFd> {
        let volume = &self.spec.plan.volumes[number];
        let (place, stat) = &self.places[number];
        let of = |errno| failed(volume, errno).with_note(format!("{:?} of the host", volume.source));
        let copy = mount::copy(place, Path::new(""), true).map_err(of)?;
        match volume.propagation {
            Propagation::Private => mount::restrict_private(&copy, refuse),
            Propagation::HostToTask => mount::restrict(&copy, refuse, true),
        }
        .map_err(of)?;
        let user = Owner { uid: self.spec.user.uid, gid: self.spec.user.gid };
        let Some(owner) = owner_to_map(volume, stat, user)? else { return Ok(copy) };
        let usable = usable_as_it_is(volume, stat);
        match mount::map_owners(&copy, self.map(volume, owner, user)?) {
            Err(Errno::EINVAL | Errno::EPERM) if !usable => Err(refused(volume, cannot_be_mapped(owner))),
            Ok(()) | Err(Errno::EINVAL | Errno::EPERM) => Ok(copy),
            Err(errno) => Err(of(errno)),
        }
    }

    fn map(&mut self, volume: &Volume, owner: Owner, user: Owner) -> Result<&OwnedFd> {
        if let Some(found) = self.maps.iter().position(|(made, _)| *made == owner) {
            return Ok(&self.maps[found].1);
        }
        let shown = |on_disk, seen| Shown { on_disk, seen };
        let made = userns::map(self.single, shown(owner.uid, user.uid), shown(owner.gid, user.gid)).map_err(
            |error| match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
                Errno::ENOSPC => refused(
                    volume,
                    "the limit of user namespaces is reached, which are needed to show its files as the task's; raise it (sysctl \
                     user.max_user_namespaces), or set volume_idmap = \"never\""
                        .into(),
                ),
                errno => failed(volume, errno).with_note("a user namespace that shows its files as the task's"),
            },
        )?;
        self.maps.push((owner, made));
        Ok(&self.maps[self.maps.len() - 1].1)
    }
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

/// Whether the task can do with the volume what it was asked for without a map.
fn usable_as_it_is(volume: &Volume, stat: &FileStat) -> bool {
    let needed = if is_directory(stat) { Mode::S_IWOTH | Mode::S_IXOTH } else { Mode::S_IWOTH };
    volume.read_only || Mode::from_bits_truncate(stat.st_mode).contains(needed)
}

/// Whose files are shown as the task's. Those of root never are: the task could leave a set-uid program of root on the host.
fn owner_to_map(volume: &Volume, stat: &FileStat, user: Owner) -> Result<Option<Owner>> {
    let owner = Owner { uid: stat.st_uid, gid: stat.st_gid };
    if !volume.mapped || owner.uid == user.uid {
        return Ok(None);
    }
    if owner.uid != 0 && owner.gid != 0 {
        return Ok(Some(owner));
    }
    if usable_as_it_is(volume, stat) {
        return Ok(None);
    }
    let source = volume.source.display();
    let of = if owner.uid == 0 { "user" } else { "group" };
    Err(refused(
        volume,
        format!(
            "{source} on the host belongs to the {of} root, which a dynamic user is never given; give it to another user and group: with chown, or by \
             the parameters uid and gid of the mkdir plugin in a dynamic host volume; or write read_only = true in volume_mount (:ro with run); or set \
             volume_idmap = \"never\" to mount it as it is, in which the task can do only what others may"
        ),
    ))
}

fn cannot_be_mapped(Owner { uid, gid }: Owner) -> String {
    format!(
        "it belongs to {uid}:{gid}, and its file system cannot show it as the task's (on this kernel, or because it is mapped already); write the name \
         of the host's user with the uid {uid} as user of the task (--user {uid}:{gid} with run), or read_only = true (:ro), or let others write it \
         (chmod o+rwx)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: Owner = Owner { uid: 80_000, gid: 80_000 };

    fn stat(uid: u32, gid: u32, mode: u32) -> FileStat {
        let mut stat = fstat(std::io::stdin()).unwrap();
        (stat.st_uid, stat.st_gid, stat.st_mode) = (uid, gid, mode);
        stat
    }

    fn volume(mapped: bool, read_only: bool) -> Volume {
        Volume {
            source: "/srv/volume".into(),
            path: "/data".into(),
            read_only,
            propagation: Propagation::Private,
            mapped,
        }
    }

    const DIRECTORY: u32 = libc::S_IFDIR;

    #[test]
    fn the_owner_is_shown_as_the_task_unless_it_is_the_task() {
        let of =
            |mapped, uid, gid| owner_to_map(&volume(mapped, false), &stat(uid, gid, DIRECTORY | 0o700), TASK);
        assert_eq!(of(true, 1000, 1001), Ok(Some(Owner { uid: 1000, gid: 1001 })));
        assert_eq!(of(true, 80_000, 1001), Ok(None));
        assert_eq!(of(false, 1000, 1001), Ok(None));
        assert_eq!(of(false, 0, 0), Ok(None));
    }

    #[test]
    fn roots_directory_is_never_mapped() {
        for (uid, gid, of) in
            [(0, 0, "the user root"), (0, 1000, "the user root"), (1000, 0, "the group root")]
        {
            let with = |read_only, mode| {
                owner_to_map(&volume(true, read_only), &stat(uid, gid, DIRECTORY | mode), TASK)
            };
            let error = with(false, 0o755).unwrap_err().to_string();
            assert!(error.contains(of) && error.contains("uid and gid of the mkdir plugin"), "{error}");
            assert_eq!(with(true, 0o755), Ok(None));
            assert_eq!(with(false, 0o1777), Ok(None));
            assert!(with(false, 0o776).is_err(), "without x nothing can be created in it");
        }
    }

    #[test]
    fn a_file_needs_no_x() {
        assert_eq!(owner_to_map(&volume(true, false), &stat(0, 0, libc::S_IFREG | 0o666), TASK), Ok(None));
        assert!(owner_to_map(&volume(true, false), &stat(0, 0, libc::S_IFREG | 0o664), TASK).is_err());
    }
}
