# /// scenario
# description = "A task that is always at its memory limit costs the plugin few wake-ups, and an OOM kill is still reported."
# seconds = 71
# ///

import re

from exec2.agent import plugin_pid, wait_for_driver
from exec2.allocs import OUT_OF_MEMORY, reported, run_python, stop_job, wait_for_log
from exec2.guest import ALLOC_TIMEOUT_S, machine, poll, subtest, t
from exec2.jobs import OOM_CHILD
from exec2.tasks import scope

# More than the task's memory: each pass reclaims what the last one read.
READ = """
import os
path = os.environ["NOMAD_TASK_DIR"] + "/big"
with open(path, "wb") as file:
    for _ in range(96):
        file.write(bytes(1 << 20))
print("ready", flush=True)
while True:
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
"""
# How long is counted.
SPAN_S = 20
# The kernel counts up to 100 reclaims at the limit a second. The plugin looks four times a second.
RECLAIMS_MIN = 30 * SPAN_S
WAKE_UPS_MAX = 20 * SPAN_S

wait_for_driver()
plugin = plugin_pid()


def counted(alloc=None):
    """How often the plugin's threads slept within the span, and how often the task reached its limit."""
    look = f"cat /proc/{plugin}/task/*/status"
    if alloc:
        look += f"; cat {scope(alloc)}/memory.events"
    before, after = machine.succeed(f"{look}; sleep {SPAN_S}; echo LATER; {look}").split("LATER")
    switches = [by_thread(text) for text in (before, after)]
    # A thread that has ended meanwhile was idle.
    wakeups = sum(count - switches[0].get(thread, 0) for thread, count in switches[1].items())
    reclaims = [sum(int(number) for number in re.findall(r"^max (\d+)$", text, re.M)) for text in (before, after)]
    return wakeups, reclaims[1] - reclaims[0]


def by_thread(text):
    return {thread: int(count) for thread, count in re.findall(r"^Pid:\s*(\d+)$.*?^voluntary_ctxt_switches:\s*(\d+)$", text, re.M | re.S)}


with subtest("a task that reads more than its memory"):
    idle, _ = counted()
    alloc = run_python("reads", READ)
    wakeups, reclaims = counted(alloc)
    print(f"wake-ups in {SPAN_S} s: {idle} idle, {wakeups} with {reclaims} reclaims at the limit")
    t.assertGreater(reclaims, RECLAIMS_MIN, "the task is not at its limit")
    t.assertLess(wakeups, WAKE_UPS_MAX)
    stop_job("reads")

with subtest("the OOM kill of a child of such a task is reported"):
    alloc = run_python("killed", OOM_CHILD + READ, unveil='["rw:/proc"]')
    wait_for_log(alloc, "child ended with -9\nready")
    poll("it is reported", lambda: reported(alloc, OUT_OF_MEMORY), ALLOC_TIMEOUT_S)
    stop_job("killed")
