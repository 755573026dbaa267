# /// scenario
# description = "A task with a dynamic user that outlived its agent restarts as the same user, although the agent has forgotten the user."
# seconds = 18
# ///

from exec2.agent import configure, kill_agent, start_agent, wait_for_driver
from exec2.allocs import allocs, logs, reported, run_job, stop_job, wait_for_alloc
from exec2.guest import AGENT_TIMEOUT_S, ALLOC_TIMEOUT_S, data_dir, machine, poll, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import scope

SCRIPT = "trap 'exit 1' USR1; echo start $(id -u):$(id -g) $USER; while :; do sleep 1000 & wait $!; done"
JOB = job("forgotten", group("g", task("t", "sh", "-c", SCRIPT, memory=16), attempts=10, interval="1h"), kind="service")


def leader(alloc):
    return machine.wait_until_succeeds(f"head -1 {scope(alloc)}/cgroup.procs | grep .", timeout=ALLOC_TIMEOUT_S).strip()


RECORD = "trusted.nomad-driver-exec2.uid"


def task_dir(alloc):
    return f"{data_dir()}/alloc/{alloc['ID']}/t"


def record(alloc):
    read = f"import os; print(os.getxattr('{task_dir(alloc)}', '{RECORD}').decode())"
    return machine.execute(f'python3 -c "{read}" 2>/dev/null')[1].strip()


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

with subtest("the record at its directory counts, not the owner, where a task may have changed the owner"):
    configure(allow_caps=["default"])
    t.assertEqual(record(alloc), first[0].split(":")[1].split(" ")[0])
    machine.succeed(f"chown 80001:80001 {task_dir(alloc)}; chmod 755 {task_dir(alloc)}; kill -USR1 {leader(alloc)}")
    again = poll("it runs again", lambda: (lines := starts(alloc)) and len(lines) == 3 and lines, ALLOC_TIMEOUT_S)
    t.assertEqual(again[0], again[2])

with subtest("a task of a version that recorded nothing is recorded when it is recovered"):
    machine.succeed(f'python3 -c \'import os; os.removexattr("{task_dir(alloc)}", "{RECORD}")\'')
    new_agent()
    poll("it is recorded", lambda: record(alloc), AGENT_TIMEOUT_S)

with subtest("refused without a record, if a task could have changed the owner of its directory"):
    machine.succeed(f'python3 -c \'import os; os.removexattr("{task_dir(alloc)}", "{RECORD}")\'; kill -USR1 {leader(alloc)}')
    poll("it is refused", lambda: reported(alloc, "user must be set"), ALLOC_TIMEOUT_S)
    t.assertEqual(len(starts(alloc)), 3)

stop_job("forgotten")
