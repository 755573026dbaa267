# /// scenario
# description = "The driver is detected and healthy, and reports what the host provides."
# across = "what the kernel provides, as the driver reports it"
# seconds = 6
# ///

from exec2.agent import node, wait_for_driver
from exec2.guest import landlock_abi, subtest, t

info = wait_for_driver(healthy=True)
attributes = node()["Attributes"]

with subtest("detected, healthy, with a description"):
    t.assertTrue(info["Detected"])
    t.assertEqual(attributes["driver.exec2"], "1")

with subtest("the attributes of the Go driver"):
    t.assertEqual(attributes["driver.exec2.unveil.tasks"], "true")
    t.assertEqual(attributes["driver.exec2.unveil.defaults"], "true")

with subtest("what the host provides"):
    t.assertEqual(int(attributes["driver.exec2.landlock.abi"]), landlock_abi())
    t.assertRegex(attributes["driver.exec2.version"], r"^\d+\.\d+\.\d+")
    t.assertLessEqual({"cpu", "memory", "pids"}, set(attributes["driver.exec2.cgroup.controllers"].replace(",", " ").split()))
