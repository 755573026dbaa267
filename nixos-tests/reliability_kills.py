# The plugin is killed at random moments while short tasks start and end: each is accounted for exactly once.
#
# EXEC2_KILL_TASKS: how many tasks; an emulated CPU takes a minute or two for what is there without it. Use 500 with KVM.
# A run of which Nomad does not know would show as a shim, a cgroup or a record that stays.
import os

TASKS = int(os.environ.get("EXEC2_KILL_TASKS", "40"))
KILLS = max(8, TASKS // 5)
RUN = "/run/nomad-driver-exec2"
PLUGIN_NAME = "^/[^ ]*/nomad-driver-exec2$"
MANY_TIMEOUT_S = 400

# Nomad tries a start that the plugin's death cut off once more. If the plugin dies again meanwhile, it gives the allocation up:
# then nothing of it may run. A run whose start was cut off may have reached its end; it has no place in Nomad's account.
JOB = f"""
job "short" {{
  type = "batch"
  group "g" {{
    count = {TASKS}
    restart {{
      attempts = 20
      interval = "1h"
      delay    = "1s"
      mode     = "fail"
    }}
    reschedule {{
      attempts  = 0
      unlimited = false
    }}
    task "t" {{
      driver = "exec2"
      config {{
        command = "sh"
        args    = ["-c", "echo run >> $NOMAD_ALLOC_DIR/runs; sleep $((NOMAD_ALLOC_INDEX % 30)); echo end >> $NOMAD_ALLOC_DIR/ends"]
      }}
      resources {{
        cpu    = 20
        memory = 10
      }}
    }}
  }}
}}
"""

wait_for_driver()

with subtest(f"{TASKS} tasks, {KILLS} deaths of the plugin"):
    killer = f"for i in $(seq {KILLS}); do sleep $((4 + RANDOM % 4)).$((RANDOM % 10)); pkill -KILL -f '{PLUGIN_NAME}' && echo killed >> /tmp/kills || true; done"
    write("/tmp/killer", killer)
    machine.execute("bash /tmp/killer", check_output=False)
    run_job(JOB)

    def over():
        found = brief("short")
        return found if len(found) == TASKS and all(alloc["ClientStatus"] in TERMINAL for alloc in found) else None

    found = poll("all are over", over, MANY_TIMEOUT_S)
    print("deaths of the plugin:", machine.succeed("wc -l < /tmp/kills").strip())
    poll("the killer is done", lambda: machine.execute("pgrep -f '[/]tmp/killer'")[0] != 0, MANY_TIMEOUT_S)

with subtest("each has one verdict, and the true one"):
    complete = 0
    for alloc in found:
        events = task_state(alloc_status(alloc["ID"]))["Events"]
        ended = [event["ExitCode"] for event in events if event["Type"] == "Terminated"]
        if alloc["ClientStatus"] == "complete":
            complete += 1
            t.assertEqual(ended, [0], events)
            t.assertGreaterEqual(int(machine.succeed(f"wc -l < {data_dir()}/alloc/{alloc['ID']}/alloc/ends")), 1)
        else:
            t.assertEqual(ended, [], events)
            t.assertTrue([e for e in events if "after driver exited unexpectedly" in e["DisplayMessage"]], events)
    print(f"{complete} of {TASKS} complete; Nomad gave up the others, whose start met two deaths")
    t.assertGreater(complete, TASKS // 4)

with subtest("nobody is left who belongs to nobody"):
    machine.fail("pgrep -fa '^nomad-driver-exec2 shim$'")
    nomad("job stop -purge -detach short")
    nomad("system gc")
    # A task whose answer was lost with the plugin keeps its record for 5 minutes, in case Nomad asks; longer ones are ended then.
    poll("no records but lost answers'", lambda: machine.succeed(f"for d in $(ls {RUN}); do [ -e {RUN}/$d/answered ] || echo $d; done") == "", CLEANUP_TIMEOUT_S)
    print("lost answers:", machine.succeed(f"ls {RUN} | wc -l").strip())
    machine.wait_until_fails("ls -d /sys/fs/cgroup/nomad.slice/share.slice/*.scope", timeout=CLEANUP_TIMEOUT_S)
