# After a reboot, clean or not, what ran is known to be gone, and starts anew; nothing old is taken for it.

RUN = "/run/nomad-driver-exec2"

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
    task "t" {
      driver = "exec2"
      # A user of the host: a dynamic one is not brought back by Nomad 2.0, see docs/compatibility.md.
      user = "nobody"
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


def boot_id():
    return machine.succeed("cat /proc/sys/kernel/random/boot_id").strip()


def running():
    found = [alloc for alloc in allocs("boot") if alloc["ClientStatus"] == "running" and alloc["DesiredStatus"] == "run"]
    scopes = machine.execute("grep -l . /sys/fs/cgroup/nomad.slice/share.slice/*.t.scope/cgroup.procs")[1].split()
    return found if len(found) == 3 and len(scopes) == 3 else None


wait_for_driver()
run_job(JOB)
poll("three run", running, ALLOC_TIMEOUT_S)

for how in ("reboot", "crash"):
    with subtest(f"{how}: all three run again, in this boot, and only they"):
        before = boot_id()
        machine.succeed("sync")
        getattr(machine, how)()
        wait_for_driver()
        t.assertNotEqual(boot_id(), before)
        for alloc in poll("three run again", running, ALLOC_TIMEOUT_S):
            wait_for_log(alloc, boot_id())
        t.assertEqual(machine.succeed("pgrep -fc '^nomad-driver-exec2 shim$'").strip(), "3")
        t.assertEqual(len(machine.succeed(f"ls {RUN}").split()), 3)

with subtest("nothing is left"):
    stop_job("boot")
    poll("no records", lambda: machine.succeed(f"ls {RUN}") == "", CLEANUP_TIMEOUT_S)
    machine.fail("pgrep -fa '^nomad-driver-exec2 shim$'")
