"""What has to be on the host before anything is built, and where Debian packages come from."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from .console import progress
from .errors import RunnerError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# apt-get without a cache on a slow mirror takes minutes; after this time it hangs.
APT_INSTALL_TIMEOUT_S = 600


def cache_dir() -> Path:
    """The folder of everything that is built; it can be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "nomad-driver-exec2" / "vm"


def _missing() -> dict[str, str]:
    """What is missing: {name: the Debian package that has it}."""
    wanted = {"mmdebstrap": "mmdebstrap", "apt-get": "apt", "apt-cache": "apt", "dpkg-deb": "dpkg"}
    if os.geteuid() != 0:
        wanted["newuidmap"] = "uidmap"  # mmdebstrap then uses a user namespace
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    missing = {tool: package for tool, package in wanted.items() if not shutil.which(tool, path=path)}
    if not KEYRING.exists():
        missing[str(KEYRING)] = "debian-archive-keyring"
    return missing


def _os_family() -> str:
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return ""
    return " ".join(re.findall(r'^(?:ID|ID_LIKE)="?([^"\n]*)"?$', text, re.M))


def require_build_tools() -> None:
    """Installs what is missing on Debian and Ubuntu as root; elsewhere raises an error that names it."""
    missing = _missing()
    if not missing:
        return
    packages = sorted(set(missing.values()))
    family = _os_family()
    if os.geteuid() != 0 or not re.search(r"\b(debian|ubuntu)\b", family) or not shutil.which("apt-get"):
        raise RunnerError(
            "missing on this host: " + ", ".join(f"{what} (Debian package {package})" for what, package in missing.items())
            + f"; on Debian or Ubuntu: sudo apt-get install --no-install-recommends {' '.join(packages)}"
        )
    progress(f"apt-get install {' '.join(packages)}")
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    done = _run(install, env)
    if done.returncode != 0:  # no package lists yet, or stale ones
        _run(["apt-get", "update", "-qq"], env)
        done = _run(install, env)
    still = _missing()
    if still:
        raise RunnerError(f"apt-get install {' '.join(packages)} did not install {', '.join(still)}:\n{done.stdout.strip()}")


def _run(command: list[str], env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=APT_INSTALL_TIMEOUT_S, check=False)


def debian_mirror(option: str | None) -> str | None:
    """--mirror, EXEC2_DEBIAN_MIRROR, or the Debian mirror in the host's apt sources, in this order; without one (Ubuntu, Fedora, ...)
    mmdebstrap has a default of its own."""
    chosen = option or os.environ.get("EXEC2_DEBIAN_MIRROR")
    if chosen:
        return chosen.rstrip("/")
    if shutil.which("apt-get"):
        done = subprocess.run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Identifier: Packages"],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        for line in done.stdout.splitlines():
            origin, _, uri = line.partition(" ")
            # Debian's main archive, not the security archive or a third party's repository
            if origin == "Debian" and uri.rstrip("/").endswith("/debian"):
                return uri.rstrip("/")
    return None
