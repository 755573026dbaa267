# Shared by all scenarios: the runner runs it before each, and a NixOS test puts it in front of the script.
# Works through the `nomad` command in the guest, and so alike with real Nomad and with the pluginhost.
import errno
import json
import shlex
import time

# An emulated CPU is 10 to 20 times slower than a real one. These only bound what hangs; nothing sleeps for them.
UNIT_TIMEOUT_S = 300
AGENT_TIMEOUT_S = 300
ALLOC_TIMEOUT_S = 180
# The cgroup and the mounts of a task outlive its end for a moment.
CLEANUP_TIMEOUT_S = 60
POLL_S = 1.0  # a `nomad` command takes the emulated CPUs half a second

DRIVER = "exec2"
EXAMPLES = "/etc/exec2-examples"
TERMINAL = ("complete", "failed", "lost")

LANDLOCK_PROBE = "import ctypes; l = ctypes.CDLL(None, use_errno=True); a = l.syscall(444, None, 0, 1); print(a if a >= 0 else -ctypes.get_errno())"


def landlock_abi():
    """The Landlock ABI of the guest's kernel, or -errno."""
    return int(machine.succeed(f"python3 -c {shlex.quote(LANDLOCK_PROBE)}"))


def poll(what, fn, timeout):
    """Calls fn until it returns something true, and returns that."""
    end = time.monotonic() + timeout
    while True:
        value = fn()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not so after {timeout} s")
        time.sleep(POLL_S)


def nomad(arguments):
    """The output of a nomad command, which has to succeed."""
    return machine.succeed(f"nomad {arguments}")


def nomad_json(arguments):
    return json.loads(nomad(arguments))


def node():
    """The client node as the API shows it."""
    return nomad_json("node status -self -json")


def wait_for_agent():
    """Until the client is ready for jobs."""
    machine.wait_for_unit("nomad.service", timeout=UNIT_TIMEOUT_S)

    def ready():
        status, output = machine.execute("nomad node status -self -json")
        return status == 0 and json.loads(output)["Status"] == "ready"

    poll("the client is ready", ready, AGENT_TIMEOUT_S)


def wait_for_driver(healthy=True):
    """What the node says of the driver, once its health is as wanted: Detected, Healthy, HealthDescription, Attributes."""
    wait_for_agent()

    def settled():
        info = (node().get("Drivers") or {}).get(DRIVER)
        return info if info and bool(info["Healthy"]) == healthy and info["HealthDescription"] else None

    return poll(f"driver healthy={healthy}", settled, AGENT_TIMEOUT_S)


def write(path, text):
    """A text file in the guest."""
    quoted = shlex.quote(path)
    machine.succeed(f"mkdir -p $(dirname {quoted}); printf %s {shlex.quote(text)} > {quoted}")


def run_job(source, variables=None):
    """Submits a job file of the guest by its path, or the text of one, and returns the job's id."""
    if "\n" in source:
        path = "/tmp/job.nomad.hcl"
        write(path, source)
    else:
        path = source
    options = "".join(f" -var {shlex.quote(f'{name}={value}')}" for name, value in (variables or {}).items())
    nomad(f"job run -detach{options} {shlex.quote(path)}")
    return machine.succeed(f"""sed -n 's/^job "\\([^"]*\\)".*/\\1/p' {shlex.quote(path)}""").strip()


def allocs(job):
    """The job's allocations, oldest first."""
    status, output = machine.execute(f"nomad job allocs -json {shlex.quote(job)}")
    found = json.loads(output) if status == 0 and output.strip() else []
    return sorted(found or [], key=lambda alloc: alloc["CreateTime"])


def alloc_status(alloc_id):
    return nomad_json(f"alloc status -json {alloc_id}")


def task_state(alloc, task=None):
    """The state of the task, or of the only one."""
    states = alloc["TaskStates"] or {}
    return states[task] if task else next(iter(states.values()))


def messages(alloc, task=None):
    """The text of the task's events, as `nomad alloc status` prints them."""
    return [event["DisplayMessage"] for event in task_state(alloc, task)["Events"]]


def wait_for_alloc(job, wanted):
    """The newest allocation of the job once its client status is `wanted`; another final status is a failure with the events."""
    wanted = (wanted,) if isinstance(wanted, str) else wanted

    def settled():
        found = allocs(job)
        if not found:
            return None
        status = found[-1]["ClientStatus"]
        if status in wanted:
            return alloc_status(found[-1]["ID"])
        if status in TERMINAL:
            alloc = alloc_status(found[-1]["ID"])
            events = {name: messages(alloc, name) for name in alloc["TaskStates"] or {}}
            raise AssertionError(f"job {job}: the allocation is {status}, not {' or '.join(wanted)}: {events}")
        return None

    return poll(f"job {job} {' or '.join(wanted)}", settled, ALLOC_TIMEOUT_S)


def logs(alloc, task=None, stderr=False):
    """What the task wrote."""
    name = f" {shlex.quote(task)}" if task else ""
    return nomad(f"alloc logs{' -stderr' if stderr else ''} {alloc['ID']}{name}")


def wait_for_log(alloc, text, task=None, stderr=False):
    """The task's output once it has the text; logs reach the file a moment after they were written."""

    def there():
        output = logs(alloc, task, stderr)
        return output if text in output else None

    return poll(f"{text!r} in the log", there, ALLOC_TIMEOUT_S)


def signal_alloc(alloc, signal, task=None):
    nomad(f"alloc signal -s {signal} {alloc['ID']}{f' {shlex.quote(task)}' if task else ''}")


def stop_job(job):
    """Stops and forgets the job, and waits until nothing of its allocations is left below Nomad's slice."""
    ids = [alloc["ID"] for alloc in allocs(job)]
    nomad(f"job stop -purge -detach {shlex.quote(job)}")
    for alloc_id in ids:
        machine.wait_until_succeeds(f"! ls -d /sys/fs/cgroup/nomad.slice/*/{alloc_id}.*.scope 2>/dev/null", timeout=CLEANUP_TIMEOUT_S)
