"""Builds and caches the parts of a guest: the tools (QEMU and others), the root image, and each kernel.

The name of each part in the cache has a hash of its sources, so that a change makes a new part and two checkouts do not
disturb each other.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import kernel_image
from .console import progress
from .errors import RunnerError
from .host import KEYRING, require_build_tools
from .kernels import Kernel, version_tuple
from .tools import Tools, run

TOOLS_SUITE = "trixie"
TOOLS_PACKAGES = ("busybox-static", "e2fsprogs", "erofs-utils", "kmod", "lz4", "qemu-system-x86", "xz-utils", "zstd")

ROOT_SUITE = "trixie"
ROOT_PACKAGES = (
    "attr", "ca-certificates", "containernetworking-plugins", "curl", "dbus", "default-jdk-headless", "iproute2", "iptables",
    "iputils-ping", "kmod", "libcap2-bin", "media-types", "netcat-openbsd", "nftables", "passwd", "procps", "python3", "rpm", "strace",
    "systemd", "systemd-sysv", "util-linux",
)  # fmt: skip
# Documentation, translations, and the parts of the JDK that only jlink and debuggers read.
ROOT_EXCLUDE = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/lib/jvm/*/jmods/*",
                "/usr/lib/jvm/*/lib/src.zip")  # fmt: skip
# update-alternatives of the JDK links manual pages into a folder that is left out with them.
ROOT_ESSENTIAL_HOOK = 'mkdir -p "$1/usr/share/man/man1"'
# Users for scenarios with a named user. uid 1000 stays free for one that is added manually.
ROOT_HOOKS = (
    'chroot "$1" useradd --create-home --uid 1001 --shell /bin/bash alice',
    'chroot "$1" useradd --create-home --uid 1002 --shell /bin/bash bob',
    'rm -f "$1/etc/resolv.conf" "$1/etc/machine-id" "$1/etc/hostname"',
)


HERE = Path(__file__).resolve().parent


class KernelImage(NamedTuple):
    label: str
    version: str  # as `uname -r` prints it
    vmlinux: Path
    initrd: Path
    modules: Path


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:12]


def _source(*names: str) -> str:
    """The text of files of this package, to be part of a hash."""
    return "\0".join((HERE / name).read_text(encoding="utf-8") for name in names)


def _mirror_of(tools: Tools) -> str:
    """The mirror that mmdebstrap took the tools from."""
    sources = tools.tree / "etc/apt/sources.list"
    found = re.search(r"^deb (?:\[[^]]*\] )?(\S+)", sources.read_text(encoding="utf-8"), re.M) if sources.exists() else None
    if not found:
        raise RunnerError(f"{sources} names no Debian mirror; set EXEC2_DEBIAN_MIRROR or --mirror")
    return found[1].rstrip("/")


class Assets:
    """The cache. Each method returns a finished part, and builds it first if it is not there."""

    def __init__(self, cache: Path, mirror: str | None) -> None:
        self.cache = cache
        self.mirror = mirror
        cache.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """A scratch folder in the cache, under a lock: another runner waits and then finds the part built."""
        with open(self.cache / f".lock-{name}", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=self.cache))
            scratch.chmod(0o755)
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _mmdebstrap(self, suite: str, target: Path, variant: str, packages: list[str], *options: str) -> None:
        source = [f"deb [signed-by={KEYRING}] {self.mirror} {suite} main"] if self.mirror else []
        command = ["mmdebstrap", f"--variant={variant}", "--format=tar", f"--include={','.join(packages)}",
                   '--aptopt=APT::Sandbox::User "root"', *options, suite, str(target), *source]  # fmt: skip
        # the user namespace of mmdebstrap may have no access to the caller's temporary folder
        run(command, env={**os.environ, "TMPDIR": "/tmp"})

    def tools(self) -> Tools:
        name = "tools-" + _hash(TOOLS_SUITE, *TOOLS_PACKAGES)
        final = self.cache / name
        if not final.exists():
            require_build_tools()
            with self.building(name) as scratch:
                if not final.exists():
                    progress(f"tools: QEMU and {len(TOOLS_PACKAGES) - 1} other packages of Debian {TOOLS_SUITE}")
                    archive = scratch / "tools.tar"
                    self._mmdebstrap(TOOLS_SUITE, archive, "extract", list(TOOLS_PACKAGES))
                    tree = scratch / "tree"
                    with tarfile.open(archive) as tar:
                        if hasattr(tarfile, "fully_trusted_filter"):  # Python 3.14 refuses Debian's absolute links otherwise
                            tar.extraction_filter = tarfile.fully_trusted_filter
                        members = [m for m in tar if m.isreg() or m.isdir() or m.issym() or m.islnk()]
                        wanted = [m for m in members if not re.match(r"\./(dev|proc|sys|var|usr/share/(doc|man|locale))/", m.name)]
                        for member in wanted:
                            member.mode |= 0o700 if member.isdir() else 0o600  # otherwise it could not be deleted
                        tar.extractall(tree, members=wanted)
                    tree.rename(final)
        return Tools(final)

    def root(self, tools: Tools, more: list[str]) -> Path:
        """The guest's root file system as an erofs image, with more packages than every guest has."""
        packages = [*ROOT_PACKAGES, *more]
        name = "root-" + _hash(ROOT_SUITE, *packages, *ROOT_EXCLUDE, ROOT_ESSENTIAL_HOOK, *ROOT_HOOKS)
        final = self.cache / f"{name}.erofs"
        if not final.exists():
            require_build_tools()
            with self.building(name) as scratch:
                if not final.exists():
                    progress(f"root: Debian {ROOT_SUITE} with systemd, a JDK and {len(packages) - 3} other packages")
                    archive = scratch / "root.tar"
                    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in ROOT_EXCLUDE]
                    options.append(f"--essential-hook={ROOT_ESSENTIAL_HOOK}")
                    options += [f"--customize-hook={hook}" for hook in ROOT_HOOKS]
                    self._mmdebstrap(ROOT_SUITE, archive, "minbase", packages, *options)
                    image = scratch / "root.erofs"
                    tools.erofs(image, archive, "--tar=f", "-zlz4")
                    image.rename(final)
        return final

    def kernel(self, kernel: Kernel, tools: Tools, wanted: str = "", update: bool = False) -> KernelImage:
        """`wanted` is the X.Y that a moving suite has to have; `update` looks for a newer package."""
        name = f"kernel-{kernel.label}-" + _hash(kernel.suite, _source("kernel_image.py", "bzimage.py", "initrd.py", "guest/init"))
        final = self.cache / name
        if update or not (final / "version").exists():
            require_build_tools()
            with self.building(name) as scratch:
                if update or not (final / "version").exists():
                    progress(f"kernel {kernel.label}: {kernel_image.PACKAGE} of Debian {kernel.suite}")
                    apt = kernel_image.Apt(scratch / "apt", self.mirror or _mirror_of(tools), kernel.suite)
                    part = kernel_image.build(apt, tools, scratch)
                    if final.exists():
                        final.rename(scratch / "old")
                    part.rename(final)
        version = (final / "version").read_text(encoding="utf-8").strip()
        if wanted and version_tuple(version) != version_tuple(wanted):
            raise RunnerError(f"Debian {kernel.suite} has Linux {version}, not {wanted}; write --kernel {kernel.label}, or --update to look for a newer one")
        return KernelImage(kernel.label, version, final / "vmlinux", final / "initrd", final / "modules.erofs")
