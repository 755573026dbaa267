# A kernel without Landlock: the driver says so, and takes no job.
# kernels: < 5.13

info = wait_for_driver(healthy=False)
t.assertIn("landlock", info["HealthDescription"].lower())
t.assertIn("5.15", info["HealthDescription"])
t.assertNotIn("driver.exec2.landlock.abi", node()["Attributes"])
