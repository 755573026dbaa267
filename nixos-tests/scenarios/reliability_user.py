# /// scenario
# description = "A task with a dynamic user that outlived its agent restarts as the same user, although the agent has forgotten the user."
# seconds = 18
# ///

from exec2.agent import configure, kill_agent, start_agent, wait_for_driver
from exec2.allocs import allocs, logs, reported, run_job, stop_job, wait_for_alloc
from exec2.guest import ALLOC_TIMEOUT_S, machine, poll, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import scope

SCRIPT = "trap 'exit 1' USR1; echo start $(id -u):$(id -g) $USER; while :; do sleep 1000 & wait $!; done"
JOB = job("forgotten", group("g", task("t", "sh", "-c", SCRIPT, memory=16), attempts=10, interval="1h"), kind="service")


def leader(alloc):
    return machine.wait_until_succeeds(f"head -1 {scope(alloc)}/cgroup.procs | grep .", timeout=ALLOC_TIMEOUT_S).strip()


def starts(alloc):
    return [line for line in logs(alloc).splitlines() if line.startswith("start ")]


def new_agent():
    kill_agent()
    start_agent()
    poll("it is running", lambda: allocs("forgotten")[-1]["ClientStatus"] == "running", ALLOC_TIMEOUT_S)


wait_for_driver()
run_job(JOB)
alloc = wait_for_alloc("forgotten", "running")
first = poll("its first line", lambda: starts(alloc), ALLOC_TIMEOUT_S)
t.assertRegex(first[0], r"^start (8\d{4}):\1 nomad-\1$")

with subtest("restarted after a restart of the agent: the same user"):
    new_agent()
    machine.succeed(f"kill -USR1 {leader(alloc)}")
    again = poll("it runs again", lambda: (lines := starts(alloc)) and len(lines) == 2 and lines, ALLOC_TIMEOUT_S)
    t.assertEqual(again[0], again[1])
    t.assertEqual(len(allocs("forgotten")), 1)

with subtest("refused if a task could have changed the owner of its directory"):
    configure(allow_caps=["chown"])
    machine.succeed(f"kill -USR1 {leader(alloc)}")
    poll("it is refused", lambda: reported(alloc, "user must be set"), ALLOC_TIMEOUT_S)
    t.assertEqual(len(starts(alloc)), 2)

stop_job("forgotten")
