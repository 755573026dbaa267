"""Builds and keeps what a guest is made of: the tools (QEMU and friends), the root image, and each kernel.

Every part lies in the cache under a name with a hash of what it was made from, so that a change makes a new one and two
checkouts do not disturb each other.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

from . import bzimage, initrd
from .console import progress
from .errors import RunnerError
from .host import KEYRING, require_build_tools
from .kernels import Kernel, version_tuple

TOOLS_SUITE = "trixie"
TOOLS_PACKAGES = ("busybox-static", "e2fsprogs", "erofs-utils", "kmod", "lz4", "qemu-system-x86", "xz-utils", "zstd")

ROOT_SUITE = "trixie"
ROOT_PACKAGES = (
    "attr", "ca-certificates", "containernetworking-plugins", "curl", "dbus", "default-jdk-headless", "iproute2", "iptables",
    "iputils-ping", "kmod", "libcap2-bin", "media-types", "netcat-openbsd", "nftables", "passwd", "procps", "python3", "strace",
    "systemd", "systemd-sysv", "util-linux",
)  # fmt: skip
# Documentation, translations, and the parts of the JDK that only jlink and debuggers read.
ROOT_EXCLUDE = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/lib/jvm/*/jmods/*",
                "/usr/lib/jvm/*/lib/src.zip")  # fmt: skip
# update-alternatives of the JDK links manual pages into a folder that is left out with them.
ROOT_ESSENTIAL_HOOK = 'mkdir -p "$1/usr/share/man/man1"'
# Users for scenarios with a named user. uid 1000 is left to whoever adds one by hand.
ROOT_HOOKS = (
    'chroot "$1" useradd --create-home --uid 1001 --shell /bin/bash alice',
    'chroot "$1" useradd --create-home --uid 1002 --shell /bin/bash bob',
    'rm -f "$1/etc/resolv.conf" "$1/etc/machine-id" "$1/etc/hostname"',
)

KERNEL_PACKAGE = "linux-image-cloud-amd64"  # everything that a virtual machine needs, a tenth of the full one's modules

DOWNLOAD_TIMEOUT_S = 900
BUILD_TIMEOUT_S = 1800
ERROR_TAIL_LINES = 12

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


def run(command: List[str], *, timeout: float = BUILD_TIMEOUT_S, stdin: Optional[bytes] = None, env: Optional[Dict[str, str]] = None) -> bytes:
    """Runs it; a failure is a RunnerError with what it printed."""
    try:
        done = subprocess.run(command, input=stdin if stdin is not None else b"", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=timeout, env=env, check=False)  # fmt: skip
    except OSError as error:
        raise RunnerError(f"{command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RunnerError(f"{' '.join(command[:3])} … did not end within {timeout:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        telling = [line for line in lines[:-ERROR_TAIL_LINES] if re.search(r"\b(error|E):", line)] + lines[-ERROR_TAIL_LINES:]
        raise RunnerError(f"{' '.join(command[:3])} … ended with {done.returncode}:\n  " + "\n  ".join(telling))
    return done.stdout


class Tools:
    """A tree of Debian programs that is run through its own loader and libraries, whatever the host has."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree

    def command(self, program: str, *arguments: object) -> List[str]:
        path = next((self.tree / folder / program for folder in ("usr/bin", "usr/sbin", "usr/lib/klibc/bin")
                     if (self.tree / folder / program).exists()), None)  # fmt: skip
        if path is None:
            raise RunnerError(f"{self.tree} has no program {program}; delete that folder to have it built anew")
        return [str(self.tree / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(self.tree / "usr/lib/x86_64-linux-gnu"),
                "--argv0", program, str(path)] + [str(argument) for argument in arguments]  # fmt: skip

    def run(self, program: str, *arguments: object, stdin: Optional[bytes] = None) -> bytes:
        return run(self.command(program, *arguments), stdin=stdin)

    def decompress(self, tool: str, data: bytes) -> bytes:
        """zstd, lz4 and xz report bytes after the end of the stream as an error, after writing all that came before."""
        done = subprocess.run(self.command(tool, "-d", "-c", "-q"), input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if not done.stdout:
            raise RunnerError(f"{tool} -d: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def erofs(self, image: Path, source: Path, *options: str) -> None:
        self.run("mkfs.erofs", "--quiet", "-T0", *options, image, source)


class Assets:
    """The cache. Each method returns a finished part, and builds it first if it is not there."""

    def __init__(self, cache: Path, mirror: str) -> None:
        self.cache = cache
        self.mirror = mirror
        cache.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _building(self, name: str) -> Iterator[Path]:
        """A scratch folder in the cache, under a lock: another runner waits and then finds the part built."""
        with open(self.cache / f".lock-{name}", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=self.cache))
            scratch.chmod(0o755)
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _mmdebstrap(self, suite: str, target: Path, variant: str, packages: List[str], *options: str) -> None:
        source = f"deb [signed-by={KEYRING}] {self.mirror} {suite} main"
        command = ["mmdebstrap", f"--variant={variant}", "--format=tar", f"--include={','.join(packages)}",
                   '--aptopt=APT::Sandbox::User "root"', *options, suite, str(target), source]  # fmt: skip
        # the caller's temporary folder may be closed to the user namespace that mmdebstrap works in
        run(command, env={**os.environ, "TMPDIR": "/tmp"})

    def tools(self) -> Tools:
        name = "tools-" + _hash(TOOLS_SUITE, *TOOLS_PACKAGES)
        final = self.cache / name
        if not final.exists():
            require_build_tools()
            with self._building(name) as scratch:
                if not final.exists():
                    progress(f"tools: QEMU and {len(TOOLS_PACKAGES) - 1} other packages of Debian {TOOLS_SUITE} from {self.mirror}")
                    archive = scratch / "tools.tar"
                    self._mmdebstrap(TOOLS_SUITE, archive, "extract", list(TOOLS_PACKAGES))
                    tree = scratch / "tree"
                    with tarfile.open(archive) as tar:
                        members = [m for m in tar if m.isreg() or m.isdir() or m.issym() or m.islnk()]
                        wanted = [m for m in members if not re.match(r"\./(dev|proc|sys|var|usr/share/(doc|man|locale))/", m.name)]
                        for member in wanted:
                            member.mode |= 0o700 if member.isdir() else 0o600  # or it could not be deleted again
                        tar.extractall(tree, members=wanted)
                    tree.rename(final)
        return Tools(final)

    def root(self, tools: Tools) -> Path:
        """The guest's root file system as an erofs image."""
        name = "root-" + _hash(ROOT_SUITE, *ROOT_PACKAGES, *ROOT_EXCLUDE, ROOT_ESSENTIAL_HOOK, *ROOT_HOOKS)
        final = self.cache / f"{name}.erofs"
        if not final.exists():
            require_build_tools()
            with self._building(name) as scratch:
                if not final.exists():
                    progress(f"root: Debian {ROOT_SUITE} with systemd, a JDK and {len(ROOT_PACKAGES) - 3} other packages")
                    archive = scratch / "root.tar"
                    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in ROOT_EXCLUDE]
                    options.append(f"--essential-hook={ROOT_ESSENTIAL_HOOK}")
                    options += [f"--customize-hook={hook}" for hook in ROOT_HOOKS]
                    self._mmdebstrap(ROOT_SUITE, archive, "minbase", list(ROOT_PACKAGES), *options)
                    image = scratch / "root.erofs"
                    tools.erofs(image, archive, "--tar=f", "-zlz4")
                    image.rename(final)
        return final

    def kernel(self, kernel: Kernel, tools: Tools, wanted: str = "", update: bool = False) -> KernelImage:
        """`wanted` is the X.Y that a moving suite has to have; `update` looks for a newer package."""
        name = f"kernel-{kernel.label}-" + _hash(kernel.suite, KERNEL_PACKAGE, _source("assets.py", "bzimage.py", "initrd.py", "guest/init"))
        final = self.cache / name
        if update or not (final / "version").exists():
            require_build_tools()
            with self._building(name) as scratch:
                if update or not (final / "version").exists():
                    self._build_kernel(kernel, tools, scratch, final)
        version = (final / "version").read_text(encoding="utf-8").strip()
        if wanted and version_tuple(version) != version_tuple(wanted):
            raise RunnerError(f"Debian {kernel.suite} has Linux {version}, not {wanted}; write --kernel {kernel.label}, or --update to look for a newer one")
        return KernelImage(kernel.label, version, final / "vmlinux", final / "initrd", final / "modules.erofs")

    def _build_kernel(self, kernel: Kernel, tools: Tools, scratch: Path, final: Path) -> None:
        progress(f"kernel {kernel.label}: {KERNEL_PACKAGE} of Debian {kernel.suite} from {self.mirror}")
        tree = scratch / "tree"
        for package in Apt(self.cache / "apt" / kernel.suite, self.mirror, kernel.suite).download_kernel(scratch):
            run(["dpkg-deb", "-x", str(package), str(tree)])
        found = sorted(tree.glob("lib/modules/*")) + sorted(tree.glob("usr/lib/modules/*"))
        if len(found) != 1:
            raise RunnerError(f"the kernel packages of {kernel.suite} have {len(found)} folders in lib/modules, not one")
        version = found[0].name
        images = sorted(tree.glob("boot/vmlinuz-*")) + sorted(found[0].glob("vmlinuz"))
        if not images:
            raise RunnerError(f"the kernel packages of {kernel.suite} have no vmlinuz")
        part = scratch / "kernel"
        modules = scratch / "modules"
        (part).mkdir()
        (modules / "lib/modules").mkdir(parents=True)
        (part / "vmlinux").write_bytes(bzimage.extract(images[0], tools.decompress))
        found[0].rename(modules / "lib/modules" / version)
        folder = modules / "lib/modules" / version
        for useless in ("build", "source", "vmlinuz", "System.map", "config"):
            with contextlib.suppress(FileNotFoundError):
                (folder / useless).unlink()
        tools.run("depmod", "-b", modules, version)
        needed = {}
        for path in initrd.load_order(folder):
            data = (folder / path).read_bytes()
            name = re.sub(r"\.ko.*", "", path.rsplit("/", 1)[-1])
            needed[name] = tools.decompress("xz", data) if path.endswith(".xz") else data
        busybox = (tools.tree / "usr/bin/busybox").read_bytes()
        (part / "initrd").write_bytes(initrd.build(busybox, (HERE / "guest/init").read_bytes(), needed))
        tools.erofs(part / "modules.erofs", modules / "lib/modules", "--all-root", "-zlz4")
        (part / "version").write_text(version + "\n", encoding="utf-8")
        if final.exists():
            final.rename(scratch / "old")
        part.rename(final)


class Apt:
    """apt with its own sources and lists, so that the host's are neither used nor changed."""

    def __init__(self, folder: Path, mirror: str, suite: str) -> None:
        self.suite = suite
        self.mirror = mirror
        for name in ("lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        sources = folder / "sources.list"
        sources.write_text(f"deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n", encoding="utf-8")
        settings = {
            "Dir::Etc::sourcelist": sources, "Dir::Etc::sourceparts": "/dev/null", "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null", "Dir::State::lists": folder / "lists", "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "root", "APT::Default-Release": "", "APT::Architecture": "amd64", "Acquire::Languages": "none",
        }  # fmt: skip
        self._options = [f"-o{name}={value}" for name, value in settings.items()]

    def _apt(self, program: str, *arguments: str) -> str:
        return run([program, "-qq", *self._options, *arguments], timeout=DOWNLOAD_TIMEOUT_S).decode()

    def download_kernel(self, folder: Path) -> List[Path]:
        """The package that carries the kernel, and those that newer suites split off from it."""
        try:
            self._apt("apt-get", "update", "-oAPT::Update::Error-Mode=any")
        except RunnerError as error:
            raise RunnerError(f"{self.mirror} does not serve Debian {self.suite} (any more?); set EXEC2_DEBIAN_MIRROR or --mirror: {error}") from error
        packages: List[str] = []
        queue = [KERNEL_PACKAGE]
        while queue:
            name = queue.pop(0)
            shown = self._apt("apt-cache", "show", "--no-all-versions", name)
            depends = re.search(r"^Depends: (.*)$", shown, re.M)
            for other in re.findall(r"\blinux-(?:image|binary|modules|base)-\d[^\s,()|]*", depends[1] if depends else ""):
                if other not in packages:
                    packages.append(other)
                    queue.append(other)
        if not packages:
            raise RunnerError(f"{KERNEL_PACKAGE} of Debian {self.suite} depends on no kernel package")
        return [self._download(package, folder) for package in packages]

    def _download(self, package: str, folder: Path) -> Path:
        # "apt-get download" writes to the working folder
        command = ["apt-get", "-qq", *self._options, "download", package]
        done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)  # fmt: skip
        found = sorted(folder.glob(f"{package}_*.deb"))
        if done.returncode != 0 or not found:
            raise RunnerError(f"apt-get download {package} of Debian {self.suite} failed: {done.stdout.strip()}")
        return found[0]
