"""Downloads a kernel of a Debian suite and makes it bootable without that suite."""

import contextlib
import re
import subprocess
from pathlib import Path

from . import bzimage, initrd
from .errors import RunnerError
from .host import KEYRING
from .tools import Tools, run

PACKAGE = "linux-image-cloud-amd64"  # all that a virtual machine needs, with a tenth of the usual modules
DOWNLOAD_TIMEOUT_S = 900
HERE = Path(__file__).resolve().parent


def build(apt: "Apt", tools: Tools, scratch: Path) -> Path:
    """A folder with vmlinux, initrd, modules.erofs and version."""
    tree = scratch / "tree"
    for package in apt.download_kernel(scratch):
        run(["dpkg-deb", "-x", str(package), str(tree)])
    found = sorted(tree.glob("lib/modules/*")) + sorted(tree.glob("usr/lib/modules/*"))
    if len(found) != 1:
        raise RunnerError(f"the kernel packages of {apt.suite} have {len(found)} folders in lib/modules, not one")
    version = found[0].name
    images = sorted(tree.glob("boot/vmlinuz-*")) + sorted(found[0].glob("vmlinuz"))
    if not images:
        raise RunnerError(f"the kernel packages of {apt.suite} have no vmlinuz")
    part = scratch / "kernel"
    modules = scratch / "modules"
    part.mkdir()
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
    return part


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

    def download_kernel(self, folder: Path) -> list[Path]:
        """The package that carries the kernel, and those that newer suites split off from it."""
        try:
            self._apt("apt-get", "update", "-oAPT::Update::Error-Mode=any")
        except RunnerError as error:
            raise RunnerError(f"{self.mirror} does not serve Debian {self.suite} (any more?); set EXEC2_DEBIAN_MIRROR or --mirror: {error}") from error
        packages: list[str] = []
        queue = [PACKAGE]
        while queue:
            name = queue.pop(0)
            shown = self._apt("apt-cache", "show", "--no-all-versions", name)
            depends = re.search(r"^Depends: (.*)$", shown, re.M)
            for other in re.findall(r"\blinux-(?:image|binary|modules|base)-\d[^\s,()|]*", depends[1] if depends else ""):
                if other not in packages:
                    packages.append(other)
                    queue.append(other)
        if not packages:
            raise RunnerError(f"{PACKAGE} of Debian {self.suite} depends on no kernel package")
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
