# /// scenario
# description = "A service job runs again after the machine lost power, under a new allocation and with a clean cgroup tree."
# ///
# Nomad does not mount an old allocation's directories again, and the driver starts no task without them. So the old allocation
# fails, and Nomad places another one, here after seconds.

from exec2.agent import wait_for_driver
from exec2.allocs import EXAMPLES, alloc_status, brief, messages, run_job, stop_job, wait_for_alloc
from exec2.guest import ALLOC_TIMEOUT_S, boot_id, machine, poll, subtest, t

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


def runs_again():
    """The allocation that replaces the old one, once it runs."""
    found = [alloc["ID"] for alloc in brief("http") if alloc["ClientStatus"] == "running" and alloc["ID"] != before["ID"]]
    return found and found[-1]


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

with subtest("the job runs again, and the old allocation reports why it does not"):
    wait_for_driver()
    alloc = poll("a new allocation runs", runs_again, ALLOC_TIMEOUT_S)
    address = machine.succeed("ip -4 -o address show dev eth0 | awk '{print $4}' | cut -d/ -f1").strip()
    machine.wait_until_succeeds(f"curl -sS --fail --max-time 10 http://{address}:8181/", timeout=ALLOC_TIMEOUT_S)
    t.assertEqual(machine.succeed(f"cat /sys/fs/cgroup/nomad.slice/*/{alloc}.*.scope/cgroup.procs | wc -l").strip(), "1")
    t.assertEqual(machine.succeed("ls -d /sys/fs/cgroup/nomad.slice/*/*.python.scope | wc -l").strip(), "1")
    t.assertIn("are not mounted there", " ".join(messages(alloc_status(before["ID"]))))
    stop_job("http")
