# Shared by all scenarios: the runner runs it before each, and a NixOS test puts it in front of the script.
# Works through the `nomad` command in the guest, and so alike with real Nomad and with the pluginhost.
import errno
import json
import re
import shlex
import time

# An emulated CPU is 10 to 20 times slower than a real one. These only bound what hangs; nothing sleeps for them.
UNIT_TIMEOUT_S = 300
AGENT_TIMEOUT_S = 300
ALLOC_TIMEOUT_S = 400  # javac on a busy emulated CPU: 3 minutes
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


def nixos():
    """Whether the guest is NixOS, where programs and most of /etc lie in a read-only store."""
    return machine.execute("test -e /run/booted-system")[0] == 0


def data_dir():
    """The agent's: /opt/nomad/data on Debian, /var/lib/nomad on NixOS."""
    configuration = machine.succeed("cat /etc/nomad.json 2>/dev/null || cat /etc/nomad.d/*.hcl")
    return re.search(r'data_dir"?\s*[=:]\s*"([^"]+)"', configuration)[1]


def nomad(arguments):
    """The output of a nomad command, which has to succeed."""
    return machine.succeed(f"nomad {arguments}")


def nomad_json(arguments):
    return json.loads(nomad(arguments))


def stand_in():
    """Whether the agent is the pluginhost, not Nomad."""
    return "not Nomad" in nomad("version")


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


DROP_IN = "/run/systemd/system/nomad.service.d/scenario.conf"


def agent_command():
    """What nomad.service runs when no scenario has changed it."""
    machine.succeed(f"rm -f {DROP_IN}; systemctl daemon-reload")
    return machine.succeed("systemctl show nomad.service -p ExecStart --value | sed 's/.*argv\\[\\]=\\([^;]*\\);.*/\\1/'").strip()


def run_agent(command, settings=""):
    """Restarts the agent as `command`, with further lines for the [Service] section of its unit."""
    write(DROP_IN, f"[Service]\n{settings}\nExecStart=\nExecStart={command}\n")
    machine.succeed("systemctl daemon-reload", "systemctl restart nomad.service")
    wait_for_driver()


def configure(**options):
    """Restarts the agent with these options of the plugin, in place of all that it had."""
    lines = "".join(f"{option} = {json.dumps(value)}\n" for option, value in options.items())
    write("/run/scenario.hcl", f'plugin "nomad-driver-exec2" {{\nconfig {{\n{lines}}}\n}}\n')
    run_agent(f"{agent_command()} -config=/run/scenario.hcl")


def plugin_pid():
    """The process of the plugin, not of its shims."""
    return int(machine.succeed("pgrep -f '^/[^ ]*/nomad-driver-exec2$'"))


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


BRIEF = "import json, sys; print(json.dumps([{k: a[k] for k in ('ID', 'Name', 'TaskGroup', 'ClientStatus', 'DesiredStatus', 'CreateTime')} for a in json.load(sys.stdin) or []]))"


def brief(job):
    """What identifies the job's allocations and how they are, oldest first; the whole of them, with the job in each, is too
    much for a slow line."""
    status, output = machine.execute(f"nomad job allocs -json {shlex.quote(job)} | python3 -c {shlex.quote(BRIEF)}")
    return sorted(json.loads(output), key=lambda alloc: alloc["CreateTime"]) if status == 0 else []


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


def forget(*jobs):
    """Stops the jobs and has the agent remove all that it kept of them."""
    for name in jobs:
        nomad(f"job stop -purge -detach {shlex.quote(name)}")
    nomad("system gc")


# -- jobs as text ------------------------------------------------------------------------------------------------------
# In arguments `${NAME}` is for Nomad to fill in; scripts have to write `$NAME`.


def task(name, command, *args, cpu=500, memory=64, memory_max=0, extra="", **config):
    """A task block: `config` has further options of the driver, `extra` is HCL beside them."""
    options = {"command": command, "args": list(args), **config}
    lines = "\n".join(f"      {option} = {json.dumps(value)}" for option, value in options.items())
    return f"""
  task {json.dumps(name)} {{
    driver = "exec2"
    config {{
{lines}
    }}
    resources {{
      cpu    = {cpu}
      memory = {memory}
      {f"memory_max = {memory_max}" if memory_max else ""}
    }}
    {extra}
  }}"""


PRESTART = 'lifecycle { hook = "prestart" }'


def group(name, *tasks, attempts=0, count=1, extra=""):
    """A group that is never rescheduled, and restarted `attempts` times after a second each."""
    return f"""
 group {json.dumps(name)} {{
  count = {count}
  restart {{
    attempts = {attempts}
    delay    = "1s"
    interval = "10m"
    mode     = "fail"
  }}
  reschedule {{
    attempts  = 0
    unlimited = false
  }}
  {extra}
{"".join(tasks)}
 }}"""


def job(name, *groups, kind="batch"):
    return f'job {json.dumps(name)} {{\n type = "{kind}"\n{"".join(groups)}\n}}\n'


def wait_for_groups(name, wanted=None):
    """The newest allocation of each group, by name, once all are over, or as `wanted` (group: status) says."""

    def settled():
        newest = {alloc["TaskGroup"]: alloc for alloc in brief(name)}
        if wanted is None:
            return newest if newest and all(alloc["ClientStatus"] in TERMINAL for alloc in newest.values()) else None
        statuses = {group: alloc["ClientStatus"] for group, alloc in newest.items()}
        for group, status in statuses.items():
            if status in TERMINAL and status != wanted.get(group, status):
                raise AssertionError(f"{name}, group {group}: {status}, not {wanted[group]}: {all_messages(newest[group]['ID'])}")
        return newest if all(statuses.get(group) == status for group, status in wanted.items()) else None

    return {group: alloc_status(alloc["ID"]) for group, alloc in poll(f"job {name} is settled", settled, ALLOC_TIMEOUT_S).items()}


def all_messages(alloc_id):
    """The events' texts of all tasks of an allocation."""
    alloc = alloc_status(alloc_id)
    return {name: messages(alloc, name) for name in alloc["TaskStates"] or {}}


def driver_errors(alloc, task=None):
    """Why the task could not be started, once for each try."""
    return [event["DisplayMessage"] for event in task_state(alloc, task)["Events"] if event["Type"] == "Driver Failure"]


def exits(alloc, task=None):
    """(exit code, signal) of each time that the task ended."""
    return [(event["ExitCode"], event["Signal"]) for event in task_state(alloc, task)["Events"] if event["Type"] == "Terminated"]


# -- what is left ------------------------------------------------------------------------------------------------------


def warm_up():
    """Runs a first task: it leaves what the plugin keeps for all that follow."""
    run_job(job("first", group("g", task("t", "true"))))
    wait_for_alloc("first", "complete")
    forget("first")


def traces():
    """What tasks could leave behind, after warm_up(): {kind: what there is}."""
    plugin = plugin_pid()
    return {
        "cgroups": machine.succeed("cd /sys/fs/cgroup/nomad.slice && find . -name '*.scope' ! -name nomad-driver-exec2.scope").split(),
        "shims": machine.succeed("pgrep -f '^nomad-driver-exec2 shim' || true").split(),
        "run": machine.succeed("ls /run/nomad-driver-exec2 2>/dev/null || true").split(),
        "mounts": machine.succeed("cut -d' ' -f5 /proc/self/mountinfo | sort").split(),
        "temporary files": machine.succeed("ls -d /tmp/exec2-* /dev/shm/* 2>/dev/null || true").split(),
        "the plugin's descriptors": sorted(machine.succeed(f"for fd in /proc/{plugin}/fd/*; do readlink $fd | sed 's/[0-9]\\+/N/g'; done").splitlines()),
        "zombies": machine.succeed("ps -e -o pid=,stat=,args= | awk '$2 ~ /^Z/'").splitlines(),
    }


def settled_traces(wanted):
    """traces() as soon as they are as wanted, or as they are in the end."""
    end = time.monotonic() + CLEANUP_TIMEOUT_S
    while True:
        found = traces()
        if found == wanted or time.monotonic() > end:
            return found
        time.sleep(POLL_S)


# -- what a task may do ------------------------------------------------------------------------------------------------

# Runs in a task: tries each of the given actions, "ACTION PATH…", and prints "ok" or the errno for each as one JSON object.
PROBE = r'''
import errno, json, os, stat, sys

def read(path):
    with open(path, "rb", 0) as file:
        file.read(1)

def execute(path):
    child = os.fork()
    if child == 0:
        try:
            os.execv(path, [path])
        except OSError as error:
            os._exit(error.errno)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, "exec")

def node(kind, device=0):
    return lambda path: os.mknod(path, kind | 0o777, device)

actions = {
    "read": read,
    "list": os.listdir,
    "write": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)),
    "truncate": lambda path: os.truncate(path, 0),
    "exec": execute,
    # no open file is needed for this, so it asks for no right but the one to create
    "create": node(stat.S_IFREG),
    "fifo": node(stat.S_IFIFO),
    "socket": node(stat.S_IFSOCK),
    "char": node(stat.S_IFCHR, os.makedev(1, 3)),
    "block": node(stat.S_IFBLK, os.makedev(7, 0)),
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "remove": os.unlink,
    "rename": os.rename,
    "link": os.link,
    "symlink": os.symlink,
}
with open("/proc/self/cgroup") as file:
    os.environ["CGROUP"] = "/sys/fs/cgroup" + file.read().strip().split(":", 2)[2]
results = {}
for probe in json.loads(sys.argv[1]):
    action, *paths = os.path.expandvars(probe).split(" ")
    try:
        actions[action](*paths)
        results[probe] = "ok"
    except OSError as error:
        results[probe] = errno.errorcode.get(error.errno, str(error.errno))
print(json.dumps(results))
'''


def probe(name, wanted, cpu=1000, **options):
    """A task that tries the actions named by the keys of `wanted`; paths may have `$NAME` in them."""
    return task(name, "python3", "-ISc", PROBE, json.dumps(list(wanted)), cpu=cpu, **options)


def check_probes(alloc, task, wanted):
    """Compares what a task of probe() found with what was wanted: "ok" or an errno."""
    found = json.loads(wait_for_log(alloc, "}", task))
    t.assertEqual(found.keys(), wanted.keys())
    differences = [f"{probe}: {found[probe]}, not {wanted[probe]}" for probe in wanted if found[probe] != wanted[probe]]
    t.assertEqual(differences, [])


# -- faults: the scenarios reliability* ----------------------------------------------------------------------------------

PLUGIN_NAME = "^/[^ ]*/nomad-driver-exec2$"
SHIMS = "^nomad-driver-exec2 shim$"
# The processes that read the tasks' logs: one for each task under Nomad, one for all under the pluginhost.
LOG_READERS = "^[^ ]*(nomad|pluginhost) logmon"
RUN = "/run/nomad-driver-exec2"

WAIT = "import signal, time\nprint('ready', flush=True)\nwhile True: signal.pause()"
IGNORE = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def pgrep(pattern):
    return [int(pid) for pid in machine.execute(f"pgrep -f '{pattern}'")[1].split()]


def new_plugin(old):
    """The process of the plugin that has taken the place of `old`."""
    return poll("another plugin", lambda: [pid for pid in pgrep(PLUGIN_NAME) if pid != old], AGENT_TIMEOUT_S)[0]


def nobody_else_noticed(plugin, bystander, pids):
    """The end of a scenario of faults: plugin and bystander are as before, and with the bystander everything goes."""
    t.assertEqual(pgrep(PLUGIN_NAME), plugin)
    t.assertEqual(inside(bystander), pids)
    stop_all_of("bystander", bystander)
    nomad("system gc")
    poll("no shims", lambda: not pgrep(SHIMS), CLEANUP_TIMEOUT_S)
    t.assertEqual(machine.succeed(f"ls {RUN}"), "")


def python_job(name, script, cpu=1000, memory=32, unveil="[]", options="", kill_timeout="2s", attempts=0, delay="1s"):
    return f"""
job "{name}" {{
  type = "batch"
  group "g" {{
    restart {{
      attempts = {attempts}
      delay    = "{delay}"
      mode     = "fail"
    }}
    reschedule {{
      attempts  = 0
      unlimited = false
    }}
    task "t" {{
      driver       = "exec2"
      kill_timeout = "{kill_timeout}"
      config {{
        command = "python3"
        args    = ["-c", <<-EOT
{script}
EOT
        ]
        unveil = {unveil}
        {options}
      }}
      resources {{
        cpu    = {cpu}
        memory = {memory}
      }}
    }}
  }}
}}
"""


def run_python(name, script, ready="ready", **options):
    """Runs the script until it has printed `ready`."""
    run_job(python_job(name, script, **options))
    alloc = wait_for_alloc(name, "running")
    wait_for_log(alloc, ready)
    return alloc


def scope(alloc):
    return f"/sys/fs/cgroup/nomad.slice/share.slice/{alloc['ID']}.t.scope"


def inside(alloc):
    """The processes of the task, oldest first, with those in cgroups of its own."""
    return [int(pid) for pid in machine.execute(f"find {scope(alloc)} -name cgroup.procs -exec cat {{}} +")[1].split()]


def shim_of(alloc):
    return int(machine.succeed(f"awk '/^PPid/ {{print $2}}' /proc/{inside(alloc)[0]}/status"))


def records():
    """The tasks that the driver keeps in mind, but for those that stay after a death of the plugin: of a task that had ended and
    that Nomad wanted destroyed at that moment, which it asks for once (30 days); of one whose answer was lost (5 minutes)."""
    script = f"for d in $(ls {RUN} 2>/dev/null); do [ -e {RUN}/$d/answered ] || grep -qs code= {RUN}/$d/exit || echo $d; done"
    return machine.succeed(script).split()


def alive(pids):
    """Those that are there, be it as zombies."""
    return machine.execute(f"for p in {' '.join(map(str, pids))}; do [ ! -d /proc/$p ] || echo $p; done")[1].split()


def terminated(alloc):
    return [event for event in task_state(alloc)["Events"] if event["Type"] == "Terminated"]


def ended(name, alloc):
    """The allocation when it is over, whatever its end."""
    return poll(f"{name} has ended", lambda: (a := alloc_status(alloc["ID"]))["ClientStatus"] in TERMINAL and a, ALLOC_TIMEOUT_S)


def stop_all_of(name, alloc):
    """Stops it, and looks whether all of it is gone: processes, cgroup."""
    pids = inside(alloc)
    nomad(f"job stop -detach {name}")
    over = ended(name, alloc)
    t.assertEqual(alive(pids), [], f"{name}: processes outlive StopTask")
    stop_job(name)
    return over


def usage(alloc):
    """What the driver says that the task uses, by the names of the plugin protocol."""
    if stand_in():
        return json.loads(machine.succeed(f"pluginhost stats {alloc['ID']}"))["agg_resource_usage"]

    def there():
        answer = json.loads(machine.succeed(f"curl -sS --fail http://127.0.0.1:4646/v1/client/allocation/{alloc['ID']}/stats"))
        return (answer["Tasks"] or {}).get("t")

    # Nomad has none before the first interval is over, also that of a new plugin.
    found = poll("statistics", there, ALLOC_TIMEOUT_S)["ResourceUsage"]
    snake = lambda name: {"RSS": "rss"}.get(name) or "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
    return {kind: {snake(name): value for name, value in found[field].items()} for kind, field in (("cpu", "CpuStats"), ("memory", "MemoryStats"))}
