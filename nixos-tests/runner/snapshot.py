"""Cached snapshots: the memory and the disk of an idle booted guest, from which a scenario starts within a second or two.

A snapshot is taken of a guest that has just booted, once systemd has started all units and the agent has checked the driver.
Its name has a hash of its sources. A guest that cannot be resumed is booted.
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
# Creates a machine with an empty disk in a folder, with a deadline in seconds.
Launcher = Callable[[Path, Transcript, float], Machine]
# `make test-vm` uses about half of it; beyond it the least recently used snapshots are deleted.
KEPT_BYTES = 6 * 2**30
# Several times what a busy emulated CPU takes to boot.
BOOT_TIMEOUT_S = 300
# After this time the snapshot is taken anyway: the scenarios wait for the agent too.
SETTLE_TIMEOUT_S = 120
# `--wait` returns at "running" and at "degraded" alike.
STARTED = "systemctl is-system-running --wait || true"
# The agent reports the health of each driver with a description.
AGENT_READY = """until nomad node status -self -json 2>/dev/null | grep -q '"HealthDescription": *"[^"]'; do sleep 0.2; done"""


class Snapshot(NamedTuple):
    """A folder of the cache."""

    folder: Path

    def resume(self, machine: Machine) -> None:
        """Starts a new machine with the disk and the memory."""
        self.folder.touch()
        copy_disk(self.folder / DISK, machine.folder / DISK)
        machine.resume(self.folder / MEMORY, (self.folder / CONSOLE).read_bytes())


def copy_disk(source: Path, target: Path) -> None:
    """Shares the blocks if the file system can, otherwise copies those that were written."""
    run(["cp", "--reflink=auto", "--sparse=always", str(source), str(target)])


def name(kernel: KernelImage, parts: list[Path], payload: Path, arguments: list[str]) -> str:
    """The name of a snapshot: a hash of `parts` of the cache, which never change once built, the payload, QEMU's arguments with
    placeholders for disks, and this package."""
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
    """The snapshots of the cache."""

    def __init__(self, assets: Assets) -> None:
        self._assets = assets
        self._failed: set[str] = set()

    def find(self, wanted: str) -> Snapshot | None:
        folder = self._assets.cache / wanted
        return Snapshot(folder) if folder.exists() else None

    def take(self, wanted: str, machine_in: Launcher) -> Snapshot | None:
        """The snapshot of this name; boots a guest for it unless another scenario or runner has done that."""
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
