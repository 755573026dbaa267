"""What a task may do: probes that run in a task and report each result."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from .allocs import Alloc, wait_for_log
from .guest import machine, t
from .jobs import task

# Runs in a task: tries each of the given actions, "ACTION PATH…", and prints "ok" or the errno for each as one JSON object.
PROBE = r'''
import errno, fcntl, json, os, socket, stat, sys

def read(path):
    # not to wait for the other end of a pipe or a terminal
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.read(file, 1)
    finally:
        os.close(file)

def only(path, *names):
    found = set(os.listdir(path))
    if found != set(names):
        return f"lacks {sorted(set(names) - found)}, has {sorted(found - set(names))}"

def enter(path):
    here = os.open(".", os.O_PATH)
    os.chdir(path)
    os.fchdir(here)
    os.close(here)

def on_socket(action):
    def call(path):
        with socket.socket(socket.AF_UNIX) as end:
            getattr(end, action)(path)
    return call

def execute(path):
    child = os.fork()
    if child == 0:
        try:
            os.execv(path, [path])
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, "exec")

def ioctl(path):
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # BLKGETSIZE64, a question
        fcntl.ioctl(file, 0x80081272, bytes(8))
    finally:
        os.close(file)

def node(kind, device=0):
    return lambda path: os.mknod(path, kind | 0o777, device)

actions = {
    "read": read,
    "list": lambda path: os.listdir(path) and None,
    # succeeds if these and no other names are in the folder
    "only": only,
    "stat": lambda path: os.stat(path) and None,
    "chdir": enter,
    "readlink": lambda path: os.readlink(path) and None,
    "chmod": lambda path: os.chmod(path, 0o777),
    "connect": on_socket("connect"),
    "bind": on_socket("bind"),
    "write": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)),
    # of a block device
    "ioctl": ioctl,
    "truncate": lambda path: os.truncate(path, 0),
    "exec": execute,
    # no open file is needed for this, so it asks for no right but the one to create
    "create": node(stat.S_IFREG),
    "fifo": node(stat.S_IFIFO),
    "socket": node(stat.S_IFSOCK),
    "char": node(stat.S_IFCHR, os.makedev(1, 3)),
    "block": node(stat.S_IFBLK, os.makedev(7, 0)),
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "remove": os.unlink,
    "rename": os.rename,
    "link": os.link,
    "symlink": os.symlink,
}
with open("/proc/self/cgroup") as file:
    os.environ["CGROUP"] = "/sys/fs/cgroup" + file.read().strip().split(":", 2)[2]
results = {}
for probe in json.loads(sys.argv[1]):
    action, *paths = os.path.expandvars(probe).split(" ")
    try:
        results[probe] = actions[action](*paths) or "ok"
    except OSError as error:
        results[probe] = errno.errorcode.get(error.errno, str(error.errno))
print(json.dumps(results))
'''


def probe(name: str, wanted: Mapping[str, str], cpu: int = 1000, **options: Any) -> str:
    """A task that tries the actions named by the keys of `wanted`; paths may have `$NAME` in them."""
    return task(name, "python3", "-ISc", PROBE, json.dumps(list(wanted)), cpu=cpu, **options)


# Python. Takes connections of every user: as many as wait to be accepted.
LISTEN = """
import os, signal, socket, sys
os.umask(0)
listeners = [socket.socket(socket.AF_UNIX) for _ in sys.argv[1:]]
for listener, path in zip(listeners, sys.argv[1:]):
    listener.bind(path)
    listener.listen()
signal.pause()
"""


def listen(*paths: str) -> None:
    """Starts a process of the guest that takes connections at the paths."""
    machine.succeed(f"systemd-run python3 -ISc {shlex.quote(LISTEN)} {shlex.join(paths)}")
    for path in paths:
        machine.wait_for_file(path)


def compare(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Compares results of PROBE with `wanted`: "ok" or an errno for each action, or several separated by `|`."""
    t.assertEqual(found.keys(), wanted.keys())
    differences = [f"{probe}: {found[probe]}, not {wanted[probe]}" for probe in wanted if found[probe] not in wanted[probe].split("|")]
    t.assertEqual(differences, [])


def check_probes(alloc: Alloc, task: str, wanted: Mapping[str, str]) -> None:
    """Compares what a task of probe() found with `wanted`."""
    compare(json.loads(wait_for_log(alloc, "}", task)), wanted)


def check_outside(uid: int, wanted: Mapping[str, str]) -> None:
    """Compares what the user can do outside of a task with `wanted`."""
    user = f"setpriv --reuid {uid} --regid {uid} --clear-groups"
    compare(json.loads(machine.succeed(f"{user} python3 -ISc {shlex.quote(PROBE)} {shlex.quote(json.dumps(list(wanted)))}")), wanted)
