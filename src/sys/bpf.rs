//! The device program of a cgroup: bpf(2), `BPF_PROG_TYPE_CGROUP_DEVICE`. The numbers are those of `linux/bpf.h`.

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
    let program = load(&program(allowed))?;
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
/// `BPF_ALU | BPF_AND | BPF_K`, `BPF_ALU | BPF_RSH | BPF_K`, `BPF_ALU | BPF_MOV`: 32 bits, the upper half becomes zero.
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xbc;
const SET: u8 = 0xb4;
/// `BPF_JMP32 | BPF_JNE | BPF_K`: a major number may have the sign bit.
const UNLESS: u8 = 0x56;
const EXIT: u8 = 0x95;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, value }
}

/// Registers: 1 is the `struct bpf_cgroup_dev_ctx`, 2 the type, 3 the access, 4 and 5 the numbers.
fn program(allowed: &[Allowed]) -> Vec<Instruction> {
    let mut code = vec![
        instruction(LOAD, 3, 1, 0, 0),
        instruction(MOVE, 2, 3, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD, 4, 1, 4, 0),
        instruction(LOAD, 5, 1, 8, 0),
    ];
    for Allowed { block, major, minor, access } in allowed {
        let type_of = if *block { 1 } else { 2 };
        let mut tests = vec![(2, type_of), (4, major.cast_signed())];
        tests.extend(minor.map(|minor| (5, minor.cast_signed())));
        // Behind the tests: three for the access, two for the end.
        let mut left = i16::try_from(tests.len()).unwrap_or_default() + 4;
        for (register, value) in tests {
            code.push(instruction(UNLESS, register, 0, left, value));
            left -= 1;
        }
        code.push(instruction(MOVE, 6, 3, 0, 0));
        code.push(instruction(AND, 6, 0, 0, !access));
        code.push(instruction(UNLESS, 6, 0, 2, 0));
        code.push(instruction(SET, 0, 0, 0, 1));
        code.push(instruction(EXIT, 0, 0, 0, 0));
    }
    code.push(instruction(SET, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
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
        let code = program(&[null, terminals, disk]);
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
        ] {
            assert_eq!(run(&code, block, access, major, minor), allowed, "{block} {access} {major}:{minor}");
        }
        assert!(!run(&program(&[]), false, READ, 1, 3));
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
