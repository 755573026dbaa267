# /// scenario
# description = "A recovered task works like any other: statistics, OOM kills, its end."
# seconds = 59
# ///
# A plugin that is asked to end leaves its tasks running. A shim that dies while there is no plugin takes its task along, and Nomad
# starts the task again.

from exec2.agent import PLUGIN_NAME, agent_pid, new_plugin, nomad, wait_for_driver
from exec2.allocs import OUT_OF_MEMORY, RECOVERED, alloc_status, deaths, events, exits, reported, run_python, stop_job, wait_for_alloc, wait_for_log
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, alive, machine, pgrep, poll, subtest, t
from exec2.jobs import IGNORE, WAIT
from exec2.tasks import RUN, SHIMS, inside, run_directories, shim_of, stop_all_of, usage


def replace_plugin(*allocs, signal="KILL"):
    """Ends the plugin, and waits until the next one has reported the recovery of these tasks."""
    before = [len(reported(alloc, RECOVERED)) for alloc in allocs]
    old = pgrep(PLUGIN_NAME)[0]
    machine.succeed(f"kill -{signal} {old}")
    new = new_plugin(old)
    for alloc, count in zip(allocs, before, strict=True):
        poll("it is recovered", lambda: len(reported(alloc, RECOVERED)) > count, ALLOC_TIMEOUT_S)
    return new


# On USR1 a child uses more memory than there is, on USR2 the task itself. It is never quite idle.
HUNGRY = """
import os, signal, time
def eat(*_):
    x = b'x' * (200 << 20)
def feed(*_):
    if os.fork() == 0:
        open('/proc/self/oom_score_adj', 'w').write('1000')
        eat()
        os._exit(1)
    print('child ended with', os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
signal.signal(signal.SIGUSR1, feed)
signal.signal(signal.SIGUSR2, eat)
mine = b'x' * (16 << 20)
print('ready', flush=True)
while True:
    time.sleep(0.01)
"""
HAS_KIB = 16 << 10

wait_for_driver()
wait = run_python("wait", IGNORE + "signal.signal(signal.SIGUSR1, lambda *_: exit(7))\n" + WAIT)
hungry = run_python("hungry", HUNGRY, memory=48, unveil='["rw:/proc"]')
processes = inside(wait) + inside(hungry)


def measured(alloc):
    """Statistics once they are there; a new plugin has none for the first interval."""

    def good():
        output = usage(alloc)
        return output if int(output["memory"]["rss"]) and output["cpu"]["percent"] > 0 else None

    return poll("statistics", good, ALLOC_TIMEOUT_S)


with subtest("SIGTERM to the plugin: it ends, the tasks keep running, the next plugin has them"):
    before = measured(hungry)
    replace_plugin(wait, hungry, signal="TERM")
    t.assertEqual(inside(wait) + inside(hungry), processes)
    t.assertEqual(len(run_directories()), 2)

with subtest("statistics of a recovered task"):
    replace_plugin(wait, hungry)
    after = measured(hungry)
    for figures in (before, after):
        t.assertGreaterEqual(int(figures["memory"]["rss"]), HAS_KIB << 10)
        t.assertLess(int(figures["memory"]["rss"]), 48 << 20)
    t.assertEqual(after["memory"].keys(), before["memory"].keys())
    t.assertEqual(after["cpu"].keys(), before["cpu"].keys())
    t.assertEqual(inside(wait) + inside(hungry), processes)

with subtest("OOM kill of a recovered task: reported once, as the reason of its end"):
    machine.succeed(f"kill -USR2 {inside(hungry)[0]}")
    alloc = wait_for_alloc("hungry", "failed")
    t.assertEqual(deaths(alloc), [(137, 9, "true")])
    poll("the OOM kill is reported", lambda: reported(hungry, OUT_OF_MEMORY), ALLOC_TIMEOUT_S)
    t.assertEqual(len(reported(hungry, OUT_OF_MEMORY)), 1)
    stop_job("hungry")

with subtest("stop of a recovered task that ignores its signal"):
    over = stop_all_of("wait", wait)
    t.assertEqual(exits(over), [(137, 9)])

with subtest("a shim is killed while no plugin runs: the whole task ends, and Nomad starts it again"):
    alloc = run_python("again", "import os\nos.fork()\n" + WAIT, attempts=1)
    old, shim, plugin, agent = inside(alloc), shim_of(alloc), pgrep(PLUGIN_NAME)[0], agent_pid()
    t.assertEqual(len(old), 2)
    # The agent is stopped meanwhile: it would start another plugin at once.
    machine.succeed(f"kill -STOP {agent}; kill -9 {plugin} {shim}; sleep 1")
    t.assertEqual(alive(old), [])
    machine.succeed(f"kill -CONT {agent}")
    poll("it runs again", lambda: len(inside(alloc)) == 2 and alloc_status(alloc["ID"])["ClientStatus"] == "running", ALLOC_TIMEOUT_S)
    t.assertEqual(set(inside(alloc)) & set(old), set())
    t.assertEqual(len(events(alloc_status(alloc["ID"]), "Started")), 2)
    # The first one's record is gone.
    t.assertEqual(len(run_directories()), 1)
    stop_all_of("again", alloc)

with subtest("the same after the task has ended: its code is lost, and not reported as success"):
    alloc = run_python("ended", "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))\n" + WAIT)
    (leader,), shim, plugin, agent = inside(alloc), shim_of(alloc), pgrep(PLUGIN_NAME)[0], agent_pid()
    # A shim that has not stopped yet would still reap the leader.
    machine.succeed(f"kill -STOP {shim}; until grep -q '^State:.T' /proc/{shim}/status; do sleep 0.1; done; kill -USR1 {leader}")
    machine.wait_until_succeeds(f"grep -q '^State:.Z' /proc/{leader}/status", timeout=ALLOC_TIMEOUT_S)
    machine.succeed(f"kill -STOP {agent}; kill -9 {plugin} {shim}; sleep 1; kill -CONT {agent}")
    t.assertEqual(exits(wait_for_alloc("ended", "failed")), [])
    stop_job("ended")

with subtest("an OOM kill of a child before the plugin died is not reported again after it"):
    alloc = run_python("fed", HUNGRY, memory=48, unveil='["rw:/proc"]')
    machine.succeed(f"kill -USR1 {inside(alloc)[0]}")
    wait_for_log(alloc, "child ended with -9")
    poll("the OOM kill is reported", lambda: reported(alloc, OUT_OF_MEMORY), ALLOC_TIMEOUT_S)
    t.assertEqual(len(reported(alloc, OUT_OF_MEMORY)), 1)
    # A plugin that dies before it has seen the task survive the kill leaves the next one to report it again.
    machine.wait_until_succeeds(f"grep -qx '0*1' {RUN}/*/outlived", timeout=ALLOC_TIMEOUT_S)
    replace_plugin(alloc)
    machine.succeed("sleep 2")
    t.assertEqual(len(reported(alloc, OUT_OF_MEMORY)), 1)
    # Only a second one is reported.
    machine.succeed(f"kill -USR1 {inside(alloc)[0]}")
    poll("the OOM kill is reported", lambda: len(reported(alloc, OUT_OF_MEMORY)) > 1, ALLOC_TIMEOUT_S)
    t.assertIn("kills: 1,", reported(alloc, OUT_OF_MEMORY)[1])
    stop_all_of("fed", alloc)

with subtest("nothing is left"):
    nomad("system gc")
    poll("no shims", lambda: not pgrep(SHIMS), CLEANUP_TIMEOUT_S)
    t.assertEqual(run_directories(), [])
