//! The system calls that tasks are refused, as data. `docs/security.md` has the same groups; a test compares them.

#![allow(non_upper_case_globals, reason = "system calls have the names of the libc crate")]

use libc::{c_long, *};

use super::When::{self, Any, Has, Is, IsNot};
use super::{Call, Group};
use crate::sandbox::capabilities::Capability;

/// The highest number of a system call that this table takes into account: rseq_slice_yield, Linux 7.0. From 424 on, the numbers are
/// the same on all architectures.
pub(super) const NEWEST: u32 = 471;
/// All others up to [`NEWEST`]: `arch/x86/entry/syscalls/syscall_64.tbl` up to rseq and uprobe, `scripts/syscall.tbl` up to kexec_file_load.
#[cfg(target_arch = "x86_64")]
pub(super) const KNOWN: [std::ops::RangeInclusive<u32>; 2] = [0..=336, 424..=NEWEST];
#[cfg(target_arch = "aarch64")]
pub(super) const KNOWN: [std::ops::RangeInclusive<u32>; 2] = [0..=294, 424..=NEWEST];

// Newer than the libc crate, for one of the architectures.
#[cfg(target_arch = "aarch64")]
const SYS_kexec_file_load: c_long = 294;
const SYS_fchmodat2: c_long = 452;
const SYS_open_tree_attr: c_long = 467;
const SYS_listns: c_long = 470;

/// The flags of clone(2) and unshare(2) that make namespaces. CLONE_NEWTIME is one of the bits in which clone(2) has a signal.
const CLONE_NAMESPACES: u32 = (CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET)
    .cast_unsigned();
/// The flags of unshare(2) that make none.
const UNSHARE_OTHERS: u32 =
    (CLONE_FILES | CLONE_FS | CLONE_SYSVSEM | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM).cast_unsigned();
/// What personality(2) may be set to: PER_LINUX32 for `uname -m`, UNAME26, and no randomization of addresses, for debuggers.
const HARMLESS_PERSONALITY: u32 = 0x0008 | 0x002_0000 | 0x004_0000;
/// Asks for the personality and changes nothing.
const PERSONALITY_QUERY: u32 = u32::MAX;

/// `NETLINK_*` of `linux/netlink.h`: routes and addresses (getifaddrs(3)), sockets (ss(8)), devices (libudev).
const ROUTE: u32 = 0;
const SOCK_DIAG: u32 = 4;
const KOBJECT_UEVENT: u32 = 15;

const UNIX: u32 = AF_UNIX.cast_unsigned();
const INET: u32 = AF_INET.cast_unsigned();
const INET6: u32 = AF_INET6.cast_unsigned();
const NETLINK: u32 = AF_NETLINK.cast_unsigned();
const PACKET: u32 = AF_PACKET.cast_unsigned();
/// `IPPROTO_MPTCP` and, from Linux 6.11, `IPPROTO_SMC` of `linux/in.h`.
const MPTCP: u32 = 262;
const SMC: u32 = 256;
/// `MSG_FASTOPEN` of `linux/socket.h`.
const FAST_OPEN: u32 = 0x2000_0000;
/// `AF_VSOCK` of `linux/socket.h`, which the libc crate does not have for musl.
const VSOCK: u32 = 40;

const SET_ID: u32 = S_ISUID | S_ISGID;
/// The flags of open(2) that take a mode; O_TMPFILE without O_DIRECTORY, which is part of it.
const CREATES: u32 = (O_CREAT | O_TMPFILE & !O_DIRECTORY).cast_unsigned();

/// The group that a task without limits on ports may use.
pub(crate) const TCP_VARIANTS: &str = "tcp_variants";

pub(crate) const GROUPS: &[Group] = &[
    Group {
        name: "accounting",
        why: "writes about every process of the host to a file",
        opened_by: Some(Capability::SYS_PACCT),
        calls: &[call!(SYS_acct)],
    },
    Group {
        name: "bpf",
        why: "programs in the kernel, whose verifier had many defects",
        opened_by: Some(Capability::BPF),
        calls: &[call!(SYS_bpf)],
    },
    Group {
        name: "chroot",
        why: "another root directory is of use only with privileges",
        opened_by: Some(Capability::SYS_CHROOT),
        calls: &[call!(SYS_chroot)],
    },
    Group {
        name: "clock",
        why: "sets the time of the host",
        opened_by: Some(Capability::SYS_TIME),
        calls: &[call!(SYS_clock_settime), call!(SYS_settimeofday)],
    },
    Group {
        name: "device_nodes",
        why: "a device node gives access to the device wherever the host mounts its file system",
        opened_by: None,
        calls: &[
            #[cfg(target_arch = "x86_64")]
            call!(SYS_mknod).when(&[Has(1, S_IFMT, S_IFBLK)]),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_mknod).when(&[Has(1, S_IFMT, S_IFCHR)]),
            call!(SYS_mknodat).when(&[Has(2, S_IFMT, S_IFBLK)]),
            call!(SYS_mknodat).when(&[Has(2, S_IFMT, S_IFCHR)]),
        ],
    },
    Group {
        name: "file_handles",
        why: "opens and watches files by number, past directories that the task cannot enter",
        opened_by: None,
        calls: &[call!(SYS_open_by_handle_at), call!(SYS_fanotify_init)],
    },
    Group {
        name: "hostname",
        why: "the host name is part of the network that Nomad provides",
        opened_by: Some(Capability::SYS_ADMIN),
        calls: &[call!(SYS_sethostname), call!(SYS_setdomainname)],
    },
    Group {
        name: "io_ports",
        why: "direct access to hardware",
        opened_by: Some(Capability::SYS_RAWIO),
        calls: &[
            #[cfg(target_arch = "x86_64")]
            call!(SYS_ioperm),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_iopl),
        ],
    },
    Group {
        name: "io_uring",
        why: "its operations pass by every filter, and it had many defects",
        opened_by: None,
        calls: &[call!(SYS_io_uring_setup), call!(SYS_io_uring_enter), call!(SYS_io_uring_register)],
    },
    Group {
        name: "kernel_log",
        why: "reads and clears the messages of the kernel, which have addresses and the names of others' processes",
        opened_by: Some(Capability::SYSLOG),
        calls: &[call!(SYS_syslog)],
    },
    Group {
        name: "kexec",
        why: "starts another kernel",
        opened_by: Some(Capability::SYS_BOOT),
        calls: &[call!(SYS_kexec_load), call!(SYS_kexec_file_load)],
    },
    Group {
        name: "keyrings",
        why: "keyrings belong to a uid, not to a task, and the next task may have the same uid",
        opened_by: None,
        calls: &[call!(SYS_add_key), call!(SYS_request_key), call!(SYS_keyctl)],
    },
    Group {
        name: "modules",
        why: "code in the kernel",
        opened_by: Some(Capability::SYS_MODULE),
        calls: &[call!(SYS_init_module), call!(SYS_finit_module), call!(SYS_delete_module)],
    },
    Group {
        name: "mount",
        why: "Landlock forbids mounts, but the calls reach much code before that",
        opened_by: None,
        calls: &[
            call!(SYS_mount),
            call!(SYS_umount2),
            call!(SYS_pivot_root),
            call!(SYS_open_tree),
            call!(SYS_open_tree_attr),
            call!(SYS_move_mount),
            call!(SYS_fsopen),
            call!(SYS_fsconfig),
            call!(SYS_fsmount),
            call!(SYS_fspick),
            call!(SYS_mount_setattr),
        ],
    },
    Group {
        name: "namespaces",
        why: "a user namespace gives capabilities, and with them access to much code of the kernel that is for root only otherwise",
        opened_by: None,
        calls: &[
            call!(SYS_unshare).when(&[Any(0, !UNSHARE_OTHERS)]),
            call!(SYS_clone).when(&[Any(0, CLONE_NAMESPACES)]),
            // Its flags are in memory, where no filter sees them. The C libraries use clone(2) if it does not exist.
            call!(SYS_clone3).errno(ENOSYS),
            call!(SYS_setns),
            call!(SYS_listns),
        ],
    },
    Group {
        name: "netlink",
        why: "all protocols but NETLINK_ROUTE, NETLINK_SOCK_DIAG and NETLINK_KOBJECT_UEVENT: configuration of the network, audit, cryptography",
        opened_by: Some(Capability::NET_ADMIN),
        calls: &[
            // What a kernel without the protocol answers.
            call!(SYS_socket)
                .when(&[Is(0, NETLINK), IsNot(2, ROUTE), IsNot(2, SOCK_DIAG), IsNot(2, KOBJECT_UEVENT)])
                .errno(EPROTONOSUPPORT),
        ],
    },
    Group {
        name: "obsolete",
        why: "no program that is maintained uses them",
        opened_by: None,
        calls: &[
            call!(SYS_lookup_dcookie).errno(ENOSYS),
            call!(SYS_nfsservctl).errno(ENOSYS),
            #[cfg(target_arch = "x86_64")]
            call!(SYS__sysctl).errno(ENOSYS),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_sysfs).errno(ENOSYS),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_uselib).errno(ENOSYS),
        ],
    },
    Group {
        name: "other_sockets",
        why: "families other than unix, inet, inet6, netlink, packet and vsock load rarely used modules: alg, bluetooth, can, tipc, xdp",
        opened_by: None,
        calls: &[
            call!(SYS_socket).when(OTHER_FAMILIES).errno(EAFNOSUPPORT),
            call!(SYS_socketpair).when(OTHER_FAMILIES).errno(EAFNOSUPPORT),
        ],
    },
    Group {
        name: "packet_sockets",
        why: "reads and forges the traffic of others",
        opened_by: Some(Capability::NET_RAW),
        calls: &[call!(SYS_socket).when(&[Is(0, PACKET)]).errno(EAFNOSUPPORT)],
    },
    Group {
        name: "perf",
        why: "measures other processes, and had many defects",
        opened_by: Some(Capability::PERFMON),
        calls: &[call!(SYS_perf_event_open)],
    },
    Group {
        name: "personality",
        why: "values other than PER_LINUX, PER_LINUX32, UNAME26 and ADDR_NO_RANDOMIZE: they imitate other systems, and weaken protections of memory",
        opened_by: None,
        calls: &[call!(SYS_personality).when(&[Any(0, !HARMLESS_PERSONALITY), IsNot(0, PERSONALITY_QUERY)])],
    },
    Group {
        name: "processes",
        why: "takes descriptors of other processes, compares kernel objects, changes how their memory is kept",
        opened_by: Some(Capability::SYS_PTRACE),
        calls: &[call!(SYS_pidfd_getfd), call!(SYS_kcmp), call!(SYS_process_madvise)],
    },
    Group {
        name: "quota",
        why: "the disk quotas of the host",
        opened_by: None,
        calls: &[call!(SYS_quotactl), call!(SYS_quotactl_fd)],
    },
    Group {
        name: "reboot",
        why: "ends the host, or the task's PID namespace without an exit status",
        opened_by: Some(Capability::SYS_BOOT),
        calls: &[call!(SYS_reboot)],
    },
    Group {
        name: "set_id",
        why: "makes set-uid and set-gid files and directories, by which a user of the host becomes the task's user",
        opened_by: None,
        calls: &[
            #[cfg(target_arch = "x86_64")]
            call!(SYS_chmod).when(&[Any(1, SET_ID)]),
            call!(SYS_fchmod).when(&[Any(1, SET_ID)]),
            call!(SYS_fchmodat).when(&[Any(2, SET_ID)]),
            call!(SYS_fchmodat2).when(&[Any(2, SET_ID)]),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_mkdir).when(&[Any(1, SET_ID)]),
            call!(SYS_mkdirat).when(&[Any(2, SET_ID)]),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_mknod).when(&[Any(1, SET_ID)]),
            call!(SYS_mknodat).when(&[Any(2, SET_ID)]),
            #[cfg(target_arch = "x86_64")]
            call!(SYS_creat).when(&[Any(1, SET_ID)]),
            // Without these flags there is no mode, and the argument is whatever was in the register.
            #[cfg(target_arch = "x86_64")]
            call!(SYS_open).when(&[Any(1, CREATES), Any(2, SET_ID)]),
            call!(SYS_openat).when(&[Any(2, CREATES), Any(3, SET_ID)]),
            // Its mode is in memory. Programs use openat(2) if it does not exist.
            call!(SYS_openat2).errno(ENOSYS),
        ],
    },
    Group {
        name: "swap",
        why: "the swap of the host",
        opened_by: None,
        calls: &[call!(SYS_swapon), call!(SYS_swapoff)],
    },
    Group {
        name: TCP_VARIANTS,
        why: "MPTCP, SMC and TCP Fast Open pass by the limits on ports; refused only to a task whose network_policy has bind or connect",
        opened_by: None,
        calls: &[
            call!(SYS_socket).when(&[Is(0, INET), Is(2, MPTCP)]).errno(EPROTONOSUPPORT),
            call!(SYS_socket).when(&[Is(0, INET6), Is(2, MPTCP)]).errno(EPROTONOSUPPORT),
            call!(SYS_socket).when(&[Is(0, INET), Is(2, SMC)]).errno(EPROTONOSUPPORT),
            call!(SYS_socket).when(&[Is(0, INET6), Is(2, SMC)]).errno(EPROTONOSUPPORT),
            // As where the sysctl tcp_fastopen is off.
            call!(SYS_sendto).when(&[Any(3, FAST_OPEN)]).errno(EOPNOTSUPP),
            call!(SYS_sendmsg).when(&[Any(2, FAST_OPEN)]).errno(EOPNOTSUPP),
            call!(SYS_sendmmsg).when(&[Any(3, FAST_OPEN)]).errno(EOPNOTSUPP),
        ],
    },
    Group {
        name: "terminals",
        why: "types into a terminal (TIOCSTI, TIOCLINUX), takes the console's output (TIOCCONS), loads line disciplines (TIOCSETD)",
        opened_by: None,
        calls: &[
            call!(SYS_ioctl).when(&[Is(1, 0x5412)]),
            call!(SYS_ioctl).when(&[Is(1, 0x541c)]),
            call!(SYS_ioctl).when(&[Is(1, 0x541d)]),
            call!(SYS_ioctl).when(&[Is(1, 0x5423)]),
        ],
    },
    Group {
        name: "userfaultfd",
        why: "stops the kernel at an access to memory, which makes races in the kernel easy to win",
        opened_by: None,
        calls: &[call!(SYS_userfaultfd)],
    },
    Group {
        name: "vsock",
        why: "sockets between a virtual machine and its host, which network namespaces do not separate",
        opened_by: None,
        calls: &[
            call!(SYS_socket).when(&[Is(0, VSOCK)]).errno(EAFNOSUPPORT),
            call!(SYS_socketpair).when(&[Is(0, VSOCK)]).errno(EAFNOSUPPORT),
        ],
    },
];

const OTHER_FAMILIES: &[When] =
    &[IsNot(0, UNIX), IsNot(0, INET), IsNot(0, INET6), IsNot(0, NETLINK), IsNot(0, PACKET), IsNot(0, VSOCK)];
