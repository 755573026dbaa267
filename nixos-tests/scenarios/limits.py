# /// scenario
# description = "Limits that a job or the operator sets, other ones for a namespace, and users that the operator denies."
# across = "swap, pids and CPU weights of cgroups"
# nomad = "both"
# guests = ["debian"]
# seconds = 150
# timeout_s = 1800
# ///
# Each limit has a task that it stops and one that a higher limit lets through; each request has one that the agent refuses.

import json

from exec2.agent import configure_block, wait_for_driver
from exec2.allocs import outcomes, run_job, stop_job, wait_for_groups, wait_for_log
from exec2.cli import run
from exec2.guest import machine, subtest, t
from exec2.jobs import group, job, task

CGROUP = "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)"
SHOW = f"for f in pids.max memory.swap.max cpu.max cpu.weight; do cat {CGROUP}/$f; done"
ULIMITS = "ulimit -Sn; ulimit -Hn; ulimit -Hc"
# Starts children until the kernel refuses one, and says how many there were.
FORKS = """
import os, time
n = 0
try:
    while n < 40:
        if os.fork() == 0:
            time.sleep(1000)
        n += 1
except BlockingIOError:
    pass
print(n, flush=True)
os._exit(0)
"""
# More than the task's 64 MiB, and less.
FILL = "x = bytearray(100 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\nprint('filled', flush=True)"
HOLD = FILL.replace("100", "40").replace("filled", "held") + "\nimport time; time.sleep(36000)"


def one(name, *command, ulimit=None, user=None, memory=64, **config):
    """A group with one task. `ulimit` has the lines of that block."""
    text = task("t", *command, memory=memory, extra=f"user = {json.dumps(user)}" if user else "", **config)
    if ulimit:
        text = text.replace("config {", f"config {{\n ulimit {{\n{ulimit}\n }}\n", 1)
    return group(name, text)


wait_for_driver()

with subtest("without options: the defaults, up to which a job may ask; swap is not used, and a fork bomb ends"):
    machine.succeed("truncate -s 512M /var/tmp/swap; modprobe loop; l=$(losetup -f --show /var/tmp/swap); mkswap -q $l; swapon $l")
    own = machine.succeed("systemctl show nomad.service -p LimitNOFILE --value").strip()
    found = outcomes(
        "defaults",
        one("shown", "sh", "-c", SHOW),
        one("less", "sh", "-c", f"{SHOW}; {ULIMITS}", pids_max=100, ulimit='nofile = "100:200"\ncore = "0"'),
        one("forks", "python3", "-c", FORKS, pids_max=20),
        one("no-forks", "python3", "-c", FORKS, pids_max=100),
        one("fill", "python3", "-c", FILL),
        one("more-pids", "true", pids_max=8193),
        one("no-pids", "true", pids_max=0),
        one("swap", "true", memory_swap=1),
        one("soft", "true", cpu_hard_limit=False),
        one("files", "true", ulimit='nofile = "unlimited"' if own != "infinity" else 'memlock = "unlimited"'),
        one("order", "true", ulimit='nofile = "4096:1024"'),
        one("nobody", "true", user="nobody"),
        one("root", "id", "-u", user="root"),
    )
    pids, swap, cpu, weight = found["shown"].text.splitlines()
    t.assertEqual((pids, swap), ("8192", "0"))
    t.assertRegex(cpu, r"^\d+ 100000$")
    # 500 MHz
    t.assertEqual(weight, "58")
    t.assertEqual(found["less"].text.split()[:2], ["100", "0"])
    t.assertEqual(found["less"].text.split()[-3:], ["100", "200", "0"])
    t.assertEqual(found["forks"].text, "19\n")
    t.assertEqual(found["no-forks"].text, "40\n")
    t.assertEqual(found["fill"], ("", (137, 9)))
    for name, why in {
        "more-pids": "pids_max = 8193 is not allowed, because the agent's plugin option pids_max is 8192",
        "no-pids": "pids_max = 0 is not allowed",
        "swap": "memory_swap = 1 is not allowed, because the agent's plugin option memory_swap is 0",
        "soft": "cpu_hard_limit = false is not allowed",
        "files": "the highest hard limit that is allowed",
        "order": "the soft limit is above the hard limit",
        "nobody": "uid 65534, which the agent's plugin option denied_host_uids denies",
    }.items():
        t.assertIn(why, found[name].text)
        t.assertEqual(found[name].exit, None)
    t.assertEqual(found["root"], ("0\n", (0, 0)))

with subtest("the operator's: limits for all tasks, more for those that ask, and denied users"):
    gid = machine.succeed("getent group video").split(":")[2]
    machine.succeed(f"echo 'victor:x:70000:{gid}::/:/bin/sh' >> /etc/passwd")
    alice = machine.succeed("id -u alice").strip()
    configure_block(f"""
      ulimit {{
        nofile  = "128:256"
        memlock = "unlimited"
      }}
      pids_max         = 0
      memory_swap      = 256
      cpu_hard_limit   = false
      allow_root       = false
      denied_host_uids = "{alice}"
      denied_host_gids = "1-{gid}"
    """)
    found = outcomes(
        "operators",
        one("shown", "sh", "-c", f"{SHOW}; {ULIMITS}; ulimit -Hl"),
        one("asked", "sh", "-c", f"{SHOW}; {ULIMITS}", pids_max=7, memory_swap=0, cpu_hard_limit=True, ulimit='nofile = "256"'),
        one("swap", "true", memory_swap=257),
        one("files", "true", ulimit='nofile = "257"'),
        one("root", "true", user="root"),
        one("alice", "true", user="alice"),
        one("group", "true", user="victor"),
        one("nobody", "id", "-u", user="nobody"),
    )
    t.assertEqual(found["shown"].text.split(), ["max", str(256 << 20), "max", "100000", "58", "128", "256", *found["shown"].text.split()[-2:]])
    t.assertEqual(found["shown"].text.split()[-1], "unlimited")
    pids, swap, quota, period, weight, *files = found["asked"].text.split()
    t.assertEqual((pids, swap, period, weight, files[:2]), ("7", "0", "100000", "58", ["256", "256"]))
    t.assertRegex(quota, r"^\d+$")
    t.assertEqual(found["nobody"], ("65534\n", (0, 0)))
    for name, why in {
        "swap": "memory_swap = 257 is not allowed, because the agent's plugin option memory_swap is 256",
        "files": 'ulimit nofile = "257" is above 256',
        "root": "allow_root is false",
        "alice": f"uid {alice}, which the agent's plugin option denied_host_uids denies",
        "group": f"gid {gid}, which the agent's plugin option denied_host_gids denies",
    }.items():
        t.assertIn(why, found[name].text)

with subtest("weights, bursts, memory.high and disks; and a policy for the job's namespace"):
    disk = machine.succeed("losetup -n -O NAME -j /var/tmp/swap").strip()
    number = machine.succeed(f"cat /sys/class/block/{disk.removeprefix('/dev/')}/dev").strip()
    more = f"for f in cpu.weight cpu.max cpu.max.burst memory.high io.weight io.max; do echo $f; cat {CGROUP}/$f; done"
    configure_block(f"""
      cpu_weight_max = 1
      cpu_burst      = 10
      pids_max       = 5
      io_max         = ["{disk} rbps=2097152 wbps=1048576"]
      namespace "default" {{
        cpu_weight_max = 200
        pids_max       = 77
      }}
      namespace "other" {{ pids_max = 9 }}
    """)
    asked = {"cpu_weight": 200, "cpu_burst": 5, "memory_high": 32, "io_weight": 50}
    found = outcomes(
        "weights",
        one("plain", "sh", "-c", f"cat {CGROUP}/pids.max; {more}"),
        one("asked", "sh", "-c", more, io_max=[f"{disk} rbps=1048576 wbps=2097152 wiops=10"], **asked),
        one("weight", "true", cpu_weight=201),
        one("burst", "true", cpu_burst=11),
        one("share", "true", io_weight=101),
        one("disk", "true", io_max=["/dev/null rbps=1"]),
        one("path", "true", io_max=["/etc/passwd rbps=1"]),
    )

    def shown(text):
        return {name: text.split(f"{name}\n", 1)[1].splitlines()[0] for name in ("cpu.weight", "cpu.max.burst", "memory.high", "io.weight", "io.max")}

    quota = int(found["plain"].text.split("cpu.max\n")[1].split()[0])
    t.assertEqual(found["plain"].text.split()[0], "77")
    plain = {"cpu.weight": "58", "cpu.max.burst": str(quota // 100 * 10), "memory.high": "max", "io.weight": "default 100"}
    t.assertEqual(shown(found["plain"].text), {**plain, "io.max": f"{number} rbps=2097152 wbps=1048576 riops=max wiops=max"})
    wanted = {"cpu.weight": "200", "cpu.max.burst": str(quota // 100 * 5), "memory.high": str(32 << 20), "io.weight": "default 50"}
    t.assertEqual(shown(found["asked"].text), {**wanted, "io.max": f"{number} rbps=1048576 wbps=1048576 riops=max wiops=10"})
    for name, why in {
        "weight": "cpu_weight = 201 is not allowed: the most for this task is 200",
        "burst": "cpu_burst = 11 is not allowed, because the agent's plugin option cpu_burst is 10",
        "share": "io_weight = 101 is not allowed, because the agent's plugin option io_weight is 100",
        "disk": "Block device required",
        "path": 'task option io_max[0] "/etc/passwd rbps=1": it begins with no disk',
    }.items():
        t.assertIn(why, found[name].text)
        t.assertEqual(found[name].exit, None)
    configure_block("memory_swap = 256")

with subtest("what the kernel has to reclaim is swapped out, but not from a task that may use no swap"):
    run_job(job("swapping", one("swap", "python3", "-c", HOLD), one("none", "python3", "-c", HOLD, memory_swap=0), kind="service"))
    for name, alloc in wait_for_groups("swapping", {"swap": "running", "none": "running"}).items():
        wait_for_log(alloc, "held")
        cgroup = machine.succeed(f"ls -d /sys/fs/cgroup/nomad.slice/share.slice/{alloc['ID']}.t.scope").strip()
        # It may reclaim less than that and say so.
        machine.execute(f"echo 20M > {cgroup}/memory.reclaim")
        swapped = int(machine.succeed(f"cat {cgroup}/memory.swap.current"))
        (t.assertGreater if name == "swap" else t.assertEqual)(swapped, 0)
    stop_job("swapping")

with subtest("run has no limits but those that it is given"):
    t.assertEqual(run("--memory 64 --ulimit nofile=100:200 -- sh -c 'ulimit -Sn; ulimit -Hn'"), "100\n200\n")
    t.assertEqual(run("--memory 64 -- python3 -c " + '"import os; x = bytearray(100 << 20); print(len(x))"'), f"{100 << 20}\n")
    t.assertEqual(run("--user nobody -- id -u"), "65534\n")
