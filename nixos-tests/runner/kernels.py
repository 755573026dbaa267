"""The kernels that can be booted, and version comparison."""

import re
from typing import NamedTuple

from .errors import RunnerError


class Kernel(NamedTuple):
    """A kernel as it is asked for; the real version is known once it is downloaded."""

    label: str  # on the command line and in reports
    suite: str  # the Debian suite whose kernel it is


# One for each thing that changes for the driver: no Landlock at all, then Landlock ABI 2, 6 and the newest.
KERNELS = (
    Kernel("5.10", "bullseye"),
    Kernel("6.1", "bookworm"),
    Kernel("6.12", "trixie"),
    Kernel("sid", "sid"),  # moves; the report shows what it was
)
DEFAULT_LABEL = "6.12"


def version_tuple(version: str) -> tuple[int, int]:
    """(6, 12) of "6.12.117+deb13-cloud-amd64"."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if not match:
        raise RunnerError(f"{version!r} does not start like a kernel version, such as 6.12")
    return int(match[1]), int(match[2])


def choose(option: str) -> list[tuple[Kernel, str]]:
    """The kernels of `--kernel`, each with the X.Y that was asked for, or "" if any will do.

    A version that no fixed suite has is looked for in sid: `--kernel 7.2` works as long as sid has a 7.2.
    """
    if option == "all":
        return [(kernel, "") for kernel in KERNELS]
    chosen = []
    for word in filter(None, option.split(",")):
        known = [kernel for kernel in KERNELS if kernel.label == word]
        if known:
            chosen.append((known[0], ""))
        elif word == "latest":
            chosen.append((KERNELS[-1], ""))
        elif re.fullmatch(r"\d+\.\d+", word) and version_tuple(word) > version_tuple(DEFAULT_LABEL):
            chosen.append((KERNELS[-1], word))
        else:
            labels = ", ".join(kernel.label for kernel in KERNELS)
            raise RunnerError(f"--kernel {word!r} is unknown; write some of {labels}, all, or the version that sid has now")
    if not chosen:
        raise RunnerError("--kernel names no kernel")
    return chosen
