#!/usr/bin/env python3
"""imports.py SCRIPTS: everything that the scripts of NixOS tests, {name: text} as JSON, import is there. Nothing else is run."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

# What the NixOS tests put in front of a scenario calls these.
PRELUDE = ("sys.path.insert", "guest.bind")


def is_import(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return ast.unparse(statement.value.func) in PRELUDE
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def main() -> None:
    scripts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for name, text in scripts.items():
        body = [statement for statement in ast.parse(text).body if is_import(statement)]
        names: dict[str, Any] = {}
        exec(compile(ast.Module(body, []), name, "exec"), names)
        assert "guest" in names, f"{name} does not import its library"
        print(name, len(body))


if __name__ == "__main__":
    main()
