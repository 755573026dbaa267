#!/usr/bin/env python3
"""The table of docs/attacks.md: what each attack on a task's sandbox answers.

    attack_table.py --update DIR   take the results that the scenario `attacks` has written into DIR
    attack_table.py --check        compare docs/attacks.md with nixos-tests/attacks.json

The scenario writes them with EXEC2_ATTACK_RESULTS=DIR, one file for each kernel.
"""

import json
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
DATA = PROJECT / "nixos-tests" / "attacks.json"
PAGE = PROJECT / "docs" / "attacks.md"
BEGIN, END = "<!-- attacks: scripts/attack_table.py -->\n", "<!-- end of attacks -->"

# The columns of the results; the first is without a sandbox.
CONTROL = "control"
DEFAULTS = ("user", "root", "session", "capable")
TASKS = {"user": "user", "root": "root", "session": "session", "capable": "user, capable", "user-laxest": "user, laxest", "root-laxest": "root, laxest"}
SUCCEEDED, REFUSED, ABSENT = "succeeded", "refused ", "absent: "


def version(kernel: str) -> tuple[int, ...]:
    return tuple(map(int, kernel.split(".")))


def collect(folder: Path) -> dict[str, Any]:
    """The files of all kernels as one table, in which a result that all kernels have is written once."""
    found = {data["kernel"]: data for data in (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))}
    if not found:
        sys.exit(f"attack_table.py: no results are in {folder}")
    kernels = sorted(found, key=version)
    attacks = found[kernels[-1]]["attacks"]
    if any(data["attacks"] != attacks for data in found.values()):
        sys.exit("attack_table.py: the results are of different programs; run the scenario on all kernels again")
    rows = []
    for attack in attacks:
        results = {}
        for column in (CONTROL, *TASKS):
            each = {kernel: found[kernel]["results"][column][attack["name"]] for kernel in kernels}
            results[column] = each[kernels[0]] if len(set(each.values())) == 1 else each
        rows.append({**attack, "results": results})
    return {"kernels": kernels, "attacks": rows}


def values(cell: "str | dict[str, str]") -> set[str]:
    return {cell} if isinstance(cell, str) else set(cell.values())


def on(cell: "str | dict[str, str]", kernel: str) -> str:
    return cell if isinstance(cell, str) else cell[kernel]


def faults(data: dict[str, Any]) -> list[str]:
    """What no result may be."""
    wrong = []
    for row in data["attacks"]:
        name, results = row["name"], row["results"]
        working = [kernel for kernel in data["kernels"] if on(results[CONTROL], kernel) == SUCCEEDED]
        missing = [kernel for kernel in data["kernels"] if kernel not in working]
        if not working or (missing and not row.get("needs")):
            wrong.append(f"{name}: succeeds on no host with Linux {', '.join(missing)}, so it proves nothing there")
        for column in DEFAULTS:
            reason = row.get("by_design") or row.get(f"by_design_{column}")
            if SUCCEEDED in values(results[column]) and not reason:
                wrong.append(f"{name}: succeeds as {column} with the default options, and no reason says why it may")
        for key, column in (("by_design", "user"), ("by_design_root", "root"), ("by_design_capable", "capable")):
            if row.get(key) and SUCCEEDED not in values(results[column]):
                wrong.append(f"{name}: {key} is the reason for a success that it does not have")
        wrong += [f"{name}: {column}: {value}" for column, cell in results.items() for value in values(cell) if value.startswith("error")]
    return wrong


def text(cell: "str | dict[str, str]") -> str:
    """A cell of the table: the answer, or the answers and the kernels that give them."""

    def short(value: str) -> str:
        return "**succeeds**" if value == SUCCEEDED else value.removeprefix(REFUSED).replace(ABSENT, "none: ")

    if isinstance(cell, str):
        return short(cell)
    kernels: dict[str, list[str]] = {}
    for kernel, value in cell.items():
        kernels.setdefault(value, []).append(kernel)
    return "; ".join(f"{short(value)} ({', '.join(which)})" for value, which in kernels.items())


def render(data: dict[str, Any]) -> str:
    lines = [f"Linux {', '.join(data['kernels'])}; {len(data['attacks'])} attacks."]
    group = ""
    for row in data["attacks"]:
        if row["group"] != group:
            group = row["group"]
            head = f"| attack | tries to | {' | '.join(TASKS.values())} |"
            lines += ["", f"### {group[0].upper()}{group[1:]}", "", head, "|---" * (2 + len(TASKS)) + "|"]
        cells = " | ".join(text(row["results"][column]) for column in TASKS)
        lines.append(f"| `{row['name']}` | {row['tries']} | {cells} |")
    lines += ["", "## By design", "", "Attacks that succeed with the default options.", "", "| attack | user | why |", "|---|---|---|"]
    for row in data["attacks"]:
        for key, who in (("by_design", "all"), ("by_design_root", "root"), ("by_design_capable", "user, capable")):
            if row.get(key):
                lines.append(f"| `{row['name']}` | {who} | {row[key]} |")
    return "\n".join(lines) + "\n"


def page(data: dict[str, Any]) -> str:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return before + BEGIN + render(data) + END + rest.split(END)[1]


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--update"] and len(arguments) == 2:
        data = collect(Path(arguments[1]))
        DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(data), encoding="utf-8")
    elif arguments == ["--check"]:
        data = json.loads(DATA.read_text(encoding="utf-8"))
        if PAGE.read_text(encoding="utf-8") != page(data):
            sys.exit("FAIL  docs/attacks.md is not what nixos-tests/attacks.json says: make attacks")
    else:
        sys.exit(str(__doc__))
    wrong = faults(data)
    if wrong:
        sys.exit("\n".join(f"FAIL  {each}" for each in wrong))


main()
