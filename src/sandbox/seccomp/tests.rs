use std::collections::BTreeSet;

use proptest::prelude::*;

use super::table::{KNOWN, NEWEST};
use super::*;
use crate::sys::seccomp::Instruction;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number.cast_unsigned()
}

/// What the kernel does: `Documentation/networking/filter.rst`. Panics where the kernel would refuse the program.
fn evaluate(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [number, arch, 0, 0].to_vec();
    data.extend(args.iter().flat_map(|arg| [*arg as u32, (*arg >> 32) as u32]));
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, if_true, if_false, value } = program[at];
        at += 1;
        let mut jump = |holds| at += usize::from(if holds { if_true } else { if_false });
        match code {
            0x20 => accumulator = data[value as usize / 4],
            0x54 => accumulator &= value,
            0x05 => at += value as usize,
            0x15 => jump(accumulator == value),
            0x35 => jump(accumulator >= value),
            0x45 => jump(accumulator & value != 0),
            0x06 => return value,
            other => panic!("no instruction: {other:#x}"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

fn number(constant: libc::c_long) -> u32 {
    u32::try_from(constant).unwrap()
}

/// The answer of the default filter, less these groups.
fn answer(allow: &str, constant: libc::c_long, args: &[u64]) -> u32 {
    let allow = allow.split_whitespace().map(|name| GroupSet::named(name).unwrap());
    let program = Program::new(allow.fold(GroupSet::EMPTY, GroupSet::union));
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    evaluate(program.instructions(), ARCH, number(constant), all)
}

#[test]
fn each_call_of_a_group_is_refused_unless_the_group_is_allowed() {
    for group in GROUPS {
        for call in group.calls {
            let mut args = [0; 6];
            for when in call.when {
                match *when {
                    When::Is(at, value) => args[at] = value.into(),
                    When::Has(at, bits, value) => args[at] = (args[at] & !u64::from(bits)) | u64::from(value),
                    When::Any(at, bits) => args[at] |= 1 << bits.trailing_zeros(),
                    // No family, no protocol and no query.
                    When::IsNot(at, _)
                        if call.when.iter().any(|other| matches!(other, When::Any(a, _) if *a == at)) => {}
                    When::IsNot(at, _) => args[at] = 99,
                }
            }
            assert_eq!(answer("", call.number, &args), errno(call.errno), "{}: {}", group.name, call.name());
            let allowed = answer(group.name, call.number, &args);
            assert_eq!(allowed, ALLOW, "{} with {}", call.name(), group.name);
        }
    }
}

#[test]
fn a_call_is_in_one_group_unless_its_arguments_decide() {
    let mut seen = BTreeSet::new();
    for (group, call) in GROUPS.iter().flat_map(|group| group.calls.iter().map(move |call| (group, call))) {
        let at = number(call.number);
        assert!(KNOWN.iter().any(|known| known.contains(&at)), "{}", call.name());
        assert!(call.constant.starts_with("SYS_"));
        assert!(seen.insert((at, format!("{:?}", call.when))), "{} in {}", call.name(), group.name);
        let unconditional =
            GROUPS.iter().flat_map(|group| group.calls).filter(|other| other.number == call.number);
        assert!(
            call.when.is_empty() || unconditional.clone().all(|other| !other.when.is_empty()),
            "{} is refused whatever its arguments",
            call.name()
        );
    }
}

#[test]
fn names_are_sorted_and_fit_the_set() {
    assert!(GROUPS.is_sorted_by(|one, two| one.name < two.name));
    assert!(GROUPS.len() < 64);
    for group in GROUPS {
        assert!(group.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{}", group.name);
        assert_eq!(GroupSet::named(group.name).unwrap().names(), [group.name]);
        assert_ne!(group.name, UNCONFINED);
    }
    assert_eq!(GroupSet::named("mounts"), None);
}

#[test]
fn foreign_and_unknown_calls_do_not_exist() {
    let program = Program::new(GroupSet::EMPTY);
    let of = |arch, number| evaluate(program.instructions(), arch, number, [0; 6]);
    const I386: u32 = 0x4000_0003;
    let getpid = number(libc::SYS_getpid);
    assert_eq!(of(ARCH, getpid), ALLOW);
    assert_eq!(of(I386, getpid), errno(libc::ENOSYS));
    assert_eq!(of(ARCH, 0x4000_0000 | getpid), errno(libc::ENOSYS), "x32");
    for number in [337, 400, 423, NEWEST + 1, 1 << 20, u32::MAX] {
        assert_eq!(of(ARCH, number), errno(libc::ENOSYS), "{number}");
    }
    assert_eq!(of(ARCH, NEWEST), ALLOW);
    let all = (0..GROUPS.len()).fold(GroupSet::EMPTY, |set, at| set.union(GroupSet(1 << at)));
    let open = Program::new(all);
    assert_eq!(evaluate(open.instructions(), I386, getpid, [0; 6]), errno(libc::ENOSYS));
}

/// Of CVE-2019-10063: the upper half, which the kernel ignores, must not hide the lower.
const HIGH: u64 = 1 << 32;

#[test]
fn arguments_decide_by_their_lower_half() {
    let refused = errno(libc::EPERM);
    const TIOCSTI: u64 = 0x5412;
    const TCGETS: u64 = 0x5401;
    for (constant, args, expected) in [
        (libc::SYS_ioctl, vec![0, TIOCSTI], refused),
        (libc::SYS_ioctl, vec![0, HIGH | TIOCSTI], refused),
        (libc::SYS_ioctl, vec![0, TCGETS], ALLOW),
        (libc::SYS_clone, vec![0x1200011], ALLOW),
        (libc::SYS_clone, vec![0x003d_0f00], ALLOW),
        (libc::SYS_clone, vec![0x1000_0011], refused),
        (libc::SYS_unshare, vec![0x400], ALLOW),
        (libc::SYS_unshare, vec![0x80], refused),
        (libc::SYS_unshare, vec![0x10_0000], refused),
        (libc::SYS_personality, vec![0], ALLOW),
        (libc::SYS_personality, vec![0xffff_ffff], ALLOW),
        (libc::SYS_personality, vec![0x4_0000], ALLOW),
        (libc::SYS_personality, vec![0x40_0000], refused),
        (libc::SYS_personality, vec![HIGH | 0x40_0000], refused),
        (libc::SYS_socket, vec![2, 1, 0], ALLOW),
        (libc::SYS_socket, vec![16, 3, 0], ALLOW),
        (libc::SYS_socket, vec![16, 3, 9], errno(libc::EPROTONOSUPPORT)),
        (libc::SYS_socket, vec![HIGH | 38, 5, 0], errno(libc::EAFNOSUPPORT)),
        (libc::SYS_socket, vec![40, 1, 0], errno(libc::EAFNOSUPPORT)),
        (libc::SYS_socket, vec![2, 1, 6], ALLOW),
        (libc::SYS_socket, vec![10, 2, 17], ALLOW),
        (libc::SYS_socket, vec![10, 1, HIGH | 262], errno(libc::EPROTONOSUPPORT)),
        (libc::SYS_socket, vec![2, 1, 256], errno(libc::EPROTONOSUPPORT)),
        (libc::SYS_socket, vec![43, 1, 0], errno(libc::EAFNOSUPPORT)),
        (libc::SYS_sendto, vec![3, 0, 0, 0x4000], ALLOW),
        (libc::SYS_sendto, vec![3, 0, 0, HIGH | 0x2000_4000], errno(libc::EOPNOTSUPP)),
        (libc::SYS_sendmsg, vec![3, 0, 0x2000_0000], errno(libc::EOPNOTSUPP)),
        (libc::SYS_sendmmsg, vec![3, 0, 0x2000_0000, 0], ALLOW),
        (libc::SYS_sendmmsg, vec![3, 0, 1, 0x2000_0000], errno(libc::EOPNOTSUPP)),
        (libc::SYS_socketpair, vec![1, 1, 0], ALLOW),
        (libc::SYS_fchmod, vec![3, 0o1777], ALLOW),
        (libc::SYS_fchmod, vec![3, HIGH | 0o4755], refused),
        (libc::SYS_fchmodat, vec![3, 0, 0o2755], refused),
        (libc::SYS_mkdirat, vec![3, 0, 0o2755], refused),
        (libc::SYS_mknodat, vec![3, 0, 0o010_644], ALLOW),
        (libc::SYS_mknodat, vec![3, 0, 0o104_755], refused),
        (libc::SYS_mknodat, vec![3, 0, 0o020_666, 0x103], refused),
        (libc::SYS_mknodat, vec![3, 0, 0o060_666, 0x103], refused),
        (libc::SYS_openat, vec![3, 0, 0o101, 0o4755], refused),
        (libc::SYS_openat, vec![3, 0, 0o101, 0o755], ALLOW),
        (libc::SYS_openat, vec![3, 0, 0, 0o4755], ALLOW),
        (libc::SYS_openat, vec![3, 0, 0o200_000, 0o4755], ALLOW),
        (libc::SYS_openat, vec![3, 0, libc::O_TMPFILE as u64 | 1, 0o4755], refused),
        (libc::SYS_clone3, vec![], errno(libc::ENOSYS)),
    ] {
        assert_eq!(answer("", constant, &args), expected, "{constant} {args:x?}");
    }
    assert_eq!(answer("vsock", libc::SYS_socket, &[40]), ALLOW);
    assert_eq!(answer("vsock", libc::SYS_socket, &[38]), errno(libc::EAFNOSUPPORT));
}

#[test]
fn capabilities_open_the_groups_that_serve_nothing_else() {
    let filter = |names: &[&str]| Filter::new(GroupSet::EMPTY, CapSet::from_names(names).unwrap(), true);
    let groups = |filter: Filter| match filter {
        Filter::Default { allow } => allow.to_string(),
        Filter::Unconfined => unreachable!(),
    };
    assert_eq!(groups(filter(&[])), "");
    assert_eq!(groups(filter(&["sys_time", "net_raw", "mknod", "fsetid"])), "clock, packet_sockets");
    assert!(!groups(filter(&["all"])).contains("namespaces"));
    assert!(!groups(filter(&["all"])).contains("set_id"));
    assert!(!groups(filter(&["all"])).contains("tcp_variants"), "it limits ports");
    assert_eq!(groups(Filter::new(GroupSet::EMPTY, CapSet::EMPTY, false)), "tcp_variants");
}

#[test]
fn a_stored_filter_keeps_its_groups_and_ignores_those_it_does_not_know() {
    let bpf = Filter::Default { allow: GroupSet::named("bpf").unwrap() };
    let written = serde_json::to_string(&bpf).unwrap();
    assert_eq!(written, r#"{"default":{"allow":["bpf"]}}"#);
    assert_eq!(serde_json::from_str::<Filter>(&written).unwrap(), bpf);
    let later = written.replace("\"bpf\"", "\"bpf\",\"later\"");
    assert_eq!(serde_json::from_str::<Filter>(&later).unwrap(), bpf);
    assert_eq!(Filter::Unconfined.program(), None);
}

#[test]
fn programs_are_short() {
    // BPF_MAXINSNS is 4096; and each instruction costs a start about 0.1 µs, in which the kernel compiles it.
    let length = Program::new(GroupSet::EMPTY).instructions().len();
    assert!((100..400).contains(&length), "{length}");
}

#[test]
fn a_shim_may_wait_and_write_and_nothing_else() {
    let of = |copies, constant, args: &[u64]| {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        evaluate(shim::filter(copies).instructions(), ARCH, number(constant), all)
    };
    let refused = errno(libc::EPERM);
    for call in shim::ALL.iter().take(2).flat_map(|calls| calls.iter()).filter(|call| call.when.is_empty()) {
        assert_eq!(of(false, call.number, &[]), ALLOW, "{}", call.name());
    }
    for call in shim::ALL[2] {
        assert_eq!(
            (of(false, call.number, &[]), of(true, call.number, &[])),
            (refused, ALLOW),
            "{}",
            call.name()
        );
    }
    for (constant, args, expected) in [
        (libc::SYS_ptrace, vec![17], ALLOW),
        (libc::SYS_ptrace, vec![16], refused),
        (libc::SYS_ioctl, vec![0, 0x5422], ALLOW),
        (libc::SYS_ioctl, vec![0, 0x5412], refused),
        (libc::SYS_mmap, vec![0, 4096, 3], ALLOW),
        (libc::SYS_mmap, vec![0, 4096, 5], refused),
        (libc::SYS_mprotect, vec![0, 4096, 4], refused),
        (libc::SYS_execve, vec![], refused),
        (libc::SYS_clone, vec![], refused),
        (libc::SYS_socket, vec![2], refused),
        (libc::SYS_kill, vec![], refused),
    ] {
        assert_eq!(of(true, constant, &args), expected, "{constant} {args:?}");
    }
    let foreign = evaluate(shim::filter(true).instructions(), 0x4000_0003, 1, [0; 6]);
    assert_eq!(foreign, errno(libc::ENOSYS));
}

#[test]
fn the_documentation_has_each_group_with_its_reason() {
    let docs = include_str!("../../../docs/security.md");
    let rows: Vec<String> = GROUPS.iter().map(row).collect();
    let found: Vec<&str> = docs
        .lines()
        .skip_while(|line| *line != HEAD)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(found, rows, "the table after {HEAD:?} has to be\n{}", rows.join("\n"));
}

const HEAD: &str = "| group | system calls | why not | allowed with |";

fn row(group: &Group) -> String {
    let mut names: Vec<String> = Vec::new();
    for call in group.calls {
        let name = format!("`{}`", call.name());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let with = group.opened_by.map_or_else(String::new, |cap| format!("`{cap}`"));
    format!("| `{}` | {} | {} | {with} |", group.name, names.join(", "), group.why)
}

proptest! {
    #[test]
    fn every_call_has_an_answer(allow: u64, arch: u32, number: u32, args: [u64; 6]) {
        let program = Program::new(GroupSet(allow));
        prop_assert!(program.instructions().len() < 4096);
        for (arch, number) in [(arch, number), (ARCH, number), (ARCH, number % (NEWEST + 2))] {
            evaluate(program.instructions(), arch, number, args);
        }
    }
}
