#!/usr/bin/env python3
"""check_dependencies.py [--update]: compares docs/dependencies.md with the crates that are linked into the plugin.

Each of them, on each of the targets, needs a row that says what it is for. The columns that can be computed, who brings a crate, how often its source has
`unsafe`, and what it runs when it is built, must be right, and so must the count of `unsafe` in the project's own code. With --update these are written, and
rows are added for new crates, whose reason is then still missing.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
PAGE = PROJECT / "docs" / "dependencies.md"
TARGETS = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"]
OWN = {"nomad-driver-exec2", "goplugin"}
# Of cargo tree: depth, name, version.
LINE = re.compile(r"^(\d+)([A-Za-z_][\w-]*) v(\S+)")
ROW = re.compile(r"^\| `([\w-]+ [\w.+-]+)` \| ([^|]*) \| (\d+) \| ([^|]*) \| ([^|]*) \|$")
COUNT = re.compile(r"\*\*\d+ times\*\* in `src/`")
# Comments, and strings and characters with their escapes: `unsafe` in them is none.
NOT_CODE = re.compile(r"""//[^\n]*|/\*.*?\*/|\br(#*)".*?"\1|"(?:\\.|[^"\\])*"|'(?:\\.[^']*|[^'\\])'""", re.DOTALL)
UNSAFE = re.compile(r"\bunsafe\b(?!_)")
# Folders of a crate that are not in the library.
ASIDE = {"tests", "benches", "examples", "fuzz", "build.rs", "test", "bench", "ci"}
MISSING = "?"


def output(*command: str) -> str:
    return subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout


def packages() -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads(output("cargo", "metadata", "--locked", "--format-version", "1"))
    return {(package["name"], package["version"]): package for package in found["packages"]}


def edges(target: str) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Who brings whom. Without macros, which run in the compiler, as does what they need, and without what only the tests have."""
    tree = output("cargo", "tree", "--locked", "--package", "nomad-driver-exec2", "--target", target, "--edges", "normal", "--prefix", "depth", "--no-dedupe")
    found = []
    path: list[tuple[str, str]] = []
    macro = len(tree)
    for line in tree.splitlines():
        if not (match := LINE.match(line)):
            continue
        depth = int(match[1])
        if depth > macro:
            continue
        macro = depth if "(proc-macro)" in line else len(tree)
        path[depth:] = [(match[2], match[3])]
        if depth and macro != depth:
            found.append((path[depth - 1], path[depth]))
    return found


def kinds(package: dict[str, Any]) -> set[str]:
    return {kind for target in package["targets"] for kind in target["kind"]}


def count_unsafe(folder: Path) -> int:
    sources = (path for path in folder.rglob("*.rs") if not ASIDE & set(path.relative_to(folder).parts))
    return sum(len(UNSAFE.findall(NOT_CODE.sub(" ", path.read_text(encoding="utf-8", errors="replace")))) for path in sources)


def row_name(package: dict[str, Any]) -> str:
    """What the name of a row has beside the crate's: two versions that are compatible are one."""
    major, minor, _ = package["version"].split(".", 2)
    return f"{package['name']} {major if major != '0' else f'0.{minor}'}"


def linked() -> dict[str, tuple[str, str, str]]:
    """By crate: who brings it, the count of unsafe, what runs when it is built."""
    known = packages()
    brought: dict[str, set[str]] = {}
    of_row: dict[str, dict[str, Any]] = {}
    for parent, child in (edge for target in TARGETS for edge in edges(target)):
        if child[0] not in OWN:
            name = row_name(known[child])
            brought.setdefault(name, set()).add("direct" if parent[0] in OWN else parent[0])
            of_row[name] = known[child]
    return {name: (parents(brought[name]), str(count_unsafe(Path(package["manifest_path"]).parent)), builds(package)) for name, package in of_row.items()}


def parents(names: set[str]) -> str:
    """Whether it is a dependency of our own, or else through which it comes."""
    return "direct" if "direct" in names else ", ".join(sorted(names))


def builds(package: dict[str, Any]) -> str:
    return "script" if "custom-build" in kinds(package) else ""


def own_count() -> str:
    return f"**{sum(count_unsafe(PROJECT / folder) for folder in ('src', 'goplugin/src'))} times** in `src/`"


def main() -> int:
    update = "--update" in sys.argv[1:]
    wanted = linked()
    lines = PAGE.read_text(encoding="utf-8").split("\n")
    wrong = []
    rows = {}
    first = None
    for at, line in enumerate(lines):
        if row := ROW.match(line):
            first = at if first is None else first
            rows[row[1]] = (row[2], row[3], row[4], row[5])
    for name, facts in wanted.items():
        *stated, reason = rows.get(name, ("", "", "", MISSING))
        if name not in rows:
            wrong.append(f"{name} is linked into the plugin and has no row")
        elif tuple(stated) != facts:
            wrong.append(f"{name}: the row says {stated}, right is {list(facts)}")
        if name in rows and reason.strip() in ("", MISSING):
            wrong.append(f"{name}: the row does not say what it is for")
    wrong += [f"{name} has a row and is not linked into the plugin" for name in rows.keys() - wanted.keys()]
    text = "\n".join(lines)
    if own_count() not in text:
        wrong.append(f"the page does not say {own_count()!r}")
    if update and first is not None:
        made = [f"| `{name}` | {facts[0]} | {facts[1]} | {facts[2]} | {rows.get(name, ('', '', '', MISSING))[3]} |" for name, facts in sorted(wanted.items())]
        others = [line for line in lines if not ROW.match(line)]
        text = "\n".join(others[:first] + made + others[first:])
        PAGE.write_text(COUNT.sub(own_count().replace("\\", r"\\"), text), encoding="utf-8")
        return 0
    for line in wrong:
        print(f"docs/dependencies.md: {line}; scripts/check_dependencies.py --update writes the computed columns")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
