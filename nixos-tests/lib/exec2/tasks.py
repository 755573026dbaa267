"""The processes of running tasks, as the guest sees them: cgroups, shims, records, statistics."""

import json
from typing import Any

from .agent import PLUGIN_NAME, nomad, stand_in
from .allocs import Alloc, ended, stop_job
from .guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, alive, machine, pgrep, poll, t

TASKS_CGROUP = "/sys/fs/cgroup/nomad.slice/share.slice"
SHIMS = "^nomad-driver-exec2 shim$"
# The shim that waits for the next task, of a plugin that has started one.
SPARES = "^nomad-driver-exec2 idle$"
# The processes that read the tasks' logs: one for each task under Nomad, one for all under the pluginhost.
LOG_READERS = "^[^ ]*(nomad|pluginhost) logmon"
RUN = "/run/nomad-driver-exec2"


def scope(alloc: Alloc) -> str:
    """The cgroup of the allocation's task `t`."""
    return f"{TASKS_CGROUP}/{alloc['ID']}.t.scope"


def inside(alloc: Alloc) -> list[int]:
    """The processes of the task, oldest first, with those in cgroups of its own."""
    return [int(pid) for pid in machine.execute(f"find {scope(alloc)} -name cgroup.procs -exec cat {{}} +")[1].split()]


def shim_of(alloc: Alloc) -> int:
    return int(machine.succeed(f"awk '/^PPid/ {{print $2}}' /proc/{inside(alloc)[0]}/status"))


def run_directories() -> list[str]:
    """The run directories of tasks, without what the driver keeps for all of them: the copies of /etc."""
    return machine.execute(f"ls -A {RUN} 2>/dev/null | grep -v ^@")[1].split()


def records() -> list[str]:
    """The run directories of tasks, except those that stay after the plugin died: of a task that had ended and that Nomad wanted
    destroyed at that moment, which it requests once (30 days); of a task whose answer was lost (5 minutes)."""
    script = f"for d in $(ls {RUN} 2>/dev/null | grep -v ^@); do [ -e {RUN}/$d/answered ] || grep -qs code= {RUN}/$d/exit || echo $d; done"
    return machine.succeed(script).split()


def stop_all_of(name: str, alloc: Alloc) -> Alloc:
    """Stops the job and checks that nothing of the task is left: processes, cgroup."""
    pids = inside(alloc)
    nomad(f"job stop -detach {name}")
    over = ended(name, alloc)
    t.assertEqual(alive(pids), [], f"{name}: processes outlive StopTask")
    stop_job(name)
    return over


def nobody_else_noticed(plugin: list[int], bystander: Alloc, pids: list[int]) -> None:
    """The end of a scenario of faults: plugin and bystander are the same processes, and nothing is left once the bystander stops."""
    t.assertEqual(pgrep(PLUGIN_NAME), plugin)
    t.assertEqual(inside(bystander), pids)
    stop_all_of("bystander", bystander)
    nomad("system gc")
    poll("no shims", lambda: not pgrep(SHIMS), CLEANUP_TIMEOUT_S)
    t.assertEqual(run_directories(), [])


def usage(alloc: Alloc) -> dict[str, dict[str, Any]]:
    """The driver's statistics of the task, by the names of the plugin protocol."""
    if stand_in():
        found: dict[str, dict[str, Any]] = json.loads(machine.succeed(f"pluginhost stats {alloc['ID']}"))["agg_resource_usage"]
        return found

    def there() -> dict[str, Any] | None:
        answer = json.loads(machine.succeed(f"curl -sS --fail http://127.0.0.1:4646/v1/client/allocation/{alloc['ID']}/stats"))
        statistics: dict[str, Any] | None = (answer["Tasks"] or {}).get("t")
        return statistics

    # Nomad has none before the first interval of a plugin is over.
    resources = poll("statistics", there, ALLOC_TIMEOUT_S)["ResourceUsage"]
    return {kind: {_snake(name): value for name, value in resources[field].items()} for kind, field in (("cpu", "CpuStats"), ("memory", "MemoryStats"))}


def _snake(name: str) -> str:
    return {"RSS": "rss"}.get(name) or "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
