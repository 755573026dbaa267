"""Jobs that run: their allocations, states, events and logs."""

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .agent import nomad, nomad_json
from .guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, machine, poll, write
from .jobs import job, python_job

Alloc = dict[str, Any]
Event = dict[str, Any]

EXAMPLES = "/etc/exec2-examples"
TERMINAL = ("complete", "failed", "lost")
OUT_OF_MEMORY = "Out of memory"
RECOVERED = "Recovered: the driver was restarted, the task kept running"


def run_job(source: str, variables: Mapping[str, str] | None = None) -> str:
    """Submits a job file of the guest by its path, or the text of one, and returns the job's id."""
    if "\n" in source:
        path = "/tmp/job.nomad.hcl"
        write(path, source)
    else:
        path = source
    options = "".join(f" -var {shlex.quote(f'{name}={value}')}" for name, value in (variables or {}).items())
    nomad(f"job run -detach{options} {shlex.quote(path)}")
    return machine.succeed(f"""sed -n 's/^job "\\([^"]*\\)".*/\\1/p' {shlex.quote(path)}""").strip()


def allocs(job: str) -> list[Alloc]:
    """The job's allocations, oldest first."""
    status, output = machine.execute(f"nomad job allocs -json {shlex.quote(job)}")
    found = json.loads(output) if status == 0 and output.strip() else []
    return sorted(found or [], key=lambda alloc: int(alloc["CreateTime"]))


KEYS = ("ID", "Name", "TaskGroup", "ClientStatus", "DesiredStatus", "CreateTime")
BRIEF = "{{range .}}" + "|".join(f"{{{{.{key}}}}}" for key in KEYS) + '{{"\\n"}}{{end}}'


def brief(job: str) -> list[Alloc]:
    """What identifies the job's allocations, and their states, oldest first. The whole of them, each with its job, is too much
    for a slow console."""
    status, output = machine.execute(f"nomad job allocs -t {shlex.quote(BRIEF)} {shlex.quote(job)}")
    found = [dict(zip(KEYS, line.split("|"), strict=True)) for line in output.splitlines() if status == 0 and "|" in line]
    return sorted(found, key=lambda alloc: int(alloc["CreateTime"]))


def alloc_status(alloc_id: str) -> Alloc:
    found: Alloc = nomad_json(f"alloc status -json {alloc_id}")
    return found


# Without the job: its text, once for each group, is more than a slow console should carry.
STATUSES = """
import json, subprocess, sys
def status(alloc_id):
    shown = json.loads(subprocess.check_output(["nomad", "alloc", "status", "-json", alloc_id]))
    return {key: value for key, value in shown.items() if key != "Job"}
print(json.dumps([status(alloc_id) for alloc_id in sys.argv[1:]]))
"""


def alloc_statuses(ids: Iterable[str]) -> list[Alloc]:
    """alloc_status() of several allocations, without their job."""
    found: list[Alloc] = json.loads(machine.succeed(f"python3 -ISc {shlex.quote(STATUSES)} {' '.join(ids)}"))
    return found


def task_state(alloc: Alloc, task: str | None = None) -> dict[str, Any]:
    """The state of the task, or of the only one."""
    states: dict[str, dict[str, Any]] = alloc["TaskStates"] or {}
    return states[task] if task else next(iter(states.values()))


def events(alloc: Alloc, kind: str, task: str | None = None) -> list[Event]:
    """The task's events of a type."""
    return [event for event in task_state(alloc, task)["Events"] if event["Type"] == kind]


def messages(alloc: Alloc, task: str | None = None) -> list[str]:
    """The text of the task's events, as `nomad alloc status` prints them."""
    return [event["DisplayMessage"] for event in task_state(alloc, task)["Events"]]


def all_messages(alloc_id: str) -> dict[str, list[str]]:
    """The events' texts of all tasks of an allocation."""
    alloc = alloc_status(alloc_id)
    return {name: messages(alloc, name) for name in alloc["TaskStates"] or {}}


def reported(alloc: Alloc, words: str) -> list[str]:
    """The texts of the task's events so far that have these words."""
    return [message for message in messages(alloc_status(alloc["ID"])) if words in message]


def driver_errors(alloc: Alloc, task: str | None = None) -> list[str]:
    """Why the task could not be started, once for each attempt."""
    return [event["DisplayMessage"] for event in events(alloc, "Driver Failure", task)]


def terminated(alloc: Alloc, task: str | None = None) -> list[Event]:
    return events(alloc, "Terminated", task)


def exits(alloc: Alloc, task: str | None = None) -> list[tuple[int, int]]:
    """(exit code, signal) of each time that the task ended."""
    return [(event["ExitCode"], event["Signal"]) for event in terminated(alloc, task)]


def deaths(alloc: Alloc) -> list[tuple[int, int, str]]:
    """(exit code, signal, oom_killed) of each time that the task ended."""
    return [(event["ExitCode"], event["Signal"], event["Details"]["oom_killed"]) for event in terminated(alloc)]


def wait_for_alloc(job: str, wanted: str | tuple[str, ...]) -> Alloc:
    """Waits until the client status of the job's newest allocation is `wanted`. Another final status is an error with the events."""
    wanted = (wanted,) if isinstance(wanted, str) else wanted

    def settled() -> Alloc | None:
        found = brief(job)
        if not found:
            return None
        status = found[-1]["ClientStatus"]
        if status in wanted:
            return alloc_status(found[-1]["ID"])
        if status in TERMINAL:
            raise AssertionError(f"job {job}: the allocation is {status}, not {' or '.join(wanted)}: {all_messages(found[-1]['ID'])}")
        return None

    return poll(f"job {job} {' or '.join(wanted)}", settled, ALLOC_TIMEOUT_S)


def wait_for_groups(name: str, wanted: Mapping[str, str] | None = None) -> dict[str, Alloc]:
    """Waits for the newest allocation of each group to end, or to be as `wanted` (group: status) says; returns them by group."""

    def settled() -> dict[str, Alloc] | None:
        newest = {alloc["TaskGroup"]: alloc for alloc in brief(name)}
        if wanted is None:
            return newest if newest and all(alloc["ClientStatus"] in TERMINAL for alloc in newest.values()) else None
        statuses = {group: alloc["ClientStatus"] for group, alloc in newest.items()}
        for group, status in statuses.items():
            if status in TERMINAL and status != wanted.get(group, status):
                raise AssertionError(f"{name}, group {group}: {status}, not {wanted[group]}: {all_messages(newest[group]['ID'])}")
        return newest if all(statuses.get(group) == status for group, status in wanted.items()) else None

    newest = poll(f"job {name} is settled", settled, ALLOC_TIMEOUT_S)
    return dict(zip(newest, alloc_statuses(alloc["ID"] for alloc in newest.values()), strict=True))


class Outcome(NamedTuple):
    """What a task wrote and how it ended; or why it did not start, and no exit."""

    text: str
    exit: tuple[int, int] | None


def outcomes(name: str, *groups: str) -> dict[str, Outcome]:
    """Runs a job, each group with one task, until all have ended; then stops it. By group."""
    run_job(job(name, *groups))
    found = {}
    for group, alloc in wait_for_groups(name).items():
        errors = driver_errors(alloc)
        assert errors or exits(alloc), f"{group}: {all_messages(alloc['ID'])}"
        found[group] = Outcome(" ".join(errors), None) if errors else Outcome(logs(alloc), exits(alloc)[-1])
    stop_job(name)
    return found


def ended(name: str, alloc: Alloc) -> Alloc:
    """Waits until the allocation has ended in any way."""

    def over() -> Alloc | None:
        now = alloc_status(alloc["ID"])
        return now if now["ClientStatus"] in TERMINAL else None

    return poll(f"{name} has ended", over, ALLOC_TIMEOUT_S)


def logs_command(alloc: Alloc, task: str | None, stderr: bool) -> str:
    name = f" {shlex.quote(task)}" if task else ""
    return f"nomad alloc logs{' -stderr' if stderr else ''} {alloc['ID']}{name}"


def logs(alloc: Alloc, task: str | None = None, stderr: bool = False) -> str:
    """What the task wrote."""
    return machine.succeed(logs_command(alloc, task, stderr))


def wait_for_log(alloc: Alloc, text: str, task: str | None = None, stderr: bool = False) -> str:
    """Waits until the task's output has the text; logs reach the file a moment after they were written."""

    def there() -> str | None:
        # An error of Nomad's: the task has not started yet.
        status, output = machine.execute(logs_command(alloc, task, stderr))
        return output if status == 0 and text in output else None

    return poll(f"{text!r} in the log", there, ALLOC_TIMEOUT_S)


def run_python(name: str, script: str, ready: str = "ready", **options: Any) -> Alloc:
    """Starts a python_job() and waits until it has printed `ready`."""
    run_job(python_job(name, script, **options))
    alloc = wait_for_alloc(name, "running")
    wait_for_log(alloc, ready)
    return alloc


def signal_alloc(alloc: Alloc, signal: str, task: str | None = None) -> None:
    nomad(f"alloc signal -s {signal} {alloc['ID']}{f' {shlex.quote(task)}' if task else ''}")


def stop_job(job: str) -> None:
    """Stops and purges the job, and waits until nothing of its allocations is left below Nomad's slice."""
    ids = [alloc["ID"] for alloc in brief(job)]
    nomad(f"job stop -purge -detach {shlex.quote(job)}")
    for alloc_id in ids:
        machine.wait_until_succeeds(f"! ls -d /sys/fs/cgroup/nomad.slice/*/{alloc_id}.*.scope 2>/dev/null", timeout=CLEANUP_TIMEOUT_S)


def forget(*jobs: str) -> None:
    """Stops and purges the jobs, and has the agent remove all that it kept of them."""
    for name in jobs:
        nomad(f"job stop -purge -detach {shlex.quote(name)}")
    nomad("system gc")
