//! The filter as a program of the classic BPF: seccomp(2), `Documentation/networking/filter.rst`.
//!
//! A binary search finds the number. Since Linux 5.11 the kernel evaluates the program once for each call when it is installed, and then
//! only for the calls whose arguments decide.

use std::collections::BTreeMap;

use super::table::KNOWN;
use super::{Call, GroupSet, When};
use crate::sys::seccomp::Instruction;

/// `AUDIT_ARCH_*` of `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;

/// `linux/bpf_common.h`.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// A filter, ready for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program(Vec<Instruction>);

const fn instruction(code: u16, value: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, value }
}

/// Jumps over so many instructions.
const fn jump(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

const fn allow() -> Instruction {
    instruction(RETURN, libc::SECCOMP_RET_ALLOW)
}

const fn refuse(errno: i32) -> Instruction {
    instruction(RETURN, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned())
}

/// Calls that are compared one after another at the end of a search. With fewer of them the program is longer, and the kernel compiles it for
/// longer; with more, the kernel needs longer to find out which calls are allowed whatever their arguments. Measured: 4 to 20 cost the same.
const LEAF: usize = 8;

impl Program {
    /// The default filter, in which these groups are not refused.
    pub(crate) fn new(allowed: GroupSet) -> Self {
        let mut calls: BTreeMap<u32, Vec<Call>> = BTreeMap::new();
        for call in allowed.others().flat_map(|group| group.calls) {
            let number = u32::try_from(call.number).expect("the number of a system call is small");
            calls.entry(number).or_default().push(*call);
        }
        let calls: Vec<_> = calls.iter().map(|(number, calls)| (*number, &calls[..])).collect();
        let mut program = number();
        program.extend(unknown());
        search(&calls, &mut program);
        Self(program)
    }

    /// A filter that allows these calls, except for the uses that they name, and refuses all others.
    pub(super) fn only(calls: &[Call]) -> Self {
        let mut program = number();
        for call in calls {
            let mut code = if call.when.is_empty() { Vec::new() } else { refusal(call) };
            code.push(allow());
            let number = u32::try_from(call.number).expect("the number of a system call is small");
            program.push(jump(JUMP_EQUAL, number, 0, distance(code.len())));
            program.extend(code);
        }
        program.push(refuse(libc::EPERM));
        Self(program)
    }

    pub(crate) fn instructions(&self) -> &[Instruction] {
        &self.0
    }
}

/// Loads the number, if the call is of this architecture.
fn number() -> Vec<Instruction> {
    vec![
        instruction(LOAD, ARCHITECTURE),
        jump(JUMP_EQUAL, ARCH, 1, 0),
        refuse(libc::ENOSYS),
        instruction(LOAD, NUMBER),
    ]
}

/// Refuses the numbers that are not in [`KNOWN`]. What an x32 program calls has bit 30 set, and is beyond all of them.
fn unknown() -> Vec<Instruction> {
    let [low, high] = KNOWN;
    vec![
        jump(JUMP_GREATER_EQUAL, high.end() + 1, 2, 0),
        jump(JUMP_GREATER_EQUAL, *high.start(), 2, 0),
        jump(JUMP_GREATER_EQUAL, low.end() + 1, 0, 1),
        refuse(libc::ENOSYS),
    ]
}

/// A number, and the uses that are refused.
type Refused<'a> = (u32, &'a [Call]);

/// A binary search for the number, which is loaded.
fn search(calls: &[Refused<'_>], program: &mut Vec<Instruction>) {
    if calls.len() <= LEAF {
        leaf(calls, program);
        return;
    }
    let (low, high) = calls.split_at(calls.len() / 2);
    let at = program.len();
    // The distance is known only when the lower half is written.
    program.extend([jump(JUMP_GREATER_EQUAL, high[0].0, 0, 1), instruction(JUMP, 0)]);
    search(low, program);
    program[at + 1].value = u32::try_from(program.len() - at - 2).expect("a program has few instructions");
    search(high, program);
}

/// Those that are refused whatever their arguments come last, with one answer for all of them.
fn leaf(calls: &[Refused<'_>], program: &mut Vec<Instruction>) {
    let (plain, others): (Vec<_>, Vec<_>) = calls.iter().partition(|(_, calls)| is_plain(calls));
    for (number, calls) in others {
        let mut code: Vec<Instruction> = calls.iter().flat_map(refusal).collect();
        code.push(allow());
        program.push(jump(JUMP_EQUAL, number, 0, distance(code.len())));
        program.extend(code);
    }
    for (at, (number, _)) in plain.iter().enumerate() {
        program.push(jump(JUMP_EQUAL, *number, distance(plain.len() - at), 0));
    }
    program.push(allow());
    if !plain.is_empty() {
        program.push(refuse(libc::EPERM));
    }
}

fn is_plain(calls: &[Call]) -> bool {
    calls.iter().all(|call| call.when.is_empty() && call.errno == libc::EPERM)
}

fn distance(instructions: usize) -> u8 {
    u8::try_from(instructions).expect("a leaf has few instructions")
}

/// Ends behind its last instruction if a condition does not hold.
fn refusal(call: &Call) -> Vec<Instruction> {
    let mut code = vec![refuse(call.errno)];
    for when in call.when.iter().rev() {
        let end = distance(code.len());
        let (argument, test) = match *when {
            When::Is(argument, value) => (argument, vec![jump(JUMP_EQUAL, value, 0, end)]),
            When::IsNot(argument, value) => (argument, vec![jump(JUMP_EQUAL, value, end, 0)]),
            When::Any(argument, bits) => (argument, vec![jump(JUMP_ANY_BIT, bits, 0, end)]),
            When::Has(argument, bits, value) => {
                (argument, vec![instruction(AND, bits), jump(JUMP_EQUAL, value, 0, end)])
            }
        };
        let argument = u32::try_from(argument).expect("there are six arguments");
        // The lower half: both architectures are little-endian.
        let load = instruction(LOAD, ARGUMENTS + ARGUMENT_BYTES * argument);
        code.splice(0..0, std::iter::once(load).chain(test));
    }
    code
}
