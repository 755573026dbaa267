# /// scenario
# description = "The host changes while tasks run: copies of /etc follow, later tasks have the new default paths, starts do not wait."
# across = "events of mounts, and what a mount namespace receives"
# guests = ["debian"]
# seconds = 60
# ///

from exec2.agent import PLUGIN_NAME, new_plugin, wait_for_driver
from exec2.allocs import RECOVERED, brief, logs, reported, run_job, run_python, stop_job, wait_for_alloc, wait_for_log
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, machine, pgrep, poll, subtest, t
from exec2.jobs import group, job, task

# Prints what it sees whenever that changes.
WATCH = """
import time
def content(path):
    try:
        with open(path) as file:
            return file.read().splitlines()[-1]
    except OSError as error:
        return error.strerror
last = None
while True:
    now = f"hosts: {content('/etc/hosts')}; secret: {content('/etc/exec2-secret')}"
    if now != last:
        print(now, flush=True)
        last = now
    time.sleep(0.05)
"""
ABSENT = "No such file or directory"
# Below a default path, and below one that is none.
MARKERS = "/usr/local/lib/marker", "/srv/exec2-marker/marker"
LOOK = "for path in " + " ".join(MARKERS) + "; do if [ -e $path ]; then echo $path there; else echo $path missing; fi; done"
STARTS = 20
# The template is rebuilt at most once a second.
TOGGLE = "while :; do mount -t tmpfs none /usr/local/lib; sleep 0.6; umount -l /usr/local/lib; sleep 0.6; done"


def replace_hosts(last_line):
    """Changes /etc/hosts as most programs do."""
    machine.succeed(f"cp -p /etc/hosts /etc/hosts.new; echo '{last_line}' >> /etc/hosts.new; mv /etc/hosts.new /etc/hosts")


def seen_by_a_new_task(name):
    """Whether a task that starts now has the markers."""
    run_job(job(name, group("g", task("t", "sh", "-c", LOOK))))
    alloc = wait_for_alloc(name, "complete")
    wait_for_log(alloc, MARKERS[1])
    lines = logs(alloc).split("\n")
    stop_job(name)
    return [f"{path} there" in lines for path in MARKERS]


wait_for_driver()
machine.succeed("cp -p /etc/hosts /root/hosts.before")

with subtest("a running task sees a replaced file of /etc, and no file that is none of the defaults"):
    watching = run_python("watching", WATCH, ready="hosts: ")
    machine.succeed("install -m 0644 /dev/null /etc/exec2-secret; echo s > /etc/exec2-secret")
    replace_hosts("10.0.0.1 first")
    wait_for_log(watching, f"hosts: 10.0.0.1 first; secret: {ABSENT}")
    machine.succeed("echo '10.0.0.2 second' >> /etc/hosts")
    wait_for_log(watching, "hosts: 10.0.0.2 second")
    machine.succeed("rm /etc/hosts")
    wait_for_log(watching, f"hosts: {ABSENT}")
    machine.succeed("cp -p /root/hosts.before /etc/hosts")
    t.assertNotIn("secret: s", logs(watching))

with subtest("a plugin that has recovered the task refreshes it before any start"):
    count = len(reported(watching, RECOVERED))
    old = pgrep(PLUGIN_NAME)[0]
    machine.succeed(f"kill -KILL {old}")
    replace_hosts("10.0.0.3 without a plugin")
    new_plugin(old)
    poll("it is recovered", lambda: len(reported(watching, RECOVERED)) > count, ALLOC_TIMEOUT_S)
    wait_for_log(watching, "hosts: 10.0.0.3 without a plugin")
    replace_hosts("10.0.0.4 recovered")
    wait_for_log(watching, "hosts: 10.0.0.4 recovered")

with subtest("a file system that appears at a default path is there for later tasks, one elsewhere is not"):
    t.assertEqual(seen_by_a_new_task("before"), [False, False])
    machine.succeed("mkdir -p /srv/exec2-marker", *(f"mount -t tmpfs none {path.removesuffix('/marker')} && touch {path}" for path in MARKERS))
    poll("a new task has it", lambda: seen_by_a_new_task("mounted") == [True, False], ALLOC_TIMEOUT_S)
    machine.succeed(*(f"umount -l {path.removesuffix('/marker')}" for path in MARKERS))
    poll("a new task has it no longer", lambda: seen_by_a_new_task("unmounted") == [False, False], ALLOC_TIMEOUT_S)

with subtest(f"{STARTS} tasks start while the template is rebuilt again and again"):
    machine.succeed(f"systemd-run --unit=toggle sh -c '{TOGGLE}'")
    run_job(job("many", *(group(f"g{number}", task("t", "true", cpu=100, memory=16)) for number in range(STARTS))))
    poll(
        "all of them have ended well",
        lambda: [alloc["ClientStatus"] for alloc in brief("many")] == ["complete"] * STARTS,
        ALLOC_TIMEOUT_S,
    )
    machine.succeed("systemctl stop toggle.service; umount -l /usr/local/lib || :")
    stop_job("many")

machine.succeed("cp -p /root/hosts.before /etc/hosts; rm /etc/exec2-secret")
stop_job("watching")
machine.wait_until_succeeds("! pgrep -f '[e]xec2 template'", timeout=CLEANUP_TIMEOUT_S)
