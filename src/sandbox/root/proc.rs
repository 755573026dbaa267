//! The task's /proc: what is unveiled in it, and what is masked.

use std::path::Path;

use super::assembly::{Assembly, Source};
use super::candidate::{Candidate, Kind};
use super::{EMPTY, EMPTY_FILE, KERNEL, KERNEL_READ_ONLY, Opened, Request};

/// What of /proc is about the whole host, and can be read or written by root without capabilities, or by somebody with some: as OCI runtimes mask it.
/// An ordinary user has no permission for these, so the mounts are made only for others.
const MASKED_FILES: [&str; 12] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/pagetypeinfo",
    "/proc/sched_debug",
    "/proc/slabinfo",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/vmallocinfo",
];

const MASKED_DIRECTORIES: [&str; 2] = ["/proc/acpi", "/proc/scsi"];

/// What everybody may read, and is as little a task's business: whether the host plays sound.
const MASKED_FOR_ALL: [&str; 1] = ["/proc/asound"];

/// What root without capabilities could write: settings of the kernel, of interrupts and of devices. Landlock denies that as well.
const READ_ONLY: [&str; 4] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];

/// The same in /sys, which is there if somebody unveils it: what the firmware tells of the host, and how much power it takes.
const MASKED_IN_SYS: [&str; 2] = ["/sys/devices/virtual/powercap", "/sys/firmware"];

impl Request<'_> {
    /// What hides parts of /proc and /sys, or makes them read-only, unless they were unveiled themselves.
    pub(super) fn masks(&self, assembly: &mut Assembly) -> Vec<Candidate> {
        if !self.privileged && self.layout.is_none() && self.in_proc.is_empty() {
            return Vec::new();
        }
        assembly.add_directory(Path::new(EMPTY));
        let mut masks: Vec<_> = MASKED_FOR_ALL.map(|path| cover(path, Source::Empty)).into();
        if self.privileged {
            assembly.files.insert(EMPTY_FILE.into());
            masks.extend(MASKED_FILES.map(|path| cover(path, Source::EmptyFile)));
            masks.extend(MASKED_DIRECTORIES.map(|path| cover(path, Source::Empty)));
            let in_sys = MASKED_IN_SYS.into_iter().filter(|path| self.is_inside_an_unveil(Path::new(path)));
            masks.extend(in_sys.map(|path| cover(path, Source::Empty)));
            masks.extend(READ_ONLY.map(|path| cover(path, Source::PartOfProc)));
        }
        masks.retain(|mask| !self.in_proc.iter().any(|found| is_asked(found, mask)));
        masks
    }

    fn is_inside_an_unveil(&self, path: &Path) -> bool {
        let mut unveils = self.unveils.iter().map(|unveil| &unveil.path);
        unveils.clone().any(|unveil| path.starts_with(unveil))
            && !unveils.any(|unveil| unveil.starts_with(path))
    }
}

fn cover(path: &str, source: Source) -> Candidate {
    let directory = source != Source::EmptyFile;
    Candidate {
        path: path.into(),
        source,
        refuse: KERNEL_READ_ONLY,
        access: None,
        kind: Kind::Cover,
        directory,
    }
}

/// Whether what is unveiled could not be used as asked for.
fn is_asked(found: &Opened, mask: &Candidate) -> bool {
    if mask.source != Source::PartOfProc {
        return found.path.starts_with(&mask.path);
    }
    let writable = found.access.write() || found.access.create();
    writable && (found.path.starts_with(&mask.path) || mask.path.starts_with(&found.path))
}

pub(super) fn in_proc(file: &Opened) -> Candidate {
    Candidate {
        path: file.path.clone(),
        source: Source::Proc,
        refuse: KERNEL,
        access: Some(file.access),
        kind: Kind::InTree,
        directory: file.directory,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{layout, opened, request, with};
    use super::*;

    /// The default root of root, or of a user with capabilities, with this unveil in /proc.
    fn of_root(in_proc: &[&str]) -> Assembly {
        Request { layout: Some(&layout()), in_proc: &opened(in_proc), privileged: true, ..request() }
            .assemble()
    }

    #[test]
    fn what_root_could_do_in_proc_is_hidden_from_root_alone() {
        let root = of_root(&[]);
        let at = |path: &str| root.mounts.iter().position(|mount| mount.path == Path::new(path)).unwrap();
        let sources = [
            (&MASKED_FILES[..], Source::EmptyFile),
            (&MASKED_DIRECTORIES, Source::Empty),
            (&READ_ONLY, Source::PartOfProc),
        ];
        for (path, source) in
            sources.iter().flat_map(|(paths, source)| paths.iter().map(move |p| (*p, source)))
        {
            let [mask] = root.mounted(path)[..] else { panic!("{path}") };
            assert!(mask.optional && mask.refuse.write && at(path) > at("/proc"), "{path}");
            assert_eq!(&mask.source, source, "{path}");
            assert!(with(&[]).mounted(path).is_empty(), "{path}");
        }
        assert!(root.files.contains(Path::new(EMPTY_FILE)) && root.directories.contains(Path::new(EMPTY)));
        for path in MASKED_FOR_ALL {
            assert_eq!((root.mounted(path).len(), with(&[]).mounted(path).len()), (1, 1), "{path}");
        }
    }

    #[test]
    fn what_somebody_has_asked_for_stays_as_it_is() {
        let has = |unveil: &str, path: &str| !of_root(&[unveil]).mounted(path).is_empty();
        assert!(!has("w:/proc/sysrq-trigger", "/proc/sysrq-trigger"));
        assert!(has("w:/proc/sysrq-trigger", "/proc/kcore"));
        assert!(!has("r:/proc/acpi/wakeup", "/proc/acpi"));
        assert!(!has("w:/proc/sys/net/core/somaxconn", "/proc/sys"));
        assert!(has("w:/proc/sys/net/core/somaxconn", "/proc/irq"));
        assert!(!has("w:/proc", "/proc/sys"));
        assert!(has("w:/proc", "/proc/kcore"));
        assert!(has("r:/proc/sys", "/proc/sys"), "it is there to be read");
    }

    #[test]
    fn sys_is_masked_where_it_is_unveiled() {
        let has = |unveils: &[&str], privileged, path: &str| {
            let unveils = opened(unveils);
            let request = Request { unveils: &unveils, privileged, ..request() };
            !request.assemble().mounted(path).is_empty()
        };
        assert!(has(&["r:/sys"], true, "/sys/firmware"));
        assert!(has(&["r:/sys/devices"], true, "/sys/devices/virtual/powercap"));
        assert!(!has(&["r:/sys/devices"], true, "/sys/firmware"));
        assert!(!has(&["r:/sys"], false, "/sys/firmware"), "file permissions deny it");
        assert!(!has(&["r:/sys", "r:/sys/firmware/dmi"], true, "/sys/firmware"), "somebody has asked for it");
        assert_eq!(
            Request { unveils: &opened(&["r:/sys/firmware"]), privileged: true, ..request() }
                .assemble()
                .mounted("/sys/firmware")
                .len(),
            1,
            "the unveil itself"
        );
    }
}
