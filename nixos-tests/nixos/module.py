# /// scenario
# description = "The module with its defaults: the agent runs as root, has the plugin from the store, and the driver is at its strictest."
# ///
# The machine is in module.nix.

from exec2.agent import node, wait_for_driver
from exec2.allocs import EXAMPLES, logs, messages, run_job, stop_job, wait_for_alloc
from exec2.guest import machine, subtest, t

info = wait_for_driver(healthy=True)
attributes = node()["Attributes"]

with subtest("the plugin's defaults hold"):
    t.assertEqual(attributes["driver.exec2.unveil.defaults"], "true")
    t.assertEqual(attributes["driver.exec2.unveil.tasks"], "false")

with subtest("the agent runs as root and without Docker"):
    t.assertEqual(machine.succeed("ps -o user= -p $(systemctl show -P MainPID nomad.service)").strip(), "root")
    machine.fail("systemctl cat docker.service")

with subtest("the plugin is the program of the package"):
    plugin = machine.succeed("readlink /proc/$(pgrep -ox nomad-driver-ex)/exe").strip()
    t.assertRegex(plugin, r"^/nix/store/.*/bin/nomad-driver-exec2$")

with subtest("the plugin accepts the agent's configuration"):
    machine.succeed(f"{plugin} validate-config /etc/nomad.json")

with subtest("programs of the store run by the default unveils"):
    run_job(f"{EXAMPLES}/env.nomad.hcl")
    alloc = wait_for_alloc("env", "complete")
    t.assertIn("NOMAD_ALLOC_ID=", logs(alloc))
    stop_job("env")

with subtest("a job that unveils a path itself is refused"):
    run_job(f"{EXAMPLES}/http.nomad.hcl")
    alloc = wait_for_alloc("http", "failed")
    t.assertIn("unveil_by_task", " ".join(messages(alloc)))
    stop_job("http")
