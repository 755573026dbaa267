"""The driver-level harness, `pluginhost task`: single tasks sent straight to the plugin, without an agent."""

import json
from typing import Any

from .agent import plugin_block
from .guest import machine, t, write

CONFIG = "/run/task-plugin.hcl"


def harness(arguments: str, environment: str = "") -> Any:
    """The answer of a command that has to succeed."""
    return json.loads(machine.succeed(f"{environment} pluginhost task {arguments}"))


def refusal(arguments: str) -> dict[str, Any]:
    """The driver's error."""
    status, output = machine.execute(f"pluginhost task {arguments}")
    t.assertEqual(status, 1, output)
    error: dict[str, Any] = json.loads(output)["error"]
    return error


def run_plugin(*options: str, environment: str = "") -> None:
    """Starts a plugin with these lines in its block, instead of the running one."""
    machine.succeed("pluginhost task plugin stop")
    write(CONFIG, plugin_block("\n".join(options)))
    machine.succeed(f"{environment} pluginhost task plugin -config {CONFIG} pid")


def end(task: str) -> None:
    """Kills the task and removes what the harness keeps of it."""
    machine.succeed(f"pluginhost task destroy -force {task}", f"pluginhost task cleanup {task}")
