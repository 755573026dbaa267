//! The task's /proc: what is unveiled in it, and what is masked.

use std::path::Path;

use super::assembly::{Assembly, Source};
use super::candidate::{Candidate, Kind};
use super::{EMPTY, EMPTY_FILE, KERNEL, KERNEL_READ_ONLY, Opened, Request};

/// What of /proc is about the whole host, and can be read or written by root without capabilities, or by somebody with some: as OCI runtimes mask it.
/// An ordinary user has no permission for these, so the mounts are made only for others.
const MASKED_FILES: [&str; 11] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/kpagecgroup",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/slabinfo",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/vmallocinfo",
];

const MASKED_DIRECTORIES: [&str; 2] = ["/proc/acpi", "/proc/scsi"];

impl Request<'_> {
    /// What hides parts of /proc, unless they were unveiled themselves.
    pub(super) fn masks(&self, assembly: &mut Assembly) -> Vec<Candidate> {
        if !self.privileged {
            return Vec::new();
        }
        let files = MASKED_FILES.map(|path| (path, false));
        let all = files.into_iter().chain(MASKED_DIRECTORIES.map(|path| (path, true)));
        let asked = |path: &str| self.in_proc.iter().any(|found| found.path == Path::new(path));
        let masks: Vec<_> = all.filter(|(path, _)| !asked(path)).collect();
        assembly.add_directory(Path::new(EMPTY));
        assembly.files.insert(EMPTY_FILE.into());
        let mask = |(path, directory): (&str, bool)| Candidate {
            path: path.into(),
            source: if directory { Source::Empty } else { Source::EmptyFile },
            refuse: KERNEL_READ_ONLY,
            access: None,
            kind: Kind::Cover,
            directory,
        };
        masks.into_iter().map(mask).collect()
    }
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
        for path in MASKED_FILES.into_iter().chain(MASKED_DIRECTORIES) {
            let [mask] = root.mounted(path)[..] else { panic!("{path}") };
            assert!(mask.optional && mask.refuse.write && at(path) > at("/proc"), "{path}");
            assert_eq!(mask.source == Source::Empty, MASKED_DIRECTORIES.contains(&path), "{path}");
        }
        assert!(root.files.contains(Path::new(EMPTY_FILE)) && root.directories.contains(Path::new(EMPTY)));
        assert!(with(&[]).mounted("/proc/kcore").is_empty());
        // Somebody has asked for it.
        let root = of_root(&["w:/proc/sysrq-trigger"]);
        assert!(root.mounted("/proc/sysrq-trigger").is_empty() && !root.mounted("/proc/kcore").is_empty());
    }
}
