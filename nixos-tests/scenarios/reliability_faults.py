# /// scenario
# description = "Each fault that hits a task has one outcome, and affects nothing else."
# across = "cgroup.kill and the counters of memory.events"
# seconds = 79
# ///
# (reliability_host.py covers what the host runs out of.)

from exec2.agent import PLUGIN_NAME, nomad, wait_for_driver
from exec2.allocs import OUT_OF_MEMORY, alloc_status, deaths, ended, logs, messages, reported, run_job, run_python, stop_job, wait_for_alloc
from exec2.guest import ALLOC_TIMEOUT_S, alive, kernel, machine, pgrep, poll, subtest, t
from exec2.jobs import IGNORE, OOM_CHILD, WAIT, python_job
from exec2.tasks import RUN, inside, nobody_else_noticed, scope, shim_of, stop_all_of

# Since Linux 6.15 the exit status of a reaped process can be read from its pidfd.
REMEMBERS = kernel() >= (6, 15)

wait_for_driver()
plugin = pgrep(PLUGIN_NAME)
bystander = run_python("bystander", WAIT)
bystander_pids = inside(bystander)

with subtest("SIGKILL of the task: 137, not reported as OOM"):
    alloc = run_python("killed", WAIT)
    machine.succeed(f"kill -9 {inside(alloc)[0]}")
    alloc = wait_for_alloc("killed", "failed")
    t.assertEqual(deaths(alloc), [(137, 9, "false")])
    t.assertEqual(reported(alloc, OUT_OF_MEMORY), [])
    stop_job("killed")

with subtest("SIGKILL of the shim: the whole task ends, as killed"):
    alloc = run_python("shimkill", "import os\nos.fork()\n" + WAIT)
    pids = inside(alloc)
    t.assertEqual(len(pids), 2)
    machine.succeed(f"kill -9 {shim_of(alloc)}")
    alloc = wait_for_alloc("shimkill", "failed")
    t.assertEqual(deaths(alloc), [(137, 9, "false")])
    t.assertEqual(alive(pids), [])
    stop_job("shimkill")

EXIT_7 = "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))\n" + WAIT
with subtest(f"SIGKILL of the shim after the task has ended, before it reports: {'7, from the pidfd' if REMEMBERS else 'as killed'}"):
    alloc = run_python("shimlate", EXIT_7)
    (leader,), shim = inside(alloc), shim_of(alloc)
    # A shim that has not stopped yet would still reap the leader.
    machine.succeed(f"kill -STOP {shim}; until grep -q '^State:.T' /proc/{shim}/status; do sleep 0.1; done; kill -USR1 {leader}")
    machine.wait_until_succeeds(f"grep -q '^State:.Z' /proc/{leader}/status", timeout=ALLOC_TIMEOUT_S)
    machine.succeed(f"kill -9 {shim}")
    t.assertEqual(deaths(wait_for_alloc("shimlate", "failed")), [(7, 0, "false") if REMEMBERS else (137, 9, "false")])
    stop_job("shimlate")

with subtest("OOM kill: 137, signal 9, reported with limit and peak"):
    run_job(python_job("oom", "import time\nprint('ready', flush=True)\nx = b'x' * (200 << 20)\ntime.sleep(60)"))
    alloc = wait_for_alloc("oom", "failed")
    t.assertEqual(deaths(alloc), [(137, 9, "true")])
    texts = poll("the OOM kill is reported", lambda: reported(alloc, OUT_OF_MEMORY), ALLOC_TIMEOUT_S)
    t.assertEqual(len(texts), 1, texts)
    t.assertIn("limit: 32.0 MiB", texts[0])
    t.assertIn("peak: ", texts[0])
    stop_job("oom")

CHILD = OOM_CHILD + WAIT
with subtest("OOM kill of a child: reported, the task keeps running, and its later death is not reported as OOM"):
    alloc = run_python("oomchild", CHILD, ready="child ended with -9", unveil='["rw:/proc"]')
    poll("the OOM kill is reported", lambda: reported(alloc, OUT_OF_MEMORY), ALLOC_TIMEOUT_S)
    t.assertEqual(alloc_status(alloc["ID"])["ClientStatus"], "running")
    # An OOM kill more than a second ago is not the reason for an end.
    machine.succeed("sleep 2")
    machine.succeed(f"kill -9 {inside(alloc)[0]}")
    alloc = wait_for_alloc("oomchild", "failed")
    t.assertEqual(deaths(alloc), [(137, 9, "false")])
    t.assertEqual(len(reported(alloc, OUT_OF_MEMORY)), 1)
    stop_job("oomchild")

with subtest("oom_group: the OOM kill of one process kills the task"):
    run_job(python_job("oomgroup", CHILD, unveil='["rw:/proc"]', options="oom_group = true"))
    alloc = wait_for_alloc("oomgroup", "failed")
    t.assertEqual(deaths(alloc), [(137, 9, "true")])
    t.assertNotIn("child ended", logs(alloc))
    stop_job("oomgroup")

ESCAPES = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: signal.pause()
    os._exit(0)
os.wait()
print('ready', flush=True)
while True: signal.pause()
"""
with subtest("stop: a double fork in a session of its own, and a task that ignores the signal"):
    alloc = run_python("escape", ESCAPES)
    t.assertEqual(len(inside(alloc)), 2)
    over = stop_all_of("escape", alloc)
    t.assertTrue([m for m in messages(over) if "Killed: the task was still running 2s after SIGINT" in m], messages(over))

with subtest("stop: stopped by SIGSTOP"):
    alloc = run_python("stopped", WAIT)
    machine.succeed(f"kill -STOP {inside(alloc)[0]}")
    stop_all_of("stopped", alloc)

with subtest("stop: frozen"):
    alloc = run_python("frozen", WAIT)
    machine.succeed(f"echo 1 > {scope(alloc)}/cgroup.freeze")
    machine.wait_until_succeeds(f"grep -q 'frozen 1' {scope(alloc)}/cgroup.events")
    stop_all_of("frozen", alloc)

with subtest("stop: cgroups below the task's own"):
    alloc = run_python("nested", "import os\nos.fork()\n" + IGNORE + WAIT)
    machine.succeed(f"mkdir -p {scope(alloc)}/a/b && echo {inside(alloc)[-1]} > {scope(alloc)}/a/b/cgroup.procs")
    t.assertEqual(len(inside(alloc)), 2)
    stop_all_of("nested", alloc)

# A process that cannot fork exits, except the first: so the bomb never stops.
BOMB = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
first = os.getpid()
print('ready', flush=True)
signal.sigwait([signal.SIGUSR1])
while True:
    try:
        os.fork()
    except OSError:
        if os.getpid() != first:
            os._exit(0)
"""
BOMB_PIDS = 30
with subtest("stop: a running fork bomb"):
    alloc = run_python("bomb", BOMB, memory=400)
    # So that the guest stays usable.
    machine.succeed(f"echo {BOMB_PIDS} > {scope(alloc)}/pids.max; kill -USR1 {inside(alloc)[0]}")
    refused = f"awk '/^max / {{print $2}}' {scope(alloc)}/pids.events"
    poll("many forks were refused", lambda: int(machine.succeed(refused)) > BOMB_PIDS, ALLOC_TIMEOUT_S)
    shim = shim_of(alloc)
    t.assertGreater(len(inside(alloc)), 1)
    over = stop_all_of("bomb", alloc)
    # The kill ended it, not the OOM killer.
    t.assertEqual(deaths(over), [(137, 9, "false")])
    t.assertTrue([m for m in messages(over) if "Killed: the task was still running 2s after SIGINT" in m], messages(over))
    # The shim is PID 1 of the namespace, and the last to end.
    t.assertEqual(alive([shim]), [])

with subtest("stop: a task whose cgroup was removed"):
    alloc = run_python("uprooted", IGNORE + WAIT)
    pids = inside(alloc)
    machine.succeed("mkdir -p /sys/fs/cgroup/elsewhere")
    machine.succeed(f"for p in {' '.join(map(str, pids))}; do echo $p > /sys/fs/cgroup/elsewhere/cgroup.procs; done; rmdir {scope(alloc)}")
    nomad("job stop -detach uprooted")
    ended("uprooted", alloc)
    t.assertEqual(machine.succeed("cat /sys/fs/cgroup/elsewhere/cgroup.procs"), "")
    machine.succeed("rmdir /sys/fs/cgroup/elsewhere")
    stop_job("uprooted")

with subtest("a task cannot reach its exit record, and a file that looks like one has no effect"):
    script = f"""
import os, sys
try:
    os.listdir('{RUN}')
    sys.exit(99)
except (FileNotFoundError, PermissionError):
    pass
open(os.environ['NOMAD_TASK_DIR'] + '/.exit_status.txt', 'w').write('0')
os.symlink('/etc/passwd', os.environ['NOMAD_TASK_DIR'] + '/exit')
sys.exit(7)"""
    # With c the task would not start: the directory above the records is shown entry by entry.
    run_job(python_job("forged", script, unveil='["rw:/run"]'))
    t.assertEqual(deaths(wait_for_alloc("forged", "failed")), [(7, 0, "false")])
    stop_job("forged")

with subtest("nothing else was affected, and nothing is left"):
    nobody_else_noticed(plugin, bystander, bystander_pids)
