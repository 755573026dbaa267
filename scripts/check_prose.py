#!/usr/bin/env python3
"""check_prose.py [FILE...]: finds words and phrases to avoid and shows replacements; the list is prose-words.txt.

Checks FILE..., or all files with prose that git tracks. The exit status is 1 if there are hits.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
WORDS = PROJECT / "scripts" / "prose-words.txt"
# Documentation, the man page, and source files with comments and messages.
PATTERNS = ("*.md", "*.rs", "*.8", "*.nix", "*.py", "*.go", ":!*.pb.go")
# Between two words of a phrase: white space, and the start of a comment on the next line.
GAP = r"(?:\s|//[/!]?|#)+"


class Word(NamedTuple):
    pattern: "re.Pattern[str]"
    instead: str


def words() -> list[Word]:
    found = []
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            phrase, _, instead = line.partition(" => ")
            found.append(Word(re.compile(rf"\b(?:{phrase.replace(' ', GAP)})\b", re.IGNORECASE), instead))
    return found


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z", "--", *PATTERNS], cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [PROJECT / name for name in names.split("\0") if name]


def check(path: Path, avoided: list[Word]) -> list[str]:
    text = path.read_text(encoding="utf-8")
    shown = path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path
    hits = []
    for word in avoided:
        for match in word.pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            hits.append((line, f"{shown}:{line}: {' '.join(match[0].split())!r}: write {word.instead!r}"))
    return [hit for _, hit in sorted(hits)]


def main() -> int:
    avoided = words()
    files = [Path(name).resolve() for name in sys.argv[1:]] or tracked()
    hits = [hit for path in files for hit in check(path, avoided)]
    for hit in hits:
        print(hit)
    if hits:
        print(f"{len(hits)} to rewrite", file=sys.stderr)
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main())
