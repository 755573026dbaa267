# /// scenario
# description = "The shim that waits for the next task: one, replaced when it dies, gone with its plugin, and none before the first start."
# seconds = 40
# ///

from exec2.agent import PLUGIN_NAME, new_plugin, nomad, plugin_pid, start_agent, wait_for_driver
from exec2.allocs import forget, logs, run_job, stop_job, wait_for_alloc, wait_for_groups
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, alive, machine, pgrep, poll, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import SHIMS, SPARES, run_directories, shim_of, stop_all_of

COUNT = 50
LOOK = "ps -e -o pid=,args="


def the_spare() -> int:
    """The only one, once it waits."""
    return poll("a spare", lambda: [pid for pid in pgrep(SPARES) if state(pid) == "S"], ALLOC_TIMEOUT_S)[0]


def state(pid: int) -> str:
    return machine.execute(f"awk '/^State/ {{print $2}}' /proc/{pid}/status")[1].strip()


def run(name: str, command: str) -> None:
    run_job(job(name, group("g", task("t", "sh", "-c", command))))


wait_for_driver()

with subtest("a plugin that has started no task has none"):
    t.assertEqual(pgrep(SPARES), [])

with subtest("the first start leaves one, which is a shim like others: cgroup, OOM score, no environment, nothing of the host's open"):
    run("first", "sleep 1000")
    first = wait_for_alloc("first", "running")
    spare, shim = the_spare(), shim_of(first)
    t.assertEqual(pgrep(SHIMS), [shim])
    for file in ("cgroup", "oom_score_adj", "environ", "limits"):
        of_spare, of_shim = (machine.succeed(f"cat /proc/{pid}/{file}") for pid in (spare, shim))
        t.assertEqual(of_spare, of_shim, file)
    for kind in ("pid", "ipc", "uts"):
        own, of_shim, hosts = (machine.succeed(f"readlink /proc/{pid}/ns/{kind}") for pid in (spare, shim, 1))
        t.assertEqual(len({own, of_shim, hosts}), 3, kind)
    opened = machine.succeed(f"cd /proc/{spare}/fd && for fd in *; do readlink $fd; done").split()
    # The host's /dev/null by a mount that has no place; see the file `src/task/null.rs`.
    t.assertEqual([name.split("[")[0] for name in opened], ["/"] * 3 + ["socket:"])
    t.assertEqual(machine.succeed(f"grep -c . /proc/{spare}/environ || true").strip(), "0")
    t.assertEqual(len(run_directories()), 1)

with subtest("the next start uses it; a task sees the shim under its usual name, and itself"):
    # The first process of the task's namespace is the shim.
    run("second", f"{LOOK}; sleep 1000")
    second = wait_for_alloc("second", "running")
    t.assertEqual(shim_of(second), spare)
    lines = poll("output", lambda: logs(second).splitlines(), ALLOC_TIMEOUT_S)
    t.assertRegex(lines[0], "^ *1 nomad-driver-exec2 shim$")
    t.assertEqual(len([line for line in lines if "nomad-driver-exec2" in line]), 1, lines)
    t.assertNotEqual(the_spare(), spare)
    t.assertEqual(sorted(pgrep(SHIMS)), sorted(map(shim_of, (first, second))))

with subtest("one that was killed fails no start"):
    spare = the_spare()
    machine.succeed(f"kill -9 {spare}")
    run("third", "sleep 1000")
    third = wait_for_alloc("third", "running")
    t.assertNotEqual(shim_of(third), spare)
    t.assertNotIn(the_spare(), (spare, shim_of(third)))

with subtest(f"{COUNT} tasks leave one"):
    run_job(job("many", *(group(f"g{number}", task("t", "true", cpu=20)) for number in range(COUNT))))
    wait_for_groups("many")
    forget("many")
    poll("one spare", lambda: len(pgrep(SPARES)) == 1, CLEANUP_TIMEOUT_S)
    t.assertEqual(len(pgrep(SHIMS)), 3)

with subtest("it ends with a plugin that is killed, and the tasks go on"):
    plugin, spare = plugin_pid(), the_spare()
    machine.succeed(f"kill -9 {plugin}")
    poll("it has ended", lambda: not alive([spare]), CLEANUP_TIMEOUT_S)
    new_plugin(plugin)
    wait_for_driver()
    t.assertEqual(pgrep(SPARES), [], "the next plugin has started no task")
    t.assertEqual(len(pgrep(SHIMS)), 3)
    run("fourth", "sleep 1000")
    wait_for_alloc("fourth", "running")
    the_spare()

with subtest("it ends with a plugin that is stopped"):
    spare = the_spare()
    machine.succeed("systemctl stop nomad.service")
    t.assertEqual(pgrep(PLUGIN_NAME), [])
    poll("it has ended", lambda: not alive([spare]), CLEANUP_TIMEOUT_S)
    in_cgroup = machine.succeed("cat /sys/fs/cgroup/nomad.slice/nomad-driver-exec2.scope/cgroup.procs").split()
    t.assertEqual(sorted(map(int, in_cgroup)), sorted(pgrep(SHIMS)))
    t.assertEqual(len(in_cgroup), 4)
    start_agent()

with subtest("nothing is left"):
    for name, alloc in (("first", first), ("second", second), ("third", third)):
        stop_all_of(name, alloc)
    stop_job("fourth")
    nomad("system gc")
    poll("no shims", lambda: not pgrep(SHIMS), CLEANUP_TIMEOUT_S)
    t.assertEqual(pgrep(SPARES), [])
    t.assertEqual(run_directories(), [])
