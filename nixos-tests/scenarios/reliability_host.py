# /// scenario
# description = "The host runs out of something: log reader, disk, /run, descriptors, processes, threads, memory."
# seconds = 126
# ///
# Each shortage has one outcome, tasks beside it are not affected, and once it is over the next start succeeds.

import errno
import time

from exec2.agent import PLUGIN_NAME, new_plugin, nomad, wait_for_driver
from exec2.allocs import alloc_status, allocs, driver_errors, ended, exits, logs, run_job, run_python, stop_job, terminated, wait_for_alloc, wait_for_log
from exec2.cleanup import quiet
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, alive, descriptors, machine, pgrep, poll, subtest, t
from exec2.jobs import IGNORE, WAIT, group, job, python_job, task
from exec2.tasks import LOG_READERS, RUN, SHIMS, SPARES, TASKS_CGROUP, inside, nobody_else_noticed, run_directories, stop_all_of

SHIMS_CGROUP = "/sys/fs/cgroup/nomad.slice/nomad-driver-exec2.scope"
# The plugin's threads for starts end after 10 s without work (tokio's keep-alive).
THREADS_TIMEOUT_S = 60
# ENOSPC, EMFILE, EAGAIN as glibc and musl print them.
SPACE = ("No space left on device",)
FILES = ("Too many open files", "No file descriptors available")
AGAIN = ("Resource temporarily unavailable", "Try again")


def refused(name, *words):
    """Submits a job that is retried every 2 s, and waits until a start of it has failed with one of these texts."""
    before = pgrep(SHIMS), run_directories()
    run_job(python_job(name, WAIT, attempts=30, delay="2s"))

    def failed():
        found = allocs(name)
        alloc = alloc_status(found[-1]["ID"]) if found else {"TaskStates": None}
        return alloc if alloc["TaskStates"] and any(word in message for word in words for message in driver_errors(alloc)) else None

    alloc = poll(f"{name} is refused: {words}", failed, ALLOC_TIMEOUT_S)
    t.assertEqual(terminated(alloc), [])
    # The next retry may be running.
    poll("nothing is left of it", lambda: (pgrep(SHIMS), run_directories()) == before, CLEANUP_TIMEOUT_S)


def starts(name, *words):
    """Without the fault the next retry succeeds, and nothing has run before it. All failures had the reported reason."""
    alloc = wait_for_alloc(name, "running")
    wait_for_log(alloc, "ready")
    others = [error for error in driver_errors(alloc) if not any(word in error for word in words) or "panicked" in error]
    t.assertEqual(others, [])
    # The log would show a second start.
    t.assertEqual(logs(alloc), "ready\n")
    stop_all_of(name, alloc)


def wake(alloc):
    machine.succeed(f"kill -USR1 {inside(alloc)[0]}")


def look_at_descriptors():
    time.sleep(1)
    quiet()
    return descriptors(plugin[0])


DESCRIPTOR_LOOKS = 5

wait_for_driver()
plugin = pgrep(PLUGIN_NAME)
bystander = run_python("bystander", WAIT)
bystander_pids = inside(bystander)

WAITS = "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\nprint('ready', flush=True)\nsignal.sigwait([signal.SIGUSR1])\n"
with subtest("the log reader is dead: a task that writes gets SIGPIPE, or EPIPE if it ignores the signal"):
    # Python ignores SIGPIPE, a shell does not.
    epipe = run_python("epipe", WAITS + "try:\n    while True: os.write(1, b'word')\nexcept BrokenPipeError as error:\n    os._exit(error.errno)")
    trap = "trap 'echo word; exit 5' USR1; echo ready; while :; do sleep 1000 & wait; done"
    run_job(job("sigpipe", group("g", task("t", "sh", "-c", trap, cpu=300))))
    sigpipe = wait_for_alloc("sigpipe", "running")
    wait_for_log(sigpipe, "ready")
    machine.succeed(f"pkill -KILL -f '{LOG_READERS}'")
    poll("the log reader is dead", lambda: not pgrep(LOG_READERS), CLEANUP_TIMEOUT_S)
    wake(epipe)
    wake(sigpipe)
    t.assertEqual(exits(wait_for_alloc("epipe", "failed")), [(errno.EPIPE, 0)])
    t.assertEqual(exits(wait_for_alloc("sigpipe", "failed")), [(141, 13)])
    stop_job("epipe")
    stop_job("sigpipe")

FLOOD = WAITS + "while True: os.write(1, b'x' * 4096)"
with subtest("the log reader hangs: a task that writes blocks, and can be stopped by its signal and by force"):
    heeds = run_python("heeds", "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n" + FLOOD)
    ignores = run_python("ignores", IGNORE + FLOOD)
    machine.succeed(f"pkill -STOP -f '{LOG_READERS}'")
    both = inside(heeds) + inside(ignores)
    wake(heeds)
    wake(ignores)
    for pid in both:
        machine.wait_until_succeeds(f"grep -q pipe_write /proc/{pid}/wchan", timeout=ALLOC_TIMEOUT_S)
    # Nomad waits for the reader before it reports the end of the allocation.
    nomad("job stop -detach heeds")
    nomad("job stop -detach ignores")
    for alloc, end in ((heeds, (130, 2)), (ignores, (137, 9))):
        t.assertEqual(poll("it has ended", lambda: exits(alloc_status(alloc["ID"])), ALLOC_TIMEOUT_S), [end])
    t.assertEqual(alive(both), [])
    machine.succeed(f"pkill -CONT -f '{LOG_READERS}'")
    for name, alloc in (("heeds", heeds), ("ignores", ignores)):
        ended(name, alloc)
        stop_job(name)

FILL = """
import errno, os, signal
def fill(name):
    with open('/srv/full/' + name, 'wb', 0) as file:
        while True: file.write(b'x' * 4096)
try:
    fill('a')
except OSError as error:
    print('first', errno.errorcode[error.errno], flush=True)
os.unlink('/srv/full/a')
open('/srv/full/b', 'w').write('room')
print('room again', flush=True)
while True: signal.pause()
"""
with subtest("a full disk: the task's own writes get ENOSPC, and succeed once there is room"):
    machine.succeed("mkdir -p /srv/full; mount -t tmpfs -o size=64k,mode=1777 full /srv/full")
    alloc = run_python("disk", FILL, ready="room again", unveil='["rwc:/srv/full"]')
    t.assertEqual(logs(alloc), "first ENOSPC\nroom again\n")
    stop_all_of("disk", alloc)
    machine.succeed("umount /srv/full")

with subtest("a full /run: the start fails with the reason and leaves nothing; once there is room it succeeds"):
    # A small file system over the directory; the files of other tasks stay open.
    machine.succeed(f"mount -t tmpfs -o size=8k,mode=700 full {RUN}; cat /dev/zero > {RUN}/filler 2>/dev/null || true")
    refused("full", *SPACE)
    machine.succeed(f"rm {RUN}/filler; mount -o remount,size=1m {RUN}")
    starts("full", *SPACE)
    t.assertEqual(run_directories(), [])
    machine.wait_until_succeeds(f"umount {RUN}", timeout=CLEANUP_TIMEOUT_S)

with subtest("a full /run at the end of a task: the exit status is still recorded"):
    # it has room for the copies of /etc
    machine.succeed(f"mount -t tmpfs -o size=4m,mode=700 full {RUN}")
    alloc = run_python("fullend", WAITS + "os._exit(7)")
    machine.succeed(f"cat /dev/zero > {RUN}/filler 2>/dev/null || true")
    wake(alloc)
    t.assertEqual(exits(wait_for_alloc("fullend", "failed")), [(7, 0)])
    stop_job("fullend")
    machine.wait_until_succeeds(f"umount {RUN}", timeout=CLEANUP_TIMEOUT_S)

with subtest("no descriptors left: the start fails with the reason and leaves nothing; a retry succeeds"):
    old = machine.succeed(f"prlimit --pid {plugin[0]} --nofile --noheadings --output SOFT").strip()
    poll("a shim waits", lambda: pgrep(SPARES), CLEANUP_TIMEOUT_S)
    # What the subtest before has changed in /run may still have the template made again, which takes descriptors for a moment.
    open_now = min(look_at_descriptors() for _ in range(DESCRIPTOR_LOOKS))
    machine.succeed(f"prlimit --pid {plugin[0]} --nofile={open_now + 2}:")
    refused("nofile", *FILES)
    machine.succeed(f"prlimit --pid {plugin[0]} --nofile={old}:")
    starts("nofile", *FILES)

with subtest("no descriptors left at the end of a task: its exit status is reported once there are some"):
    alloc = run_python("nofileend", WAITS + "os._exit(7)")
    (leader,) = inside(alloc)
    # Descriptors are numbered from 0, and the three standard ones are in use.
    machine.succeed(f"prlimit --pid {plugin[0]} --nofile=3:")
    wake(alloc)
    poll("it has ended", lambda: not alive([leader]), CLEANUP_TIMEOUT_S)
    machine.succeed("sleep 2")
    t.assertEqual(alloc_status(alloc["ID"])["ClientStatus"], "running")
    machine.succeed(f"prlimit --pid {plugin[0]} --nofile={old}:")
    t.assertEqual(exits(wait_for_alloc("nofileend", "failed")), [(7, 0)])
    stop_job("nofileend")

for what, folder in (("the shim", SHIMS_CGROUP), ("the task", TASKS_CGROUP)):
    with subtest(f"no process left for {what}: the start fails with the reason and leaves nothing; a retry succeeds"):
        # The shim that waits for the next task would be enough for one start.
        machine.succeed(f"pkill -KILL -f '{SPARES}' || true")
        machine.wait_until_fails(f"pgrep -f '{SPARES}'", timeout=CLEANUP_TIMEOUT_S)
        machine.succeed(f"cat {folder}/pids.current > {folder}/pids.max")
        refused("nopids", *AGAIN)
        machine.succeed(f"echo max > {folder}/pids.max")
        starts("nopids", *AGAIN)

own = "/sys/fs/cgroup/plugin-alone"
with subtest("no thread left for the plugin: the start fails with the reason and leaves nothing; a retry succeeds"):
    machine.succeed(f"mkdir -p {own}; echo {plugin[0]} > {own}/cgroup.procs")
    # The main thread, two for calls, the one that writes the log, and the one that watches the host.
    machine.wait_until_succeeds(f"[ $(ls /proc/{plugin[0]}/task | wc -l) = 5 ]", timeout=THREADS_TIMEOUT_S)
    machine.succeed(f"cat {own}/pids.current > {own}/pids.max")
    refused("nothread", *AGAIN)
    t.assertEqual(pgrep(PLUGIN_NAME), plugin)
    machine.succeed(f"echo max > {own}/pids.max")
    starts("nothread", *AGAIN)

# How long the plugin has no memory for a start.
STARVED_S = 5


def starved(name):
    """Submits a job while the plugin has no memory. If that kills the plugin, Nomad starts the next one; otherwise the start is
    refused, or waits in the kernel for memory."""
    run_job(python_job(name, WAIT, attempts=30, delay="2s"))
    machine.succeed(f"sleep {STARVED_S}")
    t.assertEqual(inside(bystander), bystander_pids)


def fed(name):
    """Once there is memory the task runs, once, and can be stopped; failed starts left nothing."""
    alloc = wait_for_alloc(name, "running")
    poll("it is ready", lambda: "ready" in logs(alloc), ALLOC_TIMEOUT_S)
    t.assertEqual(len(inside(alloc)), 1)
    t.assertEqual(len(pgrep(SHIMS)), 2)
    t.assertEqual(len(run_directories()), 2)
    stop_all_of(name, alloc)


with subtest("the plugin is killed for lack of memory: the next one has the tasks, and requested starts are repeated"):
    machine.succeed(f"echo 0 > /proc/{plugin[0]}/oom_score_adj; cat {own}/memory.current > {own}/memory.max")
    starved("oomplugin")
    # In case its memory was enough.
    machine.succeed(f"echo 0 > {own}/memory.max")
    new = new_plugin(plugin[0])
    # The process that looks at the host for the plugin may be killed as well.
    t.assertRegex(machine.succeed(f"cat {own}/memory.events"), r"oom_kill [1-9]")
    plugin = [new]
    machine.wait_until_succeeds(f"rmdir {own}", timeout=CLEANUP_TIMEOUT_S)
    fed("oomplugin")

with subtest("no memory for a plugin that is exempt from OOM kills: nothing is lost, and tasks start once there is memory"):
    machine.succeed(f"mkdir {own}; echo {plugin[0]} > {own}/cgroup.procs; echo -1000 > /proc/{plugin[0]}/oom_score_adj")
    machine.succeed(f"echo 0 > {own}/memory.max")
    starved("enomem")
    # If its heap has to grow, the kernel refuses the address space and the plugin aborts; the next one has the tasks.
    if pgrep(PLUGIN_NAME) != plugin:
        plugin = [new_plugin(plugin[0])]
    t.assertGreater(int(machine.succeed(f"awk '/^max / {{print $2}}' {own}/memory.events")), 0)
    machine.succeed(f"echo max > {own}/memory.max")
    fed("enomem")
    t.assertEqual(pgrep(PLUGIN_NAME), plugin)

with subtest("no address space for the plugin: a start is refused, or the plugin ends and the next one has the tasks"):
    machine.succeed(f"prlimit --pid {plugin[0]} --as=1:")
    starved("noas")
    machine.execute(f"prlimit --pid {plugin[0]} --as=unlimited:")
    fed("noas")
    plugin = pgrep(PLUGIN_NAME)

with subtest("nothing else was affected, and nothing is left"):
    nobody_else_noticed(plugin, bystander, bystander_pids)
