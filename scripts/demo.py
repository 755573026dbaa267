# /// scenario
# description = "The demo: runs two example jobs in the guest and shows each command with its output."
# ///
# `make demo` runs it by nixos-tests/run. It writes to the terminal itself, since a scenario's own print goes to its log.

import sys

from exec2.agent import node, wait_for_driver
from exec2.allocs import EXAMPLES, messages, wait_for_alloc
from exec2.guest import CLEANUP_TIMEOUT_S, machine, t


def say(text):
    sys.stdout.write(f"\n\033[1m{text}\033[0m\n" if sys.stdout.isatty() else f"\n{text}\n")
    sys.stdout.flush()


def indented(text):
    for line in text.rstrip().splitlines():
        sys.stdout.write(f"    {line}\n")
    sys.stdout.flush()


def show(command, run=None):
    """The command as one would type it, then what it printed."""
    sys.stdout.write(f"  # {command}\n")
    sys.stdout.flush()
    output = (run or machine.succeed)(f"{{ {command}; }} 2>&1")
    indented(output)
    return output


say("Booting a virtual machine")
machine.wait_for_unit("multi-user.target")
show("uname -sr")
show("nomad-driver-exec2 check")

say("Nomad finds the driver")
info = wait_for_driver(healthy=True)
indented(f"exec2: {info['HealthDescription']}")
indented("\n".join(f"{name} = {value}" for name, value in sorted(node()["Attributes"].items()) if name.startswith("driver.exec2.")))

say("A batch job: env, as a user that exists for this task only")
show(f"nomad job run -detach {EXAMPLES}/env.nomad.hcl")
alloc = wait_for_alloc("env", "complete")
indented("\n".join(messages(alloc)))
output = show(f"nomad alloc logs {alloc['ID']}")
t.assertRegex(output, r"(?m)^USER=nomad-\d+$")

say("A service: Python's web server")
show(f"nomad job run -detach {EXAMPLES}/http.nomad.hcl")
alloc = wait_for_alloc("http", "running")
machine.wait_for_open_port(8181)
t.assertIn("Served by python", show("curl -s http://localhost:8181/"))

say("It is an ordinary process, in a cgroup that holds it and nothing else")
scope = machine.succeed(f"ls -d /sys/fs/cgroup/nomad.slice/*/{alloc['ID']}.python.scope").strip()
show(f"cd {scope}; ps -o pid,user,args $(cat cgroup.procs)")
show(f"cd {scope}; grep . memory.max memory.current cpu.max")

say("It sees what it was unveiled, and no more: the same sandbox without Nomad")
show("nomad-driver-exec2 run --user alice -- cat /etc/hostname")
t.assertNotIn("daemon:", show("nomad-driver-exec2 run --user alice -- cat /etc/passwd"))
show("nomad-driver-exec2 run --user alice -- ls /var/log", run=machine.fail)
show("nomad-driver-exec2 run --user alice --unveil r:/var/log -- ls /var/log")

say("Stopping it")
show("nomad job stop -purge -detach http")
machine.wait_for_closed_port(8181)
machine.wait_until_succeeds(f"! ls -d {scope} 2>/dev/null", timeout=CLEANUP_TIMEOUT_S)
indented("the port is closed and the cgroup is gone")
