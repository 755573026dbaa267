# /// scenario
# description = "A kernel without Landlock: the driver reports the reason and takes no job."
# kernels = "< 5.13"
# across = "the driver refuses a kernel without Landlock"
# seconds = 22
# ///

from exec2.agent import node, wait_for_driver
from exec2.guest import t

info = wait_for_driver(healthy=False)
t.assertIn("landlock", info["HealthDescription"].lower())
t.assertIn("5.15", info["HealthDescription"])
t.assertNotIn("driver.exec2.landlock.abi", node()["Attributes"])
