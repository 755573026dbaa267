# /// scenario
# description = "After a reboot, clean or not, earlier tasks are treated as gone: nothing is mistaken for them or runs in a wrong place."
# seconds = 39
# ///
# Nomad does not mount the directories of an allocation again. So the allocation fails, with the reason, and Nomad makes another;
# the pluginhost makes none.

from exec2.agent import stand_in, wait_for_driver
from exec2.allocs import alloc_status, brief, messages, run_job, stop_job, wait_for_log
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, boot_id, machine, pgrep, poll, subtest, t
from exec2.tasks import RUN, SHIMS, TASKS_CGROUP

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


def refused(ids):
    return all("are not mounted there" in str(messages(alloc_status(alloc))) for alloc in ids)


# Not machine.reboot(): the NixOS driver starts QEMU with -no-reboot. After shutdown and crash the next call boots the machine again.
for how in ("shutdown", "crash"):
    wait_for_driver()
    run_job(JOB)
    old = [alloc["ID"] for alloc in poll("three run", running, ALLOC_TIMEOUT_S)]
    with subtest(f"{how}: the old allocations fail with the reason"):
        before = boot_id()
        machine.succeed("sync")
        getattr(machine, how)()
        wait_for_driver()
        t.assertNotEqual(boot_id(), before)
        poll("refused", lambda: refused(old), ALLOC_TIMEOUT_S)
    if not stand_in():
        with subtest(f"{how}: only three new allocations run, in this boot"):
            for alloc in poll("three run again", running, ALLOC_TIMEOUT_S):
                t.assertNotIn(alloc["ID"], old)
                wait_for_log(alloc, boot_id())
            t.assertEqual(len(pgrep(SHIMS)), 3)
            t.assertEqual(len(machine.succeed(f"ls {RUN}").split()), 3)
    with subtest(f"{how}: nothing is left"):
        stop_job("boot")
        poll("no records", lambda: machine.execute(f"ls {RUN} 2>/dev/null")[1] == "", CLEANUP_TIMEOUT_S)
        machine.fail(f"pgrep -fa '{SHIMS}'")
