#!/usr/bin/env python3
"""check_docs.py: checks that everything that the documentation refers to exists.

* Relative links of all Markdown files, with their anchors; files and directories of the repository that they name in backticks.
* The tests that the tables of docs/reliability.md and docs/upstream-defects.md name: scenarios and their parts, modules with tests, and test functions.
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
# Pages whose tables have tests in their last column, and the heading before the first such table.
WITH_TESTS = {"reliability.md": "\n## Faults\n", "upstream-defects.md": "\n## Vulnerabilities\n"}
# The last cell of a row: `scenario`, `room::module` or `test_function`; the first may be followed by what begins one of its subtests.
TESTS = re.compile(r"^\|.*\| ([^|]*) \|$", re.MULTILINE)
NAME = re.compile(r'`([a-z0-9_:]+)`(?: "([^"]+)")?')
SUBTEST = re.compile(r'\bsubtest\(f?"([^"]+)"')
TEST = re.compile(r"#\[[a-z:]*test\b[^\]]*\](?:\s*(?://.*|#\[.*\]))*\s+(?:async )?fn (\w+)\(")
RULE = re.compile(r"[-| ]*")
HEAD = "test"


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


def begins(subtest: str, quoted: str) -> bool:
    """Whether the name of a subtest, which may have values in braces, begins with what is quoted."""
    return subtest.startswith(quoted) or re.sub(r"^\{[^}]*\}: ", "", subtest).startswith(quoted)


def tests() -> list[str]:
    texts = [(path, path.read_text(encoding="utf-8")) for path in tracked("src/*.rs", "tests/*.rs", "goplugin/*.rs")]
    functions = {name for _, text in texts for name in TEST.findall(text)}
    # Programs without a harness call theirs.
    functions |= {name for path, text in texts if path.parent.name == "tests" for name in re.findall(r"^fn (\w+)\(", text, re.MULTILINE)}
    modules = {str(path.relative_to(PROJECT / "src").with_suffix("")).replace("/", "::") for path in tracked("src/*.rs")}
    scenarios = {path.stem: SUBTEST.findall(path.read_text(encoding="utf-8")) for path in tracked("nixos-tests/scenarios/*.py")}
    wrong = []
    for page, heading in WITH_TESTS.items():
        table = (PROJECT / "docs" / page).read_text(encoding="utf-8").partition(heading)[2]
        cells = [cell for cell in TESTS.findall(table) if cell != HEAD and not RULE.fullmatch(cell)]
        if not cells:
            wrong.append(f"docs/{page}: names no test")
        for cell in cells:
            named = NAME.findall(cell)
            if page == "upstream-defects.md" and not named:
                wrong.append(f"docs/{page}: {cell!r}: there is no test in the last column")
            for name, part in named:
                if name not in functions | modules | scenarios.keys():
                    wrong.append(f"docs/{page}: {name}: there is no such test")
                elif part and not any(begins(subtest, part) for subtest in scenarios.get(name, [])):
                    wrong.append(f"docs/{page}: {name}: there is no subtest that begins with {part!r}")
    return wrong


def main() -> int:
    pages = tracked("*.md")
    wrong = [line for page in pages for line in links(page) + named(page)] + tests()
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
