# /// scenario
# description = "Every job in examples/ does what its head says."
# across = "whole jobs: bridge networks, a JDK, limits"
# packages.debian = ["postgresql"]
# packages.nix = ["postgresql"]
# seconds = 260
# ///

import shlex

from exec2.agent import agent_command, run_agent, stand_in, wait_for_driver
from exec2.allocs import EXAMPLES, driver_errors, exits, logs, run_job, stop_job, wait_for_alloc, wait_for_groups, wait_for_log
from exec2.disks import mappable
from exec2.guest import ALLOC_TIMEOUT_S, landlock_abi, machine, subtest, t, write

wait_for_driver()
checked: set[str] = set()


def example(name, wanted, **variables):
    """Runs an example until it has the status `wanted`."""
    checked.add(name)
    run_job(f"{EXAMPLES}/{name}.nomad.hcl", variables)
    return wait_for_alloc(name, wanted)


def page(address):
    """The page of a web server in a task, once it listens."""
    return machine.wait_until_succeeds(f"curl -sS --fail --max-time 10 http://{address}/", timeout=ALLOC_TIMEOUT_S)


def host_address():
    return machine.succeed("ip -4 -o address show dev eth0").split()[3].split("/")[0]


with subtest("env: Nomad's variables, and a dynamic user's own"):
    alloc = example("env", "complete")
    environment = dict(line.split("=", 1) for line in logs(alloc).splitlines() if "=" in line)
    t.assertEqual(environment["NOMAD_ALLOC_ID"], alloc["ID"])
    t.assertEqual(environment["NOMAD_SHORT_ALLOC_ID"], alloc["ID"].split("-")[0])
    t.assertRegex(environment["USER"], r"^nomad-\d+$")
    t.assertEqual(environment["HOME"], environment["NOMAD_TASK_DIR"])
    t.assertRegex(environment["TMPDIR"], rf"/{alloc['ID']}-env/tmp$")
    t.assertFalse([name for name in environment if name.startswith("LD_")])
    stop_job("env")

with subtest("exit-code: the task's 7 is Nomad's 7"):
    alloc = example("exit-code", "failed")
    t.assertIn("about to exit with 7", logs(alloc))
    t.assertIn(7, [code for code, _ in exits(alloc)])
    stop_job("exit-code")

with subtest("http: serves the template on the host's network"):
    example("http", "running")
    t.assertIn("Served by python from its task directory.", page(f"{host_address()}:8181"))
    stop_job("http")
    machine.fail(f"curl -sS --max-time 10 http://{host_address()}:8181/")

with subtest("java: compiled by a prestart task, run by the main one"):
    alloc = example("java", "complete", javabin=machine.succeed("dirname $(type -p java)").strip())
    output = logs(alloc, "main")
    t.assertIn("hello from java", output)
    # The JVM takes its size from the task's cgroup: 1000 of the 2000 MHz of a core are one processor, and the heap gets a quarter
    # of 512 MiB, a little less if a part is reserved for the collector.
    seen = dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
    t.assertEqual(seen["processors"], "1")
    t.assertIn(int(seen["heap, MiB"]), range(96, 129))
    # so that a JVM that sees the host would have more of both
    t.assertGreater(int(machine.succeed("nproc")), 1)
    t.assertGreater(int(machine.succeed("awk '/^MemTotal/ { print $2 }' /proc/meminfo")), 4 * 160 * 1024)
    stop_job("java")

with subtest("resources: the limits are in the task's cgroup"):
    alloc = example("resources", "complete")
    limits = dict(line.split(": ", 1) for line in logs(alloc).splitlines())
    t.assertEqual(limits["memory.max"], str(250 * 1024 * 1024))
    t.assertEqual(limits["memory.low"], str(200 * 1024 * 1024))
    quota, period = limits["cpu.max"].split()
    t.assertEqual(period, "100000")
    t.assertLess(int(quota), 100000 * int(machine.succeed("nproc")))
    stop_job("resources")

with subtest("cores: one core of the reserved ones"):
    alloc = example("cores", "complete")
    allowed = dict(line.split(":", 1) for line in logs(alloc).splitlines())
    t.assertRegex(allowed["Cpus_allowed_list"].strip(), r"^\d+$")
    stop_job("cores")

with subtest("secrets: the task's token is readable, /var/log is not there"):
    alloc = example("secrets", "complete")
    output = logs(alloc)
    t.assertGreater(int(output.split("nomad_token: ")[1].split()[0]), 100)
    t.assertIn("/var/log: absent, as it should be", output)
    t.assertIn("No such file or directory", logs(alloc, stderr=True))
    stop_job("secrets")

with subtest("work-dir: a relative path is found"):
    alloc = example("work-dir", "complete")
    t.assertEqual(logs(alloc), "read by a relative path\n")
    stop_job("work-dir")

with subtest("capabilities: a dynamic user listens on port 80"):
    alloc = example("capabilities", "running")
    t.assertIn("Served on port 80 by a user who is not root.", page(f"{host_address()}:80"))
    t.assertNotEqual(machine.succeed("ps -o user:20= -C python3").strip(), "root")
    stop_job("capabilities")

with subtest("bridge: served from the group's own network namespace"):
    alloc = example("bridge", "running")
    port = next(port["Value"] for port in alloc["AllocatedResources"]["Shared"]["Ports"] if port["Label"] == "http")
    t.assertIn("Served from inside a network namespace.", page(f"{host_address()}:{port}"))
    machine.fail("nc -z -w 5 localhost 8000")
    stop_job("bridge")

with subtest("network-policy: in both networks, a port by its label and no other"):
    checked.add("network-policy")
    run_job(f"{EXAMPLES}/network-policy.nomad.hcl")
    groups = wait_for_groups("network-policy")
    t.assertEqual(set(groups), {"bridge", "host"})
    for name, alloc in groups.items():
        # ABI 4, with which a task can be limited, is in Linux 6.7.
        if landlock_abi() >= 4:
            t.assertEqual(logs(alloc, "client").splitlines(), ["http: answered", "port 22: denied"], name)
            t.assertEqual(logs(alloc, "server").splitlines()[0], "another port: denied", name)
        else:
            t.assertIn("it needs Landlock ABI 4 (Linux 6.7)", " ".join(driver_errors(alloc, "server")), name)
    stop_job("network-policy")

with subtest("dns: the task has the servers of the job"):
    alloc = example("dns", "complete")
    wanted = ["nameserver 192.0.2.53", "nameserver 192.0.2.54", "search service.example example", "options timeout:2 attempts:1"]
    t.assertEqual(logs(alloc).splitlines(), wanted)
    stop_job("dns")

with subtest("exec: the script of a template and an action run in the task; only Nomad itself calls them"):
    checked.add("exec")
    if not stand_in():
        machine.succeed("nomad var put -force nomad/jobs/exec greeting=first")
        example("exec", "running")
        machine.succeed("nomad var put -force nomad/jobs/exec greeting=second")
        show = "nomad action -job exec -group group -task main -t=false -i=false show"
        machine.wait_until_succeeds(f"{show} | grep -x second", timeout=ALLOC_TIMEOUT_S)
        stop_job("exec")

# Only Nomad itself starts device plugins: the scenario devices_nomad.
checked.add("device")

VOLUMES = """
client {
  host_volume "exec2-example" {
    path = "/srv/exec2-example"
  }
  host_volume "exec2-postgres" {
    path = "/srv/exec2-postgres"
  }
}
"""
OWNER = 900

mappable("/srv")
machine.succeed(f"install -d -o {OWNER} -g {OWNER} -m 700 /srv/exec2-example /srv/exec2-postgres")
write("/run/volumes.hcl", VOLUMES)
run_agent(f"{agent_command()} -config=/run/volumes.hcl")

with subtest("volume: another uid owns the file of the first run; on disk it belongs to the volume's owner"):
    users = set()
    for number in 1, 2:
        output = logs(example("volume", "complete")).splitlines()
        lines = [line for line in output if line.startswith("written as")]
        t.assertEqual((len(lines), output[-1]), (number, "all of it is this task's"))
        users.add(lines[-1])
        stop_job("volume")
    t.assertEqual(machine.succeed("stat -c %u:%g /srv/exec2-example/lines").strip(), f"{OWNER}:{OWNER}")
    print(users)

with subtest("postgres: a database that outlives its user"):
    programs = machine.succeed("dirname $(type -p initdb || ls /usr/lib/postgresql/*/bin/initdb)").strip()
    uids = []
    for number in 1, 2:
        alloc = example("postgres", "running", bin=programs)
        wait_for_log(alloc, "ready to accept connections", "server", stderr=True)
        uids.append(machine.succeed("stat -c %u /proc/$(pgrep -ox postgres)").strip())
        if not stand_in():
            query = {1: "create table kept (n int); insert into kept values (42)", 2: "select n from kept"}[number]
            shell = f"nomad alloc exec -i=false -t=false -task server {alloc['ID']} psql --host=/tmp -U postgres -tAc {shlex.quote(query)}"
            t.assertEqual(machine.succeed(shell).split()[-1], {1: "1", 2: "42"}[number])
        stop_job("postgres")
        t.assertEqual(machine.succeed("find /srv/exec2-postgres -printf '%u:%g\\n' | sort -u").split(), [f"{OWNER}:{OWNER}"])
    print("uids:", uids)

with subtest("no example was left out"):
    files = machine.succeed(f"ls {EXAMPLES}").split()
    t.assertEqual({name[: -len(".nomad.hcl")] for name in files if name.endswith(".nomad.hcl")}, checked)
