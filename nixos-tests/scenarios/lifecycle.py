# /// scenario
# description = "Exit codes, signals, stops, restarts and the error texts of failed starts; afterwards nothing is left."
# seconds = 46
# ///

from exec2.agent import nomad, stand_in, wait_for_driver
from exec2.allocs import (
    all_messages,
    alloc_status,
    driver_errors,
    exits,
    forget,
    logs,
    messages,
    run_job,
    signal_alloc,
    wait_for_alloc,
    wait_for_groups,
    wait_for_log,
)
from exec2.cleanup import settled_traces, traces, warm_up
from exec2.guest import machine, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import scope

wait_for_driver()
warm_up()
before = traces()

EXITS = {"zero": 0, "seven": 7, "last": 255}
DEATHS = {"segv": 11, "kill": 9, "term": 15, "abrt": 6, "rtmin": 34}

with subtest("exit codes, and deaths by a signal"):
    ending = [group(name, task("t", "sh", "-c", f"exit {code}", cpu=200)) for name, code in EXITS.items()]
    ending += [group(name, task("t", "sh", "-c", f"kill -{number} $$", cpu=200)) for name, number in DEATHS.items()]
    run_job(job("ends", *ending))
    done = wait_for_groups("ends")
    for name, code in EXITS.items():
        t.assertEqual(exits(done[name]), [(code, 0)], name)
        t.assertEqual(done[name]["ClientStatus"], "failed" if code else "complete")
    for name, number in DEATHS.items():
        t.assertEqual(exits(done[name]), [(128 + number, number)], name)
        t.assertEqual(done[name]["ClientStatus"], "failed")

with subtest("without log collection, a task's output goes to /dev/null"):
    look = '[ "$(readlink /proc/$$/fd/1)" = /dev/null ] && [ "$(readlink /proc/$$/fd/2)" = /dev/null ] && echo lost && exit 6'
    run_job(job("silent", group("g", task("t", "sh", "-c", look, cpu=200, extra="logs {\n disabled = true\n}"))))
    t.assertEqual(exits(wait_for_alloc("silent", "failed")), [(6, 0)])

# Python. Prints each signal that it gets.
LISTEN = """
import signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda number, _: print("got", int(number), flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""
# The numbers of real-time signals depend on the C library; musl's first one is 35.
SIGNALS = {"SIGHUP": 1, "SIGUSR1": 10, "SIGUSR2": 12, "SIGWINCH": 28, "SIGCONT": 18, "SIGRTMIN+1": 35, "quit": 3, "SIGTERM": 15, "42": 42}

with subtest("every signal reaches the task with its number; an unknown name is an error"):
    run_job(job("signals", group("g", task("t", "python3", "-ISc", LISTEN, cpu=1000, extra='kill_signal = "SIGKILL"'))))
    alloc = wait_for_alloc("signals", "running")
    wait_for_log(alloc, "ready")
    for name, number in SIGNALS.items():
        signal_alloc(alloc, name)
        wait_for_log(alloc, f"got {number}\n")
    error = machine.fail(f"nomad alloc signal -s SIGNONE {alloc['ID']} 2>&1")
    t.assertIn('unknown signal "SIGNONE"; write a name such as "SIGHUP"', error)
    t.assertEqual(logs(alloc).split(), ["ready"] + [word for number in SIGNALS.values() for word in ("got", str(number))])
    t.assertEqual(alloc_status(alloc["ID"])["ClientStatus"], "running")
    nomad("job stop -detach signals")
    stopped = wait_for_groups("signals")["g"]
    t.assertEqual(exits(stopped), [(137, 9)])

# Python. Leaves orphans of every kind, and prints how many processes there are, and how many of them are zombies.
ORPHANS = """
import os, signal, sys, time
ignored = sys.argv[1:] == ["ignore"]
if ignored:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
else:
    signal.signal(signal.SIGINT, signal.default_int_handler)
def orphan(action):
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            action()
        os._exit(0)
    os.waitpid(child, 0)
for number in range(20):
    orphan(lambda: None)
    orphan(lambda: time.sleep(3600))
orphan(lambda: os.kill(os.getpid(), 40))
time.sleep(1)
states = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    with open(f"/proc/{pid}/stat") as file:
        states.append(file.read().rsplit(")", 1)[1].split()[0])
print("processes", len(states), "zombies", states.count("Z"), flush=True)
try:
    while True:
        time.sleep(3600)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(3)
"""

with subtest("stops: by the signal, by force, and with all forked processes"):
    killed = 'kill_timeout = "2s"'
    wait = "echo ready; while :; do sleep 3600 & wait; done"
    # Nomad's servers place no job with an unknown kill_signal
    bad = ["bad"] if stand_in() else []
    run_job(
        job(
            "stops",
            group("heeds", task("t", "python3", "-ISc", ORPHANS, cpu=1000, extra='kill_timeout = "30s"')),
            group("ignores", task("t", "python3", "-ISc", ORPHANS, "ignore", cpu=1000, extra=killed)),
            group("term", task("t", "sh", "-c", f'trap "echo terminated; exit 4" TERM; {wait}', extra='kill_signal = "SIGTERM"')),
            *(group(name, task("t", "sh", "-c", f'trap "exit 5" INT; {wait}', extra='kill_signal = "SIGNONE"')) for name in bad),
            kind="service",
        )
    )
    running = wait_for_groups("stops", dict.fromkeys(["heeds", "ignores", "term", *bad], "running"))
    for name in ("heeds", "ignores"):
        # shim, task and 20 sleepers; the 20 that ended were reaped
        t.assertIn("processes 22 zombies 0\n", wait_for_log(running[name], "processes"))
    for name in ["term", *bad]:
        wait_for_log(running[name], "ready")
    scopes = [scope(alloc) for alloc in running.values()]
    pids = machine.succeed(f"cat {' '.join(folder + '/cgroup.procs' for folder in scopes)}").split()
    t.assertGreaterEqual(len(pids), 43)
    nomad("job stop -detach stops")
    stopped = wait_for_groups("stops")
    t.assertEqual(exits(stopped["heeds"]), [(3, 0)])
    t.assertIn("interrupted", wait_for_log(stopped["heeds"], "interrupted"))
    t.assertEqual(exits(stopped["ignores"]), [(137, 9)])
    t.assertIn("Killed: the task was still running 2s after SIGINT", messages(stopped["ignores"]))
    t.assertNotIn("Killed:", "".join(messages(stopped["heeds"])))
    t.assertEqual(exits(stopped["term"]), [(4, 0)])
    t.assertIn("terminated", wait_for_log(stopped["term"], "terminated"))
    for name in bad:
        t.assertEqual(exits(stopped[name]), [(5, 0)])
        t.assertIn('kill_signal: unknown signal "SIGNONE"', "".join(messages(stopped[name])))
    for pid in pids:
        machine.fail(f"test -e /proc/{pid}")

FAILURES = {
    # group: (task, whether it is recoverable, the message)
    "unveil": (task("t", "true", cpu=100, unveil=["r:/srv/x"]), True, 'unveil "r:/srv/x": No such file or directory'),
    "command": (
        task("t", "no-such-command", cpu=100),
        True,
        'run command "no-such-command": No such file or directory (not found in PATH=/',
    ),
    "path": (
        task("t", "/usr/bin/no-such-command", cpu=100),
        True,
        'run command "/usr/bin/no-such-command": No such file or directory (the program, or the interpreter that it names, does not exist or is not unveiled)',
    ),
    "hidden": (
        task("t", "/opt/exec2-program", cpu=100),
        True,
        'run command "/opt/exec2-program": No such file or directory (the program, or the interpreter that it names, does not exist or is not unveiled)',
    ),
    "denied": (
        task("t", "/opt/exec2-program", cpu=100, unveil=["r:/opt/exec2-program"]),
        False,
        'run command "/opt/exec2-program": Permission denied (it is not executable for the task\'s user, or not unveiled with x)',
    ),
    "format": (task("t", "/usr/local/bin/exec2-garbage", cpu=100), False, 'run command "/usr/local/bin/exec2-garbage": Exec format error'),
    "work-dir": (task("t", "true", cpu=100, work_dir="local/none"), True, "local/none\": No such file or directory"),
    "mode": (
        task("t", "true", cpu=100, unveil=["q:/srv"]),
        False,
        '"q:/srv": unknown mode letter \'q\'; write mode:path with modes r, w, x, c, for example "r:/etc/ssl"',
    ),
    "score": (task("t", "true", cpu=100, oom_score_adj=-1), False, "oom_score_adj"),
    "cap": (task("t", "true", cpu=100, cap_add=["sys_admin"]), False, "allow_caps"),
}

with subtest("a failed start reports the reason, and is retried if it is recoverable"):
    machine.succeed(
        "mkdir -p /opt /usr/local/bin; cp $(readlink -f /bin/sh) /opt/exec2-program; echo garbage > /usr/local/bin/exec2-garbage",
        "chmod 755 /opt/exec2-program /usr/local/bin/exec2-garbage",
    )
    run_job(job("failures", *(group(name, text, attempts=1) for name, (text, _, _) in FAILURES.items())))
    done = wait_for_groups("failures")
    for name, (_, again, sentence) in FAILURES.items():
        errors = driver_errors(done[name])
        t.assertEqual(len(errors), 2 if again else 1, (name, all_messages(done[name]["ID"])))
        for error in errors:
            t.assertIn(sentence, error)
        t.assertEqual(exits(done[name]), [], name)
        t.assertIn("Exceeded allowed attempts 1" if again else "Error was unrecoverable", "".join(messages(done[name])))

with subtest("nothing is left behind: processes, cgroups, mounts, files, descriptors"):
    forget("ends", "silent", "signals", "stops", "failures")
    t.assertEqual(settled_traces(before), before)
