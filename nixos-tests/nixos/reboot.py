# /// scenario
# description = "A service job runs again after the machine lost power: the same allocation, in its network, and with a clean cgroup tree."
# ///
# Nomad does not mount an old allocation's directories again; the driver finds them where Nomad keeps them.

from exec2.agent import wait_for_driver
from exec2.allocs import EXAMPLES, run_job, stop_job, wait_for_alloc
from exec2.guest import ALLOC_TIMEOUT_S, boot_id, machine, subtest, t

POLICIES = """
    restart {
      attempts = 1
      delay    = "1s"
      mode     = "fail"
    }
    reschedule {
      delay          = "5s"
      delay_function = "constant"
      unlimited      = true
    }
"""


wait_for_driver()
example = machine.succeed(f"cat {EXAMPLES}/http.nomad.hcl")
run_job(example.replace('group "web" {\n', 'group "web" {\n' + POLICIES, 1))
before = wait_for_alloc("http", "running")
boot = boot_id()

with subtest("the power fails"):
    machine.succeed("sync")
    machine.crash()
    # not reboot(): the test driver starts QEMU with -no-reboot
    machine.start()
    t.assertNotEqual(boot_id(), boot)

with subtest("the job runs again, in the allocation that it had"):
    wait_for_driver()
    after = wait_for_alloc("http", "running")
    t.assertEqual(after["ID"], before["ID"])
    address = machine.succeed("ip -4 -o address show dev eth0 | awk '{print $4}' | cut -d/ -f1").strip()
    machine.wait_until_succeeds(f"curl -sS --fail --max-time 10 http://{address}:8181/", timeout=ALLOC_TIMEOUT_S)
    t.assertEqual(machine.succeed(f"cat /sys/fs/cgroup/nomad.slice/*/{after['ID']}.*.scope/cgroup.procs | wc -l").strip(), "1")
    t.assertEqual(machine.succeed("ls -d /sys/fs/cgroup/nomad.slice/*/*.python.scope | wc -l").strip(), "1")
    stop_job("http")
