# /// scenario
# description = "No task is lost or harmed when plugin and agent die: recovery, upgrade, exits that happened meanwhile."
# seconds = 62
# ///
# EXEC2_TASKS: how many tasks run at the same time; with real Nomad each has a log collector of its own, some 30 MB.

import os

from exec2.agent import kill_agent, new_plugin, nomad, plugin_pid, stand_in, start_agent, violations, wait_for_driver
from exec2.allocs import alloc_status, brief, events, exits, messages, run_job
from exec2.guest import descriptors, machine, nixos, pgrep, poll, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import SHIMS, TASKS_CGROUP, run_directories

TASKS = int(os.environ.get("EXEC2_TASKS", "50" if stand_in() else "12"))
# Descriptors that keep low numbers free for what a new process gets, src/sys/slots.rs.
KEPT = 19
PLUGIN = "/opt/nomad/data/plugins/nomad-driver-exec2"
# Many starts and many exits, on emulated CPUs.
MANY_TIMEOUT_S = 300

# Each ends with a code of its own, so that no two can be confused.
SCRIPT = "trap 'exit $((NOMAD_ALLOC_INDEX + 1))' USR1; while :; do sleep 1000 & wait $!; done"
JOB = job("many", group("g", task("t", "sh", "-c", SCRIPT, cpu=20, memory=10), count=TASKS))


def leaders():
    """The oldest process of each task, by allocation id."""
    lines = machine.succeed(
        f"for f in {TASKS_CGROUP}/*.scope/cgroup.procs; do"
        " read -r pid < $f && echo $f $pid; done 2>/dev/null || true"
    ).splitlines()
    return {line.split("share.slice/")[1][:36]: int(line.split()[1]) for line in lines}


def all_up():
    return leaders() if len(leaders()) == TASKS else None


def end(pids):
    machine.succeed("kill -USR1 " + " ".join(str(pid) for pid in pids))


def gone():
    """Whether nothing of any task is left."""
    left = {
        "shims": pgrep(SHIMS),
        "cgroups": machine.execute(f"ls -d {TASKS_CGROUP}/*.scope 2>/dev/null")[1],
        "records": run_directories(),
        "mounts": machine.execute("grep alloc_mounts /proc/self/mountinfo")[1],
    }
    return left if not any(left.values()) else print("still there:", left)


wait_for_driver()

with subtest(f"{TASKS} tasks run"):
    run_job(JOB)
    started = poll(f"{TASKS} tasks", all_up, MANY_TIMEOUT_S)
    # A task is in its cgroup before it is exec'd, and before Nomad knows.
    poll("all are running", lambda: all(a["ClientStatus"] == "running" for a in brief("many") or [{"ClientStatus": ""}]), MANY_TIMEOUT_S)
    index = {alloc["ID"]: int(alloc["Name"].split("[")[1].rstrip("]")) for alloc in brief("many")}
    t.assertEqual(set(index), set(started))

with subtest("SIGKILL of the plugin: the next one recovers all tasks, which keep running"):
    old = plugin_pid()
    before = descriptors(old)
    machine.succeed(f"kill -9 {old}")
    plugin = new_plugin(old)
    poll("all are recovered", lambda: descriptors(plugin) >= before, MANY_TIMEOUT_S)
    t.assertEqual(leaders(), started)

with subtest("four descriptors for each task, started or recovered"):
    # The rest are sockets, epoll, the program, and KEPT. The first plugin started the tasks, the second recovered them.
    after = descriptors(plugin)
    # Only a plugin that has started one has the template of their roots: two namespaces, and what watches the host.
    t.assertLessEqual(abs(after - before), 6)
    t.assertEqual(int(machine.succeed(f"ls -l /proc/{plugin}/fd | grep -c 'memory.events$'")), TASKS)
    t.assertLessEqual(after, 4 * TASKS + KEPT + 32)
    threads = int(machine.succeed(f"ls /proc/{plugin}/task | wc -l"))
    t.assertLessEqual(threads, 4 + 64)

with subtest("SIGKILL of the agent: plugin and tasks keep running, and the next agent takes them over"):
    kill_agent()
    t.assertEqual(plugin_pid(), plugin)
    t.assertEqual(leaders(), started)
    start_agent()
    poll("all are running", lambda: all(a["ClientStatus"] == "running" for a in brief("many") or [{"ClientStatus": ""}]), MANY_TIMEOUT_S)
    t.assertEqual(leaders(), started)

with subtest("a third of the tasks ends while neither plugin nor agent runs"):
    kill_agent(plugin)
    third = sorted(started)[: TASKS // 3]
    end(started[alloc] for alloc in third)
    poll("they are gone", lambda: not set(third) & set(leaders()), MANY_TIMEOUT_S)
    start_agent()
    running = {alloc: pid for alloc, pid in started.items() if alloc not in third}
    t.assertEqual(leaders(), running)

if nixos():
    print("upgrade: not applicable, the plugin lies in the read-only store, and a new one comes with a new agent")
else:
    with subtest("upgrade: another binary takes over the same tasks"):
        # The ELF loader ignores appended bytes.
        machine.succeed(f"cp {PLUGIN} {PLUGIN}.new && echo upgraded >> {PLUGIN}.new && mv {PLUGIN}.new {PLUGIN}")
        old = plugin_pid()
        machine.succeed(f"kill -9 {old}")
        plugin = new_plugin(old)
        t.assertEqual(machine.succeed(f"tail -c 9 /proc/{plugin}/exe"), "upgraded\n")
        t.assertEqual(leaders(), running)

with subtest("every task's own exit code, once"):
    end(running.values())

    def over():
        found = brief("many")
        return found if found and all(alloc["ClientStatus"] == "failed" for alloc in found) else None

    found = poll("all have ended", over, MANY_TIMEOUT_S)
    t.assertEqual(len(found), TASKS)  # none was replaced
    for alloc in found:
        status = alloc_status(alloc["ID"])
        t.assertEqual([code for code, _ in exits(status)], [index[alloc["ID"]] + 1], alloc["ID"])
        t.assertEqual(len(events(status, "Started")), 1, messages(status))
        for kind in ("Restarting", "Driver Failure", "Killing"):
            t.assertEqual(events(status, kind), [])

with subtest("nothing is left"):
    nomad("job stop -purge -detach many")
    nomad("system gc")
    poll("nothing is left", gone, MANY_TIMEOUT_S)
    t.assertEqual(violations(), "")
