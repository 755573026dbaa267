//! What the targets of `fuzz/` and the tests run on any input: each function decodes it and checks what every result must satisfy.

pub use crate::driver::exec::fuzz::session;
pub use crate::sandbox::names::fuzz::names;
pub use crate::sandbox::policy::fuzz::asks;
pub use crate::users::fuzz::users;

use crate::cgroup::{CpuSet, flat_keyed};
use crate::record::identity::START_TIME;
use crate::sys::stat::field;
use crate::task::signal::SignalNumber;

/// The parts of an input, separated by a byte that no part contains: as many as asked for, the missing ones empty.
pub(crate) fn parts<const N: usize>(input: &[u8], separator: u8) -> [&[u8]; N] {
    let mut parts = input.splitn(N, |byte| *byte == separator);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// Like [`parts`], of a text.
pub(crate) fn texts<const N: usize>(input: &str, separator: char) -> [&str; N] {
    let mut parts = input.splitn(N, separator);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// Texts of the kernel that contain names which tasks choose, and short values of Nomad: the CPU list and signals.
pub fn kernel(input: &[u8]) {
    // A process chooses its own name.
    let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
    let stat = [b"7 (", input, b") ", fields.join(" ").as_bytes()].concat();
    assert_eq!(field(&stat, START_TIME), Some(START_TIME as u64));
    let _: Option<u64> = field(input, START_TIME);

    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = flat_keyed(text, "oom_kill");
    assert_eq!(flat_keyed(&format!("oom_kill 7\n{text}"), "oom_kill"), Some(7), "{text:?}");
    if let Ok(Some(cpus)) = CpuSet::from_nomad(text) {
        assert!(cpus.count() > 0, "{text:?}");
        assert_eq!(cpus.to_string().parse::<CpuSet>().as_ref(), Ok(&cpus), "{text:?}");
    }
    if let Ok(signal) = text.parse::<SignalNumber>() {
        assert_eq!(signal.to_string().parse::<SignalNumber>(), Ok(signal), "{text:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    type Target = (&'static str, fn(&[u8]));

    fn asks_of(input: &[u8]) {
        asks(&String::from_utf8_lossy(input));
    }

    fn names_of(input: &[u8]) {
        names(&String::from_utf8_lossy(input));
    }

    const TARGETS: [Target; 5] =
        [("asks", asks_of), ("kernel", kernel), ("names", names_of), ("session", session), ("users", users)];

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds")).join(target);
        let files = std::fs::read_dir(directory).unwrap();
        files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn each_seed_passes() {
        for (name, target) in TARGETS {
            assert!(seeds(name).len() > 1, "{name}");
            for seed in seeds(name) {
                target(&seed);
            }
        }
    }

    proptest! {
        #[test]
        fn any_input_passes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }

        #[test]
        fn damaged_seeds_pass(
            seed in any::<prop::sample::Index>(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            for (name, target) in TARGETS {
                let seeds = seeds(name);
                let mut bytes = seeds[seed.index(seeds.len())].clone();
                for (at, byte) in &damage {
                    if !bytes.is_empty() {
                        let at = at.index(bytes.len());
                        bytes[at] = *byte;
                    }
                }
                target(&bytes);
            }
        }
    }
}
