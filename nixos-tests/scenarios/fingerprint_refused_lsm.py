# /// scenario
# description = "Landlock is in the kernel but left out of lsm=: the driver reports the reason and the fix, and takes no job."
# across = "the driver refuses a kernel whose lsm= leaves Landlock out"
# lsm = "off"
# seconds = 20
# ///

from exec2.agent import node, wait_for_driver
from exec2.guest import t

info = wait_for_driver(healthy=False)
t.assertIn("landlock", info["HealthDescription"].lower())
t.assertIn("lsm=", info["HealthDescription"])
t.assertNotIn("driver.exec2.landlock.abi", node()["Attributes"])
