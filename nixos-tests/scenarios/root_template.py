# /// scenario
# description = "The template of the roots: default paths that are retargeted, that do not answer, that change during 100 starts; restarts."
# across = "events of mounts, and what a mount namespace receives"
# seconds = 120
# ///
# That single files and mounts of the host are followed is the scenario `host_changes`.

import shlex

from exec2.agent import kill_agent, new_plugin, plugin_pid, start_agent, wait_for_driver
from exec2.allocs import alloc_status, brief, ended, run_job, stop_job, wait_for_alloc, wait_for_log
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, machine, poll, subtest, t
from exec2.jobs import group, job, task

GO = "/usr/share/exec2-go"
STARTS, AT_ONCE = 100, 10
TEMPLATE = "^nomad-driver-exec2 template$"

wait_for_driver()


def reads(name, path, marker):
    """Whether a task of the agent that starts now reads the marker in the file."""
    run_job(job(name, group("g", task("t", "grep", "-q", marker, path))))
    over = ended(name, wait_for_alloc(name, ("complete", "failed", "running", "pending")))
    stop_job(name)
    return over["ClientStatus"] == "complete"


LINK = "/run/resolvconf"

with subtest("a default path that is retargeted: the next tasks see the new place, running ones keep the old"):
    machine.succeed(f"rm -rf {LINK}; mkdir -p /run/netconfig /run/target-1 /run/target-2; for n in 1 2; do echo target-$n > /run/target-$n/which; done")
    machine.succeed(f"ln -s /run/target-1 {LINK}")
    poll("tasks see the first", lambda: reads("first", f"{LINK}/which", "target-1"), ALLOC_TIMEOUT_S)
    stay = f"cat {LINK}/which; until [ -e {GO} ]; do sleep 0.2; done; cat {LINK}/which; cat /etc/hosts; exec sleep 3600"
    machine.succeed(f"rm -f {GO}")
    run_job(job("stays", group("g", task("t", "sh", "-c", stay))))
    stays = wait_for_alloc("stays", "running")
    wait_for_log(stays, "target-1")
    machine.succeed(f"ln -sfn /run/target-2 {LINK}")
    poll("tasks see the second", lambda: reads("second", f"{LINK}/which", "target-2"), ALLOC_TIMEOUT_S)
    machine.succeed(f"touch {GO}")
    t.assertEqual(wait_for_log(stays, "localhost").split()[:2], ["target-1", "target-1"])
    stop_job("stays")

with subtest(f"{STARTS} starts while the template is rebuilt"):
    machine.succeed("rm -f /run/stop-churn")
    churn = (
        f"n=1; until [ -e /run/stop-churn ]; do n=$((3 - n)); ln -sfn /run/target-$n {LINK};"
        " mount -t tmpfs none /run/netconfig; touch /etc/hosts; sleep 1; umount /run/netconfig; sleep 1; done"
    )
    machine.succeed(f"systemd-run --unit churn sh -c {shlex.quote(churn)}")
    script = f"grep -q target- {LINK}/which && cat /etc/hosts > /dev/null && ls /run/netconfig && test -x /usr/bin/env"
    # Not all at once: that an emulated CPU starts 100 tasks within the limit of a start is not the question here.
    for wave in range(STARTS // AT_ONCE):
        name = f"churn-{wave}"
        run_job(job(name, group("g", task("t", "sh", "-c", script, cpu=200, memory=16), count=AT_ONCE)))

        def over(name=name):
            found = brief(name)
            states = [alloc["ClientStatus"] for alloc in found]
            t.assertNotIn("failed", states, [alloc_status(alloc["ID"]) for alloc in found if alloc["ClientStatus"] == "failed"])
            return len(states) == AT_ONCE and set(states) == {"complete"}

        poll(f"{name} is complete", over, ALLOC_TIMEOUT_S)
        stop_job(name)
    machine.succeed("touch /run/stop-churn")
    machine.wait_until_fails("systemctl is-active churn", timeout=CLEANUP_TIMEOUT_S)

# Python. A FUSE file system without a daemon that answers: each access to it waits. Ends when it is killed.
HANG = """
import ctypes, os, sys, time
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"hang", sys.argv[1].encode(), b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
open("/run/hangs", "w").close()
time.sleep(3600)
"""


def hang(path):
    machine.succeed("modprobe fuse || true; rm -f /run/hangs", f"systemd-run --unit hang python3 -ISc {shlex.quote(HANG)} {path}")
    machine.wait_for_file("/run/hangs")


def unhang(path):
    machine.succeed("systemctl stop hang", f"umount -l {path}")


def said(text):
    return text in machine.succeed("journalctl -b -u nomad.service -o cat --no-pager | tail -n 2000")


with subtest("a default path that stops to answer: tasks start with the template that there is, and the log says why"):
    path = "/run/netconfig"
    machine.succeed(f"echo before > {path}/which")
    poll("tasks see it", lambda: reads("answers", f"{path}/which", "before"), ALLOC_TIMEOUT_S)
    hang(path)
    poll("the warning", lambda: said("does not answer within"), ALLOC_TIMEOUT_S)
    t.assertTrue(reads("others", "/etc/hosts", "localhost"))

with subtest("a plugin that is killed while a process of it looks at that path: the process ends, so that the agent notices"):
    old = plugin_pid()
    # A process that works takes milliseconds. That the path answers again is tried twice a minute.
    hung = f"p=$(pgrep -o -f '{TEMPLATE}') && sleep 0.5 && [ -e /proc/$p/exe ]"
    found = machine.succeed(f"until {hung}; do sleep 0.1; done; kill -9 {old}; echo $p", timeout=CLEANUP_TIMEOUT_S)
    machine.wait_until_fails(f"[ -e /proc/{int(found)}/exe ]", timeout=CLEANUP_TIMEOUT_S)
    new_plugin(old)

with subtest("the same after a restart of the plugin: tasks that start do not have that path"):
    poll("tasks start", lambda: reads("without", "/etc/hosts", "localhost"), ALLOC_TIMEOUT_S)
    t.assertFalse(reads("lacks", f"{path}/which", "before"))
    unhang(path)
    poll("it is back", lambda: reads("back", f"{path}/which", "before"), ALLOC_TIMEOUT_S)

with subtest("restarts of plugin and agent: tasks keep running, and their /etc still follows the host's"):
    # Prints each new content of the last line.
    follow = 'old=; while :; do new=$(tail -n 1 /etc/hosts); [ "$new" = "$old" ] || echo "$new"; old=$new; sleep 0.2; done'
    run_job(job("follows", group("g", task("t", "sh", "-c", follow))))
    follows = wait_for_alloc("follows", "running")

    def changed(number):
        machine.succeed(f"cp /etc/hosts /etc/hosts.new; echo '192.0.2.{number} exec2-{number}' >> /etc/hosts.new; mv /etc/hosts.new /etc/hosts")
        wait_for_log(follows, f"exec2-{number}")

    changed(1)
    old = plugin_pid()
    machine.succeed(f"kill -9 {old}")
    new_plugin(old)
    changed(2)
    kill_agent(plugin_pid())
    start_agent()
    changed(3)
    # the template is built when a task needs it
    t.assertTrue(reads("after", "/etc/hosts", "exec2-3"))
    stop_job("follows")
