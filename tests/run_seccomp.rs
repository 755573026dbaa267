//! The filter of system calls, by the command `run`: what it refuses, each with a control that it is the filter that refuses it.
//!
//! These tests need root and Landlock, as those of `run_verb`. The calls have arguments with which they do nothing: without a filter they
//! fail with another error.

// In a test, a failed step is a failed test.
#![allow(clippy::unwrap_used)]

#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use libc::c_long;

const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-exec2");

/// No descriptor, no address, and a mode or flag that does not exist.
const NO_FD: i64 = -1;
const NOWHERE: i64 = 1;
const NO_FLAG: i64 = 0x7000_0000;
const CWD: i64 = libc::AT_FDCWD as i64;
/// No type of sockets: what the kernel refuses before it looks for the family.
const NO_TYPE: i64 = 15;
const SET_UID: i64 = 0o4755;
const SET_GID: i64 = 0o2755;
const DEVICE: i64 = libc::S_IFCHR as i64 | 0o600;
const CREATE: i64 = libc::O_CREAT as i64;

/// Group, call, arguments, and the name of the errno with which the filter answers.
type Attack = (&'static str, c_long, &'static [i64], &'static str);

/// A task that asks for their capabilities may use these groups.
const OF_A_CAPABILITY: &[Attack] = &[
    ("accounting", libc::SYS_acct, &[NOWHERE], "EPERM"),
    ("bpf", libc::SYS_bpf, &[NO_FLAG, 0, 0], "EPERM"),
    ("chroot", libc::SYS_chroot, &[NOWHERE], "EPERM"),
    ("clock", libc::SYS_clock_settime, &[99, NOWHERE], "EPERM"),
    ("clock", libc::SYS_settimeofday, &[NOWHERE, 0], "EPERM"),
    ("hostname", libc::SYS_sethostname, &[NOWHERE, -1], "EPERM"),
    ("hostname", libc::SYS_setdomainname, &[NOWHERE, -1], "EPERM"),
    #[cfg(target_arch = "x86_64")]
    ("io_ports", libc::SYS_ioperm, &[1 << 40, 1, 1], "EPERM"),
    #[cfg(target_arch = "x86_64")]
    ("io_ports", libc::SYS_iopl, &[9], "EPERM"),
    ("kernel_log", libc::SYS_syslog, &[99, 0, 0], "EPERM"),
    ("kexec", libc::SYS_kexec_load, &[0, 0, 0, NO_FLAG], "EPERM"),
    ("modules", libc::SYS_init_module, &[NOWHERE, 1, NOWHERE], "EPERM"),
    ("modules", libc::SYS_finit_module, &[NO_FD, NOWHERE, NO_FLAG], "EPERM"),
    ("modules", libc::SYS_delete_module, &[NOWHERE, 0], "EPERM"),
    ("netlink", libc::SYS_socket, &[16, 3, 16], "EPROTONOSUPPORT"),
    ("packet_sockets", libc::SYS_socket, &[17, NO_TYPE, 0], "EAFNOSUPPORT"),
    ("perf", libc::SYS_perf_event_open, &[NOWHERE, 0, 0, 0, 0], "EPERM"),
    ("processes", libc::SYS_pidfd_getfd, &[NO_FD, 0, NO_FLAG], "EPERM"),
    ("processes", libc::SYS_kcmp, &[NO_FLAG, NO_FLAG, 99, 0, 0], "EPERM"),
    ("processes", libc::SYS_process_madvise, &[NO_FD, 0, 0, 0, NO_FLAG], "EPERM"),
    ("reboot", libc::SYS_reboot, &[0, 0, 0, 0], "EPERM"),
];

/// No task may use these, whatever its capabilities.
const OF_NONE: &[Attack] = &[
    ("device_nodes", libc::SYS_mknodat, &[CWD, NOWHERE, DEVICE, 0x103], "EPERM"),
    ("file_handles", libc::SYS_open_by_handle_at, &[NO_FD, NOWHERE, 0], "EPERM"),
    ("file_handles", libc::SYS_fanotify_init, &[NO_FLAG, 0], "EPERM"),
    ("io_uring", libc::SYS_io_uring_setup, &[0, NOWHERE], "EPERM"),
    ("io_uring", libc::SYS_io_uring_enter, &[NO_FD, 0, 0, 0], "EPERM"),
    ("io_uring", libc::SYS_io_uring_register, &[NO_FD, 0, 0, 0], "EPERM"),
    ("keyrings", libc::SYS_add_key, &[NOWHERE, 0, 0, 0, 0], "EPERM"),
    ("keyrings", libc::SYS_request_key, &[NOWHERE, 0, 0, 0], "EPERM"),
    ("keyrings", libc::SYS_keyctl, &[9999], "EPERM"),
    ("mount", libc::SYS_mount, &[NOWHERE, NOWHERE, NOWHERE, 0, 0], "EPERM"),
    ("mount", libc::SYS_umount2, &[NOWHERE, NO_FLAG], "EPERM"),
    ("mount", libc::SYS_pivot_root, &[NOWHERE, NOWHERE], "EPERM"),
    ("mount", libc::SYS_open_tree, &[CWD, NOWHERE, NO_FLAG], "EPERM"),
    ("mount", libc::SYS_move_mount, &[NO_FD, NOWHERE, NO_FD, NOWHERE, NO_FLAG], "EPERM"),
    ("mount", libc::SYS_fsopen, &[NOWHERE, NO_FLAG], "EPERM"),
    ("mount", libc::SYS_fsconfig, &[NO_FD, 99, 0, 0, 0], "EPERM"),
    ("mount", libc::SYS_fsmount, &[NO_FD, NO_FLAG, 0], "EPERM"),
    ("mount", libc::SYS_fspick, &[CWD, NOWHERE, NO_FLAG], "EPERM"),
    ("mount", libc::SYS_mount_setattr, &[CWD, NOWHERE, NO_FLAG, 0, 0], "EPERM"),
    ("namespaces", libc::SYS_unshare, &[libc::CLONE_NEWUTS as i64], "EPERM"),
    ("namespaces", libc::SYS_unshare, &[libc::CLONE_NEWUSER as i64], "EPERM"),
    ("namespaces", libc::SYS_clone, &[(libc::CLONE_NEWUSER | libc::CLONE_FS) as i64, 0, 0, 0, 0], "EPERM"),
    ("namespaces", libc::SYS_clone3, &[0, 0], "ENOSYS"),
    ("namespaces", libc::SYS_setns, &[NO_FD, 0], "EPERM"),
    ("other_sockets", libc::SYS_socket, &[38, NO_TYPE, 0], "EAFNOSUPPORT"),
    ("other_sockets", libc::SYS_socketpair, &[30, NO_TYPE, 0, NOWHERE], "EAFNOSUPPORT"),
    ("personality", libc::SYS_personality, &[0x040_0000], "EPERM"),
    ("quota", libc::SYS_quotactl, &[NO_FLAG, NOWHERE, 0, 0], "EPERM"),
    ("quota", libc::SYS_quotactl_fd, &[NO_FD, 0, 0, 0], "EPERM"),
    #[cfg(target_arch = "x86_64")]
    ("set_id", libc::SYS_chmod, &[NOWHERE, SET_UID], "EPERM"),
    ("set_id", libc::SYS_fchmod, &[NO_FD, SET_GID], "EPERM"),
    ("set_id", libc::SYS_fchmodat, &[CWD, NOWHERE, SET_UID], "EPERM"),
    ("set_id", 452, &[CWD, NOWHERE, SET_UID, 0], "EPERM"),
    #[cfg(target_arch = "x86_64")]
    ("set_id", libc::SYS_mkdir, &[NOWHERE, SET_GID], "EPERM"),
    ("set_id", libc::SYS_mkdirat, &[CWD, NOWHERE, SET_GID], "EPERM"),
    #[cfg(target_arch = "x86_64")]
    ("set_id", libc::SYS_mknod, &[NOWHERE, SET_UID, 0], "EPERM"),
    ("set_id", libc::SYS_mknodat, &[CWD, NOWHERE, SET_UID, 0], "EPERM"),
    #[cfg(target_arch = "x86_64")]
    ("set_id", libc::SYS_creat, &[NOWHERE, SET_UID], "EPERM"),
    #[cfg(target_arch = "x86_64")]
    ("set_id", libc::SYS_open, &[NOWHERE, CREATE, SET_UID], "EPERM"),
    ("set_id", libc::SYS_openat, &[CWD, NOWHERE, CREATE, SET_UID], "EPERM"),
    ("set_id", libc::SYS_openat2, &[CWD, NOWHERE, 0, 0], "ENOSYS"),
    ("swap", libc::SYS_swapon, &[NOWHERE, 0], "EPERM"),
    ("swap", libc::SYS_swapoff, &[NOWHERE], "EPERM"),
    ("terminals", libc::SYS_ioctl, &[NO_FD, 0x5412, 0], "EPERM"),
    ("terminals", libc::SYS_ioctl, &[NO_FD, 0x541c, 0], "EPERM"),
    ("terminals", libc::SYS_ioctl, &[NO_FD, 1 << 32 | 0x5423, 0], "EPERM"),
    ("userfaultfd", libc::SYS_userfaultfd, &[NO_FLAG], "EPERM"),
    ("vsock", libc::SYS_socket, &[40, NO_TYPE, 0], "EAFNOSUPPORT"),
];

/// Prints the name of the errno, or ok, of each call, which is in a process of its own.
const CALLS: &str = r#"
import ctypes, errno, os, sys
syscall = ctypes.CDLL(None, use_errno=True).syscall
syscall.restype = ctypes.c_long
for call in sys.argv[1:]:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        result = syscall(*(ctypes.c_long(int(number)) for number in call.split(",")))
        print("ok" if result >= 0 else errno.errorcode[ctypes.get_errno()])
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"#;

/// Whether `run` works here; if not, the test reports that it was not run.
fn applies() -> bool {
    let Some(why) = sandbox::unavailable(PLUGIN) else { return true };
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    // Not with a macro, whose output the harness captures.
    std::io::stderr().write_all(format!("{name} was not run: {why}\n").as_bytes()).unwrap();
    false
}

/// Exit status, output and errors of a command.
fn run(options: &[&str], command: &[&str]) -> (Option<i32>, String, String) {
    let mut run = Command::new(PLUGIN);
    let output = run.arg("run").args(options).arg("--").args(command).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // Where this host has no cgroup v2, `run` says so first.
    let own = |line: &&str| line.starts_with("nomad-driver-exec2: running without a cgroup");
    let err = text(&output.stderr).split_inclusive('\n').filter(|line| !own(line)).collect();
    (output.status.code(), text(&output.stdout), err)
}

fn sh(options: &[&str], script: &str) -> (Option<i32>, String, String) {
    run(options, &["sh", "-c", script])
}

/// The answer to each call in a task with these options.
fn answers(options: &[&str], attacks: &[Attack]) -> Vec<String> {
    let list = |(_, call, args, _): &Attack| {
        std::iter::once(call).chain(*args).map(i64::to_string).collect::<Vec<_>>().join(",")
    };
    let calls: Vec<_> = attacks.iter().map(list).collect();
    let mut command = vec!["python3", "-c", CALLS];
    command.extend(calls.iter().map(String::as_str));
    let (status, out, err) = run(options, &command);
    assert_eq!((status, err.as_str()), (Some(0), ""), "{options:?}");
    let answers: Vec<_> = out.lines().map(ToOwned::to_owned).collect();
    assert_eq!(answers.len(), attacks.len());
    answers
}

/// Those whose answer is, or is not, that of the filter.
fn with<'a>(attacks: &'a [Attack], answers: &[String], refused: bool) -> Vec<(&'a Attack, String)> {
    let answered = attacks.iter().zip(answers).filter(|(attack, answer)| (attack.3 == *answer) == refused);
    answered.map(|(attack, answer)| (attack, answer.clone())).collect()
}

const ROOT: [&str; 4] = ["--user", "root", "--cap-add", "all"];

#[test]
fn each_call_is_refused_by_the_filter_and_by_nothing_else() {
    if !applies() {
        return;
    }
    let nothing = Vec::<(&Attack, String)>::new();
    let all = [OF_A_CAPABILITY, OF_NONE].concat();
    assert_eq!(with(&all, &answers(&[], &all), false), nothing, "of a dynamic user");
    let root: Vec<_> = ROOT.into();
    assert_eq!(with(OF_NONE, &answers(&root, OF_NONE), false), nothing, "of root with all capabilities");
    let opened = answers(&root, OF_A_CAPABILITY);
    assert_eq!(with(OF_A_CAPABILITY, &opened, true), nothing, "opened by capabilities");
    let unconfined = answers(&[&root[..], &["--seccomp", "unconfined"]].concat(), &all);
    assert_eq!(with(&all, &unconfined, true), nothing, "without a filter");
    let groups: BTreeMap<_, _> = all.iter().map(|attack| (attack.0, ())).collect();
    let allowed: Vec<_> = groups.keys().flat_map(|group| ["--seccomp-allow", group]).collect();
    let allowed = answers(&[&root[..], &allowed].concat(), &all);
    assert_eq!(with(&all, &allowed, true), nothing, "with the groups allowed");
}

#[test]
fn one_group_opens_its_own_calls_and_no_other() {
    if !applies() {
        return;
    }
    let found = answers(&["--seccomp-allow", "io_uring", "--seccomp-allow", "vsock"], OF_NONE);
    let open: Vec<_> = with(OF_NONE, &found, false).into_iter().map(|(attack, _)| attack.0).collect();
    assert_eq!(open, ["io_uring", "io_uring", "io_uring", "vsock"]);
    let (status, _, err) = sh(&["--seccomp-allow", "uring"], "true");
    assert_eq!(status, Some(2));
    assert!(err.contains("'uring'") && err.contains("io_uring"), "{err}");
}

#[test]
fn no_set_id_file_and_no_device_can_be_made() {
    if !applies() {
        return;
    }
    let script = "cd $NOMAD_ALLOC_DIR; touch f; mkdir d; chmod 1777 d && chmod 755 f || exit 9; \
                  chmod u+s f; mkdir -m 2755 g; install -m 4755 /bin/true t; mknod n c 1 3; mkfifo p; stat -c '%n %A' *";
    let root = |options: &[&str]| sh(&[&ROOT[..], options].concat(), script);
    let (_, out, err) = root(&[]);
    for made in ["d drwxrwxrwt\n", "f -rwxr-xr-x\n", "p prw-r--r--\n"] {
        assert!(out.contains(made), "{made}: {out}");
    }
    let set = |line: &&str| line.split_once(' ').unwrap().1.contains('s');
    assert_eq!(out.lines().find(set), None);
    assert_eq!(err.matches("Operation not permitted").count(), 4, "{err}");
    let (_, out, err) = root(&["--seccomp-allow", "set_id"]);
    for made in ["f -rwsr-xr-x", "g drwxr-sr-x", "t -rwsr-xr-x"] {
        assert!(out.contains(made), "{made}: {out} {err}");
    }
    assert_eq!(err.lines().count(), 1, "only the device is refused: {err}");
}

/// getpid(2) of a 32-bit program. If the kernel does not run these, the signal ends the process.
#[cfg(target_arch = "x86_64")]
const INT80: &str = r#"
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\x48\x98\xc3")
function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
print(function())
"#;

#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_32_bit_programs_do_not_exist() {
    if !applies() {
        return;
    }
    let (_, unconfined, err) = run(&["--seccomp", "unconfined"], &["python3", "-c", INT80]);
    if unconfined.trim().parse().is_ok_and(|pid: i64| pid > 0) {
        let (_, out, err) = run(&[], &["python3", "-c", INT80]);
        assert_eq!(out.trim(), "-38", "{err}");
    } else {
        std::io::stderr()
            .write_all(format!("32-bit calls were not tried: {unconfined}{err}\n").as_bytes())
            .unwrap();
    }
}

/// What ordinary programs do: threads, processes, sockets, terminals, memory, locks, timers.
const ORDINARY: &str = r#"
import asyncio, concurrent.futures, fcntl, mmap, multiprocessing, os, pty, resource, select, signal, socket, subprocess, tempfile, threading
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(int, range(100))) == 4950
assert multiprocessing.get_context("spawn").Pool(2).map(abs, [-1]) == [1]
assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
for family in socket.AF_INET, socket.AF_INET6, socket.AF_UNIX:
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
        socket.socket(family, kind).close()
socket.if_nameindex()
socket.getaddrinfo("localhost", 80)
async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await reader.read()
    await asyncio.create_subprocess_exec("true")
asyncio.run(main())
pty.openpty()
select.epoll().close()
os.close(os.memfd_create("x"))
os.close(os.eventfd(0))
os.close(os.pidfd_open(os.getpid()))
with tempfile.TemporaryFile() as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    os.fchmod(file.fileno(), 0o1644)
    mmap.mmap(-1, 1 << 20).madvise(mmap.MADV_DONTNEED)
os.sched_setaffinity(0, os.sched_getaffinity(0))
signal.setitimer(signal.ITIMER_REAL, 0)
resource.getrlimit(resource.RLIMIT_NOFILE)
os.mkfifo("fifo")
print("ordinary")
"#;

#[test]
fn ordinary_programs_work() {
    if !applies() {
        return;
    }
    let script = format!("if __name__ == '__main__':\n{}", ORDINARY.replace('\n', "\n    "));
    let (status, out, err) = run(&[], &["python3", "-W", "ignore", "-c", &script]);
    assert_eq!((status, out.as_str()), (Some(0), "ordinary\n"), "{err}");
}

#[test]
fn the_shim_of_a_running_task_is_filtered_and_reports_its_end() {
    if !applies() {
        return;
    }
    // It is PID 1, and is filtered once the command runs.
    const WAIT: &str = "n=0; until grep -q '^Seccomp:.2' /proc/1/status; do n=$((n+1)); [ $n -lt 600 ] || exit 99; sleep 0.1; done; ";
    let of = |options: &[&str], end: &str| sh(options, &format!("{WAIT}{end}")).0;
    assert_eq!(of(&[], "exit 7"), Some(7));
    assert_eq!(
        of(&["--seccomp", "unconfined"], "exit 7"),
        Some(7),
        "the filter of the shim does not depend on the task"
    );
    assert_eq!(of(&["--root", "host"], "kill -9 $$"), Some(137));
    assert_eq!(of(&[], "(sleep 0.1; exit 3) & (sleep 0.2) & wait; exit 0"), Some(0), "orphans are reaped");
}

#[test]
fn the_filter_is_in_the_status_of_each_process_unless_it_was_asked_not_to_be() {
    if !applies() {
        return;
    }
    let count = |options: &[&str]| sh(options, "sed -n 's/^Seccomp_filters:\t//p' /proc/self/status").1;
    let without: u32 = count(&["--seccomp", "unconfined"]).trim().parse().unwrap();
    assert_eq!(count(&[]).trim().parse(), Ok(without + 1));
    assert_eq!(count(&["--root", "host"]).trim().parse(), Ok(without + 1));
}
