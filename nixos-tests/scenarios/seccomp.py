# /// scenario
# description = "The filter of system calls: what it refuses to a dynamic user and to root, who may open it, and programs that work with it."
# across = "which system calls there are"
# nomad = "pluginhost"
# guests = ["debian"]
# packages.debian = ["strace"]
# seconds = 100
# ///
# The programs of the distribution are in the scenario `programs`; each refused call, on the kernel of the builder, in tests/run_seccomp.rs.

import json
import shlex

from exec2.agent import wait_for_driver
from exec2.cli import PLUGIN, run
from exec2.guest import CLEANUP_TIMEOUT_S, machine, poll, subtest, t, write
from exec2.harness import harness, run_plugin

wait_for_driver()
machine.succeed("systemctl stop nomad.service")

FOLDER = "/srv/seccomp"
ROOT = "--user root --cap-add all"
# x86-64. No descriptor, no address, no flag: without a filter the calls do nothing, and fail with another error.
NO_FD, NOWHERE, NO_FLAG, CWD, NO_TYPE = -1, 1, 0x70000000, -100, 15
OPENED_BY_CAPABILITIES = {
    "acct": (163, NOWHERE),
    "bpf": (321, NO_FLAG, 0, 0),
    "chroot": (161, NOWHERE),
    "settimeofday": (164, NOWHERE, 0),
    "sethostname": (170, NOWHERE, -1),
    "iopl": (172, 9),
    "syslog": (103, 99, 0, 0),
    "kexec_load": (246, 0, 0, 0, NO_FLAG),
    "init_module": (175, NOWHERE, 1, NOWHERE),
    "perf_event_open": (298, NOWHERE, 0, 0, 0, 0),
    "pidfd_getfd": (438, NO_FD, 0, NO_FLAG),
    "reboot": (169, 0, 0, 0, 0),
    "socket, generic netlink": (41, 16, 3, 16),
    "socket, packet": (41, 17, NO_TYPE, 0),
}
OPENED_BY_NOTHING = {
    "open_by_handle_at": (304, NO_FD, NOWHERE, 0),
    "fanotify_init": (300, NO_FLAG, 0),
    "io_uring_setup": (425, 0, NOWHERE),
    "add_key": (248, NOWHERE, 0, 0, 0, 0),
    "keyctl": (250, 9999),
    "mount": (165, NOWHERE, NOWHERE, NOWHERE, 0, 0),
    "umount2": (166, NOWHERE, NO_FLAG),
    "fsopen": (430, NOWHERE, NO_FLAG),
    "open_tree": (428, CWD, NOWHERE, NO_FLAG),
    "move_mount": (429, NO_FD, NOWHERE, NO_FD, NOWHERE, NO_FLAG),
    "mount_setattr": (442, CWD, NOWHERE, NO_FLAG, 0, 0),
    "unshare": (272, 0x04000000),
    "setns": (308, NO_FD, 0),
    "clone": (56, 0x10000200, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "socket, AF_ALG": (41, 38, NO_TYPE, 0),
    "socket, AF_VSOCK": (41, 40, NO_TYPE, 0),
    "personality": (135, 0x0400000),
    "swapon": (167, NOWHERE, 0),
    "quotactl_fd": (443, NO_FD, 0, 0, 0),
    "userfaultfd": (323, NO_FLAG),
    "chmod": (90, NOWHERE, 0o4755),
    "fchmodat": (268, CWD, NOWHERE, 0o2755),
    "mkdir": (83, NOWHERE, 0o2755),
    "openat": (257, CWD, NOWHERE, 0o100, 0o4755),
    "openat2": (437, CWD, NOWHERE, 0, 0),
    "mknod": (133, NOWHERE, 0o020600, 0x103),
    "ioctl, TIOCSTI": (16, NO_FD, 0x5412, 0),
    "ioctl, TIOCSETD with a high bit": (16, NO_FD, 0x100005423, 0),
}
OTHER_ANSWERS = {
    "clone3": "ENOSYS",
    "openat2": "ENOSYS",
    "socket, generic netlink": "EPROTONOSUPPORT",
    "socket, packet": "EAFNOSUPPORT",
    "socket, AF_ALG": "EAFNOSUPPORT",
    "socket, AF_VSOCK": "EAFNOSUPPORT",
}
# Python. Each call in a process of its own: {name: errno or ok}.
CALLS = """
import ctypes, errno, json, os, sys
syscall = ctypes.CDLL(None, use_errno=True).syscall
syscall.restype = ctypes.c_long
answers = {}
for name, numbers in json.loads(sys.argv[1]).items():
    reader, writer = os.pipe()
    if os.fork() == 0:
        result = syscall(*map(ctypes.c_long, numbers))
        os.write(writer, b"ok" if result >= 0 else errno.errorcode[ctypes.get_errno()].encode())
        os._exit(0)
    os.close(writer)
    answers[name] = os.read(reader, 99).decode()
    os.wait()
print(json.dumps(answers))
"""
JAVA = """public class Many { public static void main(String[] a) throws Exception {
    var threads = new java.util.ArrayList<Thread>();
    for (int i = 0; i < 20; i++) { var thread = new Thread(System::gc); thread.start(); threads.add(thread); }
    for (var thread : threads) thread.join();
    new ProcessBuilder("true").start().waitFor();
    java.nio.channels.ServerSocketChannel.open().bind(new java.net.InetSocketAddress("127.0.0.1", 0)).close();
    System.out.println("java"); } }
"""
PYTHON = """
import asyncio, concurrent.futures, multiprocessing, socket
def main():
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(int, range(100))) == 4950
    assert multiprocessing.get_context("spawn").Pool(2).map(abs, [-1]) == [1]
    assert asyncio.run(asyncio.create_subprocess_exec("true"))
    socket.if_nameindex()
    print("python")
if __name__ == "__main__":
    main()
"""


def answers(calls, options=""):
    output = run(f"{options} -- python3 -ISc {shlex.quote(CALLS)} {shlex.quote(json.dumps(calls))} < /dev/null")
    return json.loads(output.splitlines()[-1])


def refused(calls):
    return {name: OTHER_ANSWERS.get(name, "EPERM") for name in calls}


def none_refused(calls, options):
    found, filtered = answers(calls, options), refused(calls)
    t.assertEqual({name: found[name] for name in calls if found[name] == filtered[name]}, {})


with subtest("each call is refused by the filter, and by nothing else"):
    everything = OPENED_BY_CAPABILITIES | OPENED_BY_NOTHING
    t.assertEqual(answers(everything), refused(everything))
    t.assertEqual(answers(OPENED_BY_NOTHING, ROOT), refused(OPENED_BY_NOTHING))
    none_refused(OPENED_BY_CAPABILITIES, ROOT)
    none_refused(everything, f"{ROOT} --seccomp unconfined")
    t.assertEqual(answers({"io_uring_setup": OPENED_BY_NOTHING["io_uring_setup"]}, "--seccomp-allow io_uring"), {"io_uring_setup": "EFAULT"})

with subtest("calls that are newer than the driver do not exist"):
    t.assertEqual(answers({"next": (472,), "far": (5000,), "x32": (0x40000000 + 39,)}), {"next": "ENOSYS", "far": "ENOSYS", "x32": "ENOSYS"})

with subtest("programs with many threads and processes work as without a filter"):
    machine.succeed(f"mkdir -p {FOLDER}")
    for name, text in {"Many.java": JAVA, "many.py": PYTHON}.items():
        write(f"{FOLDER}/{name}", text)
    machine.succeed(f"chmod -R a+rX {FOLDER}")
    programs = {
        "java": f"java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC {FOLDER}/Many.java",
        "python": f"python3 -W ignore {FOLDER}/many.py",
        "traced": "strace -f -o /tmp/trace sh -c 'true; echo traced'",
    }
    for name, command in programs.items():
        t.assertEqual(run(f"--unveil rx:{FOLDER} -- {command} < /dev/null"), f"{name}\n")
    # static programs: of musl, and of Go
    for program, option, words in ((PLUGIN, "--version", "0."), ("pluginhost", "-h", "stands in")):
        path = machine.succeed(f"readlink -f $(command -v {program})").strip()
        t.assertIn(words, run(f"--unveil rx:{path} -- {path} {option}"))


def write_task(name, config):
    path = f"{FOLDER}/{name}.json"
    script = "grep Seccomp_filters /proc/self/status; exec sleep 4321"
    write(path, json.dumps({"config": {"command": "sh", "args": ["-c", script], **config}, "cpu": 1000, "memory": 64}))
    return path


def start(task):
    """The cgroup of a task that has to start."""
    return harness(f"start {task}")["handle"]["config"]["resources"]["linux_resources"]["cpuset_cgroup"]


def filters(cgroup):
    """How many filters the task's first process has."""
    pid = poll("the task is in its cgroup", lambda: machine.succeed(f"cat {cgroup}/cgroup.procs").split(), CLEANUP_TIMEOUT_S)[0]
    return int(machine.succeed(f"sed -n 's/^Seccomp_filters:\\t//p' /proc/{pid}/status"))


def chmod(task):
    """The output of a session that makes a set-uid file."""
    command = "cd $NOMAD_TASK_DIR; touch f; chmod u+s f 2> /dev/null; stat -c %A f"
    answer = harness(f"exec -stream {task} -- sh -c {shlex.quote(command)}")
    return answer["stdout"].strip()


with subtest("a job may open what the operator allows, and a session has the filter of its task, whatever the operator allows later"):
    default, open_, unconfined = (
        write_task(name, config)
        for name, config in {"default": {}, "open": {"seccomp_allow": ["set_id"]}, "unconfined": {"seccomp": "unconfined"}}.items()
    )
    run_plugin()
    for task, message in ((open_, "seccomp_allow asks for set_id"), (unconfined, "is not allowed by the agent's plugin option allow_seccomp")):
        status, output = machine.execute(f"pluginhost task start {task}")
        t.assertNotEqual(status, 0)
        t.assertIn(message, output)
    run_plugin('allow_seccomp = ["set_id", "unconfined"]')
    t.assertEqual([filters(start(task)) for task in (default, open_, unconfined)], [1, 1, 0])
    run_plugin('seccomp = "unconfined"')
    for task in (default, open_, unconfined):
        machine.succeed(f"pluginhost task recover {task}")
    t.assertEqual([chmod(task) for task in (default, open_, unconfined)], ["-rw-r--r--", "-rwSr--r--", "-rwSr--r--"])
    machine.succeed("pluginhost task plugin stop")

