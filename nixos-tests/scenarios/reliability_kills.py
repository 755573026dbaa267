# /// scenario
# description = "The plugin is killed at random moments while short tasks start and end: each has one verdict, and none runs twice at once."
# seconds = 79
# ///
# No run is left that Nomad does not know.
#
# EXEC2_KILL_TASKS: how many tasks, in waves of ten; the default takes an emulated CPU a minute or two.
#
# Nomad tries a start that the plugin's death interrupted once more. If the program ran already, and its answer was lost with the
# plugin, a task runs twice, one run after the other: each run takes a lock that the kernel releases with its last process, and
# notes a clash if another run has it. If the plugin dies again during the second try, Nomad gives the allocation up: then nothing
# of it may run. That may happen in every fourth wave only.

import json
import os
import random
import shlex

from exec2.agent import PLUGIN_NAME, new_plugin, stand_in, wait_for_driver
from exec2.allocs import TERMINAL, brief, forget, run_job
from exec2.guest import AGENT_TIMEOUT_S, ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, data_dir, machine, pgrep, poll, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import SHIMS, TASKS_CGROUP, records, run_directories

WAVE = 10
WAVES = max(4, int(os.environ.get("EXEC2_KILL_TASKS", "40")) // WAVE)
DOUBLE = 4
# The plugin dies within these first seconds of a wave.
KILL_WITHIN_S = 3

SCRIPT = (
    "exec 9>> $NOMAD_ALLOC_DIR/lock; echo run >> $NOMAD_ALLOC_DIR/runs; flock -n 9 || { echo clash >> $NOMAD_ALLOC_DIR/clashes; exit 1; };"
    " sleep $((NOMAD_ALLOC_INDEX * 2)); echo end >> $NOMAD_ALLOC_DIR/ends"
)
TASK = task("t", "sh", "-c", SCRIPT, cpu=20, memory=10)

# Python. Of each allocation: id, status, restarts, exit codes, whether Nomad gave it up because of the plugin's deaths, and how
# many lines are in the files that its runs wrote.
ACCOUNT = """
import json, sys
def lines(alloc, name):
    try:
        with open(f"DATA_DIR/alloc/{alloc}/alloc/{name}") as file:
            return len(file.readlines())
    except FileNotFoundError:
        return 0
print(json.dumps([
    {
        "id": alloc["ID"],
        "status": alloc["ClientStatus"],
        "restarts": state["Restarts"],
        "codes": [event["ExitCode"] for event in state["Events"] or [] if event["Type"] == "Terminated"],
        "started": bool(state["Events"]),
        "given up": any("after driver exited unexpectedly" in event["DisplayMessage"] for event in state["Events"] or []),
        **{name: lines(alloc["ID"], name) for name in ("runs", "ends", "clashes")},
    }
    for alloc in json.load(sys.stdin) for state in alloc["TaskStates"].values()
]))
"""

# The plugins that were killed.
killed: list[int] = []


def die():
    """Kills the plugin at a random moment, and waits for the next one."""
    pid = poll("a plugin", lambda: pgrep(PLUGIN_NAME), AGENT_TIMEOUT_S)[0]
    machine.succeed(f"sleep {random.uniform(0, KILL_WITHIN_S):.2f}; kill -KILL {pid}")
    killed.append(pid)
    new_plugin(pid)


def statuses(name):
    return [alloc["ClientStatus"] for alloc in brief(name)]


wait_for_driver()
account_of = ACCOUNT.replace("DATA_DIR", data_dir())
waves = [f"wave-{number}" for number in range(WAVES)]

with subtest(f"{WAVES * WAVE} tasks, and the plugin dies while they start, and while they run and end"):
    for number, name in enumerate(waves):
        run_job(job(name, group("g", TASK, attempts=20, interval="1h", count=WAVE)))
        die()
        if number % DOUBLE == DOUBLE - 1:
            die()
        poll("all have started", lambda: (s := statuses(name)) and len(s) == WAVE and "pending" not in s, ALLOC_TIMEOUT_S)
        die()
    for name in waves:
        poll("all are over", lambda: (s := statuses(name)) and all(status in TERMINAL for status in s), ALLOC_TIMEOUT_S)

with subtest("each has one verdict, the true one, and no two runs were there at once"):
    given_up, unstarted, twice = 0, 0, 0
    for number, name in enumerate(waves):
        account = json.loads(machine.succeed(f"nomad job allocs -json {name} | python3 -ISc {shlex.quote(account_of)}"))
        t.assertEqual(len({alloc["id"] for alloc in account}), WAVE)
        for alloc in account:
            t.assertEqual(alloc["clashes"], 0, alloc)
            # Nomad tries each start at most twice, and again by the restart policy if the second try fails for another reason:
            # the log reader may have died with the first.
            t.assertLessEqual(alloc["runs"], 2 * (1 + alloc["restarts"]), alloc)
            t.assertLessEqual(alloc["ends"], alloc["runs"], alloc)
            twice += alloc["runs"] > 1
            if alloc["status"] == "complete":
                t.assertEqual(alloc["codes"], [0], alloc)
                t.assertGreaterEqual(alloc["ends"], 1, alloc)
            elif not alloc["started"]:
                # Nomad fails an allocation that arrives while there is no plugin, before anything of it starts.
                t.assertEqual((alloc["status"], alloc["runs"], stand_in()), ("failed", 0, False), alloc)
                unstarted += 1
            else:
                t.assertEqual((alloc["status"], alloc["codes"], alloc["given up"]), ("failed", [], True), alloc)
                t.assertEqual(number % DOUBLE, DOUBLE - 1, alloc)
                given_up += 1
    print(f"{WAVES * WAVE} tasks, {len(killed)} deaths of the plugin: {given_up} given up, {unstarted} never started, {twice} ran twice, one after the other")

with subtest("no orphaned process, cgroup or record is left"):
    machine.fail(f"pgrep -fa '{SHIMS}'")
    forget(*waves)
    poll("no records but those that stay", lambda: not records(), CLEANUP_TIMEOUT_S)
    print("records of lost answers and lost calls:", len(run_directories()))
    machine.wait_until_fails(f"ls -d {TASKS_CGROUP}/*.scope", timeout=CLEANUP_TIMEOUT_S)
