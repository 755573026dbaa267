"""Scenario files and the markers in their head: what they are for."""

import operator
import re
from pathlib import Path
from typing import NamedTuple, Optional

from .errors import RunnerError
from .kernels import version_tuple

PRELUDE = "lib.py"
# Without a marker a scenario is for kernels that the driver supports, with Landlock on.
DEFAULTS = {"kernels": ">= 5.15", "lsm": "on", "needs": "agent", "host": "any"}
# `host: debian` leaves it out of the NixOS tests; the guests here are Debian.
CHOICES = {"lsm": ("on", "off", "any"), "host": ("any", "debian"), "needs": ("agent", "nomad-real", "pluginhost", "no-agent", "unit-tests")}
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


class Scenario(NamedTuple):
    name: str
    path: Path
    about: str  # the first line of its head that is no marker
    kernels: list[tuple[str, tuple[int, int]]]  # all must hold; empty: any kernel
    lsm: str
    needs: str

    def kernel_mismatch(self, version: str) -> Optional[str]:
        """Why it is not for this kernel, or None."""
        have = version_tuple(version)
        for sign, bound in self.kernels:
            if not OPERATORS[sign](have, bound):
                return f"for kernels {sign} {bound[0]}.{bound[1]}"
        return None


def _parse_kernels(text: str, path: Path) -> list[tuple[str, tuple[int, int]]]:
    if text == "any":
        return []
    conditions = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(>=|<=|==|>|<)\s*(\d+\.\d+)\s*", part)
        if not match:
            raise RunnerError(f"{path}: `# kernels: {text}` is not understood; write any, or for example >= 5.15, < 6.7")
        conditions.append((match[1], version_tuple(match[2])))
    return conditions


def parse(path: Path) -> Scenario:
    """Reads the comment lines at the start of the file."""
    markers: dict[str, str] = dict(DEFAULTS)
    about = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        match = re.fullmatch(r"#\s*(\w+):\s*(.*?)\s*", line)
        if match and match[1] in markers:
            markers[match[1]] = match[2]
        elif not about:
            about = line.lstrip("# ").rstrip()
    for name, allowed in CHOICES.items():
        if markers[name] not in allowed:
            raise RunnerError(f"{path}: `# {name}: {markers[name]}` is not understood; write one of {', '.join(allowed)}")
    return Scenario(path.stem, path, about, _parse_kernels(markers["kernels"], path), markers["lsm"], markers["needs"])


def find_all(folder: Path) -> list[Scenario]:
    """All scenarios beside the runner, by name."""
    return [parse(path) for path in sorted(folder.glob("*.py"))]


def choose(folder: Path, names: list[str]) -> list[Scenario]:
    """By name, with or without .py, or by path; all if none is named."""
    if not names:
        return find_all(folder)
    chosen = []
    for name in names:
        candidates = [Path(name), folder / name, folder / f"{name}.py"]
        path = next((path for path in candidates if path.is_file() and path.suffix == ".py"), None)
        if path is None:
            known = ", ".join(scenario.name for scenario in find_all(folder))
            raise RunnerError(f"there is no scenario {name!r}; there are {known}")
        chosen.append(parse(path))
    return chosen
