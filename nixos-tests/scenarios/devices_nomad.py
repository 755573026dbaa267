# /// scenario
# description = "Devices under Nomad: a device plugin's node, mount and environment, in a task and its sessions, and not without `device`."
# nomad = "real"
# guests = ["debian"]
# payload = ["pluginhost"]
# seconds = 130
# timeout_s = 1200
# ///
# What a device is in the task is the scenario `devices`. The device plugin is a command of the pluginhost.

from exec2.agent import agent_command, node, nomad, run_agent
from exec2.allocs import EXAMPLES, driver_errors, logs, run_job, stop_job, wait_for_alloc
from exec2.guest import AGENT_TIMEOUT_S, ALLOC_TIMEOUT_S, machine, poll, subtest, t, write
from exec2.jobs import group, job, task

ROOT, SHARE = "/srv/exec2-devices", "/usr/local/exec2-share"
DEVICES = 'device "exec2/test/zero" {{\n count = {}\n}}\n'
# The task has one device or none, by whatever name the plugin gives it.
SCRIPT = f"""
id -u
echo "env: $EXEC2_TEST_DEVICES"
for node in /dev/exec2/*; do
  head -c 2 $node | wc -c
  echo x > $node && echo written
done
cat {SHARE}/file
touch {SHARE}/new
"""


def run(name, script, count, wanted="complete", kind="batch"):
    """The allocation of a job that runs the script with so many devices."""
    devices = DEVICES.format(count) if count else ""
    run_job(job(name, group("g", task("t", "sh", "-c", script, resources=devices)), kind=kind))
    return wait_for_alloc(name, wanted)


# Below /dev, as device files elsewhere may have no effect; for a group that no dynamic user is in.
machine.succeed(
    f"mkdir -p {ROOT}/share; echo content > {ROOT}/share/file; mkdir -p /dev/exec2-nodes; ln -s /dev/exec2-nodes {ROOT}/nodes",
    "for name in a b; do mknod -m 660 /dev/exec2-nodes/$name c 1 5; done",
    "cp $(command -v pluginhost) /opt/nomad/data/plugins/exec2-device",
)
write("/run/devices.hcl", f'plugin "exec2-device" {{\n args = ["device-plugin", "{ROOT}", "{SHARE}"]\n}}\n')
run_agent(f"{agent_command()} -config=/run/devices.hcl")


def offered():
    """The ids of the devices that the node has."""
    resources = (node().get("NodeResources") or {}).get("Devices") or []
    return [instance["ID"] for found in resources for instance in found["Instances"]]


with subtest("the node has the devices of the plugin"):
    t.assertEqual(sorted(poll("the devices", offered, AGENT_TIMEOUT_S)), ["a", "b"])

with subtest("a job with a device reads and writes it, and has the plugin's environment and mount"):
    alloc = run("with", f"{{ {SCRIPT} }} 2>&1; exit 0", 1)
    uid, env, *rest = poll("the log", lambda: "new" in (found := logs(alloc)) and found, ALLOC_TIMEOUT_S).splitlines()
    t.assertGreaterEqual(int(uid), 80000)
    t.assertRegex(env, "^env: [ab]$")
    t.assertEqual(rest[:3], ["2", "written", "content"])
    t.assertIn("Read-only file system", rest[3])
    stop_job("with")

with subtest("a job without a device has neither"):
    alloc = run("without", f"ls /dev/exec2 /dev/exec2-nodes {SHARE} 2>&1; echo \"env: $EXEC2_TEST_DEVICES\"", 0)
    output = poll("the log", lambda: "env" in (found := logs(alloc)) and found, ALLOC_TIMEOUT_S)
    t.assertEqual(output.count("No such file or directory"), 3, output)
    t.assertIn("env: \n", output)
    stop_job("without")

with subtest("both devices in one task; sessions have them; a restart of the task, and of the agent"):
    alloc = run("both", "ls /dev/exec2 && exec sleep 36000", 2, wanted="running", kind="service")
    look = f"nomad alloc exec -t=false -i=false {alloc['ID']} sh -c 'head -qc 1 /dev/exec2/a /dev/exec2/b | wc -c; echo x > /dev/exec2/a && cat {SHARE}/file'"
    wanted = ["2", "content"]
    t.assertEqual(machine.succeed(look).split(), wanted)
    nomad(f"alloc restart {alloc['ID']}")
    machine.wait_until_succeeds(f"nomad alloc logs {alloc['ID']} | wc -l | grep -qx 4", timeout=ALLOC_TIMEOUT_S)
    t.assertEqual(machine.succeed(look).split(), wanted)
    machine.succeed("systemctl restart nomad.service")
    machine.wait_until_succeeds(look, timeout=ALLOC_TIMEOUT_S)
    # https://github.com/hashicorp/nomad/issues/9473
    nomad(f"alloc restart {alloc['ID']}")
    t.assertIn("Nomad forgot its devices", " ".join(driver_errors(wait_for_alloc("both", "failed"))))
    t.assertEqual(logs(alloc).split(), ["a", "b"] * 2)
    stop_job("both")

with subtest("the example, with this device"):
    machine.succeed(f"sed 's,nvidia/gpu,exec2/test/zero,' {EXAMPLES}/device.nomad.hcl > /tmp/device.nomad.hcl")
    nomad("job run -detach -var nodes=/dev/exec2 -var 'unveil=[]' /tmp/device.nomad.hcl")
    alloc = wait_for_alloc("device", "complete")
    output = poll("the log", lambda: logs(alloc), ALLOC_TIMEOUT_S)
    t.assertRegex(output, r"(?m)^crw-rw---- +1 root +\S+ +1, +5 .* [ab]$")
    t.assertGreaterEqual(int(output.split()[-1]), 80000)
    stop_job("device")

with subtest("the nodes of the host are as they were"):
    t.assertEqual(machine.succeed("stat -c '%a %t:%T' /dev/exec2-nodes/a").strip(), "660 1:5")
    machine.fail("test -e /dev/exec2")
