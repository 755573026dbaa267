# /// scenario
# description = "Many tasks at once: their limits and statistics, and all of their output."
# seconds = 67
# ///

import hashlib
import json
import shlex

from exec2.agent import nomad, plugin_pid, stand_in, wait_for_driver
from exec2.allocs import TERMINAL, deaths, exits, forget, messages, run_job, wait_for_alloc, wait_for_groups, wait_for_log
from exec2.cleanup import settled_traces, traces, warm_up
from exec2.guest import AGENT_TIMEOUT_S, ALLOC_TIMEOUT_S, machine, pgrep, poll, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import SHIMS, TASKS_CGROUP, usage

# With real Nomad each has a log collector of its own, some 30 MB: more than a guest has for 50.
COUNT = 50 if stand_in() else 24
# Bounds of docs/reliability.md, in KiB of anonymous memory: of the plugin for each task, and of a shim.
PLUGIN_MAX_KIB = 128
SHIM_MAX_KIB = 512
LINES = 40_000  # of 128 bytes: 5 MB

wait_for_driver()


def resident(pid):
    """Resident anonymous memory, in KiB."""
    return int(machine.succeed(f"sed -n 's/^RssAnon:\\s*\\([0-9]*\\) kB/\\1/p' /proc/{pid}/status"))


# Python. [index, exit code, signal] of each allocation.
ENDS = """
import json, sys
print(json.dumps([
    [int(alloc["Name"].split("[")[1].rstrip("]")), event["ExitCode"], event["Signal"]]
    for alloc in json.load(sys.stdin) for event in alloc["TaskStates"]["t"]["Events"] if event["Type"] == "Terminated"
]))
"""

warm_up()
before = traces()
plugin = plugin_pid()
idle = resident(plugin)

with subtest(f"{COUNT} tasks at once"):
    # none ends before the last one has started
    script = "echo $NOMAD_ALLOC_INDEX; while [ ! -e /usr/local/lib/exec2-go ]; do sleep 5; done; exit $((NOMAD_ALLOC_INDEX % 3 * 7))"
    # The default of 300 MB of disk for each is more than the guest has; Nomad needs more than 100 for its logs.
    small = "ephemeral_disk {\n size = 110\n }"
    run_job(job("many", group("g", task("t", "sh", "-c", script, cpu=60, memory=16), count=COUNT, extra=small)))

    def states():
        """Of each allocation, from the list: JSON of so many is too much for the console."""
        return [line.split()[5] for line in machine.execute("nomad job allocs many")[1].splitlines()[1:]]

    poll("all of them run", lambda: states().count("running") == COUNT, AGENT_TIMEOUT_S)
    t.assertEqual(len(pgrep(SHIMS)), COUNT)
    procs = machine.succeed(f"cat {TASKS_CGROUP}/*.scope/cgroup.procs").split()
    t.assertGreaterEqual(len(procs), COUNT)
    shims = pgrep(SHIMS)[:5]
    full, each = resident(plugin), [resident(pid) for pid in shims]
    print(f"plugin: {idle} KiB idle, {full} KiB with {COUNT} tasks; a shim: {each} KiB")
    t.assertLess((full - idle) / COUNT, PLUGIN_MAX_KIB)
    t.assertLess(max(each), SHIM_MAX_KIB)

with subtest("each ends with its own code"):
    machine.succeed("mkdir -p /usr/local/lib; touch /usr/local/lib/exec2-go")
    poll("all of them have ended", lambda: all(state in TERMINAL for state in states()), AGENT_TIMEOUT_S)
    t.assertEqual(len(states()), COUNT)
    codes = json.loads(machine.succeed(f"nomad job allocs -json many | python3 -ISc {shlex.quote(ENDS)}"))
    t.assertEqual(sorted(codes), sorted([index, index % 3 * 7, 0] for index in range(COUNT)))

with subtest("nothing is left of them"):
    forget("many")
    t.assertEqual(settled_traces(before), before)
    t.assertEqual(plugin_pid(), plugin)
    print(f"plugin: {resident(plugin)} KiB afterwards")

# Python. Prints its limits, then uses memory and the CPU.
BUSY = """
import os
with open("/proc/self/cgroup") as file:
    folder = "/sys/fs/cgroup" + file.read().strip().split(":", 2)[2]
for name in ("memory.max", "memory.low", "cpu.max"):
    with open(f"{folder}/{name}") as file:
        print(name, file.read().strip())
print("cpus", sorted(os.sched_getaffinity(0)), flush=True)
memory = b"x" * (32 << 20)
while True:
    os.getpid()
"""


MIB = 1 << 20
with subtest("the limits are in the cgroup"):
    run_job(
        job(
            "busy",
            group("share", task("t", "python3", "-ISc", BUSY, cpu=500, memory=64)),
            group("burst", task("t", "python3", "-ISc", BUSY, cpu=400, memory=48).replace("memory = 48", "memory = 48\n      memory_max = 96")),
            group("core", task("t", "python3", "-ISc", BUSY, cpu=1, memory=64).replace("cpu    = 1", "cores = 1")),
        )
    )
    busy = wait_for_groups("busy", dict.fromkeys(("share", "burst", "core"), "running"))
    shown = {name: dict(line.split(" ", 1) for line in wait_for_log(alloc, "cpus").splitlines()) for name, alloc in busy.items()}
    # 2000 MHz are a core
    shared = {"cpus": shown["share"]["cpus"]}
    t.assertEqual(shown["share"], {"memory.max": str(64 * MIB), "memory.low": "0", "cpu.max": "25000 100000"} | shared)
    t.assertEqual(shown["burst"], {"memory.max": str(96 * MIB), "memory.low": str(48 * MIB), "cpu.max": "20000 100000"} | shared)
    t.assertEqual(shown["core"]["memory.max"], str(64 * MIB))
    t.assertEqual(shown["core"]["cpu.max"], "100000 100000")
    t.assertRegex(shown["core"]["cpus"], r"^\[\d+\]$")

with subtest("statistics: memory, CPU, and the throttling of a limited task"):

    def figures(good):
        """Of the task with a share, if they are good."""
        found = usage(busy["share"])
        return found if good(found["cpu"], found["memory"]) else None

    # in one interval a task that is throttled three quarters of the time may only have system time
    first = poll("figures for the busy task", lambda: figures(lambda cpu, _: cpu["user_mode"] > 0 and cpu["percent"] > 0), ALLOC_TIMEOUT_S)
    memory, cpu = first["memory"], first["cpu"]
    t.assertGreaterEqual(int(memory["rss"]), 32 * MIB)
    t.assertGreaterEqual(int(memory["usage"]), int(memory["rss"]))
    t.assertLessEqual(int(memory["usage"]), 64 * MIB)
    # its share is a quarter of a core; Nomad's percent is of one core, and periods do not start with the interval
    t.assertLess(cpu["percent"], 40)
    t.assertAlmostEqual(cpu["user_mode"] + cpu["system_mode"], cpu["percent"], delta=5)
    t.assertGreater(cpu["total_ticks"], 0)
    t.assertGreater(int(cpu["throttled_periods"]), 0)
    t.assertGreater(int(cpu["throttled_time"]), 0)
    poll("new figures", lambda: figures(lambda later, _: int(later["throttled_time"]) > int(cpu["throttled_time"])), ALLOC_TIMEOUT_S)
    unlimited = usage(busy["core"])["cpu"]
    t.assertGreater(unlimited["percent"], cpu["percent"])
    nomad("job stop -detach busy")

with subtest("a task that needs more memory than its limit is killed, and the reason is reported"):
    hungry = 'exec python3 -ISc "x = bytearray(128 << 20)"'
    run_job(job("hungry", group("g", task("t", "sh", "-c", hungry, cpu=1000, memory=32))))
    alloc = wait_for_alloc("hungry", "failed")
    t.assertEqual(exits(alloc), [(137, 9)])
    t.assertRegex("\n".join(messages(alloc)), r"Out of memory: the kernel killed a process of the task \(kills: 1, limit: 32.0 MiB")
    t.assertEqual(deaths(alloc), [(137, 9, "true")])

with subtest("all of 5 MB arrives in the log"):
    text = "".join(f"{number:0127}\n" for number in range(LINES))
    write_all = f'import sys\nfor number in range({LINES}):\n    sys.stdout.write("%0127d\\n" % number)\n'
    run_job(job("writer", group("g", task("t", "python3", "-ISc", write_all, cpu=2000))))
    alloc = wait_for_alloc("writer", "complete")
    digest = hashlib.sha256(text.encode()).hexdigest()
    machine.wait_until_succeeds(f"nomad alloc logs {alloc['ID']} | sha256sum | grep {digest}", timeout=ALLOC_TIMEOUT_S)

with subtest("nothing is left"):
    forget("busy", "hungry", "writer")
    t.assertEqual(settled_traces(before), before)
    t.assertEqual(plugin_pid(), plugin)
