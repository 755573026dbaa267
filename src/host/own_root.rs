//! What a task's own root needs of the kernel: the requirement that `root = "host"` makes void.

use nix::errno::Errno;

use super::observe::Observations;
use super::{Requirement, Severity, missing, ok, unknown};
use crate::sys::mount::features::Feature;

const NAME: &str = "own root";

pub(super) fn judge(seen: &Observations) -> Requirement {
    let failed = |wanted: fn(Errno) -> bool| -> Vec<Feature> {
        let failed = seen.root_features.iter().filter(|(_, tried)| tried.is_err_and(wanted));
        failed.map(|(feature, _)| *feature).collect()
    };
    let absent = failed(|errno| matches!(errno, Errno::ENOSYS | Errno::ENODEV));
    if !absent.is_empty() {
        let found = format!("the kernel lacks {}", names(&absent));
        return missing(NAME, found, Severity::OwnRoot, instead(&boot(&absent)));
    }
    let refused = failed(|_| true);
    if refused.is_empty() {
        return ok(NAME, "the kernel has the calls and file systems for it");
    }
    if seen.euid != 0 {
        return unknown(NAME, "visible to root only");
    }
    let errno = seen.root_features.iter().find_map(|(_, tried)| tried.err()).unwrap_or(Errno::EPERM);
    let fix = format!(
        "allow {} where the agent runs (a container's seccomp profile may forbid it)",
        names(&refused)
    );
    missing(NAME, format!("{} failed: {errno}", names(&refused)), Severity::OwnRoot, instead(&fix))
}

fn instead(fix: &str) -> String {
    format!("set root = \"host\" in the plugin block, or {fix}")
}

fn names(features: &[Feature]) -> String {
    let names: Vec<&str> = features
        .iter()
        .map(|feature| match feature {
            Feature::Call(name, _) | Feature::FileSystem(name, _) => *name,
        })
        .collect();
    names.join(", ")
}

/// The kernel that has what is absent.
fn boot(absent: &[Feature]) -> String {
    let newest = absent.iter().filter_map(|feature| match feature {
        Feature::Call(_, since) => super::version(since).map(|version| (version, *since)),
        Feature::FileSystem(..) => None,
    });
    let newest = newest.max().map(|(_, since)| format!("boot Linux {since} or later"));
    let options: Vec<&str> = absent
        .iter()
        .filter_map(|feature| match feature {
            Feature::FileSystem(_, option) => Some(*option),
            Feature::Call(..) => None,
        })
        .collect();
    let built = (!options.is_empty()).then(|| format!("boot a kernel built with {}", options.join(", ")));
    newest.into_iter().chain(built).collect::<Vec<_>>().join(" and ")
}
