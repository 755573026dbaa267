"""The Nomad agent of the guest, and the plugin that it runs. All of it works the same with Nomad and with the pluginhost."""

import json
from typing import Any

from .guest import AGENT_TIMEOUT_S, UNIT_TIMEOUT_S, machine, pgrep, poll, write

DRIVER = "exec2"
PLUGIN_NAME = "^/[^ ]*/nomad-driver-exec2$"
DROP_IN = "/run/systemd/system/nomad.service.d/scenario.conf"


def nomad(arguments: str) -> str:
    """The output of a nomad command, which has to succeed."""
    return machine.succeed(f"nomad {arguments}")


def nomad_json(arguments: str) -> Any:
    return json.loads(nomad(arguments))


def stand_in() -> bool:
    """Whether the agent is the pluginhost instead of Nomad."""
    return "not Nomad" in nomad("version")


def node() -> dict[str, Any]:
    """The client node as the API shows it."""
    found: dict[str, Any] = nomad_json("node status -self -json")
    return found


def wait_for_agent() -> None:
    """Waits until the client is ready for jobs."""
    machine.wait_for_unit("nomad.service", timeout=UNIT_TIMEOUT_S)

    def ready() -> bool:
        status, output = machine.execute("nomad node status -self -json")
        return status == 0 and json.loads(output)["Status"] == "ready"

    poll("the client is ready", ready, AGENT_TIMEOUT_S)


def wait_for_driver(healthy: bool = True) -> dict[str, Any]:
    """Waits for the driver's health; returns Detected, Healthy, HealthDescription, Attributes of the node's driver."""
    wait_for_agent()

    def settled() -> dict[str, Any] | None:
        info: dict[str, Any] | None = (node().get("Drivers") or {}).get(DRIVER)
        return info if info and bool(info["Healthy"]) == healthy and info["HealthDescription"] else None

    return poll(f"driver healthy={healthy}", settled, AGENT_TIMEOUT_S)


def agent_command() -> str:
    """The command of nomad.service without the changes of a scenario."""
    machine.succeed(f"rm -f {DROP_IN}; systemctl daemon-reload")
    return machine.succeed("systemctl show nomad.service -p ExecStart --value | sed 's/.*argv\\[\\]=\\([^;]*\\);.*/\\1/'").strip()


def run_agent(command: str, settings: str = "") -> None:
    """Restarts the agent as `command`, with further lines for the [Service] section of its unit."""
    write(DROP_IN, f"[Service]\n{settings}\nExecStart=\nExecStart={command}\n")
    machine.succeed("systemctl daemon-reload", "systemctl restart nomad.service")
    wait_for_driver()


def configure(**options: Any) -> None:
    """Restarts the agent with these plugin options instead of the configured ones."""
    configure_block("\n".join(f"{option} = {json.dumps(value)}" for option, value in options.items()))


def configure_block(lines: str) -> None:
    """The same with the text of the block, for options that are blocks themselves."""
    write("/run/scenario.hcl", plugin_block(lines))
    run_agent(f"{agent_command()} -config=/run/scenario.hcl")


def plugin_block(lines: str) -> str:
    """An agent configuration with these lines for the plugin."""
    return f'plugin "nomad-driver-exec2" {{\nconfig {{\n{lines}\n}}\n}}\n'


def agent_pid() -> int:
    return int(machine.succeed("systemctl show --property=MainPID --value nomad.service"))


def kill_agent(*others: int) -> None:
    """Kills the agent, and other processes with it. Not by `systemctl kill`, which reaches the plugin as well."""
    machine.succeed(f"kill -9 {' '.join(map(str, (agent_pid(), *others)))}")
    machine.wait_until_fails("systemctl is-active nomad.service", timeout=UNIT_TIMEOUT_S)


def start_agent() -> None:
    machine.succeed("systemctl start nomad.service")
    wait_for_driver()


def plugin_pid() -> int:
    """The plugin's process. Its shims have no path in their name."""
    return int(machine.succeed(f"pgrep -f '{PLUGIN_NAME}'"))


def new_plugin(old: int) -> int:
    """Waits for the plugin process that replaces `old`."""
    return poll("another plugin", lambda: [pid for pid in pgrep(PLUGIN_NAME) if pid != old], AGENT_TIMEOUT_S)[0]


def violations() -> str:
    """What the pluginhost saw the plugin do against the rules of the protocol; nothing under Nomad."""
    return machine.succeed("pluginhost violations") if stand_in() else ""
