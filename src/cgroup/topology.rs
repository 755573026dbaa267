//! Nomad's CPU numbers: what one core is worth in MHz.

use std::num::NonZeroU64;

/// One logical core of Nomad's topology (`ClientTopologyCore`). Speeds in MHz, 0 = not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CoreMhz {
    pub base: u64,
    pub max: u64,
    pub guess: u64,
}

impl CoreMhz {
    /// The speed that Nomad counts: base, else max, else its guess.
    fn counted(self) -> u64 {
        [self.base, self.max, self.guess].into_iter().find(|mhz| *mhz > 0).unwrap_or(0)
    }
}

/// The part of Nomad's topology (`NomadDriverConfig.topology`) that turns MHz into CPU time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Topology {
    pub cores: Vec<CoreMhz>,
    /// `client.cpu_total_compute` in MHz; 0 when the operator did not set it.
    pub override_total_compute: u64,
}

/// MHz of one core: what `cpu = N` in a job is divided by.
///
/// The mean over all cores, those that the client withholds from tasks included, as Nomad counts it for its own drivers;
/// the operator's `cpu_total_compute`, where set, replaces their sum. `None` when the topology is absent or says nothing
/// (an agent before its first real SetConfig): then no CPU limit can be derived, see
/// [`Limits::plan`](super::Limits::plan).
pub(crate) fn mhz_per_core(topology: &Topology) -> Option<NonZeroU64> {
    let count = u128::try_from(topology.cores.len()).ok().filter(|n| *n > 0)?;
    let total: u128 = match topology.override_total_compute {
        0 => topology.cores.iter().map(|c| u128::from(c.counted())).sum(),
        mhz => u128::from(mhz),
    };
    NonZeroU64::new(u64::try_from(total / count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn core(base: u64) -> CoreMhz {
        CoreMhz { base, max: 0, guess: 0 }
    }

    #[test]
    fn mean_of_the_cores() {
        let mut topology = Topology { cores: vec![core(2000), core(3000)], override_total_compute: 0 };
        assert_eq!(mhz_per_core(&topology).unwrap().get(), 2500);
        topology.override_total_compute = 4000;
        assert_eq!(mhz_per_core(&topology).unwrap().get(), 2000);
    }

    #[test]
    fn base_before_max_before_guess() {
        let speeds = [(3000, 4000, 1000, 3000), (0, 4000, 1000, 4000), (0, 0, 1000, 1000)];
        for (base, max, guess, want) in speeds {
            let topology = Topology { cores: vec![CoreMhz { base, max, guess }], override_total_compute: 0 };
            assert_eq!(mhz_per_core(&topology).unwrap().get(), want);
        }
    }

    #[test]
    fn nothing_known_is_none() {
        assert_eq!(mhz_per_core(&Topology::default()), None);
        assert_eq!(mhz_per_core(&Topology { cores: vec![], override_total_compute: 4000 }), None);
        assert_eq!(mhz_per_core(&Topology { cores: vec![core(0)], override_total_compute: 0 }), None);
    }

    proptest! {
        #[test]
        fn between_the_slowest_and_the_fastest(speeds in prop::collection::vec(any::<u64>(), 1..64)) {
            let topology =
                Topology { cores: speeds.iter().map(|s| core(*s)).collect(), override_total_compute: 0 };
            let got = mhz_per_core(&topology).map_or(0, NonZeroU64::get);
            prop_assert!(got >= *speeds.iter().min().unwrap() && got <= *speeds.iter().max().unwrap());
        }
    }
}
