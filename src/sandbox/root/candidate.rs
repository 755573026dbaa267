//! What may become a mount of a root, and how it is mounted.

use std::path::PathBuf;

use super::assembly::{Ground, Mount, Source};
use super::layout::Part;
use super::{Opened, OpenedVolume};
use crate::sandbox::unveil::Access;
use crate::sys::mount::Refuse;

/// Something that may become a mount.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) path: PathBuf,
    pub(super) source: Source,
    pub(super) refuse: Refuse,
    /// What is granted on it; none: nothing.
    pub(super) access: Option<Access>,
    pub(super) kind: Kind,
    pub(super) directory: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What the host has at this path: needs no mount inside another such one.
    Host,
    /// The same, inside a tree that is mounted as a whole.
    InTree,
    /// A directory that has nothing but mount points and links.
    Skeleton,
    /// What only this task has at this path. An unveil of the very path takes its place.
    Own,
    /// What must not be seen, and may not be there.
    Cover,
    /// The task's directories: also where the host has something else at this path, or nothing.
    Task,
    /// A volume, whatever else is at this path.
    Volume,
    /// A device, likewise.
    Device,
}

pub(super) fn unveiled((number, unveil): (usize, &Opened)) -> Candidate {
    let writable = unveil.access.write() || unveil.access.create();
    Candidate {
        path: unveil.path.clone(),
        source: Source::Unveil(number),
        // Programs map shared objects from what they may only read: exec is for Landlock to refuse.
        refuse: Refuse { write: !writable, exec: false, devices: !unveil.path.starts_with("/dev") },
        access: Some(unveil.access),
        kind: Kind::Host,
        directory: unveil.directory,
    }
}

pub(super) fn volume((number, found): (usize, &OpenedVolume<'_>)) -> Candidate {
    let OpenedVolume { volume, directory } = *found;
    Candidate {
        path: volume.path.clone(),
        source: Source::Volume(number),
        refuse: Refuse { write: volume.read_only, exec: false, devices: true },
        access: Some(volume.access()),
        kind: Kind::Volume,
        directory,
    }
}

pub(super) fn part(part: &Part, kind: Kind) -> Candidate {
    Candidate {
        path: part.path.clone(),
        source: Source::Part(part.path.clone()),
        refuse: part.refuse(),
        access: Some(part.access),
        kind,
        directory: part.directory,
    }
}

impl Candidate {
    /// Its mount, which lies in `cover`.
    pub(super) fn mount(&self, cover: Option<&Self>) -> Mount {
        Mount {
            source: self.source.clone(),
            path: self.path.clone(),
            refuse: self.refuse,
            directory: self.directory,
            ground: cover.map_or(Ground::Own, |cover| self.ground_in(cover)),
            optional: self.kind == Kind::Cover
                || self.kind == Kind::Own && cover.is_some_and(|cover| cover.kind == Kind::Host),
        }
    }

    fn ground_in(&self, cover: &Self) -> Ground {
        let lasting = self.kind == Kind::Volume || cover.kind == Kind::Volume;
        match &cover.source {
            _ if cover.kind == Kind::Skeleton => Ground::Own,
            Source::Tmp => Ground::Task,
            // Where it may be there is decided before.
            Source::TaskDir | Source::Secrets if lasting => Ground::Task,
            _ if lasting => Ground::Lasting(cover.path.clone()),
            _ => Ground::Host,
        }
    }

    /// Whether it is there in any case, even in a volume.
    pub(super) fn is_of_the_job(&self) -> bool {
        match self.source {
            Source::Unveil(_) | Source::Volume(_) => true,
            _ => matches!(self.kind, Kind::Task | Kind::Device),
        }
    }

    /// Whether what `cover` shows at this path is the same, and may be used as this one asks for.
    pub(super) fn is_shown_by(&self, cover: &Self) -> bool {
        matches!(self.kind, Kind::Host | Kind::Skeleton)
            && matches!(cover.kind, Kind::Host | Kind::InTree | Kind::Task)
            && cover.refuse.is_within(self.refuse)
    }
}
