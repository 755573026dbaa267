#!/usr/bin/env python3
"""count_syscalls.py PLUGIN [--update]: counts the system calls of a task's start and compares them with bench/syscalls.txt.

`PLUGIN run -- /bin/true` is traced by strace(1), as root. Three processes are counted: the one that starts the shim, the shim, and
the task until its command runs. One that makes more than 10 % more calls than the file says is an error; --update writes the file.
Calls that depend on how the processes happen to be scheduled do not count. PLUGIN is a release build: a debug build makes more.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

KEPT = Path(__file__).resolve().parent.parent / "bench" / "syscalls.txt"
GROWTH = 1.1
NOT_CHECKED = 77
# A free one would be looked for among all processes of the host.
USER = "nomad-99999"
ROLES = ("launcher", "shim", "task")
BY_CHANCE = {"futex", "poll", "epoll_wait", "epoll_pwait", "rt_sigreturn", "sched_yield", "restart_syscall"}
CALL = re.compile(r"^(\w+)\(")
HEAD = """# System calls of one start of /bin/true by the `run` command, without a cgroup.
# scripts/count_syscalls.py compares them in `make test`, and writes this file with --update.
"""


def trace(plugin: Path) -> dict[str, list[str]]:
    """The calls of each thread, by its number."""
    with tempfile.TemporaryDirectory() as directory:
        # On every machine the same: without a cgroup.
        hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/fs/cgroup && exec "$@"', "sh"]
        strace = ["strace", "-ff", "-qq", "-e", "signal=none", "-o", f"{directory}/t"]
        subprocess.run([*hidden, *strace, plugin, "run", "--user", USER, "--", "/bin/true"], check=True, stderr=subprocess.DEVNULL)
        return {path.suffix[1:]: path.read_text(errors="replace").splitlines() for path in Path(directory).iterdir()}


def role(lines: list[str]) -> str:
    if any('"shim"]' in line for line in lines):
        return "shim"
    if any('"template"]' in line for line in lines):
        return "template"
    # What the shim clones has no other mark than that it confines itself.
    return "task" if any(line.startswith("landlock_restrict_self(") for line in lines) else "launcher"


def count(lines: list[str], of: str) -> Counter[str]:
    if of == "task":
        end = next(number for number, line in enumerate(lines) if line.startswith("execve(") and line.endswith(" = 0"))
        lines = lines[: end + 1]
    calls = (found[1] for line in lines if (found := CALL.match(line)))
    return Counter(call for call in calls if call not in BY_CHANCE)


def measured(plugin: Path) -> dict[str, Counter[str]]:
    counts = {of: Counter[str]() for of in ROLES}
    for lines in trace(plugin).values():
        of = role(lines)
        if of in counts:
            counts[of] += count(lines, of)
    for of, calls in counts.items():
        if not calls:
            sys.exit(f"count_syscalls.py: the trace has no calls of the {of}")
    return counts


def written(counts: dict[str, Counter[str]]) -> str:
    lines = [HEAD]
    for of, calls in counts.items():
        lines.append(f"{of} {calls.total()}\n")
        lines += [f"  {call} {number}\n" for call, number in sorted(calls.items(), key=lambda item: (-item[1], item[0]))]
    return "".join(lines)


def kept() -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {}
    of = ""
    for line in KEPT.read_text().splitlines():
        if line.startswith("#"):
            continue
        name, number = line.split()
        if line.startswith(" "):
            counts[of][name] = int(number)
        else:
            of = name
            counts[of] = Counter()
    return counts


def compare(before: dict[str, Counter[str]], now: dict[str, Counter[str]]) -> bool:
    fine = True
    for of in ROLES:
        old, new = before[of].total(), now[of].total()
        print(f"{of}: {new} system calls, {old} in {KEPT.name}")
        if new <= old * GROWTH:
            continue
        fine = False
        print(f"  more than {GROWTH:.0%} of what {KEPT.name} has:")
        for call in sorted(before[of].keys() | now[of].keys()):
            if difference := now[of][call] - before[of][call]:
                print(f"  {call}: {difference:+}")
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plugin", type=Path)
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    if os.geteuid() != 0:
        print("count_syscalls.py: not counted: only root starts tasks")
        sys.exit(NOT_CHECKED)
    now = measured(args.plugin)
    if args.update:
        KEPT.write_text(written(now))
        return
    if not compare(kept(), now):
        sys.exit("count_syscalls.py: a start makes more system calls; if that is intended, run it with --update")


if __name__ == "__main__":
    main()
