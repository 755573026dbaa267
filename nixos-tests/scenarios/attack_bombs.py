# /// scenario
# description = "Bombs, which use up what a host has: each is stopped by a limit of its task, and a neighbour does not suffer."
# nomad = "pluginhost"
# guests = ["debian"]
# payload = ["attack"]
# seconds = 50
# ///
# The bombs are in tests/pluginhost/internal/attack. Each has a control: in a cgroup of the scenario's own, with far higher
# limits, it reaches what the limits of its task do not let it reach.

import json
import shlex
from datetime import datetime, timedelta
from itertools import pairwise

from exec2.agent import wait_for_driver
from exec2.guest import CLEANUP_TIMEOUT_S, machine, poll, subtest, t
from exec2.harness import end, harness, run_plugin
from exec2.single import ATTACK, STATE, answers, finish, write_task

wait_for_driver()
machine.succeed("systemctl stop nomad.service")

FOLDER = "/srv/bombs"
NEIGHBOUR = "neighbour"
FIRST_UID = 80800
MIB = 1 << 20
# The options and the memory of each task, and what its control has to reach: more than the task may.
BOMBS = {
    "fork": ({"pids_max": 100}, 256, 300),
    "memory": ({}, 64, 128 * MIB),
    "fd": ({"ulimit": [{"nofile": "256:512"}]}, 256, 2000),
    "inode": ({}, 32, 60000),
    "pipe": ({}, 32, 64 * MIB),
    "log": ({}, 256, 20 * MIB),
    "event": ({}, 64, 3),
    "kill": ({}, 256, 3),
}
# A kernel that is out of a cgroup's memory kills the task.
BY_MEMORY = ("memory", "inode", "pipe")
# The shortest time between two events about OOM kills of one task, but for the last one.
PAUSE = timedelta(seconds=10)
# OOM kills during which the driver's work is measured.
MEASURED_KILLS = 6
CONTROL = "/sys/fs/cgroup/exec2-bombs"
CONTROL_UID = 80799
SHIMS = "/sys/fs/cgroup/nomad.slice/nomad-driver-exec2.scope"


def bomb(name, uid, kind, config, memory):
    """A task that is a bomb until it is stopped; its file and its cgroup."""
    path = write_task(f"{FOLDER}/{name}.json", uid, ["bomb", kind, "-for", "1h"], config, memory=memory)
    handle = harness(f"start {path}")
    return path, handle["handle"]["config"]["resources"]["linux_resources"]["cpuset_cgroup"]


def counter(cgroup, file, name):
    """A line of a file like memory.events."""
    return next(int(line.split()[1]) for line in machine.succeed(f"cat {cgroup}/{file}").splitlines() if line.split()[0] == name)


def cpu_of(pid):
    """Microseconds that a process has used."""
    fields = machine.succeed(f"cat /proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 10_000


def sleeper(uid):
    """A process of the host that has this user."""
    return machine.succeed(f"(setpriv --reuid {uid} --clear-groups sleep infinity > /dev/null 2>&1 & echo $!)").strip()


def stop(path):
    """Ends a bomb that is neither killed nor out of processes, which is then to have ended by itself."""
    harness(f"stop -timeout 30s {path}")
    t.assertEqual(harness(f"wait {path}")["result"]["exit_code"], 0, path)


def used():
    """What the plugin, all shims and the event bomb have used of the CPUs."""
    return cpu_of(pid), counter(SHIMS, "cpu.stat", "usage_usec"), counter(event, "cpu.stat", "usage_usec")


def kills():
    return counter(event, "memory.events", "oom_kill")


def report(path):
    """What a bomb that was stopped says of itself."""
    return json.loads(machine.succeed(f"pluginhost task logs -stderr {path}").strip().splitlines()[-1])


def control(kind, until):
    """The bomb in a cgroup of its own, on the host."""
    prefix = f"setpriv --reuid {CONTROL_UID} --clear-groups" if kind == "kill" else ""
    command = f"echo $$ > {CONTROL}/cgroup.procs; exec {prefix} {ATTACK} bomb {kind} -for {CLEANUP_TIMEOUT_S}s -until {until} > /dev/null"
    machine.succeed(f"sh -c {shlex.quote(command)}")
    gone = f"until grep -q \"populated 0\" {CONTROL}/cgroup.events; do sleep 0.1; done"
    machine.succeed(f"echo 1 > {CONTROL}/cgroup.kill; timeout {CLEANUP_TIMEOUT_S} sh -c '{gone}'; rm -f /dev/shm/exec2-bomb-*")


with subtest("without the driver's limits, each bomb reaches more than its task may"):
    machine.succeed(f"mkdir {CONTROL}; echo 1000 > {CONTROL}/pids.max; echo 0 > {CONTROL}/memory.swap.max; echo {400 * MIB} > {CONTROL}/memory.max")
    same_user = sleeper(CONTROL_UID)
    for kind, (_, _, until) in BOMBS.items():
        control(kind, until)
    poll("a process of the same user is gone", lambda: machine.execute(f"kill -0 {same_user}")[0] == 1, CLEANUP_TIMEOUT_S)

with subtest("as tasks, beside a neighbour"):
    run_plugin()
    pid = harness("plugin pid")["pid"]
    beside = write_task(f"{FOLDER}/{NEIGHBOUR}.json", FIRST_UID, ["neighbour", "-for", "5s"])
    # The user of the bomb that kills all processes of its user.
    same_user = sleeper(FIRST_UID + 1 + list(BOMBS).index("kill"))
    tasks = {}
    for n, (kind, (config, memory, _)) in enumerate(BOMBS.items(), start=1):
        tasks[kind] = bomb(kind, FIRST_UID + n, kind, config, memory)
    tasks["kill-root"] = bomb("kill-root", 0, "kill", {}, 256)
    event = tasks["event"][1]
    harness(f"start {beside}")
    answer = json.loads(finish(beside))
    print(answer)
    t.assertGreater(answer["rounds"], 3)

with subtest("each has met its limit"):
    poll("a fork is refused", lambda: counter(tasks["fork"][1], "pids.events", "max"), CLEANUP_TIMEOUT_S)
    for kind in BY_MEMORY:
        t.assertTrue(harness(f"wait -timeout {CLEANUP_TIMEOUT_S}s {tasks[kind][0]}")["result"]["oom_killed"], kind)
    harness(f"stop -timeout 1s {tasks['fork'][0]}")
    stopped = ("fd", "log", "kill", "kill-root")
    for kind in stopped:
        stop(tasks[kind][0])
    found = {kind: report(tasks[kind][0]) for kind in stopped}
    print(found)
    t.assertIn("too many open files", found["fd"]["refused"])
    t.assertLessEqual(found["fd"]["reached"], 512)
    t.assertGreater(found["log"]["reached"], MIB)
    for kind in ("kill", "kill-root"):
        t.assertGreater(found[kind]["reached"], 0)
    machine.succeed(f"kill {same_user}")

with subtest("OOM kills without end are few events, and little work for the driver"):
    before, enough = used(), kills() + MEASURED_KILLS
    poll("children are killed", lambda: kills() >= enough, CLEANUP_TIMEOUT_S)
    by_plugin, by_shims, by_bomb = (late - early for early, late in zip(before, used(), strict=True))
    print(f"event bomb: {by_bomb} us, the plugin meanwhile {by_plugin}, all shims {by_shims}")
    t.assertGreater(by_bomb, 2 * (by_plugin + by_shims))
    stop(tasks["event"][0])
    killed = kills()
    # The stream does not end: the harness gives up.
    text = machine.execute("pluginhost task rpc -count 1000 -timeout 3s TaskEvents 2> /dev/null")[1]
    events = [each for each in answers(text) if each.get("task_name") == "event" and "oom_kills" in each["annotations"]]
    print(f"{killed} OOM kills, {len(events)} events")
    t.assertEqual(sum(int(each["annotations"]["oom_kills"]) for each in events), killed)
    t.assertGreater(killed, len(events))
    times = [datetime.fromisoformat(each["timestamp"].rstrip("Z")[:26]) for each in events[:-1]]
    t.assertTrue(all(late - early > PAUSE for early, late in pairwise(times)), times)

with subtest("nothing of them is left"):
    for path, _ in tasks.values():
        end(path)
    t.assertEqual(machine.succeed(f"ls {STATE}/alloc"), "")
    machine.succeed(f"rmdir {CONTROL}")
