# /// scenario
# description = "The guest itself: kernel, systemd, unified cgroups, and the Landlock ABI that the kernel's version promises."
# kernels = "any"
# across = "what the kernel provides: Landlock, cgroup v2, cgroup.kill"
# lsm = "any"
# nomad = "none"
# shares_boot = false
# seconds = 12
# ///

import errno

from exec2.guest import UNIT_TIMEOUT_S, landlock_abi, machine, subtest, t

# First release with each Landlock ABI (linux: Documentation/userspace-api/landlock.rst, "Previous limitations").
LANDLOCK_ABIS = [((5, 13), 1), ((5, 19), 2), ((6, 2), 3), ((6, 7), 4), ((6, 10), 5), ((6, 12), 6)]

machine.wait_for_unit("multi-user.target")
release = machine.succeed("uname -r").strip()
version = tuple(int(part) for part in release.split(".")[:2])

with subtest("systemd has started all units"):
    machine.wait_until_succeeds("systemctl is-system-running", timeout=UNIT_TIMEOUT_S)
    t.assertEqual(machine.succeed("systemctl --failed --no-legend --plain").strip(), "")

with subtest("the modules are those of the running kernel"):
    machine.succeed(f"test -e /run/booted-system || test -e /lib/modules/{release}/modules.dep")

with subtest("cgroup v2 is unified and has the controllers that the driver needs"):
    t.assertEqual(machine.succeed("stat -f -c %T /sys/fs/cgroup").strip(), "cgroup2fs")
    controllers = machine.succeed("cat /sys/fs/cgroup/cgroup.controllers").split()
    t.assertLessEqual({"cpu", "cpuset", "io", "memory", "pids"}, set(controllers))
    # Linux 5.14 and later have cgroup.kill.
    machine.succeed("mkdir /sys/fs/cgroup/boot-test")
    (machine.succeed if version >= (5, 14) else machine.fail)("test -e /sys/fs/cgroup/boot-test/cgroup.kill")
    machine.succeed("rmdir /sys/fs/cgroup/boot-test")

with subtest("the Landlock ABI follows from the kernel's version and lsm="):
    words = machine.succeed("cat /proc/cmdline").split()
    lsm = [word[len("lsm=") :].split(",") for word in words if word.startswith("lsm=")]
    off = bool(lsm) and "landlock" not in lsm[-1]
    abi = landlock_abi()
    expected = max([number for first, number in LANDLOCK_ABIS if version >= first], default=0)
    if expected == 0:
        t.assertEqual(abi, -errno.ENOSYS)
    elif off:
        t.assertEqual(abi, -errno.EOPNOTSUPP)
    elif version > LANDLOCK_ABIS[-1][0]:
        t.assertGreaterEqual(abi, expected)
    else:
        t.assertEqual(abi, expected)

with subtest("the programs that the scenarios use are installed"):
    machine.succeed("type ip iptables nft nc curl python3 java javac strace", "id alice", "test -x /usr/lib/cni/bridge || test ! -e /etc/debian_version")
    t.assertEqual(machine.succeed("id -u alice").strip(), "1001")
