"""Single tasks that run the program with the attacks."""

import json
from collections.abc import Iterable
from typing import Any

from .guest import machine, t, write
from .harness import end, harness

ATTACK = "exec2-attack"
STATE = "/var/lib/pluginhost"


def answers(text: str) -> list[Any]:
    """The JSON of several answers, one after the other."""
    found = []
    while text := text.lstrip():
        answer, length = json.JSONDecoder().raw_decode(text)
        found.append(answer)
        text = text[length:]
    return found


def write_task(path: str, uid: int, args: Iterable[str], config: "dict[str, Any] | None" = None, **fields: Any) -> str:
    """Writes the file of a task that runs the program with the attacks, and returns its path."""
    user = "root" if uid == 0 else f"nomad-{uid}"
    whole = {"config": {"command": ATTACK, "args": list(args), **(config or {})}, "user": user, "cpu": 4000, "memory": 512, **fields}
    write(path, json.dumps(whole))
    return path


def finish(path: str) -> str:
    """The output of a task that has to succeed, and nothing of it is left."""
    result = harness(f"wait {path}")["result"]
    text = machine.succeed(f"pluginhost task logs {path}")
    t.assertEqual(result["exit_code"], 0, text + machine.succeed(f"pluginhost task logs -stderr {path}"))
    end(path)
    return text
