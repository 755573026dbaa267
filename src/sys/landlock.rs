//! Which Landlock the kernel has.

use nix::errno::Errno;

/// `LANDLOCK_CREATE_RULESET_VERSION` of <linux/landlock.h>: ask for the version instead of making a ruleset.
const CREATE_RULESET_VERSION: libc::c_uint = 1 << 0;

/// The kernel's Landlock ABI, 1 or higher (landlock_create_ruleset(2)). Needs no privilege and changes nothing.
///
/// `ENOSYS`: the kernel is older than 5.13 or was built without Landlock. `EOPNOTSUPP`: built in, but not in the list of
/// active security modules (`lsm=`).
pub(crate) fn abi() -> Result<u32, Errno> {
    // SAFETY: with the version flag, a null attribute and size 0 the kernel reads no memory of ours.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    let version = Errno::result(version)?;
    // The kernel's numbers start at 1; anything else is not an answer.
    u32::try_from(version).ok().filter(|v| *v >= 1).ok_or(Errno::EINVAL)
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
}
