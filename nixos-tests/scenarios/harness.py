# /// scenario
# description = "The driver-level harness: single tasks sent straight to the plugin, without an agent."
# across = "a second start in a cgroup that was killed"
# nomad = "pluginhost"
# guests = ["debian"]
# seconds = 34
# ///

import json

from exec2.agent import PLUGIN_NAME, wait_for_driver
from exec2.guest import CLEANUP_TIMEOUT_S, machine, pgrep, poll, subtest, t, write
from exec2.harness import harness, refusal, run_plugin
from exec2.tasks import SHIMS

wait_for_driver()
machine.succeed("systemctl stop nomad.service")

FOLDER = "/srv/harness"
UNKNOWN = "task not found for given id"  # Nomad compares the text
SLEEP = "echo out; echo err >&2; exec sleep 600"


def write_task(name, command, *args, config=None, **fields):
    """Writes the file of a task: `config` has further options of the driver, `fields` are those of TaskConfig."""
    path = f"{FOLDER}/{name}.json"
    write(path, json.dumps({"config": {"command": command, "args": list(args), **(config or {})}, "cpu": 500, "memory": 64, **fields}))
    return path


def processes(cgroup):
    return machine.succeed(f"cat {cgroup}/cgroup.procs").split()


web = write_task("web", "sh", "-c", SLEEP)

with subtest("start: a process of the dynamic user, in the cgroup that the harness made, with its own directories"):
    handle = harness(f"start {web}")["handle"]
    t.assertEqual(handle["state"], "RUNNING")
    config = handle["config"]
    cgroup = config["resources"]["linux_resources"]["cpuset_cgroup"]
    pid = poll("the task is in its cgroup", lambda: processes(cgroup), CLEANUP_TIMEOUT_S)[0]
    t.assertRegex(config["user"], r"^nomad-8\d{4}$")
    t.assertEqual(machine.succeed(f"stat -c %u /proc/{pid}").strip(), config["user"].removeprefix("nomad-"))
    t.assertEqual(machine.succeed(f"cat {cgroup}/memory.max").strip(), str(64 << 20))
    machine.succeed(f"mountpoint {config['env']['NOMAD_ALLOC_DIR']}")
    machine.wait_until_succeeds(f"pluginhost task logs {web} | grep -x out", timeout=CLEANUP_TIMEOUT_S)
    machine.wait_until_succeeds(f"pluginhost task logs -stderr {web} | grep -x err", timeout=CLEANUP_TIMEOUT_S)

with subtest("inspect and stats fail for an unknown task; stop and destroy succeed"):
    t.assertEqual(harness(f"inspect {web}")["task"]["state"], "RUNNING")
    t.assertGreater(int(harness(f"stats {web}")["stats"]["agg_resource_usage"]["memory"]["usage"]), 0)
    absent = write_task("absent", "true")
    for verb in "inspect", "stats", "wait", "signal -s SIGHUP":
        t.assertEqual(refusal(f"{verb} {absent}")["message"], UNKNOWN, verb)
    for verb in "stop", "destroy":
        t.assertEqual(harness(f"{verb} {absent}"), {}, verb)

with subtest("exec runs a command in the task, on either call; the scenario exec has the rest"):
    for way in "", "-stream ":
        answer = harness(f"exec {way}{web} -- sh -c 'id -u; exit 3'")
        t.assertEqual((answer["stdout"], answer["result"]["exit_code"]), (config["user"].removeprefix("nomad-") + "\n", 3), answer)
    t.assertTrue(harness("rpc Capabilities")["capabilities"]["exec"])

with subtest("the task outlives a SIGKILL of the plugin, and a new plugin recovers it"):
    killed = harness("plugin kill")["pid"]
    t.assertEqual(refusal(f"inspect {web}")["message"], UNKNOWN)
    t.assertNotEqual(harness("plugin pid")["pid"], killed)
    harness(f"recover {web}")
    t.assertEqual(harness(f"inspect {web}")["task"]["state"], "RUNNING")
    t.assertEqual(processes(cgroup), [pid])

with subtest("destroy of a running task needs force; stop ends it by the signal; wait has the result until destroy"):
    t.assertIn("force", refusal(f"destroy {web}")["message"])
    harness(f"stop -s SIGTERM -timeout 30s {web}")
    t.assertEqual(harness(f"wait -timeout {CLEANUP_TIMEOUT_S}s {web}")["result"], {"exit_code": 143, "signal": 15, "oom_killed": False})
    t.assertEqual(harness(f"inspect {web}")["task"]["state"], "EXITED")
    harness(f"destroy {web}")
    t.assertEqual(refusal(f"inspect {web}")["message"], UNKNOWN)

with subtest("a task that had to be killed starts again in the same cgroup"):
    again = write_task("again", "sh", "-c", SLEEP)
    cgroups = set()
    for _ in range(3):
        cgroups.add(harness(f"start {again}")["handle"]["config"]["resources"]["linux_resources"]["cpuset_cgroup"])
        (cgroup,) = cgroups
        poll("the task is in its cgroup", lambda: processes(cgroup), CLEANUP_TIMEOUT_S)
        machine.succeed(f"pluginhost task destroy -force {again}")
        t.assertEqual(processes(cgroup), [])
    machine.succeed(f"pluginhost task cleanup {again}")

with subtest("start errors say whether they are recoverable"):
    error = refusal(f"start {write_task('missing', '/nonexistent')}")
    t.assertIn("/nonexistent", error["message"])
    t.assertTrue(error["recoverable"])
    error = refusal(f"start {write_task('capable', 'true', config={'cap_add': ['sys_admin']})}")
    t.assertIn("allow_caps", error["message"])
    t.assertFalse(error["recoverable"])
    netns = {"network_isolation_spec": {"mode": "GROUP", "path": "/var/run/netns/gone"}}
    error = refusal(f"start {write_task('netns', 'true', **netns)}")
    t.assertIn("/var/run/netns/gone", error["message"])

with subtest("a task joins the network namespace that its file names, and without one it has the host's"):
    machine.succeed("ip netns add harness")
    netns = {"network_isolation_spec": {"mode": "GROUP", "path": "/var/run/netns/harness"}}
    inodes = set()
    for name, fields in ("host", {}), ("joined", netns):
        task_file = write_task(name, "readlink", "/proc/self/ns/net", **fields)
        harness(f"start {task_file}")
        t.assertEqual(harness(f"wait {task_file}")["result"]["exit_code"], 0)
        inodes.add(poll("the log", lambda: machine.succeed(f"pluginhost task logs {task_file}"), CLEANUP_TIMEOUT_S))
        harness(f"destroy {task_file}")
    t.assertEqual(len(inodes), 2)
    t.assertIn(f"net:[{machine.succeed('stat -Lc %i /proc/self/ns/net').strip()}]\n", inodes)

with subtest("the plugin block of an agent configuration is used: a task may read what it unveils, and nothing else"):
    machine.succeed(f"echo granted > {FOLDER}/granted; echo kept > {FOLDER}/kept")
    run_plugin(f'unveil_paths = ["r:{FOLDER}/granted"]')
    for name, code in ("granted", 0), ("kept", 1):
        task_file = write_task(f"cat-{name}", "cat", f"{FOLDER}/{name}")
        harness(f"start {task_file}")
        t.assertEqual(harness(f"wait {task_file}")["result"]["exit_code"], code, name)
        harness(f"destroy {task_file}")

with subtest("the plugin broke no rule of the protocol, and cleanup leaves nothing"):
    t.assertEqual(harness("violations"), [])
    for path in machine.succeed(f"ls {FOLDER}/*.json").split():
        machine.succeed(f"pluginhost task cleanup {path}")
    machine.succeed("pluginhost task plugin stop")
    t.assertEqual(machine.succeed("ls /var/lib/pluginhost/alloc /var/lib/pluginhost/alloc_mounts /var/lib/pluginhost/tasks | grep -v : || true").split(), [])
    t.assertEqual(machine.succeed("grep -c /var/lib/pluginhost /proc/self/mountinfo || true").strip(), "0")
    machine.fail(f"test -e {cgroup}")
    t.assertEqual(pgrep(PLUGIN_NAME) + pgrep(SHIMS), [])
