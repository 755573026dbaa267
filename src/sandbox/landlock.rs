//! Unveil modes as Landlock rights: landlock(7), `Documentation/userspace-api/landlock.rst`.

#[cfg(test)]
use landlock::ABI;
use landlock::{AccessFs, BitFlags, make_bitflags};

use super::unveil::Access;

/// The rights that are denied unless granted: those of Landlock ABI 9, which added connecting to unix sockets. On a kernel with an
/// older ABI the rights that it does not know cannot be denied; ABI 1 is the minimum for starting tasks.
pub(crate) const HANDLED_ABI: i32 = 9;
/// The rights that the kernel must be able to deny.
pub(crate) const REQUIRED_ABI: i32 = 1;

/// A version of Landlock: what it added, and what this driver makes of it. `docs/security.md` has the same table; a test compares them.
#[derive(Debug)]
pub(crate) struct Version {
    pub abi: u32,
    /// The first Linux with it.
    pub kernel: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "only the documentation has it"))]
    adds: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "only the documentation has it"))]
    used: &'static str,
}

const fn version(abi: u32, kernel: &'static str, adds: &'static str, used: &'static str) -> Version {
    Version { abi, kernel, adds, used }
}

/// Those that the crate landlock knows. A newer one is treated as the last.
pub(crate) const VERSIONS: &[Version] = &[
    version(
        1,
        "5.13",
        "reading, writing, executing, creating and removing files",
        "yes; the minimum for starting tasks",
    ),
    version(2, "5.19", "`REFER`: renaming and linking between directories", "yes, with `c`"),
    version(3, "6.2", "`TRUNCATE`", "yes, with `w`"),
    version(4, "6.7", "`BIND_TCP`, `CONNECT_TCP`", "yes, if `network_policy` has `bind` or `connect`"),
    version(
        5,
        "6.10",
        "`IOCTL_DEV`: ioctl on device files",
        "yes, with `w`, the default unveils and devices",
    ),
    version(
        6,
        "6.12",
        "scopes for abstract unix sockets and for signals",
        "abstract sockets: yes, in the host's network unless `abstract_sockets = \"host\"`, and not in a group's own, where sidecars talk. Signals: no, a task has its own PID namespace, and a session, which is a domain beside the task's, must be able to signal it",
    ),
    version(
        7,
        "6.15",
        "flags for the audit log",
        "no: the kernel's default logs nothing of what a task's programs are denied",
    ),
    version(
        8,
        "7.0",
        "restricting all threads of a process (`TSYNC`)",
        "no: the process that becomes the task has one thread",
    ),
    version(
        9,
        "7.1",
        "`RESOLVE_UNIX`: connecting to a unix socket by its path",
        "yes, with `w` and the [sockets of the host](#unix-sockets); one that a process of the task has made needs no right",
    ),
    version(
        10,
        "7.2",
        "`BIND_UDP`, `CONNECT_SEND_UDP`; rules that are not logged",
        "yes, if `network_policy` has `bind_udp` or `connect_udp`; nothing is logged",
    ),
];

/// The first Linux with this ABI.
pub(crate) fn kernel_of(abi: u32) -> &'static str {
    let known = VERSIONS.iter().find(|version| version.abi == abi);
    known.map_or("of a later version", |version| version.kernel)
}

/// A defect of the kernel, which its answer to `LANDLOCK_CREATE_RULESET_ERRATA` says is fixed.
#[derive(Debug)]
pub(crate) struct Erratum {
    /// From 1: bit `number - 1` of the answer.
    pub number: u32,
    /// The first ABI with what the defect is about.
    pub since: u32,
    pub what: &'static str,
    /// Whether a task can gain by it what it was not granted.
    pub matters: bool,
}

/// Those that the kernel's documentation lists.
pub(crate) const ERRATA: &[Erratum] = &[
    Erratum {
        number: 1,
        since: 4,
        what: "limits on TCP ports also deny MPTCP, SMC and SCTP",
        matters: false,
    },
    Erratum {
        number: 2,
        since: 6,
        what: "scopes for signals deny signals between the threads of a process",
        matters: false,
    },
    Erratum {
        number: 3,
        since: 1,
        what: "a directory that is moved out of a mount while it is open may give more rights than were granted",
        matters: true,
    },
];

impl Erratum {
    pub(crate) fn is_fixed(&self, errata: u32) -> bool {
        errata & (1 << (self.number - 1)) != 0
    }
}

/// Rights that apply to a file; the kernel refuses the others on it.
const FILE: BitFlags<AccessFs> =
    make_bitflags!(AccessFs::{Execute | ReadFile | WriteFile | Truncate | IoctlDev | ResolveUnix});

/// What `c` grants below a directory. No devices: no task may use mknod.
const CREATE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    MakeReg | MakeSock | MakeFifo | MakeSym | MakeDir | RemoveFile | RemoveDir | Refer
});

/// What a task may do with a device that a device plugin gives it, beside reading and writing.
pub(crate) const DEVICE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{IoctlDev});

/// What a task may do with the sockets of the host that come with the default unveils: connect to them.
pub(crate) const SOCKETS: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ResolveUnix});
/// The first ABI with that right.
pub(crate) const SOCKETS_ABI: u32 = 9;

/// The rights that `access` means for a directory (and all below it) or for a single file. An ioctl may change a device or what others get from
/// it, so that is a part of `w`; and so is connecting to a socket, for which the kernel asks for the permission to write as well.
pub(crate) fn rights(access: Access, directory: bool) -> BitFlags<AccessFs> {
    let mut rights = BitFlags::empty();
    if access.read() {
        rights |= AccessFs::ReadFile | AccessFs::ReadDir;
    }
    if access.write() {
        rights |= AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev | AccessFs::ResolveUnix;
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

    const DOCS: &str = include_str!("../../docs/security.md");

    fn table(head: &str) -> Vec<&'static str> {
        let rows = DOCS.lines().skip_while(|line| *line != head).skip(2);
        rows.take_while(|line| line.starts_with('|')).collect()
    }

    #[test]
    fn the_documentation_has_each_version_and_each_erratum() {
        let row = |v: &Version| format!("| {} | {} | {} | {} |", v.abi, v.kernel, v.adds, v.used);
        let rows: Vec<_> = VERSIONS.iter().map(row).collect();
        assert_eq!(table("| ABI | Linux | adds | used |"), rows, "it has to be\n{}", rows.join("\n"));
        let row = |e: &Erratum| {
            let matters = if e.matters { "yes" } else { "no" };
            format!("| {} | {} | {} | {matters} |", e.number, e.since, e.what)
        };
        let rows: Vec<_> = ERRATA.iter().map(row).collect();
        assert_eq!(
            table("| erratum | since ABI | defect | matters here |"),
            rows,
            "it has to be\n{}",
            rows.join("\n")
        );
    }

    #[test]
    fn a_newer_abi_is_treated_as_the_newest_that_is_known() {
        let newest = VERSIONS.last().unwrap().abi;
        assert!(VERSIONS.iter().map(|version| version.abi).eq(1..=newest));
        let all = |abi: u32| AccessFs::from_all(ABI::from(abi.cast_signed()));
        assert_eq!(all(newest + 1), all(newest));
        assert_ne!(
            ABI::from(newest.cast_signed()),
            ABI::from((newest - 1).cast_signed()),
            "the crate knows it"
        );
        assert_eq!(
            ABI::from((newest + 1).cast_signed()),
            ABI::from(newest.cast_signed()),
            "and no newer one"
        );
        assert_eq!(kernel_of(newest + 1), "of a later version");
    }

    #[test]
    fn errata_are_those_of_the_crate() {
        use landlock::Erratum as Known;
        let known = [
            Known::TcpSocketIdentification,
            Known::ScopedSignalHandling,
            Known::DisconnectedDirectoryHandling,
        ];
        for (erratum, known) in ERRATA.iter().zip(known) {
            assert!(erratum.is_fixed(known as u32) && !erratum.is_fixed(!(known as u32)));
            let of = |abi: u32| BitFlags::<Known>::from(ABI::from(abi.cast_signed())).contains(known);
            assert!(of(erratum.since) && !of(erratum.since - 1));
        }
        assert_eq!(ERRATA.len(), BitFlags::<Known>::from(ABI::V10).len());
    }

    #[test]
    fn each_mode_grants_its_rights_and_no_other() {
        assert_eq!(of("r", true), AccessFs::ReadFile | AccessFs::ReadDir);
        assert_eq!(of("r", false), BitFlags::from(AccessFs::ReadFile));
        let write = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev | AccessFs::ResolveUnix;
        assert_eq!(of("w", true), write);
        assert_eq!(of("w", false), of("w", true));
        assert_eq!(of("x", false), BitFlags::from(AccessFs::Execute));
        assert_eq!(of("c", true), CREATE);
        assert!(of("c", false).is_empty());
    }
}
