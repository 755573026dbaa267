#!/usr/bin/env python3
"""What the scenario `isolation` expects of a task holds on a machine that is laid out like NixOS.

No NixOS is booted: the commands of the scenario run in a small root in which programs and most of /etc lie in a read-only
/nix/store, as on NixOS. No task is started either: what the scenario expects of reading and listing is compared with what the
rules that it names allow there. It needs user namespaces; without them the exit status is 77.
"""

import ast
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

HERE = Path(__file__).resolve().parent.parent
SCENARIO = HERE / "scenarios" / "isolation.py"
sys.path.insert(0, str(HERE / "lib"))

from exec2 import guest

STORE = "/nix/store"
INSIDE = "EXEC2_SELFTEST_INSIDE"
NOT_CHECKED = 77
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
# What the scenario's commands call.
PROGRAMS = ["bash", "cat", "chmod", "cp", "dirname", "ln", "find", "ls", "mkdir", "readlink", "rm", "touch"]
# Files of /etc that NixOS links to the store.
LINKED = ["fstab", "host.conf", "hosts", "mime.types", "nsswitch.conf", "protocols", "services"]
PASSWD = "root:x:0:0::/root:/bin/sh\n"


@contextlib.contextmanager
def mounted_root() -> Iterator[Path]:
    """An empty file system in memory."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "root", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--recursive", folder], check=True)


def needed_by(program: str) -> set[str]:
    """The shared libraries of a program, and the loader."""
    return set(re.findall(r"(/\S+)", subprocess.check_output(["ldd", program], text=True)))


def make_root(root: Path) -> None:
    """A root like that of NixOS; nothing of the machine is mounted into it."""
    system = root / STORE[1:] / "system"
    for folder in ("sw/bin", "etc/ssl/certs", "etc"):
        (system / folder).mkdir(parents=True, exist_ok=True)
    for folder in ("bin", "usr/bin", "etc/ssl/certs", "run/current-system", "run/booted-system", "root", "tmp", "home", "srv", "var/lib", "dev", "proc"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in PROGRAMS:
        program = shutil.which(name)
        assert program, f"{name} is not on PATH"
        shutil.copy(program, system / "sw/bin" / name)
        for library in needed_by(program):
            (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library[1:])
    (root / "bin/sh").symlink_to(f"{STORE}/system/sw/bin/bash")
    (root / "run/current-system/sw").symlink_to(f"{STORE}/system/sw")
    (root / "etc/static").symlink_to(f"{STORE}/system/etc")
    for name in LINKED:
        (system / "etc" / name).write_text("x\n")
        (root / "etc" / name).symlink_to(f"/etc/static/{name}")
    (system / "etc/ssl/certs/ca-bundle.crt").write_text("x\n")
    (root / "etc/ssl/certs/ca-bundle.crt").symlink_to("/etc/static/ssl/certs/ca-bundle.crt")
    (root / "etc/passwd").write_text(PASSWD)
    (root / "dev/null").write_text("")
    store = str(root / STORE[1:])
    subprocess.run(["mount", "--bind", store, store], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)


class Machine:
    """`machine` of a scenario, as far as commands go."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def execute(self, command: str) -> tuple[int, str]:
        shell = [f"{STORE}/system/sw/bin/bash", "-c", f"set -euo pipefail; {command}"]
        done = subprocess.run([CHROOT, self.root, *shell], stdout=subprocess.PIPE, text=True, check=False,
                              env={"PATH": "/run/current-system/sw/bin"})  # fmt: skip
        return done.returncode, done.stdout

    def succeed(self, *commands: str) -> str:
        output = ""
        for command in commands:
            status, text = self.execute(command)
            assert status == 0, f"{command}: exit status {status}"
            output += text
        return output


def judges_the_driver(statement: ast.stmt) -> bool:
    """Whether a statement looks at what only a driver that runs can give."""
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    asserts = any(isinstance(node, ast.Attribute) and node.attr.startswith("assert") for node in ast.walk(statement))
    return asserts or "driver_errors" in names


def without_verdicts(text: str) -> CodeType:
    """The scenario without its verdicts on the driver: functions, and the statements that make what is expected."""
    tree = ast.parse(text)
    for block in tree.body:
        if isinstance(block, ast.With):
            block.body = [statement for statement in block.body if not judges_the_driver(statement)] or [ast.Pass()]
    return compile(ast.fix_missing_locations(ast.Module(tree.body, [])), SCENARIO.name, "exec")


def nothing(*args: object, **options: object) -> None:
    """In place of what needs an agent."""


class Anything(dict[str, Any]):
    """Has a value for each key: another of its kind."""

    def __missing__(self, key: str) -> "Anything":
        return Anything()


class Guest(unittest.TestCase):
    maxDiff = None

    def run_scenario(self, root: Path) -> tuple[dict[str, Any], list[tuple[str, dict[str, str]]]]:
        """Runs the scenario without a driver; returns its globals, and what it expected: [(task, expectations)]."""
        expected: list[tuple[str, dict[str, str]]] = []
        space: dict[str, Any] = {"machine": Machine(root), "t": self, "subtest": lambda name: contextlib.nullcontext()}
        guest.bind(space)
        # In place of what needs an agent, in the module from which the scenario imports it.
        stand_ins: dict[str, dict[str, Any]] = {
            "agent": {"wait_for_driver": nothing, "configure": nothing},
            "guest": {"landlock_abi": lambda: 6, "poll": nothing},
            "allocs": {
                "run_job": nothing,
                "wait_for_alloc": lambda *args: {"ID": "neighbour"},
                "wait_for_log": lambda *args: "/mounts/neighbour-t/local /nomad.slice/neighbour ready",
                "wait_for_groups": lambda *args: Anything(),
            },
            "probes": {
                "check_probes": lambda alloc, task, wanted: expected.append((task, wanted)),
                "check_outside": nothing,
                "listen": nothing,
            },
        }
        with contextlib.ExitStack() as patches:
            for module, names in stand_ins.items():
                patches.enter_context(unittest.mock.patch.multiple(f"exec2.{module}", **names))
            exec(without_verdicts(SCENARIO.read_text()), space)
        return space, expected

    def test_what_is_expected_of_reading_follows_from_the_rules(self) -> None:
        with mounted_root() as root:
            make_root(root)
            machine = Machine(root)
            space, expected = self.run_scenario(root)
            self.assertTrue(space["nixos"]())

            def real(path: str) -> str:
                return machine.succeed(f"readlink -m {path}").strip()

            by_default = [(mode, real(path)) for mode, paths in space["DEFAULTS"].items() for path in paths.split()]
            named = [tuple(rule.split(":", 1)) for rule in space["unveil"]]
            bare = [tuple(rule.split(":", 1)) for rule in space["programs"]] + [("r", "/srv/exec2/files/read")]
            # in a root of its own: two tasks with the defaults, one with each mode, one without defaults; in the host's: the first three
            self.assertEqual([task for task, _ in expected], ["dynamic", "root", "t", "t", "dynamic", "root", "t"])
            for number, (task, wanted) in enumerate(expected):
                rules = bare if number == 3 else by_default + named if task == "t" else by_default
                own = number < 4
                checked = {}
                for probe in wanted:
                    action, path, *more = probe.split()
                    if action not in ("read", "list") or more or "$" in path or not path.startswith("/"):
                        continue
                    if path.startswith(("/sys/fs/cgroup", "/proc", "/mounts")):  # the scenario's fake neighbour, and not of this root
                        continue
                    if own and path.startswith(("/dev", "/tmp", "/var/tmp", "/etc/passwd", "/etc/group")):  # the task's own
                        continue
                    target = Path(real(path))
                    covering = [mode for mode, rule in rules if Path(rule) in (target, *target.parents)]
                    shown = any(target in Path(rule).parents for _, rule in rules)
                    if (task != "t" and own and action == "list" and space["skeleton"](path, "/mounts")) or "r" in "".join(covering):
                        checked[probe] = "ok"
                    else:
                        checked[probe] = "EACCES" if covering or shown or not own else "ENOENT"
                self.assertTrue(checked, task)
                self.assertEqual({probe: wanted[probe] for probe in checked}, checked)


def main() -> None:
    if INSIDE not in os.environ:
        unshare = ["unshare", "--user", "--map-root-user", "--mount"]
        if subprocess.run([*unshare, "mount", "-t", "tmpfs", "x", "/tmp"], stderr=subprocess.DEVNULL, check=False).returncode:
            print("nixos_guest: not checked: user namespaces are off here, or restricted", file=sys.stderr)
            sys.exit(NOT_CHECKED)
        os.environ[INSIDE] = "yes"
        os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])
    unittest.main()


if __name__ == "__main__":
    main()
