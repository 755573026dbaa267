# /// scenario
# description = "Output without Nomad's log collector: to the journal, or to bounded files where there is none."
# guests = ["debian"]
# seconds = 205
# ///

import json
import shlex

from exec2.agent import PLUGIN_NAME, configure, new_plugin, wait_for_driver
from exec2.allocs import exits, logs, reported, run_job, stop_job, wait_for_alloc, wait_for_log
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, UNIT_TIMEOUT_S, machine, pgrep, poll, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import LOG_READERS, inside, shim_of

SOCKET = "/run/systemd/journal/stdout"
FILE_MAX, FILES_MAX = 10 << 20, 10
# Prints a number five times a second.
COUNT = "n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.2; done"
FLOOD = "while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"
# 130 MiB, numbered, and an end on the other stream.
FILL = "python3 -c \"import os\nfor n in range(130 * 256): os.write(1, (b'%08d ' % n) + b'x' * 4086 + b'\\n')\"; echo done >&2"


def entries(*match):
    """The journal's entries."""
    machine.succeed("journalctl --sync")
    return [json.loads(line) for line in machine.succeed(f"journalctl -o json {shlex.join(match)}").splitlines()]


def lines(*match):
    return [entry["MESSAGE"] for entry in entries(*match)]


def scope(alloc):
    return f"_SYSTEMD_UNIT={alloc['ID']}.t.scope"


def ticks(alloc):
    return [int(line.split()[1]) for line in lines(scope(alloc)) if line.startswith("tick")]


def log_directory(alloc):
    return machine.succeed(f"find / -xdev -type d -path '*/alloc/{alloc['ID']}/alloc/logs' 2>/dev/null | head -1").strip()


def sizes(alloc, stream):
    """The sizes of a stream's files by their numbers."""
    listed = machine.succeed(f"cd {log_directory(alloc)}; stat -c '%n %s' t.{stream}.* 2>/dev/null || :").splitlines()
    return {int(name.rpartition(".")[2]): int(size) for name, size in (line.split() for line in listed)}


wait_for_driver()

with subtest("by default Nomad collects, and the journal has nothing"):
    run_job(job("collected", group("g", task("t", "sh", "-c", "echo collected; exec sleep 600"))))
    alloc = wait_for_alloc("collected", "running")
    wait_for_log(alloc, "collected")
    t.assertTrue(pgrep(LOG_READERS))
    t.assertEqual(entries("-t", "collected/g/t"), [])
    stop_job("collected")

configure(disable_log_collection=True)
machine.wait_until_succeeds("! pgrep -f '[l]ogmon'", timeout=CLEANUP_TIMEOUT_S)

with subtest("output is in the journal, with priority by stream, and no process reads it"):
    script = "echo to stdout; echo to stderr >&2; echo '<4>warned'; (echo again > /dev/stdout) 2> /dev/null || echo no reopening; exec sleep 600"
    run_job(job("journal", group("g", task("t", "sh", "-c", script))))
    alloc = wait_for_alloc("journal", "running")
    poll("all of it", lambda: "no reopening" in lines("-t", "journal/g/t"), ALLOC_TIMEOUT_S)
    found = entries("-t", "journal/g/t")
    t.assertEqual({entry["MESSAGE"]: entry["PRIORITY"] for entry in found}, {"to stdout": "6", "to stderr": "3", "warned": "4", "no reopening": "6"})
    uid = machine.succeed(f"stat -c %u /proc/{inside(alloc)[0]}").strip()
    for entry in found:
        t.assertEqual((entry["_UID"], entry["_SYSTEMD_UNIT"]), (uid, f"{alloc['ID']}.t.scope"), entry)
    t.assertEqual(lines("-t", "journal/g/t", "-p", "err"), ["to stderr"])
    t.assertEqual(lines("-t", "journal/g/other"), [])
    t.assertEqual(pgrep(LOG_READERS), [])
    t.assertEqual(machine.succeed(f"readlink /proc/{inside(alloc)[0]}/fd/1 | cut -d: -f1").strip(), "socket")
    # What Nomad shows instead.
    for stderr in False, True:
        t.assertIn("journalctl -t 'journal/g/t'", logs(alloc, stderr=stderr))
    t.assertIn(f"_SYSTEMD_UNIT={alloc['ID']}.t.scope", logs(alloc))
    stop_job("journal")

with subtest("a job without logs has none"):
    run_job(job("silent", group("g", task("t", "sh", "-c", "echo unheard; sleep 1", extra="logs { disabled = true }"))))
    wait_for_alloc("silent", "complete")
    t.assertEqual(lines("-t", "silent/g/t"), [])
    stop_job("silent")

with subtest("a stream outlives restarts of journald and of the plugin"):
    run_job(job("count", group("g", task("t", "sh", "-c", COUNT)), kind="service"))
    alloc = wait_for_alloc("count", "running")
    poll("it counts", lambda: len(ticks(alloc)) > 3, ALLOC_TIMEOUT_S)
    machine.succeed("systemctl restart systemd-journald")
    machine.wait_for_unit("systemd-journald.service", timeout=UNIT_TIMEOUT_S)
    last = ticks(alloc)[-1]
    poll("it counts on", lambda: ticks(alloc)[-1] > last + 3, ALLOC_TIMEOUT_S)
    machine.succeed("systemctl kill -s KILL systemd-journald")
    machine.wait_until_succeeds("systemctl is-active systemd-journald", timeout=UNIT_TIMEOUT_S)
    last = ticks(alloc)[-1]
    poll("and on", lambda: ticks(alloc)[-1] > last + 3, ALLOC_TIMEOUT_S)
    old = pgrep(PLUGIN_NAME)[0]
    machine.succeed(f"kill -KILL {old}")
    new_plugin(old)
    poll("it is recovered", lambda: reported(alloc, "Recovered"), ALLOC_TIMEOUT_S)
    last = ticks(alloc)[-1]
    poll("and on", lambda: ticks(alloc)[-1] > last + 3, ALLOC_TIMEOUT_S)
    seen = ticks(alloc)
    t.assertEqual(seen, sorted(set(seen)), "none twice")
    lost = seen[-1] - len(seen)
    t.assertLess(lost, 20, f"{lost} lines lost")

with subtest("a task that floods the journal does not stop the output of another, or its start"):
    run_job(job("flood", group("g", task("t", "sh", "-c", FLOOD, cpu=500)), kind="service"))
    wait_for_alloc("flood", "running")
    last = ticks(alloc)[-1]
    poll("the other counts on", lambda: ticks(alloc)[-1] > last + 10, ALLOC_TIMEOUT_S)
    run_job(job("beside", group("g", task("t", "echo", "beside"))))
    wait_for_alloc("beside", "complete")
    poll("its line", lambda: lines("-t", "beside/g/t") == ["beside"], ALLOC_TIMEOUT_S)
    # journald drops lines of the flood, by its cgroup.
    for name in "flood", "beside", "count":
        stop_job(name)

with subtest("without journald, bounded files that Nomad shows, written by the shim"):
    machine.succeed(f"mv {SOCKET} {SOCKET}.away")
    run_job(job("files", group("g", task("t", "sh", "-c", f"{FILL}; echo again > /dev/stdout; exec sleep 600"))))
    alloc = wait_for_alloc("files", "running")
    wait_for_log(alloc, "done", stderr=True)
    found = poll("all of it", lambda: (now := sizes(alloc, "stdout")) and 13 in now and now, ALLOC_TIMEOUT_S)
    t.assertEqual(sorted(found), list(range(4, 14)))
    t.assertEqual({found[number] for number in range(4, 13)}, {FILE_MAX})
    t.assertLessEqual(sum(found.values()), FILE_MAX * FILES_MAX)
    t.assertEqual(machine.succeed(f"tail -c 6 {log_directory(alloc)}/t.stdout.13"), "again\n")
    t.assertEqual(sizes(alloc, "stderr"), {0: len("done\n")})
    t.assertEqual(pgrep(LOG_READERS), [])
    held = machine.succeed(f"ls -l /proc/{shim_of(alloc)}/fd")
    t.assertIn("t.stdout.13", held)
    stop_job("files")

with subtest("what a task writes last is in the file, and its exit code is its own"):
    run_job(job("last", group("g", task("t", "sh", "-c", "seq 1 5000; echo end; exit 7"), attempts=1, delay="1s")))
    alloc = wait_for_alloc("last", "failed")
    t.assertEqual([code for code, _ in exits(alloc)], [7, 7])
    numbers = [*map(str, range(1, 5001)), "end"]
    t.assertEqual(machine.succeed(f"cd {log_directory(alloc)}; cat t.stdout.0 t.stdout.1").splitlines(), numbers * 2)
    t.assertEqual(sorted(sizes(alloc, "stdout")), [0, 1])
    stop_job("last")
    machine.succeed(f"mv {SOCKET}.away {SOCKET}")
