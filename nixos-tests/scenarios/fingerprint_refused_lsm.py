# Landlock is in the kernel but left out of lsm=: the driver says so and how to fix it, and takes no job.
# lsm: off

info = wait_for_driver(healthy=False)
t.assertIn("landlock", info["HealthDescription"].lower())
t.assertIn("lsm=", info["HealthDescription"])
t.assertNotIn("driver.exec2.landlock.abi", node()["Attributes"])
