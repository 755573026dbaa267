"""Writes the initial ram disk: busybox, `guest/init`, and the modules that find and mount the root."""

import re
import stat
from collections.abc import Iterable
from pathlib import Path

# Disks, the console of the test shell, the file systems of the root. What a kernel has built in is left out.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "erofs", "overlay", "ext4")
APPLETS = ("sh", "mount", "umount", "insmod", "switch_root", "mkdir", "cat", "echo", "poweroff", "sleep")


def _module_name(path: str) -> str:
    return re.sub(r"\.ko(\.\w+)?$", "", path.rsplit("/", 1)[-1]).replace("-", "_")


def load_order(module_dir: Path, wanted: Iterable[str] = MODULES) -> list[str]:
    """Paths below `module_dir`, each after everything that it needs (modules.dep, modules.softdep)."""
    needs: dict[str, list[str]] = {}
    for line in (module_dir / "modules.dep").read_text(encoding="utf-8").splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {_module_name(path): path for path in needs}
    before: dict[str, list[str]] = {}
    for line in (module_dir / "modules.softdep").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words[:1] == ["softdep"] and "pre:" in words:
            soft = words[words.index("pre:") + 1 :]
            before[words[1].replace("-", "_")] = [word.replace("-", "_") for word in soft if not word.endswith(":")]
    order: list[str] = []

    def add(path: str) -> None:
        for soft in before.get(_module_name(path), []):
            if soft in by_name and by_name[soft] not in order:
                add(by_name[soft])
        for need in reversed(needs[path]):
            if need not in order:
                add(need)
        if path not in order:
            order.append(path)

    for name in wanted:
        if name in by_name:
            add(by_name[name])
    return order


class Cpio:
    """A cpio archive in the "newc" format, as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def _entry(self, name: str, mode: int, data: bytes = b"") -> None:
        self._inode += 1
        nlink = 1
        fields = (self._inode, mode, 0, 0, nlink, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        self._parts += [_pad4(head), _pad4(data)]

    def directory(self, name: str) -> None:
        self._entry(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def finish(self) -> bytes:
        self._inode = -1
        self._entry("TRAILER!!!", 0)
        return b"".join(self._parts)


def _pad4(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def build(busybox: bytes, init: bytes, modules: dict[str, bytes]) -> bytes:
    """The archive; `modules` are uncompressed, in load order."""
    cpio = Cpio()
    for name in ("bin", "dev", "proc", "sys", "modules", "root", "layer", "disk"):
        cpio.directory(name)
    cpio.file("bin/busybox", busybox, 0o755)
    for applet in APPLETS:
        cpio.symlink(f"bin/{applet}", "busybox")
    for number, (name, data) in enumerate(modules.items()):
        cpio.file(f"modules/{number:02d}-{name}.ko", data)
    cpio.file("init", init, 0o755)
    return cpio.finish()
