//! Capability sets of the calling thread: capget(2), capset(2), prctl(2).

use nix::Result;
use nix::errno::Errno;

/// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`: two 32-bit words a set.
const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The three sets that capset(2) takes, bit N = capability number N.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// Replaces the calling thread's effective, permitted and inheritable sets.
pub(crate) fn set(sets: Sets) -> Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "the other half has a word of its own")]
    let half = |set: u64, shift: u32| (set >> shift) as u32;
    let header = Header { version: VERSION_3, pid: 0 };
    let words = [0, 32].map(|shift| Word {
        effective: half(sets.effective, shift),
        permitted: half(sets.permitted, shift),
        inheritable: half(sets.inheritable, shift),
    });
    // SAFETY: header and words have the layout of version 3 and live over the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) }).map(drop)
}

/// The calling thread's effective, permitted and inheritable sets.
pub(crate) fn get() -> Result<Sets> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut words = [Word::default(); 2];
    // SAFETY: header and words have the layout of version 3 and live over the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw const header, words.as_mut_ptr()) })?;
    let whole = |f: fn(&Word) -> u32| u64::from(f(&words[0])) | u64::from(f(&words[1])) << 32;
    Ok(Sets {
        effective: whole(|w| w.effective),
        permitted: whole(|w| w.permitted),
        inheritable: whole(|w| w.inheritable),
    })
}

/// Drops capability `number` from the bounding set (`PR_CAPBSET_DROP`). EINVAL: the kernel has no such capability.
pub(crate) fn drop_from_bounding(number: u8) -> Result<()> {
    // SAFETY: this prctl takes integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) })
        .map(drop)
}

/// Empties the ambient set (`PR_CAP_AMBIENT_CLEAR_ALL`).
pub(crate) fn clear_ambient() -> Result<()> {
    // SAFETY: this prctl takes integers only.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })
        .map(drop)
}

/// Raises capability `number` in the ambient set; it must be permitted and inheritable (`PR_CAP_AMBIENT_RAISE`).
pub(crate) fn raise_ambient(number: u8) -> Result<()> {
    // SAFETY: this prctl takes integers only.
    Errno::result(unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, libc::c_ulong::from(number), 0, 0)
    })
    .map(drop)
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
        // Without CAP_SETPCAP the kernel does not get as far as the number.
        assert!(matches!(drop_from_bounding(200), Err(Errno::EINVAL | Errno::EPERM)));
    }
}
