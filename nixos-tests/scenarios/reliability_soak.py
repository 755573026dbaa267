# /// scenario
# description = "Starts, ends, stops, signals and deaths of the plugin for a while; afterwards nothing has leaked."
# seconds = 125
# ///
# Looked at: processes, cgroups, mounts, descriptors, records, and the plugin's memory, also that of each plugin that replaced a
# killed one.
#
# EXEC2_SOAK_MINUTES: how long; the default is one minute. `make soak` runs 10.

import os
import time

from exec2.agent import PLUGIN_NAME, nomad, violations, wait_for_driver
from exec2.allocs import alloc_status, brief, messages, run_job
from exec2.cleanup import warm_up
from exec2.guest import AGENT_TIMEOUT_S, ALLOC_TIMEOUT_S, data_dir, descriptors, machine, pgrep, poll, subtest, t
from exec2.tasks import SHIMS, records

MINUTES = float(os.environ.get("EXEC2_SOAK_MINUTES", "1"))
ALLOCS = 8
ALLOC_DIRS = f"{data_dir()}/alloc"
# The allocator allocates its arenas during the first starts.
WARM_STARTS = 100
# What concurrent starts may add, and the allocator keeps: 104 KiB were seen; less than a huge page behind a thread's stack. The
# slope is judged after enough starts: 4 were seen.
GROWTH_MAX_KIB = 1024
SLOPE_MAX_KIB = 64  # for 1000 starts
SLOPE_MIN_STARTS = 3000

# Ends at once and is restarted, over and over: with 0 and 1, by a signal, and with processes left behind.
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
# Runs until it is stopped; half of the time it has to be killed.
POKED = """
job "poked" {
  type = "service"
  group "g" {
    restart {
      attempts = 100000
      interval = "24h"
      delay    = "100ms"
      mode     = "delay"
    }
    task "t" {
      driver       = "exec2"
      kill_timeout = "500ms"
      config {
        command = "sh"
        args = ["-c", <<-EOT
          echo >> $NOMAD_ALLOC_DIR/starts
          trap "echo >> $NOMAD_ALLOC_DIR/signals" USR1
          [ $(($(wc -l < $NOMAD_ALLOC_DIR/starts) % 2)) -eq 0 ] || trap "" INT
          while :; do sleep 1000 & wait; done
        EOT
        ]
      }
      resources {
        cpu    = 200
        memory = 32
      }
    }
  }
}
"""


def plugin():
    return int(machine.wait_until_succeeds(f"pgrep -f '{PLUGIN_NAME}'", timeout=AGENT_TIMEOUT_S).split()[0])


def lines(name):
    """How many lines tasks have written to files of this name."""
    return int(machine.succeed(f"{{ cat {ALLOC_DIRS}/*/alloc/{name} 2>/dev/null || true; }} | wc -l"))


def starts():
    return lines("starts")


pokes = dict.fromkeys(("signal", "restart", "stop and run"), 0)


def poke(number):
    """SignalTask, or StopTask by a restart, or StopTask and the first start of another allocation; counted if it finds the task
    running."""
    running = [alloc["ID"] for alloc in brief("poked") if alloc["ClientStatus"] == "running" and alloc["DesiredStatus"] == "run"]
    if not running:
        return
    if number % 4 == 3:
        nomad("job stop -detach poked")
        run_job(POKED)
        pokes["stop and run"] += 1
        return
    verb, kind = (f"restart {running[0]} t", "restart") if number % 4 == 1 else (f"signal -s SIGUSR1 {running[0]} t", "signal")
    if machine.execute(f"nomad alloc {verb}")[0] == 0:
        pokes[kind] += 1


def counts():
    """What has to be the same as before once no task is left."""
    return {
        "shims": len(pgrep(SHIMS)),
        "cgroups": int(machine.succeed("find /sys/fs/cgroup -name '*.t.scope' | wc -l")),
        "mounts": int(machine.succeed("grep -c alloc_mounts /proc/self/mountinfo || true")),
        "records": len(records()),
        "namespaces": int(machine.succeed("{ ls -l /proc/*/ns/pid 2>/dev/null || true; } | awk '{print $NF}' | sort -u | wc -l")),
    }


def sample(pid):
    """(starts, KiB of private memory, descriptors) now."""
    memory = int(machine.succeed(f"awk '/^RssAnon/ {{print $2}}' /proc/{pid}/status"))
    return starts(), memory, descriptors(pid)


def slope(samples):
    """Least squares, KiB for 1000 starts."""
    n = len(samples)
    mean_x, mean_y = sum(s[0] for s in samples) / n, sum(s[1] for s in samples) / n
    over = sum((s[0] - mean_x) * (s[1] - mean_y) for s in samples)
    under = sum((s[0] - mean_x) ** 2 for s in samples)
    return 1000 * over / under if under else 0.0


wait_for_driver()
# With the shim that waits for the next task.
warm_up()
before = counts()
idle = descriptors(plugin())

with subtest(f"churn for {MINUTES / 2:g} minutes"):
    run_job(CHURN)
    run_job(POKED)
    poll("it is warm", lambda: starts() >= WARM_STARTS, ALLOC_TIMEOUT_S)
    pid = plugin()
    samples = [sample(pid)]
    end = time.monotonic() + MINUTES * 30
    # Longer on a slow machine, until each kind of poke has hit a running task.
    while time.monotonic() < end or not (all(pokes.values()) and lines("signals")):
        t.assertLess(time.monotonic(), end + ALLOC_TIMEOUT_S, pokes)
        poke(len(samples))
        samples.append(sample(pid))
        time.sleep(0.5)
    t.assertEqual(plugin(), pid)
    done = samples[-1][0] - samples[0][0]
    rise = slope(samples)
    print(f"soak: {done} starts, {pokes}, private memory {samples[0][1]} to {samples[-1][1]} KiB, descriptors {samples[0][2]} to {samples[-1][2]}")
    t.assertGreater(done, 0)
    t.assertLess(max(memory for _, memory, _ in samples) - samples[0][1], GROWTH_MAX_KIB)
    if done >= SLOPE_MIN_STARTS:
        print(f"soak: slope {rise:.1f} KiB for 1000 starts")
        t.assertLess(rise, SLOPE_MAX_KIB)
    else:
        print(f"soak: slope {rise:.1f} KiB for 1000 starts, not judged: {done} starts are fewer than {SLOPE_MIN_STARTS}")

with subtest(f"and {MINUTES / 2:g} minutes more while the plugin is killed again and again"):
    first = starts()
    memory = []  # of each plugin at its end
    number = 0
    end = time.monotonic() + MINUTES * 30
    while time.monotonic() < end:
        rest = time.monotonic() + 3 + number % 4
        while time.monotonic() < rest:
            poke(number)
            number += 1
            time.sleep(0.5)
        pid = plugin()
        memory.append(sample(pid)[1])
        machine.succeed(f"kill -KILL {pid}")
    print(f"soak: {starts() - first} starts over {len(memory)} deaths of the plugin, each with at most {max(memory)} KiB of private memory")
    t.assertLess(max(memory), samples[0][1] + GROWTH_MAX_KIB)
    again = starts()
    poll("tasks are still started", lambda: starts() > again, ALLOC_TIMEOUT_S)
    for alloc in brief("churn") + brief("poked"):
        # Nomad gives an allocation up when the plugin dies twice during one start.
        if alloc["ClientStatus"] not in ("running", "pending") and alloc["DesiredStatus"] == "run":
            t.assertTrue([m for m in messages(alloc_status(alloc["ID"])) if "after driver exited unexpectedly" in m])

with subtest("nothing has leaked"):
    nomad("job stop -purge -detach churn")
    nomad("job stop -purge -detach poked")
    machine.execute("nomad system gc")
    poll("as before", lambda: counts() == before or print(counts(), "instead of", before), ALLOC_TIMEOUT_S)
    t.assertLessEqual(abs(descriptors(plugin()) - idle), 2)
    t.assertEqual(violations(), "")
