//! Unveil modes as Landlock rights: landlock(7), `Documentation/userspace-api/landlock.rst`.

#[cfg(test)]
use landlock::ABI;
use landlock::{AccessFs, BitFlags, make_bitflags};

use super::unveil::Access;

/// The rights that are denied unless granted: those of Landlock ABI 5, which added ioctl on devices. On a kernel with an
/// older ABI the rights that it does not know cannot be denied; ABI 1 is the minimum for starting tasks.
pub(crate) const HANDLED_ABI: i32 = 5;
/// The rights that the kernel must be able to deny.
pub(crate) const REQUIRED_ABI: i32 = 1;

/// The first Linux with each ABI, from 1 on.
const KERNELS: [&str; 10] = ["5.13", "5.19", "6.2", "6.7", "6.10", "6.12", "6.15", "7.0", "7.1", "7.2"];

/// The first Linux with this ABI.
pub(crate) fn kernel_of(abi: u32) -> &'static str {
    let index = usize::try_from(abi).ok().and_then(|abi| abi.checked_sub(1));
    index.and_then(|index| KERNELS.get(index)).unwrap_or(&"of a later version")
}

/// Rights that apply to a file; the kernel refuses the others on it.
const FILE: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{Execute | ReadFile | WriteFile | Truncate | IoctlDev});

/// What `c` grants below a directory. No devices: no task may use mknod.
const CREATE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    MakeReg | MakeSock | MakeFifo | MakeSym | MakeDir | RemoveFile | RemoveDir | Refer
});

/// What a task may do with a device that a device plugin gives it, beside reading and writing.
pub(crate) const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{IoctlDev});

/// The rights that `access` means for a directory (and all below it) or for a single file. An ioctl may change a device or what others get from
/// it, so that is a part of `w`.
pub(crate) fn rights(access: Access, directory: bool) -> BitFlags<AccessFs> {
    let mut rights = BitFlags::empty();
    if access.read() {
        rights |= AccessFs::ReadFile | AccessFs::ReadDir;
    }
    if access.write() {
        rights |= AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
    }
    if access.execute() {
        rights |= AccessFs::Execute;
    }
    if access.create() {
        rights |= CREATE;
    }
    if directory { rights } else { rights & FILE }
}

#[cfg(test)]
mod tests {
    use landlock::Access as _;

    use super::*;
    use crate::sandbox::unveil::Unveil;

    fn of(mode: &str, directory: bool) -> BitFlags<AccessFs> {
        rights(format!("{mode}:/x").parse::<Unveil>().unwrap().access, directory)
    }

    #[test]
    fn devices_are_never_granted() {
        let all = of("rwxc", true);
        assert!(!all.contains(AccessFs::MakeBlock));
        assert!(!all.contains(AccessFs::MakeChar));
        assert_eq!(
            all | AccessFs::MakeBlock | AccessFs::MakeChar,
            AccessFs::from_all(ABI::from(HANDLED_ABI))
        );
    }

    #[test]
    fn each_mode_grants_its_rights_and_no_other() {
        assert_eq!(of("r", true), AccessFs::ReadFile | AccessFs::ReadDir);
        assert_eq!(of("r", false), BitFlags::from(AccessFs::ReadFile));
        assert_eq!(of("w", true), AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev);
        assert_eq!(of("w", false), of("w", true));
        assert_eq!(of("x", false), BitFlags::from(AccessFs::Execute));
        assert_eq!(of("c", true), CREATE);
        assert!(of("c", false).is_empty());
    }
}
