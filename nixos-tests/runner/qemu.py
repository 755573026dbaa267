"""The QEMU command line, and a probe whether KVM works."""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from .assets import KernelImage
from .console import progress
from .errors import RunnerError
from .tools import Tools

CPUS = 2
PROBE_MEMORY_MIB = 2048
STATE_DISK_GIB = 8  # sparse: costs what is written

# lsm= without landlock, and otherwise Debian's value
LSM_OFF = "lsm=lockdown,yama,apparmor"
# quiet: each line on an emulated serial port costs time. panic=-1: a panic ends QEMU at once, with the trace on the console.
# no_timer_check, tsc=reliable: on a busy host an emulated timer is late; the kernel would panic over that, or read the time from a device.
# init_on_alloc=0, mitigations=off: they cost emulated instructions, and no scenario is about them.
COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable mitigations=off init_on_alloc=0 audit=0 nowatchdog net.ifnames=0 TERM=dumb "
    "systemd.show_status=0"
)
# The most that distributions require (x86-64-v2). With `max`, which has page tables of five levels and wide vector registers, a
# process takes a quarter to a half longer to start.
EMULATED_CPU = "Nehalem"

# A guest under working KVM passes the probe within 2 s; on nested machines it dies or hangs.
PROBE_TIMEOUT_S = 20
PROBE_LINE = b"initrd: probe passed"


class Disks(NamedTuple):
    root: Path
    payload: Path
    state: Path


def machine_arguments(tools: Tools, accel: str, memory_mib: int) -> list[str]:
    """The arguments of a probe and a guest. q35 because microvm dies in one boot of four."""
    share = tools.tree / "usr/share"
    command = tools.command("qemu-system-x86_64")
    for folder in ("qemu", "seabios"):
        command += ["-L", str(share / folder)]
    command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35", "-smp", str(CPUS), "-m", str(memory_mib)]
    if accel == "kvm":
        command += ["-accel", "kvm", "-cpu", "host"]
    else:
        command += ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", EMULATED_CPU]
    return command


def guest_arguments(tools: Tools, accel: str, kernel: KernelImage, disks: Disks, memory_mib: int, lsm_off: bool, extra: str) -> list[str]:
    command = machine_arguments(tools, accel, memory_mib)
    command += ["-kernel", str(kernel.vmlinux), "-initrd", str(kernel.initrd)]
    command += ["-append", " ".join(filter(None, (COMMAND_LINE, LSM_OFF if lsm_off else "", extra)))]
    for name, path, readonly in (("root", disks.root, True), ("payload", disks.payload, True),
                                 ("modules", kernel.modules, True), ("state", disks.state, False)):  # fmt: skip
        # cache=unsafe: the host need not flush a disk that ends with the scenario
        command += ["-drive", f"file={_escape(path)},if=none,id={name},format=raw,cache=unsafe,readonly={'on' if readonly else 'off'}",
                    "-device", f"virtio-blk-pci,drive={name},serial={name}"]  # fmt: skip
    command += ["-netdev", "user,id=net0,restrict=on", "-device", "virtio-net-pci,netdev=net0,romfile="]
    return command


def _escape(path: Path) -> str:
    """A comma in an option's value is written twice."""
    return str(path).replace(",", ",,")


def accelerator(tools: Tools, kernel: KernelImage, cache: Path) -> str:
    """"kvm" if a guest really starts with it, else "tcg". EXEC2_VM_ACCEL decides without a probe."""
    forced = os.environ.get("EXEC2_VM_ACCEL")
    if forced:
        if forced not in ("kvm", "tcg"):
            raise RunnerError(f"EXEC2_VM_ACCEL={forced!r}; write kvm or tcg")
        return forced
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        progress("KVM: /dev/kvm is missing or not writable; emulating the CPU (TCG), which is 10 to 20 times slower")
        return "tcg"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    remembered = cache / f"accel-{boot_id}"  # valid until the host boots again
    if remembered.exists():
        answer = remembered.read_text(encoding="ascii")
    else:
        answer = "kvm" if _probe(tools, kernel) else "tcg"
        for old in cache.glob("accel-*"):
            old.unlink()
        remembered.write_text(answer, encoding="ascii")
    if answer == "tcg":
        progress("KVM: /dev/kvm is there, but a guest dies with it; emulating the CPU (TCG), which is 10 to 20 times slower")
    return answer


def _probe(tools: Tools, kernel: KernelImage) -> bool:
    command = machine_arguments(tools, "kvm", PROBE_MEMORY_MIB)
    command += ["-kernel", str(kernel.vmlinux), "-initrd", str(kernel.initrd), "-append", f"{COMMAND_LINE} exec2.probe", "-serial", "stdio"]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            process.wait(PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        output.seek(0)
        return PROBE_LINE in output.read()
