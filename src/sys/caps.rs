//! Capability sets of the calling thread: capget(2), capset(2), prctl(2).

use nix::Result;
use nix::errno::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use super::nix_errno;

/// The three sets of capset(2); bit N is capability number N.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// Replaces the calling thread's effective, permitted and inheritable sets.
pub(crate) fn set(sets: Sets) -> Result<()> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(sets.effective),
        permitted: CapabilitySet::from_bits_retain(sets.permitted),
        inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
    };
    set_capabilities(None, sets).map_err(nix_errno)
}

/// The calling thread's effective, permitted and inheritable sets.
pub(crate) fn get() -> Result<Sets> {
    let sets = capabilities(None).map_err(nix_errno)?;
    Ok(Sets {
        effective: sets.effective.bits(),
        permitted: sets.permitted.bits(),
        inheritable: sets.inheritable.bits(),
    })
}

/// Drops capability `number` from the bounding set (`PR_CAPBSET_DROP`). EINVAL: the kernel has no such capability.
pub(crate) fn drop_from_bounding(number: u8) -> Result<()> {
    remove_capability_from_bounding_set(single(number)?).map_err(nix_errno)
}

/// Empties the ambient set (`PR_CAP_AMBIENT_CLEAR_ALL`).
pub(crate) fn clear_ambient() -> Result<()> {
    clear_ambient_capability_set().map_err(nix_errno)
}

/// Raises capability `number` in the ambient set; it must be permitted and inheritable (`PR_CAP_AMBIENT_RAISE`).
pub(crate) fn raise_ambient(number: u8) -> Result<()> {
    configure_capability_in_ambient_set(single(number)?, true).map_err(nix_errno)
}

/// The set of one capability. EINVAL: the kernel's sets have 64 bits.
fn single(number: u8) -> Result<CapabilitySet> {
    1_u64.checked_shl(number.into()).map(CapabilitySet::from_bits_retain).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_what_is_there_changes_nothing() {
        let before = get().unwrap();
        set(before).unwrap();
        assert_eq!(get().unwrap(), before);
    }

    #[test]
    fn an_unknown_capability_is_refused() {
        assert_eq!(raise_ambient(200), Err(Errno::EINVAL));
        assert_eq!(raise_ambient(63), Err(Errno::EINVAL));
        assert_eq!(drop_from_bounding(200), Err(Errno::EINVAL));
        // Without CAP_SETPCAP the kernel does not check the number.
        assert!(matches!(drop_from_bounding(63), Err(Errno::EINVAL | Errno::EPERM)));
    }
}
