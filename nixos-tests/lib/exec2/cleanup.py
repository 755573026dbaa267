"""What tasks could leave behind."""

import time
from typing import Any

from .agent import plugin_pid
from .allocs import forget, run_job, wait_for_alloc
from .guest import CLEANUP_TIMEOUT_S, POLL_S, machine, pgrep, poll
from .jobs import group, job, task
from .tasks import SPARES, run_directories


def warm_up() -> None:
    """Runs a first task, after which the plugin keeps what all tasks share, and a shim for the next one."""
    run_job(job("first", group("g", task("t", "true"))))
    wait_for_alloc("first", "complete")
    poll("a spare shim", lambda: pgrep(SPARES), CLEANUP_TIMEOUT_S)
    forget("first")


def quiet() -> None:
    """Waits until the plugin is not looking at the host's files, while it has other descriptors."""
    # It need not watch them: `root = "host"`.
    done = f"ls -l /proc/{plugin_pid()}/fd | grep -q inotify && ! pgrep -f '^nomad-driver-exec2 template$'"
    machine.execute(f"timeout 10 sh -c \"until {done}; do sleep 0.2; done\"")


def traces() -> dict[str, Any]:
    """What tasks could leave behind, after warm_up(): {kind: what there is}."""
    quiet()
    # one may be closed meanwhile
    descriptors = f"for fd in /proc/{plugin_pid()}/fd/*; do readlink $fd || true; done | sed 's/[0-9]\\+/N/g'"
    return {
        "cgroups": machine.succeed("cd /sys/fs/cgroup/nomad.slice && find . -name '*.scope' ! -name nomad-driver-exec2.scope").split(),
        "shims": machine.succeed("pgrep -f '^nomad-driver-exec2 shim' || true").split(),
        "run": run_directories(),
        "mounts": machine.succeed("cut -d' ' -f5 /proc/self/mountinfo | sort").split(),
        "temporary files": machine.succeed("ls -d /tmp/exec2-* /dev/shm/* 2>/dev/null || true").split(),
        "the plugin's descriptors": sorted(machine.succeed(descriptors).splitlines()),
        "zombies": machine.succeed("ps -e -o pid=,stat=,args= | awk '$2 ~ /^Z/'").splitlines(),
    }


def settled_traces(wanted: dict[str, Any]) -> dict[str, Any]:
    """traces() as soon as they are as wanted, or as they are in the end."""
    end = time.monotonic() + CLEANUP_TIMEOUT_S
    while True:
        found = traces()
        if found == wanted or time.monotonic() > end:
            return found
        time.sleep(POLL_S)
