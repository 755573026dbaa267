"""Builds the layer over the root image: the guest's configuration, the plugin, the agent and the examples.

It becomes a read-only disk that is stacked on the root, so that no guest spends time on copying.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from .assets import HERE
from .console import progress
from .errors import RunnerError
from .tools import Tools

PROJECT = HERE.parent.parent
PLUGIN_NAME = "nomad-driver-exec2"
RUST_TARGET = "x86_64-unknown-linux-musl"
GO_BUILD_TIMEOUT_S = 1200
CARGO_BUILD_TIMEOUT_S = 2400

UNIT_TESTS = "usr/local/libexec/exec2-unit-tests"
ATTACK = "usr/local/bin/exec2-attack"  # in the default unveils

MACHINE_ID = "0123456789abcdef0123456789abcdef"  # fixed, so that systemd treats no boot as the first
IMAGE_UUID = "00000000-0000-4000-8000-000000000001"  # any value: nothing uses it
UNIT_FOLDER = "etc/systemd/system"
WANTS = {
    "multi-user.target.wants/backdoor.service": "../backdoor.service",
    "multi-user.target.wants/nomad.service": "../nomad.service",
    "multi-user.target.wants/network.service": "../network.service",
    "network-online.target.wants/network.service": "../network.service",
    "default.target": "/usr/lib/systemd/system/multi-user.target",
}
FILES = {
    "etc/hostname": "machine\n",
    "etc/hosts": "127.0.0.1 localhost machine\n::1 localhost\n",
    "etc/machine-id": MACHINE_ID + "\n",
    "etc/fstab": "",
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
}


def build_plugin(option: str | None) -> Path:
    """The plugin of --plugin, or one that cargo builds from this checkout."""
    if option:
        return _existing(Path(option), "--plugin")
    target = Path(os.environ.get("CARGO_TARGET_DIR") or PROJECT / "target")
    _build("the plugin", ["cargo", "build", "--quiet", "--release", "--locked", "--target", RUST_TARGET], PROJECT,
           {"CARGO_TARGET_DIR": str(target)}, CARGO_BUILD_TIMEOUT_S, "--plugin PATH")  # fmt: skip
    return _existing(target / RUST_TARGET / "release" / PLUGIN_NAME, "cargo build")


def build_pluginhost(option: str | None) -> Path:
    """The test host of --pluginhost, or one that go builds from tests/pluginhost."""
    if option:
        return _existing(Path(option), "--pluginhost")
    source = PROJECT / "tests" / "pluginhost"
    if not (source / "go.mod").exists():
        raise RunnerError(f"{source} does not exist; write --pluginhost PATH, or use real Nomad with --nomad real")
    return _go_build("the pluginhost", "pluginhost", "--pluginhost PATH, or --nomad real")


def build_attack() -> Path:
    """The program with the attacks, which is not an option of the command line: it has to fit its scenario."""
    return _go_build("the attacks", "attack", "other scenarios")


def _go_build(what: str, command: str, instead: str) -> Path:
    result = PROJECT / "target" / command
    _build(what, ["go", "build", "-trimpath", "-o", str(result), f"./cmd/{command}"], PROJECT / "tests" / "pluginhost", {"CGO_ENABLED": "0"},
           GO_BUILD_TIMEOUT_S, instead)  # fmt: skip
    return _existing(result, "go build")


def build_unit_tests() -> Path:
    """The crate's unit tests as a static program, for those that need a real kernel and root."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or PROJECT / "target")
    command = ["cargo", "test", "--quiet", "--locked", "--package", PLUGIN_NAME, "--lib", "--target", RUST_TARGET, "--no-run", "--message-format=json"]
    output = _build("the unit tests", command, PROJECT, {"CARGO_TARGET_DIR": str(target)}, CARGO_BUILD_TIMEOUT_S, "other scenarios")
    for line in output.splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("executable") and "lib" in message["target"]["kind"]:
            return _existing(Path(message["executable"]), "cargo test")
    raise RunnerError("cargo test --no-run names no test program")


def real_nomad() -> Path | None:
    """NOMAD_BIN, or `nomad` on PATH."""
    named = os.environ.get("NOMAD_BIN")
    if named:
        return _existing(Path(named), "NOMAD_BIN")
    found = shutil.which("nomad")
    return Path(found).resolve() if found else None


def _existing(path: Path, source: str) -> Path:
    if not path.is_file() or not os.access(path, os.X_OK):
        raise RunnerError(f"{source}: {path} is not an executable file")
    return path.resolve()


def _build(what: str, command: list[str], folder: Path, extra: dict[str, str], timeout: float, instead: str) -> str:
    if not shutil.which(command[0]):
        raise RunnerError(f"{command[0]} is not on PATH, and {what} has to be built; install it, or use {instead}")
    progress(f"building {what}: {' '.join(command[:2])}")
    done = subprocess.run(command, cwd=folder, env={**os.environ, **extra}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False)  # fmt: skip
    if done.returncode != 0:
        raise RunnerError(f"failed to build {what} ({' '.join(command)}):\n{done.stdout.rstrip()}")
    return done.stdout


def assemble(folder: Path, plugin: Path, agent: Path, pluginhost: Path | None, unit_tests: Path | None,
             attack: Path | None, extra: Path | None) -> None:  # fmt: skip
    """A folder that looks like a root file system."""
    shutil.copytree(HERE / "guest" / "root", folder, symlinks=True)
    units = folder / UNIT_FOLDER
    for name, target in WANTS.items():
        (units / name).parent.mkdir(parents=True, exist_ok=True)
        (units / name).symlink_to(target)
    for line in (HERE / "guest" / "masked-units").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            (units / line).symlink_to("/dev/null")
    (folder / "usr/lib/modules").mkdir(parents=True)  # where the kernel's modules are mounted
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    _place(plugin, folder / "opt/nomad/data/plugins" / PLUGIN_NAME)
    _place(plugin, folder / "usr/bin" / PLUGIN_NAME)
    _place(agent, folder / "usr/local/bin/nomad")
    if pluginhost:
        _place(pluginhost, folder / "usr/local/bin/pluginhost")
    if unit_tests:
        _place(unit_tests, folder / UNIT_TESTS)
    if attack:
        _place(attack, folder / ATTACK)
    examples = folder / "etc/exec2-examples"
    examples.mkdir(parents=True)
    for job in sorted((PROJECT / "examples").glob("*.nomad.hcl")):
        shutil.copy(job, examples)
    if extra:
        if not extra.is_dir():
            raise RunnerError(f"--payload: {extra} is not a folder")
        shutil.copytree(extra, folder, symlinks=True, dirs_exist_ok=True)


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def make_image(tools: Tools, folder: Path, image: Path) -> None:
    """Uncompressed: it is read once, and an emulated CPU decompresses slowly. The same files give the same bytes."""
    tools.erofs(image, folder, "--all-root", f"-U{IMAGE_UUID}")


def make_state_disk(tools: Tools, image: Path, size_gib: int) -> None:
    """An empty ext4 file system in a sparse file; it keeps what the guest writes until the scenario ends."""
    tools.run("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-m", "0", image, f"{size_gib}G")
