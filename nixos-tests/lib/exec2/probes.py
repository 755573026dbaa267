"""What a task may do: probes that run in a task and report each result."""

import json
from collections.abc import Mapping
from typing import Any

from .allocs import Alloc, wait_for_log
from .guest import t
from .jobs import task

# Runs in a task: tries each of the given actions, "ACTION PATH…", and prints "ok" or the errno for each as one JSON object.
PROBE = r'''
import errno, json, os, stat, sys

def read(path):
    with open(path, "rb", 0) as file:
        file.read(1)

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

def node(kind, device=0):
    return lambda path: os.mknod(path, kind | 0o777, device)

actions = {
    "read": read,
    "list": os.listdir,
    "write": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)),
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
        actions[action](*paths)
        results[probe] = "ok"
    except OSError as error:
        results[probe] = errno.errorcode.get(error.errno, str(error.errno))
print(json.dumps(results))
'''


def probe(name: str, wanted: Mapping[str, str], cpu: int = 1000, **options: Any) -> str:
    """A task that tries the actions named by the keys of `wanted`; paths may have `$NAME` in them."""
    return task(name, "python3", "-ISc", PROBE, json.dumps(list(wanted)), cpu=cpu, **options)


def check_probes(alloc: Alloc, task: str, wanted: Mapping[str, str]) -> None:
    """Compares what a task of probe() found with `wanted`: "ok" or an errno for each action."""
    found = json.loads(wait_for_log(alloc, "}", task))
    t.assertEqual(found.keys(), wanted.keys())
    differences = [f"{probe}: {found[probe]}, not {wanted[probe]}" for probe in wanted if found[probe] != wanted[probe]]
    t.assertEqual(differences, [])
