# Each fault has one outcome, and reaches nothing but the task that it hits.
#
# Works through the agent alone; what only the pluginhost can ask for is in reliability_soak.py.

PLUGIN_NAME = "^/[^ ]*/nomad-driver-exec2$"
SHIMS = "^nomad-driver-exec2 shim$"
RUN = "/run/nomad-driver-exec2"


def pgrep(pattern):
    return [int(pid) for pid in machine.execute(f"pgrep -f '{pattern}'")[1].split()]


def python_job(name, script, memory=32, user="", unveil="[]", options="", kill_timeout="5s", attempts=0, delay="1s"):
    return f"""
job "{name}" {{
  type = "batch"
  group "g" {{
    restart {{
      attempts = {attempts}
      delay    = "{delay}"
      mode     = "fail"
    }}
    reschedule {{
      attempts  = 0
      unlimited = false
    }}
    task "t" {{
      driver       = "exec2"
      kill_timeout = "{kill_timeout}"
      {f'user = "{user}"' if user else ""}
      config {{
        command = "python3"
        args    = ["-c", <<-EOT
{script}
EOT
        ]
        unveil = {unveil}
        {options}
      }}
      resources {{
        cpu    = 1000
        memory = {memory}
      }}
    }}
  }}
}}
"""


def start(name, script, ready="ready", **options):
    """Runs the script until it has printed `ready`."""
    run_job(python_job(name, script, **options))
    alloc = wait_for_alloc(name, "running")
    wait_for_log(alloc, ready)
    return alloc


def scope(alloc):
    return machine.succeed(f"ls -d /sys/fs/cgroup/nomad.slice/share.slice/{alloc['ID']}.t.scope").strip()


def inside(alloc):
    """The processes of the task, oldest first, with those in cgroups of its own."""
    return [int(pid) for pid in machine.execute(f"find {scope(alloc)} -name cgroup.procs -exec cat {{}} +")[1].split()]


def shim_of(alloc):
    return int(machine.succeed(f"awk '/^PPid/ {{print $2}}' /proc/{inside(alloc)[0]}/status"))


def terminated(alloc):
    return [event for event in task_state(alloc)["Events"] if event["Type"] == "Terminated"]


def stop(name, alloc):
    """Stops it, and looks whether everything of it is gone: processes, cgroup, record."""
    pids = inside(alloc)
    nomad(f"job stop -detach {name}")
    ended = poll(f"{name} has ended", lambda: (a := alloc_status(alloc["ID"]))["ClientStatus"] in TERMINAL and a, ALLOC_TIMEOUT_S)
    left = [pid for pid in pids if machine.execute(f"test -d /proc/{pid}")[0] == 0]
    t.assertEqual(left, [], f"{name}: processes outlive StopTask")
    stop_job(name)
    return ended


WAIT = "import signal, time\nprint('ready', flush=True)\nwhile True: signal.pause()"
IGNORE = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"

wait_for_driver()
plugin = pgrep(PLUGIN_NAME)
bystander = start("bystander", WAIT)
bystander_pids = inside(bystander)

with subtest("SIGKILL of the task: 137, no word of memory"):
    alloc = start("killed", WAIT)
    machine.succeed(f"kill -9 {inside(alloc)[0]}")
    alloc = wait_for_alloc("killed", "failed")
    t.assertEqual([(e["ExitCode"], e["Signal"]) for e in terminated(alloc)], [(137, 9)])
    t.assertNotIn("OOM", str(messages(alloc)))
    stop_job("killed")

with subtest("SIGKILL of the shim: the whole task ends with it, as killed"):
    alloc = start("shimkill", "import os\nos.fork()\n" + WAIT)
    pids = inside(alloc)
    t.assertEqual(len(pids), 2)
    machine.succeed(f"kill -9 {shim_of(alloc)}")
    alloc = wait_for_alloc("shimkill", "failed")
    t.assertEqual([(e["ExitCode"], e["Signal"]) for e in terminated(alloc)], [(137, 9)])
    for pid in pids:
        machine.fail(f"test -d /proc/{pid}")
    stop_job("shimkill")

with subtest("out of memory: 137, signal 9, told as such with limit and peak"):
    run_job(python_job("oom", "import time\nprint('ready', flush=True)\nx = b'x' * (200 << 20)\ntime.sleep(60)"))
    alloc = wait_for_alloc("oom", "failed")
    t.assertEqual([(e["ExitCode"], e["Signal"]) for e in terminated(alloc)], [(137, 9)])
    t.assertEqual(terminated(alloc)[0]["Details"].get("oom_killed"), "true", terminated(alloc))
    told = poll("it is told", lambda: [m for m in messages(alloc_status(alloc["ID"])) if "Out of memory" in m], ALLOC_TIMEOUT_S)
    t.assertEqual(len(told), 1, told)
    t.assertIn("limit: 32.0 MiB", told[0])
    t.assertIn("peak: ", told[0])
    stop_job("oom")

CHILD = """
import os, signal, time
if os.fork() == 0:
    open('/proc/self/oom_score_adj', 'w').write('1000')
    x = b'x' * (200 << 20)
    time.sleep(60)
print('child ended with', os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
while True: signal.pause()
"""
with subtest("out of memory in a child: told, and the task goes on"):
    alloc = start("oomchild", CHILD, ready="child ended with -9", unveil='["rw:/proc"]')
    poll("it is told", lambda: [m for m in messages(alloc_status(alloc["ID"])) if "Out of memory" in m], ALLOC_TIMEOUT_S)
    t.assertEqual(alloc_status(alloc["ID"])["ClientStatus"], "running")
    ended = stop("oomchild", alloc)
    t.assertNotEqual([e["Details"].get("oom_killed") for e in terminated(ended)], ["true"])

with subtest("oom_group: one for all"):
    run_job(python_job("oomgroup", CHILD, unveil='["rw:/proc"]', options="oom_group = true"))
    alloc = wait_for_alloc("oomgroup", "failed")
    t.assertEqual([(e["ExitCode"], e["Signal"]) for e in terminated(alloc)], [(137, 9)])
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
    alloc = start("escape", ESCAPES)
    t.assertEqual(len(inside(alloc)), 2)
    ended = stop("escape", alloc)
    t.assertTrue([m for m in messages(ended) if "Killed: the task was still running 5s after SIGINT" in m], messages(ended))

with subtest("stop: stopped by SIGSTOP"):
    alloc = start("stopped", WAIT)
    machine.succeed(f"kill -STOP {inside(alloc)[0]}")
    stop("stopped", alloc)

with subtest("stop: frozen"):
    alloc = start("frozen", WAIT)
    machine.succeed(f"echo 1 > {scope(alloc)}/cgroup.freeze")
    machine.wait_until_succeeds(f"grep -q 'frozen 1' {scope(alloc)}/cgroup.events")
    stop("frozen", alloc)

with subtest("stop: cgroups below the task's own"):
    alloc = start("nested", "import os\nos.fork()\n" + IGNORE + WAIT)
    machine.succeed(f"mkdir -p {scope(alloc)}/a/b && echo {inside(alloc)[-1]} > {scope(alloc)}/a/b/cgroup.procs")
    t.assertEqual(len(inside(alloc)), 2)
    stop("nested", alloc)

with subtest("stop: a fork bomb"):
    bomb = "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready', flush=True)\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    run_job(python_job("bomb", bomb, memory=64, kill_timeout="1s"))
    alloc = wait_for_alloc("bomb", ("running", "failed"))
    # So that the guest stays usable; the task may have been killed for want of memory by now.
    machine.execute(f"echo 200 > /sys/fs/cgroup/nomad.slice/share.slice/{alloc['ID']}.t.scope/pids.max")
    nomad("job stop -detach bomb")
    poll("it has ended", lambda: alloc_status(alloc["ID"])["ClientStatus"] in TERMINAL, ALLOC_TIMEOUT_S)
    stop_job("bomb")

with subtest("the cgroup is removed from under it: it is stopped all the same"):
    alloc = start("uprooted", IGNORE + WAIT)
    pids = inside(alloc)
    machine.succeed("mkdir -p /sys/fs/cgroup/elsewhere")
    machine.succeed(f"for p in {' '.join(map(str, pids))}; do echo $p > /sys/fs/cgroup/elsewhere/cgroup.procs; done; rmdir {scope(alloc)}")
    nomad("job stop -detach uprooted")
    poll("it has ended", lambda: alloc_status(alloc["ID"])["ClientStatus"] in TERMINAL, ALLOC_TIMEOUT_S)
    t.assertEqual(machine.succeed("cat /sys/fs/cgroup/elsewhere/cgroup.procs"), "")
    machine.succeed("rmdir /sys/fs/cgroup/elsewhere")
    stop_job("uprooted")

with subtest("a full /run: the start fails with the reason and leaves nothing; with room it starts"):
    # Its own small file system in place of the directory: the other tasks' files stay open below it.
    machine.succeed(f"mount -t tmpfs -o size=8k,mode=700 full {RUN}; cat /dev/zero > {RUN}/filler 2>/dev/null || true")
    run_job(python_job("full", WAIT, attempts=20, delay="2s"))
    alloc = poll("it is refused", lambda: (a := allocs("full")) and (s := alloc_status(a[-1]["ID"]))["TaskStates"] and [m for m in messages(s) if "No space left on device" in m] and s, ALLOC_TIMEOUT_S)
    t.assertEqual(machine.succeed(f"ls {RUN}"), "filler\n")
    t.assertEqual(terminated(alloc), [])
    machine.succeed(f"rm {RUN}/filler; mount -o remount,size=1m {RUN}")
    alloc = wait_for_alloc("full", "running")
    stop("full", alloc)
    t.assertEqual(machine.succeed(f"ls {RUN}"), "")
    machine.wait_until_succeeds(f"umount {RUN}", timeout=CLEANUP_TIMEOUT_S)

with subtest("a full /run at the end of a task: its exit status has its place already"):
    machine.succeed(f"mount -t tmpfs -o size=64k,mode=700 full {RUN}")
    alloc = start("fullend", "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))\n" + WAIT)
    machine.succeed(f"cat /dev/zero > {RUN}/filler 2>/dev/null || true")
    machine.succeed(f"kill -USR1 {inside(alloc)[0]}")
    alloc = wait_for_alloc("fullend", "failed")
    t.assertEqual([e["ExitCode"] for e in terminated(alloc)], [7])
    stop_job("fullend")
    machine.wait_until_succeeds(f"umount {RUN}", timeout=CLEANUP_TIMEOUT_S)

with subtest("no descriptors left: the start fails with the reason and leaves nothing; then it starts"):
    old = machine.succeed(f"prlimit --pid {plugin[0]} --nofile --noheadings --output SOFT").strip()
    open_now = int(machine.succeed(f"ls /proc/{plugin[0]}/fd | wc -l"))
    shims = len(pgrep(SHIMS))
    machine.succeed(f"prlimit --pid {plugin[0]} --nofile={open_now + 2}:")
    run_job(python_job("nofile", WAIT, attempts=20, delay="2s"))
    poll("it is refused", lambda: (a := allocs("nofile")) and (s := alloc_status(a[-1]["ID"]))["TaskStates"] and [m for m in messages(s) if "Too many open files" in m or "EMFILE" in m], ALLOC_TIMEOUT_S)
    t.assertEqual(len(pgrep(SHIMS)), shims)
    machine.succeed(f"prlimit --pid {plugin[0]} --nofile={old}:")
    stop("nofile", wait_for_alloc("nofile", "running"))

with subtest("a task cannot reach where its exit status is kept, and what it writes in its own place changes nothing"):
    script = f"""
import os, sys
try:
    os.listdir('{RUN}')
    sys.exit(99)
except PermissionError:
    pass
open(os.environ['NOMAD_TASK_DIR'] + '/.exit_status.txt', 'w').write('0')
os.symlink('/etc/passwd', os.environ['NOMAD_TASK_DIR'] + '/exit')
sys.exit(7)"""
    run_job(python_job("forged", script, unveil='["rwc:/run"]'))
    t.assertEqual([e["ExitCode"] for e in terminated(wait_for_alloc("forged", "failed"))], [7])
    stop_job("forged")

with subtest("nobody else noticed, and nothing is left"):
    t.assertEqual(pgrep(PLUGIN_NAME), plugin)
    t.assertEqual(inside(bystander), bystander_pids)
    stop("bystander", bystander)
    nomad("system gc")
    poll("no shims", lambda: not pgrep(SHIMS), CLEANUP_TIMEOUT_S)
    t.assertEqual(machine.succeed(f"ls {RUN}"), "")
