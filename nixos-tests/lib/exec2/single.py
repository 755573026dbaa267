"""Single tasks, sent straight to the plugin by `pluginhost task`, as the scenarios of attacks need them."""

import json
from collections.abc import Iterable
from typing import Any

from .guest import machine, t, write

ATTACK = "exec2-attack"
STATE = "/var/lib/pluginhost"


def plugin(folder: str, options: Iterable[str] = ()) -> str:
    """Starts a plugin with these options, and returns its socket."""
    machine.succeed("pluginhost task plugin stop")
    write(f"{folder}/agent.hcl", 'plugin "nomad-driver-exec2" {\nconfig {\n' + "\n".join(options) + "\n}\n}\n")
    machine.succeed(f"pluginhost task plugin -config {folder}/agent.hcl pid")
    return machine.succeed("ls -t /tmp/exec2-*/plugin.sock | head -1").strip()


def harness(arguments: str) -> Any:
    """The answer of `pluginhost task`."""
    return json.loads(machine.succeed(f"pluginhost task {arguments}"))


def answers(text: str) -> list[Any]:
    """The JSON of several answers, one after the other."""
    found = []
    while text := text.lstrip():
        answer, end = json.JSONDecoder().raw_decode(text)
        found.append(answer)
        text = text[end:]
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
    clean(path)
    return text


def clean(path: str) -> None:
    machine.succeed(f"pluginhost task destroy -force {path} && pluginhost task cleanup {path}")
