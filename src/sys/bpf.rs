//! The device program of a cgroup: bpf(2), `BPF_PROG_TYPE_CGROUP_DEVICE`. The numbers are those of `linux/bpf.h`.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::Result;
use nix::errno::Errno;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// All programs of the cgroups above have to allow an access as well.
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;
/// By which the program of an earlier start is found.
const NAME: [u8; 16] = *b"exec2_device\0\0\0\0";
/// Programs of one cgroup that are looked at.
const PROGRAMS: u32 = 64;

/// `MINORBITS` of the kernel.
const MINOR_BITS: i32 = 20;

/// `BPF_DEVCG_ACC_*`.
pub(crate) const MKNOD: i32 = 1;
pub(crate) const READ: i32 = 2;
pub(crate) const WRITE: i32 = 4;

/// What a program allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// A block device, not a character device.
    pub block: bool,
    pub major: u32,
    /// None: all.
    pub minor: Option<u32>,
    pub access: i32,
}

/// Lets the processes of a cgroup use these devices and no other, from now on and until the cgroup is removed. The program of an earlier call is
/// replaced.
pub(crate) fn allow_devices(cgroup: BorrowedFd<'_>, allowed: &[Allowed]) -> Result<()> {
    let program = load(&program(allowed)?)?;
    let earlier = earlier(cgroup)?;
    let attach = Attach {
        flags: ALLOW_MULTI | if earlier.is_some() { REPLACE } else { 0 },
        replaced: earlier.as_ref().map_or(0, AsRawFd::as_raw_fd),
        ..Attach::of(cgroup, &program)
    };
    call(PROG_ATTACH, attach).map(drop)
}

/// Whether there is a program of an earlier call.
pub(crate) fn has_device_program(cgroup: BorrowedFd<'_>) -> Result<bool> {
    earlier(cgroup).map(|found| found.is_some())
}

/// Removes the program of an earlier call.
pub(crate) fn allow_all_devices(cgroup: BorrowedFd<'_>) -> Result<()> {
    let Some(earlier) = earlier(cgroup)? else { return Ok(()) };
    call(PROG_DETACH, Attach::of(cgroup, &earlier)).map(drop)
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    value: i32,
}

/// `BPF_LDX | BPF_MEM | BPF_W`.
const LOAD: u8 = 0x61;
/// `BPF_ALU` with `BPF_AND`, `BPF_RSH`, `BPF_LSH`, `BPF_OR | BPF_X`, `BPF_MOV`: 32 bits, the upper half becomes zero.
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SHIFT_LEFT: u8 = 0x64;
const OR: u8 = 0x4c;
const MOVE: u8 = 0xbc;
const SET: u8 = 0xb4;
/// `BPF_JMP32 | BPF_JNE | BPF_K`: a major number may have the sign bit.
const UNLESS: u8 = 0x56;
const EXIT: u8 = 0x95;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, value }
}

/// Registers: 1 is the `struct bpf_cgroup_dev_ctx`, 2 the type, 3 the access, 4 the major number, 5 both numbers, as the kernel keeps them in a `dev_t`.
///
/// Each device is one test of both numbers, and ends the program if they match: so the kernel, which follows all ways through the program at each
/// start of a task, has a few instructions for each device, and not for each pair of them.
fn program(allowed: &[Allowed]) -> Result<Vec<Instruction>> {
    let mut code = vec![
        instruction(LOAD, 3, 1, 0, 0),
        instruction(MOVE, 2, 3, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD, 4, 1, 4, 0),
        instruction(LOAD, 5, 1, 8, 0),
        instruction(MOVE, 6, 4, 0, 0),
        instruction(SHIFT_LEFT, 6, 0, 0, MINOR_BITS),
        instruction(OR, 5, 6, 0, 0),
    ];
    let merged = merge(allowed);
    for (block, number) in [(true, 1), (false, 2)] {
        let mut tests: Vec<_> = merged.iter().filter(|device| device.block == block).flat_map(test).collect();
        tests.extend(end(false));
        let others = i16::try_from(tests.len()).map_err(|_| Errno::E2BIG)?;
        code.push(instruction(UNLESS, 2, 0, others, number));
        code.append(&mut tests);
    }
    code.extend(end(false));
    Ok(code)
}

/// Each device once, with all that is allowed on it; last the rules for all devices of a major number.
fn merge(allowed: &[Allowed]) -> Vec<Allowed> {
    let mut merged: BTreeMap<_, i32> = BTreeMap::new();
    for Allowed { block, major, minor, access } in allowed {
        *merged.entry((minor.is_none(), *block, *major, *minor)).or_default() |= access;
    }
    let of_all = |block, major| merged.get(&(true, block, major, None)).copied().unwrap_or_default();
    let devices = merged.iter().map(|((_, block, major, minor), access)| Allowed {
        block: *block,
        major: *major,
        minor: *minor,
        access: access | of_all(*block, *major),
    });
    devices.collect()
}

/// Ends the program if it is this device.
fn test(Allowed { major, minor, access, .. }: &Allowed) -> Vec<Instruction> {
    let (register, value) = match minor {
        Some(minor) => (5, major << MINOR_BITS | minor),
        None => (4, *major),
    };
    let mut code = vec![
        instruction(UNLESS, register, 0, 6, value.cast_signed()),
        instruction(AND, 3, 0, 0, !access),
        instruction(UNLESS, 3, 0, 2, 0),
    ];
    code.extend(end(true));
    code.extend(end(false));
    code
}

fn end(allowed: bool) -> [Instruction; 2] {
    [instruction(SET, 0, 0, 0, allowed.into()), instruction(EXIT, 0, 0, 0, 0)]
}

fn load(code: &[Instruction]) -> Result<OwnedFd> {
    let licence = c"Dual MIT/GPL";
    let load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(code.len()).map_err(|_| Errno::E2BIG)?,
        code: code.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        name: NAME,
        expected: ATTACH_CGROUP_DEVICE,
        ..Load::default()
    };
    call(PROG_LOAD, load).map(owned)
}

/// The program that this driver has attached to the cgroup before.
fn earlier(cgroup: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let mut ids = [0_u32; PROGRAMS as usize];
    let mut query = Query {
        target: cgroup.as_raw_fd(),
        kind: ATTACH_CGROUP_DEVICE,
        ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS,
        ..Query::default()
    };
    // SAFETY: the kernel writes no more ids than `count`, and the count, during the call.
    unsafe { bpf(PROG_QUERY, &mut query) }?;
    for id in ids.into_iter().take(query.count as usize) {
        let program = match call(PROG_GET_FD_BY_ID, ById { id, ..ById::default() }) {
            // Detached since, so not ours: only one start at a time has this cgroup.
            Err(Errno::ENOENT) => continue,
            opened => owned(opened?),
        };
        if name(&program)? == NAME {
            return Ok(Some(program));
        }
    }
    Ok(None)
}

fn name(program: &OwnedFd) -> Result<[u8; 16]> {
    let mut info = Info::default();
    let question = ByFd {
        fd: program.as_raw_fd(),
        size: u32::try_from(size_of::<Info>()).map_err(|_| Errno::EINVAL)?,
        info: (&raw mut info) as u64,
    };
    call(OBJ_GET_INFO_BY_FD, question)?;
    Ok(info.name)
}

/// The part of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    code: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected: u32,
}

/// For `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target: RawFd,
    program: RawFd,
    kind: u32,
    flags: u32,
    replaced: RawFd,
}

impl Attach {
    fn of(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> Self {
        Self {
            target: cgroup.as_raw_fd(),
            program: program.as_raw_fd(),
            kind: ATTACH_CGROUP_DEVICE,
            flags: 0,
            replaced: 0,
        }
    }
}

/// For `BPF_PROG_QUERY`. Linux 6.17 writes `revision`, whatever size is passed, so nothing else may be there.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: RawFd,
    kind: u32,
    flags: u32,
    attached: u32,
    ids: u64,
    count: u32,
    padding: u32,
    attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// For `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// For `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct ByFd {
    fd: RawFd,
    size: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`, to the name.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    user: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn call<T>(command: libc::c_int, mut attributes: T) -> Result<RawFd> {
    // SAFETY: what these structures point to lives over the call, and has the sizes that they say.
    unsafe { bpf(command, &mut attributes) }
}

/// # Safety
/// `attributes` is a part of `union bpf_attr` for this command, without uninitialized bytes; what it points to has the size that it says.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> Result<RawFd> {
    // SAFETY: the kernel reads and writes no more than the size that is passed.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    Errno::result(done).map(|done| RawFd::try_from(done).unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets a program as the kernel would.
    fn run(code: &[Instruction], block: bool, access: i32, major: u32, minor: u32) -> bool {
        let context = [(access << 16 | if block { 1 } else { 2 }), major.cast_signed(), minor.cast_signed()];
        let mut registers = [0_i32; 10];
        let mut next = 0;
        loop {
            let Instruction { code, registers: used, offset, value } = code[next];
            let (to, from) = (usize::from(used & 0xf), usize::from(used >> 4));
            next += 1;
            match code {
                LOAD => registers[to] = context[usize::try_from(offset).unwrap() / 4],
                MOVE => registers[to] = registers[from],
                AND => registers[to] &= value,
                SHIFT_LEFT => registers[to] <<= value,
                OR => registers[to] |= registers[from],
                SHIFT_RIGHT => registers[to] = (registers[to].cast_unsigned() >> value).cast_signed(),
                SET => registers[to] = value,
                UNLESS if registers[to] != value => next += usize::try_from(offset).unwrap(),
                UNLESS => {}
                EXIT => return registers[0] == 1,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn what_is_not_allowed_is_denied() {
        let null = Allowed { block: false, major: 1, minor: Some(3), access: READ | WRITE };
        let terminals = Allowed { block: false, major: 136, minor: None, access: READ | WRITE };
        let disk = Allowed { block: true, major: 7, minor: Some(0), access: READ };
        // Also what two of them allow together, or one and all of its major number.
        let other = |access| Allowed { block: true, major: 4095, minor: Some(0xf_ffff), access };
        let terminal = Allowed { minor: Some(5), access: MKNOD, ..terminals };
        let code = program(&[null, terminals, disk, other(READ), terminal, other(WRITE)]).unwrap();
        for (allowed, block, access, major, minor) in [
            (true, false, READ, 1, 3),
            (true, false, READ | WRITE, 1, 3),
            (false, false, MKNOD, 1, 3),
            (false, false, READ | MKNOD, 1, 3),
            (false, true, READ, 1, 3),
            (false, false, READ, 1, 1),
            (false, false, READ, 2, 3),
            (true, false, WRITE, 136, 77),
            (true, true, READ, 7, 0),
            (false, true, READ | WRITE, 7, 0),
            (false, true, READ, 7, 1),
            (false, false, READ, 7, 0),
            (true, true, READ | WRITE, 4095, 0xf_ffff),
            (false, true, MKNOD, 4095, 0xf_ffff),
            (false, true, READ, 4095, 0xf_fffe),
            (true, false, WRITE | MKNOD, 136, 5),
            (false, false, MKNOD, 136, 6),
        ] {
            assert_eq!(run(&code, block, access, major, minor), allowed, "{block} {access} {major}:{minor}");
        }
        assert!(!run(&program(&[]).unwrap(), false, READ, 1, 3));
    }

    /// The kernel follows all ways through a program, and gives up at a million instructions.
    #[test]
    fn the_kernel_has_a_few_instructions_to_follow_for_each_device() {
        let devices = |count| -> Vec<_> {
            (0..count)
                .map(|n| Allowed { block: n % 2 == 0, major: 240 + n, minor: Some(n), access: READ })
                .collect()
        };
        let followed = |count| {
            let code = program(&devices(count)).unwrap();
            follow(&code, 0, [None; 10])
        };
        assert!(followed(256) < 256 * 12, "{}", followed(256));
        assert_eq!(program(&devices(10_000)).err(), Some(Errno::E2BIG));
    }

    /// Counts the instructions of all ways from here, where a register may have a known value. A jump that is decided is followed in one direction.
    fn follow(code: &[Instruction], next: usize, mut registers: [Option<i32>; 10]) -> usize {
        let Instruction { code: kind, registers: used, offset, value } = code[next];
        let (to, from) = (usize::from(used & 0xf), usize::from(used >> 4));
        let jump = next + 1 + usize::try_from(offset).unwrap();
        match kind {
            EXIT => return 1,
            SET => registers[to] = Some(value),
            UNLESS if registers[to].is_some_and(|known| known != value) => {
                return 1 + follow(code, jump, registers);
            }
            UNLESS if registers[to].is_none() => {
                let others = follow(code, jump, registers);
                registers[to] = Some(value);
                return 1 + others + follow(code, next + 1, registers);
            }
            UNLESS => {}
            MOVE => registers[to] = registers[from],
            _ => registers[to] = None,
        }
        1 + follow(code, next + 1, registers)
    }

    #[test]
    fn structures_are_those_of_the_kernel() {
        use std::mem::offset_of;
        assert_eq!((size_of::<Instruction>(), size_of::<Attach>(), size_of::<Query>()), (8, 20, 64));
        assert_eq!(
            (offset_of!(Query, ids), offset_of!(Query, count), offset_of!(Query, revision)),
            (16, 24, 56)
        );
        assert_eq!((offset_of!(Load, name), offset_of!(Load, expected), size_of::<Load>()), (48, 68, 72));
        assert_eq!((offset_of!(Info, name), size_of::<Info>(), size_of::<ByFd>()), (64, 80, 16));
    }
}
