# A service job is running again after the machine was rebooted, under the same allocation's job and with a clean cgroup tree.

wait_for_driver(healthy=True)
run_job(f"{EXAMPLES}/http.nomad.hcl")
before = wait_for_alloc("http", "running")
boot = machine.succeed("cat /proc/sys/kernel/random/boot_id").strip()

with subtest("reboot"):
    # crash and start instead of reboot: the test driver starts QEMU with -no-reboot
    machine.crash()
    machine.start()
    t.assertNotEqual(machine.succeed("cat /proc/sys/kernel/random/boot_id").strip(), boot)

with subtest("the job runs again"):
    wait_for_driver(healthy=True)
    alloc = wait_for_alloc("http", "running")
    machine.wait_until_succeeds("curl -sS --fail --max-time 10 http://$(ip -4 -o address show dev eth0 | awk '{print $4}' | cut -d/ -f1):8181/", timeout=ALLOC_TIMEOUT_S)
    t.assertEqual(machine.succeed(f"cat /sys/fs/cgroup/nomad.slice/*/{alloc['ID']}.*.scope/cgroup.procs | wc -l").strip(), "1")
    stop_job("http")
