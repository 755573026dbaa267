//! clone3(2): the shim out of the threaded plugin, and the task out of the single-threaded shim.

use std::arch::asm;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::Result;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use super::signals;
use super::slots::{COPIED, Placed};
use super::stat::field;

/// `CLONE_INTO_CGROUP` of `linux/sched.h`; the libc crate's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Bytes of stack for the child's side of [`spawn`], which needs a few hundred.
const CHILD_STACK: usize = 16 * 1024;

/// A process just made: its number in our pid namespace and its pidfd (close-on-exec).
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

/// First number that a descriptor of a [`Spawn`] may have, so that placing one never overwrites another.
pub(crate) const FIRST_FREE_FD: RawFd = 16;

/// What the plugin hands to a new process. Everything is prepared before the clone: in the child of a threaded process
/// only async-signal-safe calls are allowed (signal-safety(7)). Every descriptor but the cgroup's must be
/// [`FIRST_FREE_FD`] or higher.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    /// The program, opened `O_PATH`: execveat(2) with `AT_EMPTY_PATH`.
    pub program: BorrowedFd<'a>,
    pub argv: &'a [&'a CStr],
    /// `CLONE_NEW*` of clone(2).
    pub namespaces: u64,
    /// The cgroup v2 directory that the process starts in; none = the caller's own.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Descriptors for the child: `fds[i]` becomes number `first_fd + i`.
    pub fds: &'a [BorrowedFd<'a>],
    pub first_fd: RawFd,
    /// Replace standard input, output and error; none = inherited.
    pub stdio: Option<[BorrowedFd<'a>; 3]>,
    /// If exec fails, the child sends the errno here (4 bytes, native order) before it ends with status 127.
    pub report: BorrowedFd<'a>,
}

/// Starts `spawn.program` with an empty environment, every signal blocked, SIGCHLD at its default, no other descriptor open. Returns
/// after exec: the child borrows the caller's memory until then, as by vfork(2), since a copy of it takes longer than all else here.
pub(crate) fn spawn(spawn: &Spawn<'_>) -> Result<Child> {
    let mut argv = [std::ptr::null::<c_char>(); 4];
    let used = [spawn.program, spawn.report]
        .into_iter()
        .chain(spawn.stdio.into_iter().flatten())
        .chain(spawn.fds.iter().copied());
    let mut low = used.filter(|fd| fd.as_raw_fd() < FIRST_FREE_FD);
    let count = RawFd::try_from(spawn.fds.len()).unwrap_or(RawFd::MAX);
    let last = spawn.first_fd.saturating_add(count);
    if spawn.argv.len() >= argv.len() || low.next().is_some() || last > FIRST_FREE_FD {
        return Err(Errno::EINVAL);
    }
    for (slot, arg) in argv.iter_mut().zip(spawn.argv) {
        *slot = arg.as_ptr();
    }
    let stdio = spawn.stdio.iter().flatten().copied();
    let Some(placed) =
        Placed::new([spawn.program, spawn.report].into_iter().chain(stdio).chain(spawn.fds.iter().copied()))
    else {
        return execute(spawn, &argv, false);
    };
    let low: Vec<_> = placed.fds().collect();
    let (standard, fds) = low[2..].split_at(spawn.stdio.map_or(0, |stdio| stdio.len()));
    let stdio = standard.try_into().ok();
    execute(&Spawn { program: low[0], report: low[1], stdio, fds, ..*spawn }, &argv, true)
}

/// With `share`, the child copies of this process's descriptors only those below [`COPIED`], which must include its own.
fn execute(spawn: &Spawn<'_>, argv: &[*const c_char; 4], share: bool) -> Result<Child> {
    // No handler of the plugin may run in the child: tokio's would write into the pipe that it shares with the parent.
    let mask = signals::block_all()?;
    let start = Start { spawn, argv, share };
    let mut stack = Stack([MaybeUninit::uninit(); CHILD_STACK]);
    let mut pidfd = -1;
    let mut args =
        clone_args(spawn.namespaces | VFORK | if share { FILES } else { 0 }, spawn.cgroup, &mut pidfd);
    args.stack = stack.0.as_mut_ptr() as u64;
    args.stack_size = CHILD_STACK as u64;
    // SAFETY: this thread sleeps until the child has called exec or ended (CLONE_VFORK), so that what the child uses of its memory
    // lives long enough and is used by nobody else; the child calls only `in_child`, which is async-signal-safe and never returns.
    let pid = unsafe { clone3_on_stack(&mut args, in_child, &start) };
    let result = Errno::result(pid).map(|pid| child(pid, pidfd));
    signals::restore(&mask)?;
    result
}

/// What the child's side of [`spawn`] works with, on the parent's stack.
struct Start<'a> {
    spawn: &'a Spawn<'a>,
    argv: &'a [*const c_char; 4],
    /// Whether the table of descriptors is still the parent's.
    share: bool,
}

#[repr(align(16))]
struct Stack([MaybeUninit<u8>; CHILD_STACK]);

/// The child's side of [`spawn`]: plain system calls, no allocation, no lock. All memory is the parent's, whose errno it changes.
extern "C" fn in_child(start: &Start<'_>) -> ! {
    let Start { spawn, argv, share } = start;
    let env = [std::ptr::null::<c_char>()];
    // An ignored SIGCHLD would leave the shim without its children's exit statuses; exec keeps what is ignored.
    signals::reset(libc::SIGCHLD);
    // SAFETY: close_range, dup2, execveat, write and _exit take integers and pointers into memory that lives until exec;
    // argv and env end with a null pointer.
    unsafe {
        // Nothing may be placed in the parent's table.
        let mut ok =
            !share || libc::syscall(libc::SYS_close_range, COPIED, u32::MAX, libc::CLOSE_RANGE_UNSHARE) >= 0;
        let own = ok;
        if let Some(stdio) = spawn.stdio.as_ref().filter(|_| own) {
            for (fd, number) in stdio.iter().zip(0..) {
                ok &= libc::dup2(fd.as_raw_fd(), number) >= 0;
            }
        }
        let mut first_other = spawn.first_fd;
        for fd in spawn.fds.iter().filter(|_| own) {
            ok &= libc::dup2(fd.as_raw_fd(), first_other) >= 0;
            first_other += 1;
        }
        ok =
            ok && libc::syscall(libc::SYS_close_range, first_other, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) >= 0;
        if ok {
            libc::syscall(
                libc::SYS_execveat,
                spawn.program.as_raw_fd(),
                c"".as_ptr(),
                argv.as_ptr(),
                env.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        let errno = Errno::last_raw();
        libc::write(spawn.report.as_raw_fd(), (&raw const errno).cast(), size_of_val(&errno));
        libc::_exit(127)
    }
}

/// Longer than /proc/self/stat, 52 numbers and a name.
const STAT_SIZE: usize = 2048;
/// The number of threads, a field of proc_pid_stat(5).
const NUM_THREADS: usize = 20;

/// Proof that the process has one thread, so that a clone of it may run any code.
#[derive(Debug, Clone, Copy)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Counts the threads; an error if there is more than one.
    pub fn check() -> std::io::Result<Self> {
        // Not the longer /proc/self/status: to compute that takes the kernel many times as long.
        let file = openat(AT_FDCWD, "/proc/self/stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let mut stat = [0; STAT_SIZE];
        let length = nix::unistd::read(&file, &mut stat)?;
        match field::<u32>(&stat[..length], NUM_THREADS) {
            Some(1) => Ok(Self(PhantomData)),
            threads => Err(std::io::Error::other(format!("this process has {threads:?} threads, not 1"))),
        }
    }
}

/// Exit status of a child whose `body` panicked.
const PANICKED: i32 = 127;

/// Makes a child that runs `body`, in `cgroup` from its first instruction. What `body` returns, if it does not
/// end in exec, is the child's exit status. A panic ends the child: it never unwinds into a second copy of the caller.
pub fn fork(_: SingleThreaded, cgroup: Option<BorrowedFd<'_>>, body: impl FnOnce() -> i32) -> Result<Child> {
    // SAFETY: the process has a single thread (the token is not Send and says so): no lock can be held by another one.
    match unsafe { clone3(0, cgroup) }? {
        Some(child) => Ok(child),
        None => {
            let status = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
            // SAFETY: _exit never returns and touches no memory of ours; no destructor or buffer of the parent is run here.
            unsafe { libc::_exit(status) }
        }
    }
}

/// Makes a child in a new user namespace, which does nothing until it is killed.
pub(super) fn idle_in_user_namespace(_: SingleThreaded) -> Result<Child> {
    // SAFETY: as in `fork`.
    match unsafe { clone3(libc::CLONE_NEWUSER as u64, None) }? {
        Some(child) => Ok(child),
        None => loop {
            // SAFETY: pause takes nothing and touches no memory.
            unsafe { libc::pause() };
        },
    }
}

/// The raw call without `CLONE_VM`: `None` in the child.
///
/// # Safety
/// In the child of a process with several threads only async-signal-safe calls are allowed until exec or _exit.
unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    let mut args = clone_args(flags, cgroup, &mut pidfd);
    // SAFETY: args has the size given and lives over the call; without CLONE_VM the child has its own copy of the stack.
    let pid = Errno::result(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    })?;
    Ok((pid != 0).then(|| child(pid, pidfd)))
}

/// The child shares the caller's memory, and the caller sleeps until it has called exec or ended.
const VFORK: u64 = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;

/// The child shares the caller's table of descriptors.
const FILES: u64 = libc::CLONE_FILES as u64;

fn clone_args(flags: u64, cgroup: Option<BorrowedFd<'_>>, pidfd: &mut RawFd) -> libc::clone_args {
    // SAFETY: clone_args is a plain C struct of integers for which all zeroes is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd().cast_unsigned().into();
    }
    args
}

/// What clone3(2) has made in the parent.
fn child(pid: libc::c_long, pidfd: RawFd) -> Child {
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a PID is below 2^22 (PID_MAX_LIMIT of linux/threads.h)"
    )]
    let pid = Pid::from_raw(pid as i32);
    Child { pid, pidfd }
}

/// clone3(2) with a stack of its own for the child, which calls `entry` with `start` there. The C libraries have no such function.
///
/// # Safety
/// `args` names a stack that nobody else uses, and [`VFORK`]; `entry` may do what the child of vfork(2) may.
unsafe fn clone3_on_stack<T>(
    args: &mut libc::clone_args,
    entry: extern "C" fn(&T) -> !,
    start: &T,
) -> libc::c_long {
    let size = size_of::<libc::clone_args>();
    let result: libc::c_long;
    // SAFETY: the kernel reads `args` during the call; the parent continues behind it with its registers as the kernel's calling
    // convention leaves them; the child, on the new stack, calls a function that does not return.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_mut(args),
            in("rsi") size,
            in("r12") std::ptr::from_ref(start),
            in("r13") entry,
            out("rcx") _,
            out("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 1",
            "2:",
            inlateout("x0") std::ptr::from_mut(args) => result,
            in("x1") size,
            in("x8") libc::SYS_clone3,
            in("x20") std::ptr::from_ref(start),
            in("x21") entry,
        );
    }
    // What libc::syscall does with an error.
    match i32::try_from(-result) {
        Ok(errno) if errno > 0 => {
            Errno::set_raw(errno);
            -1
        }
        _ => result,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write, pipe};
    use std::os::fd::AsFd;

    use nix::fcntl::open;
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

    use super::*;
    use crate::sys::fd::duplicate_from;
    use crate::sys::slots;

    fn program(path: &str) -> OwnedFd {
        let program = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        duplicate_from(program.as_fd(), FIRST_FREE_FD).unwrap()
    }

    /// Runs `sh -c script` with a pipe as its descriptor 3; returns what it wrote there and how it ended.
    fn run(script: &CStr, report: BorrowedFd<'_>, program: BorrowedFd<'_>) -> (String, WaitStatus) {
        let (mut reader, low) = pipe().unwrap();
        let writer = duplicate_from(low.as_fd(), FIRST_FREE_FD).unwrap();
        drop(low);
        let child = spawn(&Spawn {
            program,
            argv: &[c"sh", c"-c", script],
            namespaces: 0,
            cgroup: None,
            fds: &[writer.as_fd()],
            first_fd: 3,
            stdio: None,
            report,
        })
        .unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        (text, waitid(Id::PIDFd(child.pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap())
    }

    #[test]
    fn the_child_has_its_descriptors_and_no_other_and_no_environment() {
        let leaked = File::open("/dev/null").unwrap();
        let leaked = duplicate_from(leaked.as_fd(), 40).unwrap();
        nix::fcntl::fcntl(&leaked, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let report = duplicate_from(leaked.as_fd(), FIRST_FREE_FD).unwrap();
        let script = c"for n in 3 4 16 40; do [ -e /proc/self/fd/$n ] && echo $n >&3; done; echo home=$HOME >&3; exit 7";
        let (text, status) = run(script, report.as_fd(), program("/bin/sh").as_fd());
        assert_eq!(text, "3\nhome=\n");
        assert!(matches!(status, WaitStatus::Exited(_, 7)), "{status:?}");
    }

    #[test]
    fn the_table_of_a_child_is_small_and_the_parents_stays_as_it_is() {
        let shell = program("/bin/sh");
        slots::reserve(shell.as_fd());
        let many: Vec<_> = (0..200).map(|_| duplicate_from(shell.as_fd(), 300).unwrap()).collect();
        // With nothing but the shell: in a Nix build, no other program is where a shell looks.
        let script =
            c"while read name value; do [ $name != FDSize: ] || echo $value; done < /proc/$$/status >&3";
        let report = duplicate_from(shell.as_fd(), FIRST_FREE_FD).unwrap();
        let (text, status) = run(script, report.as_fd(), shell.as_fd());
        assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
        assert_eq!(text, "64\n");
        assert!(many.iter().all(|fd| nix::sys::stat::fstat(fd).is_ok()), "still open here");
    }

    #[test]
    fn an_exec_that_fails_sends_its_errno() {
        let (mut reader, writer) = pipe().unwrap();
        let report = duplicate_from(writer.as_fd(), FIRST_FREE_FD).unwrap();
        drop(writer);
        let (_, status) = run(c"", report.as_fd(), program("/etc/passwd").as_fd());
        drop(report);
        let mut errno = [0; 4];
        reader.read_exact(&mut errno).unwrap();
        assert_eq!(i32::from_ne_bytes(errno), Errno::EACCES as i32);
        assert!(matches!(status, WaitStatus::Exited(_, 127)), "{status:?}");
    }

    #[test]
    fn a_descriptor_that_would_be_overwritten_is_refused() {
        let mut low = File::options().write(true).open("/dev/null").unwrap();
        low.write_all(b"").unwrap();
        let low = nix::unistd::dup(&low).unwrap();
        let high = duplicate_from(low.as_fd(), FIRST_FREE_FD).unwrap();
        let attempt = |program: BorrowedFd<'_>, report: BorrowedFd<'_>, fds: &[BorrowedFd<'_>], first_fd| {
            let argv = [c"true"];
            let argv: &[&CStr] = &argv;
            spawn(&Spawn { program, argv, namespaces: 0, cgroup: None, fds, first_fd, stdio: None, report })
        };
        if low.as_raw_fd() < FIRST_FREE_FD {
            for (program, report, fd) in [(&low, &high, &high), (&high, &low, &high), (&high, &high, &low)] {
                let refused = attempt(program.as_fd(), report.as_fd(), &[fd.as_fd()], 3);
                assert_eq!(refused.unwrap_err(), Errno::EINVAL);
            }
        }
        let refused = attempt(high.as_fd(), high.as_fd(), &[high.as_fd()], FIRST_FREE_FD);
        assert_eq!(refused.unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn a_test_process_has_more_than_one_thread() {
        // The harness runs this on a thread of its own; a fork of it must be refused.
        assert!(SingleThreaded::check().is_err());
    }
}
