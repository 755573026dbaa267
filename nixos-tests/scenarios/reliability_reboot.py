# /// scenario
# description = "After a reboot, clean or not, allocations start again in place, as the same users; nothing is mistaken for the earlier tasks."
# seconds = 39
# ///
# Nomad does not mount the directories of an allocation again; the driver finds them where Nomad keeps them.

from exec2.agent import wait_for_driver
from exec2.allocs import brief, run_job, stop_job, wait_for_log
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, boot_id, machine, pgrep, poll, subtest, t
from exec2.tasks import SHIMS, TASKS_CGROUP, inside, run_directories

JOB = """
job "boot" {
  type = "service"
  group "g" {
    count = 3
    restart {
      attempts = 5
      delay    = "1s"
      mode     = "delay"
    }
    reschedule {
      delay          = "5s"
      delay_function = "constant"
      unlimited      = true
    }
    task "t" {
      driver = "exec2"
      config {
        command = "sh"
        args    = ["-c", "cat /proc/sys/kernel/random/boot_id; while :; do sleep 1000; done"]
      }
      resources {
        cpu    = 50
        memory = 16
      }
    }
  }
}
"""



def running():
    found = [alloc for alloc in brief("boot") if alloc["ClientStatus"] == "running" and alloc["DesiredStatus"] == "run"]
    scopes = machine.execute(f"grep -l . {TASKS_CGROUP}/*.t.scope/cgroup.procs 2>/dev/null")[1].split()
    return found if len(found) == 3 and len(scopes) == 3 else None


def owner(alloc):
    """The uid of the task."""
    return machine.succeed(f"stat -c %u /proc/{inside(alloc)[0]}").strip()


# Not machine.reboot(): the NixOS driver starts QEMU with -no-reboot. After shutdown and crash the next call boots the machine again.
for how in ("shutdown", "crash"):
    wait_for_driver()
    run_job(JOB)
    old = {alloc["ID"] for alloc in poll("three run", running, ALLOC_TIMEOUT_S)}
    users = {alloc: owner({"ID": alloc}) for alloc in old}
    with subtest(f"{how}: the old allocations run in place, in this boot, as the user that they had"):
        before = boot_id()
        machine.succeed("sync")
        getattr(machine, how)()
        wait_for_driver()
        t.assertNotEqual(boot_id(), before)
        found = poll("three run again", running, ALLOC_TIMEOUT_S)
        t.assertEqual({alloc["ID"] for alloc in found}, old)
        for alloc in found:
            wait_for_log(alloc, boot_id())
            t.assertEqual(owner(alloc), users[alloc["ID"]])
        t.assertEqual(len(pgrep(SHIMS)), 3)
        t.assertEqual(len(run_directories()), 3)
    with subtest(f"{how}: nothing is left"):
        stop_job("boot")
        poll("no records", lambda: not run_directories(), CLEANUP_TIMEOUT_S)
        machine.fail(f"pgrep -fa '{SHIMS}'")
