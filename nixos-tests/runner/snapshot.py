"""Booted guests, kept: the memory and the disk of a guest at rest, from which a scenario goes on within a second or two.

A snapshot is taken of a guest that has just booted, once systemd has started all that it was asked to and the agent has
looked at the driver, and nothing else has been done to it. It is found by what it was made from, and nothing relies on one:
a guest that cannot be resumed is booted.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .assets import HERE, Assets, KernelImage
from .console import progress
from .errors import CommandError, MachineError, RunnerError
from .machine import Machine
from .tools import run
from .transcript import Transcript

MEMORY = "memory"
DISK = "state.img"
CONSOLE = "console.log"
# Makes a machine with a fresh disk in a folder, for so many seconds.
Launcher = Callable[[Path, Transcript, float], Machine]
# What `make test-vm` uses takes about half of it; past that the ones that were used least recently are deleted.
KEPT_BYTES = 6 * 2**30
# Booting is bounded by what a busy emulated CPU takes, several times over.
BOOT_TIMEOUT_S = 300
# The scenarios bound this as well, and wait longer: a guest is kept in whatever state it has by then.
SETTLE_TIMEOUT_S = 120
# `--wait` returns at "running" and at "degraded" alike.
STARTED = "systemctl is-system-running --wait || true"
# The agent says of each driver whether it is healthy, and why.
AGENT_READY = """until nomad node status -self -json 2>/dev/null | grep -q '"HealthDescription": *"[^"]'; do sleep 0.2; done"""


class Snapshot(NamedTuple):
    """A folder of the cache."""

    folder: Path

    def resume(self, machine: Machine) -> None:
        """Gives a machine that was never started the disk, and starts it with the memory."""
        self.folder.touch()
        copy_disk(self.folder / DISK, machine.folder / DISK)
        machine.resume(self.folder / MEMORY, (self.folder / CONSOLE).read_bytes())


def copy_disk(source: Path, target: Path) -> None:
    """Shares the blocks where the file system can, and else copies those that were written."""
    run(["cp", "--reflink=auto", "--sparse=always", str(source), str(target)])


def name(kernel: KernelImage, parts: list[Path], payload: Path, arguments: list[str]) -> str:
    """By everything that a booted guest follows from: `parts` of the cache, which stay as they are once built, the payload,
    QEMU's arguments with placeholders for disks, and this package."""
    digest = hashlib.sha256()
    for part in (kernel.vmlinux, kernel.initrd, kernel.modules, *parts):
        status = part.stat()
        digest.update(f"{part.parent.name}/{part.name} {status.st_size} {status.st_mtime_ns}\0".encode())
    digest.update(hashlib.sha256(payload.read_bytes()).digest())
    digest.update(json.dumps(arguments).encode())
    for source in ("snapshot.py", "machine.py"):
        digest.update((HERE / source).read_bytes())
    return f"booted-{kernel.label}-{digest.hexdigest()[:12]}"


class Snapshots:
    """Those of the cache."""

    def __init__(self, assets: Assets) -> None:
        self._assets = assets
        self._failed: set[str] = set()

    def find(self, wanted: str) -> Snapshot | None:
        folder = self._assets.cache / wanted
        return Snapshot(folder) if folder.exists() else None

    def take(self, wanted: str, machine_in: Launcher) -> Snapshot | None:
        """The snapshot of this name; boots a guest for it unless another scenario or runner has done so meanwhile."""
        with self._assets.building(wanted) as scratch:
            found = self.find(wanted)
            if found or wanted in self._failed:
                return found
            started = time.monotonic()
            try:
                self._boot(machine_in, scratch)
                scratch.rename(self._assets.cache / wanted)
            except (MachineError, CommandError, RunnerError, OSError) as error:
                progress(f"snapshot {wanted}: {error}; each guest is booted instead")
                self._failed.add(wanted)
                return None
            progress(f"snapshot {wanted}: {time.monotonic() - started:.1f} s")
        self._prune(wanted)
        return self.find(wanted)

    def _boot(self, machine_in: Launcher, scratch: Path) -> None:
        transcript = Transcript(scratch / "driver.log")
        machine = machine_in(scratch, transcript, BOOT_TIMEOUT_S)
        try:
            machine.connect()
            machine.execute(STARTED, timeout=SETTLE_TIMEOUT_S)
            if machine.execute("systemctl is-active nomad.service")[0] == 0:
                machine.execute(AGENT_READY, timeout=SETTLE_TIMEOUT_S)
            machine.suspend(scratch / MEMORY)
        finally:
            machine.kill()
            transcript.close()

    def _prune(self, newest: str) -> None:
        """Deletes the least recently used until the rest fits. A runner that is about to resume one of them boots instead."""
        kept = 0
        for folder in sorted(self._assets.cache.glob("booted-*"), key=lambda path: path.stat().st_mtime, reverse=True):
            kept += sum(path.stat().st_blocks * 512 for path in folder.iterdir())
            if kept > KEPT_BYTES and folder.name != newest:
                shutil.rmtree(folder, ignore_errors=True)
                (self._assets.cache / f".lock-{folder.name}").unlink(missing_ok=True)
