//! Which Landlock the kernel has.

use nix::errno::Errno;

/// `LANDLOCK_CREATE_RULESET_VERSION` of <linux/landlock.h>: ask for the version instead of making a ruleset.
const CREATE_RULESET_VERSION: libc::c_uint = 1 << 0;
/// `LANDLOCK_CREATE_RULESET_ERRATA`: ask which defects are fixed.
const CREATE_RULESET_ERRATA: libc::c_uint = 1 << 1;

/// The kernel's Landlock ABI, 1 or higher (landlock_create_ruleset(2)). Needs no privilege and changes nothing.
///
/// `ENOSYS`: the kernel is older than 5.13 or was built without Landlock. `EOPNOTSUPP`: built in, but not in the list of
/// active security modules (`lsm=`).
pub(crate) fn abi() -> Result<u32, Errno> {
    // The kernel's numbers start at 1; anything else is not an answer.
    ask(CREATE_RULESET_VERSION)
        .and_then(|version| if version >= 1 { Ok(version) } else { Err(Errno::EINVAL) })
}

/// The errata that are fixed, a bit each. `EINVAL`: the kernel does not say (before Linux 6.15, unless it was backported).
pub(crate) fn errata() -> Result<u32, Errno> {
    ask(CREATE_RULESET_ERRATA)
}

fn ask(question: libc::c_uint) -> Result<u32, Errno> {
    // SAFETY: with one of these flags, a null attribute and size 0 the kernel reads no memory of ours.
    let answer = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0usize, question)
    };
    u32::try_from(Errno::result(answer)?).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_or_a_known_refusal() {
        // Every kernel gives one of these; which one depends on the machine.
        match abi() {
            Ok(abi) => assert!(abi >= 1),
            Err(errno) => {
                assert!(matches!(errno, Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM), "{errno}")
            }
        }
    }

    #[test]
    fn errata_are_told_by_kernels_that_know_the_question() {
        match (abi(), errata()) {
            // Bits that nobody has defined yet are possible, all of them are not.
            (Ok(_), Ok(errata)) => assert_ne!(errata, u32::MAX),
            (_, Err(errno)) => assert!(
                matches!(errno, Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM),
                "{errno}"
            ),
            (Err(errno), Ok(_)) => panic!("{errno}, and yet it answers"),
        }
    }
}
