"""Scenario files and the TOML in their heads, which says what they are for."""

import fnmatch
import operator
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from .errors import RunnerError
from .kernels import version_tuple

FOLDER = Path(__file__).resolve().parent.parent / "scenarios"
DEFAULTS = FOLDER / "defaults.toml"
START, END = "# /// scenario", "# ///"
CHOICES = {
    "lsm": ("on", "off", "any"),
    "nomad": ("both", "pluginhost", "real", "none"),
    "guests": ("debian", "nixos"),
    "payload": ("unit-tests", "attack", "packages", "pluginhost"),
}
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}


class Scenario(NamedTuple):
    name: str
    path: Path
    description: str
    kernels: str  # as written: "any", or conditions that all hold
    across: str  # why it runs on every kernel; empty if one kernel is enough
    lsm: str
    nomad: str
    guests: list[str]
    payload: list[str]
    shares_boot: bool
    memory_mib: int
    timeout_s: int
    seconds: int
    packages: dict[str, list[str]]

    def kernel_mismatch(self, version: str) -> str | None:
        """Why it is not for this kernel, or None."""
        have = version_tuple(version)
        for sign, bound in conditions(self.kernels, self.path):
            if not OPERATORS[sign](have, bound):
                return f"for kernels {sign} {bound[0]}.{bound[1]}"
        return None


def conditions(text: str, path: Path) -> list[tuple[str, tuple[int, int]]]:
    """`>= 5.15, < 6.7` taken apart; nothing for `any`."""
    if text == "any":
        return []
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(>=|<=|==|>|<)\s*(\d+\.\d+)\s*", part)
        if not match:
            raise RunnerError(f"{path}: kernels = {text!r} is not supported; write any, or for example >= 5.15, < 6.7")
        found.append((match[1], version_tuple(match[2])))
    return found


def head(path: Path) -> dict[str, Any]:
    """The TOML between the two marks at the start of the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if START not in lines[:1] or END not in lines:
        raise RunnerError(f"{path}: the file starts with no head; write TOML in comment lines between `{START}` and `{END}`")
    text = "\n".join(line[1:] for line in lines[1 : lines.index(END)])
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RunnerError(f"failed to parse the head of {path}: {error}") from error


def parse(path: Path) -> Scenario:
    """The scenario of a file, with the defaults for what its head leaves out."""
    own = head(path)
    values = tomllib.loads(DEFAULTS.read_text(encoding="utf-8"))
    for key, value in own.items():
        if key != "description" and (key not in values or type(value) is not type(values[key])):
            raise RunnerError(f"{path}: {key} = {value!r} is not supported; {DEFAULTS.name} has the keys and their types")
    values |= own
    values["packages"] = {"debian": [], "nix": [], **values["packages"]}
    for key, allowed in CHOICES.items():
        for word in values[key] if isinstance(values[key], list) else [values[key]]:
            if word not in allowed:
                raise RunnerError(f"{path}: {key} = {word!r} is not supported; write one of {', '.join(allowed)}")
    if not values.get("description"):
        raise RunnerError(f"{path}: the head has no description; write what the scenario shows, in one line")
    conditions(values["kernels"], path)
    return Scenario(name=path.stem, path=path, **values)


def find_all() -> list[Scenario]:
    """All scenarios of the folder, the longest first: the last ones to run together are then short."""
    return sorted((parse(path) for path in FOLDER.glob("*.py")), key=lambda scenario: (-scenario.seconds, scenario.name))


def choose(names: list[str]) -> list[Scenario]:
    """By name or pattern, with or without .py, or by path; all if none is named."""
    everything = find_all()
    if not names:
        return everything
    chosen: list[Scenario] = []
    for name in names:
        found = [scenario for scenario in everything if fnmatch.fnmatchcase(scenario.name, name.removesuffix(".py"))]
        if not found and Path(name).is_file() and name.endswith(".py"):
            found = [parse(Path(name).resolve())]
        if not found:
            known = ", ".join(sorted(scenario.name for scenario in everything))
            raise RunnerError(f"there is no scenario {name!r}; there are {known}")
        chosen += (scenario for scenario in found if scenario not in chosen)
    return chosen


def packages(system: str) -> list[str]:
    """What all scenarios together need in the guest beyond what every guest has."""
    return [package for scenario in sorted(find_all()) for package in scenario.packages[system]]


def table() -> str:
    """The scenarios as the Markdown table of README.md."""
    rows = ["| scenario | kernels | why on each kernel | agent | guests | own boot | s |", "|---|---|---|---|---|---|---|"]
    for scenario in sorted(find_all()):
        kernels = scenario.kernels + (", lsm=off" if scenario.lsm == "off" else "")
        cells = [f"`{scenario.name}`", kernels, scenario.across or "one is enough", scenario.nomad, ", ".join(scenario.guests),
                 "" if scenario.shares_boot else "yes", str(scenario.seconds)]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
