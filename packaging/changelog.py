#!/usr/bin/env python3
"""Reads CHANGELOG.md for the packages.

    changelog.py epoch       seconds since 1970 of the newest dated version, for SOURCE_DATE_EPOCH
    changelog.py nfpm NAME   all versions in nfpm's form, with NAME as the packager

A version without a date is not released yet; it gets the date of the previous one, or EPOCH_UNRELEASED if there is none, so
that the same source gives the same bytes on any day.
"""

import json
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"
# 2026-01-01: before any release, and a year that tools accept.
EPOCH_UNRELEASED = 1767225600
# The epoch of the packages' versions, as in nfpm.yaml; not a time.
PACKAGE_EPOCH = 1
# Version, seconds since 1970, texts of the list items.
Version = tuple[str, int, list[str]]


def versions() -> list[Version]:
    """Newest first."""
    found = []
    for section in re.split(r"^## ", CHANGELOG.read_text(encoding="utf-8"), flags=re.M)[1:]:
        head, _, body = section.partition("\n")
        match = re.fullmatch(r"\[(\d+\.\d+\.\d+\S*)\] - (unreleased|\d{4}-\d{2}-\d{2})", head.strip())
        if not match:
            sys.exit(f"{CHANGELOG}: `## {head}` is not understood; write `## [1.2.3] - 2026-01-31`, or `unreleased` for the date")
        seconds = None
        if match[2] != "unreleased":
            seconds = int(datetime.strptime(match[2], "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp())
        items = [" ".join(item.split()) for item in re.findall(r"^- (.*(?:\n  .*)*)", body, flags=re.M)]
        found.append((match[1], seconds, [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", item).replace("`", "") for item in items]))
    if not found:
        sys.exit(f"{CHANGELOG}: it has no version; write `## [1.2.3] - 2026-01-31`")
    known = EPOCH_UNRELEASED
    dated: list[Version] = []
    for version, seconds, items in reversed(found):
        known = seconds or known
        dated.append((version, known, items))
    return dated[::-1]


def nfpm(packager: str) -> str:
    """YAML is a superset of JSON, and JSON needs no library."""
    return json.dumps([
        {
            "semver": f"{PACKAGE_EPOCH}:{version}-1",
            "date": datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "packager": packager,
            "deb": {"urgency": "medium", "distributions": ["stable"]},
            "changes": [{"note": item} for item in items],
        }
        for version, seconds, items in versions()
    ], indent=1)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:] == ["epoch"]:
        print(versions()[0][1])
    elif len(sys.argv) == 3 and sys.argv[1] == "nfpm":
        print(nfpm(sys.argv[2]))
    else:
        sys.exit(__doc__)
