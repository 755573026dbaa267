"""The guest: the names that the test driver gives a scenario, and what does not depend on Nomad."""

import re
import shlex
import threading
import time
import unittest
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar, cast

T = TypeVar("T")

# An emulated CPU is 10 to 20 times slower than a real one. These only bound what hangs; nothing sleeps for them.
UNIT_TIMEOUT_S = 300
AGENT_TIMEOUT_S = 300
ALLOC_TIMEOUT_S = 400  # javac on a busy emulated CPU: 3 minutes
# The cgroup and the mounts of a task outlive the task for a moment.
CLEANUP_TIMEOUT_S = 60
POLL_S = 1.0  # a `nomad` command takes the emulated CPUs half a second


class Machine(Protocol):
    """The part of the NixOS test driver's machine that scenarios may use."""

    def start(self) -> None: ...
    def shutdown(self) -> None: ...
    def crash(self) -> None: ...
    def execute(self, command: str, check_return: bool = ..., check_output: bool = ..., timeout: Any = ...) -> tuple[int, str]: ...
    def succeed(self, *commands: str, timeout: Any = ...) -> str: ...
    def fail(self, *commands: str, timeout: Any = ...) -> str: ...
    def wait_until_succeeds(self, command: str, timeout: Any = ...) -> str: ...
    def wait_until_fails(self, command: str, timeout: Any = ...) -> str: ...
    def wait_for_unit(self, unit: str, *, timeout: Any = ...) -> None: ...
    def wait_for_file(self, path: str, timeout: Any = ...) -> None: ...
    def wait_for_open_port(self, port: int, addr: str = ..., timeout: Any = ...) -> None: ...
    def wait_for_closed_port(self, port: int, addr: str = ..., timeout: Any = ...) -> None: ...
    def copy_from_host_via_shell(self, source: str, target: str) -> None: ...


class _Scenario(threading.local):
    """The test driver's names for the scenario of this thread: the runner runs several scenarios at once."""

    names: Mapping[str, Any] | None = None


_scenario = _Scenario()


def bind(names: Mapping[str, Any]) -> None:
    """Makes the names of a test driver those of this module, for the scenario that this thread runs."""
    # A copy: the scenario imports names of this module into the driver's, such as `machine`.
    _scenario.names = dict(names)


def named(name: str) -> Any:
    """What the test driver gives the scenario under this name: a machine, when there is more than one."""
    if _scenario.names is None or name not in _scenario.names:
        raise RuntimeError(f"failed to find {name!r}: call guest.bind() with the test driver's names first")
    return _scenario.names[name]


class _Named:
    """Stands for what the test driver of the scenario has under a name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(named(self._name), attribute)


machine = cast(Machine, _Named("machine"))
t = cast(unittest.TestCase, _Named("t"))


def subtest(name: str) -> "AbstractContextManager[Any]":
    """A part of the scenario, which the report lists."""
    return cast("AbstractContextManager[Any]", named("subtest")(name))


def start_all() -> None:
    named("start_all")()


def poll(what: str, fn: Callable[[], T | bool | None], timeout: float) -> T:
    """Calls fn until it returns something true, and returns that."""
    end = time.monotonic() + timeout
    while True:
        value = fn()
        if value:
            return cast(T, value)
        if time.monotonic() > end:
            raise AssertionError(f"still waiting after {timeout} s: {what}")
        time.sleep(POLL_S)


def write(path: str, text: str) -> None:
    """Writes a text file in the guest."""
    quoted = shlex.quote(path)
    machine.succeed(f"mkdir -p $(dirname {quoted}); printf %s {shlex.quote(text)} > {quoted}")


def nixos() -> bool:
    """Whether the guest is NixOS, where programs and most of /etc are in a read-only store."""
    return machine.execute("test -e /run/booted-system")[0] == 0


def data_dir() -> str:
    """The agent's data directory: /opt/nomad/data on Debian, /var/lib/nomad on NixOS."""
    configuration = machine.succeed("cat /etc/nomad.json 2>/dev/null || cat /etc/nomad.d/*.hcl")
    found = re.search(r'data_dir"?\s*[=:]\s*"([^"]+)"', configuration)
    assert found, "the agent's configuration names no data_dir"
    return found[1]


LANDLOCK_PROBE = "import ctypes; l = ctypes.CDLL(None, use_errno=True); a = l.syscall(444, None, 0, 1); print(a if a >= 0 else -ctypes.get_errno())"


def landlock_abi() -> int:
    """The Landlock ABI of the guest's kernel, or -errno."""
    return int(machine.succeed(f"python3 -c {shlex.quote(LANDLOCK_PROBE)}"))


def kernel() -> tuple[int, int]:
    """The guest's kernel version: (6, 12)."""
    major, minor = machine.succeed("uname -r").split("-")[0].split(".")[:2]
    return int(major), int(minor)


def boot_id() -> str:
    return machine.succeed("cat /proc/sys/kernel/random/boot_id").strip()


def pgrep(pattern: str) -> list[int]:
    """The processes whose command line matches."""
    return [int(pid) for pid in machine.execute(f"pgrep -f '{pattern}'")[1].split()]


def alive(pids: list[int]) -> list[str]:
    """Those of the processes that exist, even as zombies."""
    return machine.execute(f"for p in {' '.join(map(str, pids))}; do [ ! -d /proc/$p ] || echo $p; done")[1].split()


def descriptors(pid: int) -> int:
    """How many file descriptors a process has open."""
    return int(machine.succeed(f"ls /proc/{pid}/fd | wc -l"))
