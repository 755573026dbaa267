#!/usr/bin/env python3
"""check_docs.py: checks that everything that the documentation refers to exists.

* Relative links of all Markdown files, with their anchors; files and directories of the repository that they name in backticks.
* The tests that docs/reliability.md names: scenarios, modules with tests, and test functions.
"""

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z]+:")
# A path below one of these; `NAME` and `*` stand for something else.
NAMED = re.compile(r"`((?:bench|docs|examples|fuzz|goplugin|nix|nixos-tests|packaging|scripts|src|tests)/[\w./-]*)`")
RELIABILITY = PROJECT / "docs" / "reliability.md"
# The last cell of a row: `scenario`, `room::module` or `test_function`.
TESTS = re.compile(r"\| ([^|]*) \|$", re.MULTILINE)
NAME = re.compile(r"`([a-z0-9_:]+)`")


def tracked(*patterns: str) -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z", "--", *patterns], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [path for name in names.split("\0") if name and (path := PROJECT / name).exists()]


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """In GitHub's form: the words of the heading in lower case, joined by dashes."""
    texts = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(prose(path)))
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in texts}


def links(page: Path) -> list[str]:
    wrong = []
    for link in LINK.findall(prose(page)):
        if ELSEWHERE.match(link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists():
            wrong.append(f"{page.relative_to(PROJECT)}: {link}: there is no such file")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{page.relative_to(PROJECT)}: {link}: there is no such heading")
    return wrong


def named(page: Path) -> list[str]:
    wrong = [name for name in NAMED.findall(prose(page)) if "NAME" not in name and not ((PROJECT / name).exists() or (page.parent / name).exists())]
    return [f"{page.relative_to(PROJECT)}: {name}: there is no such file" for name in wrong]


def tests() -> list[str]:
    sources = tracked("src/*.rs", "tests/*.rs", "goplugin/*.rs")
    functions = {name for path in sources for name in re.findall(r"\bfn (\w+)\(", path.read_text(encoding="utf-8"))}
    modules = {str(path.relative_to(PROJECT / "src").with_suffix("")).replace("/", "::") for path in tracked("src/*.rs")}
    scenarios = {path.stem for path in tracked("nixos-tests/*.py")}
    table = RELIABILITY.read_text(encoding="utf-8").partition("\n## Faults\n")[2]
    wanted = [name for cell in TESTS.findall(table) for name in NAME.findall(cell)]
    if not wanted:
        return [f"{RELIABILITY.relative_to(PROJECT)}: names no test"]
    known = functions | modules | scenarios
    return [f"{RELIABILITY.relative_to(PROJECT)}: {name}: there is no such test" for name in wanted if name not in known]


def main() -> int:
    pages = tracked("*.md")
    wrong = [line for page in pages for line in links(page) + named(page)] + tests()
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
