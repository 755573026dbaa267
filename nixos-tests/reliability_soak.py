# Churn for a while, then nothing has leaked: processes, cgroups, mounts, descriptors, records; memory is flat.
# needs: pluginhost
#
# EXEC2_SOAK_MINUTES: how long; one minute without it. `make soak` has 10.
import os

MINUTES = float(os.environ.get("EXEC2_SOAK_MINUTES", "1"))
ALLOCS = 8
PLUGIN_NAME = "^/[^ ]*/nomad-driver-exec2$"
RUN = "/run/nomad-driver-exec2"
# The allocator takes its arenas in the first starts.
WARM_STARTS = 100
# After that: what a page or two of the allocator's own may add in a short run, and the slope that a longer one may have.
GROWTH_MAX_KIB = 1024
SLOPE_MAX_KIB = 64  # for 1000 starts

# Ends at once and is started again, over and over; every seventh forks, every third is signalled before it ends.
CHURN = f"""
job "churn" {{
  type = "service"
  group "g" {{
    count = {ALLOCS}
    restart {{
      attempts = 100000
      interval = "24h"
      delay    = "100ms"
      mode     = "delay"
    }}
    task "t" {{
      driver       = "exec2"
      kill_timeout = "1s"
      config {{
        command = "sh"
        args = ["-c", <<-EOT
          echo >> $NOMAD_ALLOC_DIR/starts
          n=$(wc -l < $NOMAD_ALLOC_DIR/starts)
          [ $((n % 7)) -ne 0 ] || setsid sh -c 'sleep 1000 & sleep 1000' &
          [ $((n % 3)) -ne 0 ] || kill -TERM $$
          exit $((n % 2))
        EOT
        ]
      }}
      resources {{
        cpu    = 200
        memory = 32
      }}
    }}
  }}
}}
"""


def plugin():
    return machine.wait_until_succeeds(f"pgrep -f '{PLUGIN_NAME}'", timeout=AGENT_TIMEOUT_S).split()[0]


def starts():
    return int(machine.succeed("{ cat /opt/nomad/data/alloc/*/alloc/starts 2>/dev/null || true; } | wc -l"))


def counts():
    """What must be as before when no task is left."""
    return {
        "shims": int(machine.execute("pgrep -fc '^nomad-driver-exec2 shim$'")[1]),
        "cgroups": int(machine.succeed("find /sys/fs/cgroup -name '*.t.scope' | wc -l")),
        "mounts": int(machine.succeed("grep -c alloc_mounts /proc/self/mountinfo || true")),
        "records": int(machine.execute(f"ls {RUN} 2>/dev/null | wc -l")[1]),
        "namespaces": int(machine.succeed("{ ls -l /proc/*/ns/pid 2>/dev/null || true; } | awk '{print $NF}' | sort -u | wc -l")),
    }


def sample(pid):
    """(starts, KiB of private memory, descriptors) at the moment."""
    memory = int(machine.succeed(f"awk '/^RssAnon/ {{print $2}}' /proc/{pid}/status"))
    return starts(), memory, int(machine.succeed(f"ls /proc/{pid}/fd | wc -l"))


def slope(samples):
    """Least squares, KiB for 1000 starts."""
    n = len(samples)
    mean_x, mean_y = sum(s[0] for s in samples) / n, sum(s[1] for s in samples) / n
    over = sum((s[0] - mean_x) * (s[1] - mean_y) for s in samples)
    under = sum((s[0] - mean_x) ** 2 for s in samples)
    return 1000 * over / under if under else 0.0


wait_for_driver()
before = counts()
idle = int(machine.succeed(f"ls /proc/{plugin()}/fd | wc -l"))

with subtest(f"churn for {MINUTES / 2:g} minutes"):
    run_job(CHURN)
    poll("it is warm", lambda: starts() >= WARM_STARTS, ALLOC_TIMEOUT_S)
    pid = plugin()
    samples = [sample(pid)]
    end = time.monotonic() + MINUTES * 30
    while time.monotonic() < end:
        time.sleep(2)
        samples.append(sample(pid))
    t.assertEqual(plugin(), pid)
    done = samples[-1][0] - samples[0][0]
    rise = slope(samples)
    print(f"soak: {done} starts, private memory {samples[0][1]} to {samples[-1][1]} KiB, slope {rise:.1f} KiB for 1000 starts, descriptors {samples[0][2]} to {samples[-1][2]}")
    t.assertGreater(done, 0)
    t.assertLess(samples[-1][1] - samples[0][1], GROWTH_MAX_KIB)
    if done >= 3000:
        t.assertLess(rise, SLOPE_MAX_KIB)

with subtest(f"and {MINUTES / 2:g} minutes more while the plugin is killed again and again"):
    first = starts()
    seconds = int(MINUTES * 30)
    machine.succeed(
        f"cd /; end=$((SECONDS + {seconds})); kills=0; while [ $SECONDS -lt $end ]; do sleep $((3 + RANDOM % 4)).$((RANDOM % 10));"
        f" pkill -KILL -f '{PLUGIN_NAME}' && kills=$((kills + 1)) || true; done; echo $kills > /tmp/kills",
        timeout=seconds + 120,
    )
    kills = int(machine.succeed("cat /tmp/kills"))
    print(f"soak: {starts() - first} starts over {kills} deaths of the plugin")
    t.assertGreater(kills, 0)
    again = starts()
    poll("tasks are still started", lambda: starts() > again, ALLOC_TIMEOUT_S)
    for alloc in brief("churn"):
        # Nomad gives an allocation up when the plugin dies twice during one start.
        if alloc["ClientStatus"] not in ("running", "pending"):
            t.assertTrue([m for m in messages(alloc_status(alloc["ID"])) if "after driver exited unexpectedly" in m])

with subtest("nothing has leaked"):
    nomad("job stop -purge -detach churn")
    machine.execute("nomad system gc")
    poll("as before", lambda: counts() == before or print(counts(), "instead of", before), ALLOC_TIMEOUT_S)
    t.assertLessEqual(abs(int(machine.succeed(f"ls /proc/{plugin()}/fd | wc -l")) - idle), 2)
    t.assertEqual(machine.execute("pluginhost violations")[1], "")
