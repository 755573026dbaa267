# /// scenario
# description = "A recovered task works like any other: signals, logs, statistics, stop; and the plugin reports the recovery to the agent."
# seconds = 29
# ///
# (reliability.py covers the deaths themselves.)

from exec2.agent import new_plugin, nomad, plugin_pid, violations, wait_for_driver
from exec2.allocs import RECOVERED, alloc_status, exits, forget, logs, reported, run_job, signal_alloc, wait_for_alloc, wait_for_groups, wait_for_log
from exec2.cleanup import traces
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, machine, poll, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import inside

wait_for_driver()

# Prints the signals that it gets; some of them end it.
WAIT = 'trap "echo usr1" USR1; trap "echo usr2; exit 7" USR2; trap "echo interrupted; exit 3" INT; echo ready; while :; do sleep 3600 & wait; done'
GROUPS = ("ends", "stops", "stays")


def pids():
    """The first process of each task, by group."""
    return {name: inside(alloc)[0] for name, alloc in running.items()}


def heard(count):
    """Sends each task one more SIGUSR1, and waits for its line in the log."""
    for alloc in running.values():
        signal_alloc(alloc, "SIGUSR1")
        wait_for_log(alloc, "ready\n" + "usr1\n" * count)


with subtest("three tasks"):
    run_job(job("found", *(group(name, task("t", "sh", "-c", WAIT, cpu=300)) for name in GROUPS)))
    running = wait_for_groups("found", dict.fromkeys(GROUPS, "running"))
    for alloc in running.values():
        wait_for_log(alloc, "ready")
    before = pids()
    heard(1)

with subtest("the plugin is killed: the next one reports the recovery and controls the tasks"):
    first = plugin_pid()
    machine.succeed(f"kill -KILL {first}")
    new_plugin(first)
    wait_for_driver()
    for alloc in running.values():
        poll("the event", lambda: reported(alloc, RECOVERED), ALLOC_TIMEOUT_S)
    heard(2)
    t.assertEqual(pids(), before)

with subtest("the agent is restarted: the same"):
    machine.succeed("systemctl restart nomad.service")
    wait_for_driver()
    wait_for_groups("found", dict.fromkeys(GROUPS, "running"))
    heard(3)
    t.assertEqual(pids(), before)

with subtest("new tasks start beside them"):
    run_job(job("beside", group("g", task("t", "sh", "-c", "exit 9"))))
    t.assertEqual(exits(wait_for_alloc("beside", "failed")), [(9, 0)])

with subtest("they end with their own codes, on a signal and on a stop"):
    signal_alloc(running["ends"], "SIGUSR2")
    poll("one has ended", lambda: exits(alloc_status(running["ends"]["ID"])), ALLOC_TIMEOUT_S)
    nomad("job stop -detach found")
    done = wait_for_groups("found")
    t.assertEqual({name: exits(alloc) for name, alloc in done.items()}, {"ends": [(7, 0)], "stops": [(3, 0)], "stays": [(3, 0)]})
    t.assertEqual(logs(done["ends"]), "ready\n" + "usr1\n" * 3 + "usr2\n")
    t.assertEqual(logs(done["stays"]), "ready\n" + "usr1\n" * 3 + "interrupted\n")

with subtest("the agent understands the plugin's log lines"):
    lines = machine.succeed("journalctl -b -u nomad.service -o cat --no-pager | grep -a 'nomad-driver-exec2:'").splitlines()
    t.assertTrue([line for line in lines if RECOVERED in line], "\n".join(lines[-20:]))
    for line in lines:
        # a line that hclog does not understand is passed on unchanged
        t.assertNotIn('"@level"', line)
        t.assertNotIn("panicked", line)

with subtest("nothing is left, and no rule of the protocol was broken"):
    forget("found", "beside")
    for kind in ("cgroups", "shims", "run", "zombies"):
        poll(f"no {kind}", lambda: traces()[kind] == [], CLEANUP_TIMEOUT_S)
    t.assertEqual(violations(), "")
