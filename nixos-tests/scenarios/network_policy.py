# /// scenario
# description = "network_policy: the ports of TCP and UDP that a task may bind and connect to, by number and by label, in host and bridge networks."
# across = "Landlock's rights for ports"
# nomad = "pluginhost"
# guests = ["debian"]
# seconds = 75
# ///
# Each way past the limits, on the kernel of the builder, is in tests/run_network.rs.

import json

from exec2.agent import configure_block, wait_for_driver
from exec2.allocs import logs, outcomes, run_job, stop_job, wait_for_alloc
from exec2.cli import run
from exec2.guest import ALLOC_TIMEOUT_S, landlock_abi, poll, subtest, t
from exec2.jobs import group, job, task

TCP_ABI, UDP_ABI = 4, 10
BRIDGE = 'network {\n mode = "bridge"\n port "http" { to = 8000 }\n }'
HOST = 'network {\n port "http" { to = 8000 }\n }'
# Tries each WAY:PORT, where the port may be the name of a variable, and prints the answers.
TRY = """
import errno, os, socket, sys
for argument in sys.argv[1:]:
    way, port = argument.split(":")
    there = ("127.0.0.1", int(os.environ.get(port, 0) or port))
    kind = socket.SOCK_DGRAM if way.endswith("_udp") else socket.SOCK_STREAM
    protocol = 262 if way.startswith("mptcp") else 0
    try:
        with socket.socket(socket.AF_INET, kind, protocol) as one:
            if "bind" in way:
                one.bind(there)
            elif way == "fast_open":
                one.sendto(b"x", 0x20000000, there)
            elif way == "send_udp":
                one.sendto(b"x", there)
            else:
                one.connect(there)
        answer = "ok"
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(way, answer, flush=True)
"""
# Two tasks of a group meet by a name in their network, and by a file in the directory that they share.
SERVE = """
import os, socket, time
servers = [socket.socket(socket.AF_UNIX) for _ in range(2)]
path = os.environ["NOMAD_ALLOC_DIR"] + "/meeting"
for server, where in zip(servers, ("\\0exec2-meeting", path)):
    server.bind(where)
    server.listen()
os.chmod(path, 0o777)
time.sleep(1000)
"""
MEET = """
import errno, os, socket, sys, time
for where in ("\\0exec2-meeting", os.environ["NOMAD_ALLOC_DIR"] + "/meeting"):
    for _ in range(int(sys.argv[1])):
        try:
            socket.socket(socket.AF_UNIX).connect(where)
            answer = "ok"
            break
        except OSError as error:
            answer = errno.errorcode[error.errno]
            time.sleep(0.1)
    print("answer", answer, flush=True)
"""
MEETING_TRIES = 600
UNKNOWN = "which is not the label of a port of the allocation (those are: http)"


def one(name, *ways, network=HOST, policy=None):
    """A group with one task, which tries these ways. `policy` has the lists of its network_policy."""
    text = task("t", "python3", "-c", TRY, *ways)
    if policy is not None:
        lists = "\n".join(f"{option} = {json.dumps(ports)}" for option, ports in policy.items())
        text = text.replace("config {", f"config {{\n network_policy {{\n{lists}\n }}\n", 1)
    return group(name, text, extra=network)


def answers(name, *groups):
    """The answers in each group, or why it did not start."""
    found = outcomes(name, *groups)
    return {key: [line.split()[1] for line in text.splitlines()] if exit_ else text for key, (text, exit_) in found.items()}


wait_for_driver()
abi = landlock_abi()

with subtest("tasks of a group that share a network meet by an abstract socket and by one in alloc/; those of another group do not"):
    pair = group("pair", task("server", "python3", "-c", SERVE), task("client", "python3", "-c", MEET, str(MEETING_TRIES)), extra=BRIDGE)
    run_job(job("meeting", pair, kind="service"))
    alloc = wait_for_alloc("meeting", "running")
    poll("the client has its answers", lambda: logs(alloc, "client") == "answer ok\nanswer ok\n", ALLOC_TIMEOUT_S)
    t.assertEqual(answers("alone", group("alone", task("t", "python3", "-c", MEET, "1"), extra=BRIDGE))["alone"], ["ECONNREFUSED", "ENOENT"])
    stop_job("meeting")

if abi < TCP_ABI:
    with subtest("a kernel without the rights: an error, or no limit and an event, as the agent says"):
        found = answers("old", one("job", "bind:0", policy={"bind": []}))
        t.assertIn(f"it needs Landlock ABI 4 (Linux 6.7), and this kernel has ABI {abi}", found["job"])
        configure_block('network_policy {\n bind = []\n unsupported = "ignore"\n }')
        t.assertEqual(answers("ignored", one("agent", "bind:0"))["agent"], ["ok"])
else:
    with subtest("a label is the port in the task's own network; other ports, variants of TCP and other labels are refused"):
        found = answers(
            "labels",
            one("free", "bind:NOMAD_HOST_PORT_http", "bind:8000", "bind:0", "connect:22"),
            one("host", "bind:NOMAD_HOST_PORT_http", "bind:8000", "bind:0", policy={"bind": ["http"]}),
            one("bridge", "bind:8000", "bind:NOMAD_HOST_PORT_http", "bind:0", network=BRIDGE, policy={"bind": ["http"]}),
            one("allocated", "bind:8000", "bind:9000", network=BRIDGE, policy={"bind": ["@allocated"]}),
            one("connect", "connect:1", "connect:22", "fast_open:22", "mptcp_connect:22", policy={"connect": ["1"]}),
            one("unknown", "bind:0", policy={"bind": ["htpp"]}),
        )
        free = found.pop("free")
        t.assertEqual(free[:3], ["ok"] * 3)
        t.assertIn(free[3], ["ok", "ECONNREFUSED"])
        t.assertIn(UNKNOWN, found.pop("unknown"))
        t.assertEqual(
            found,
            {
                "host": ["ok", "EACCES", "EACCES"],
                "bridge": ["ok", "EACCES", "EACCES"],
                "allocated": ["ok", "EACCES"],
                "connect": ["ECONNREFUSED", "EACCES", "ENOTSUP", "EPROTONOSUPPORT"],
            },
        )
    with subtest("the agent's lists hold for all tasks, and a job narrows them"):
        configure_block('network_policy {\n bind = ["@allocated", "8000-8009"]\n }')
        found = answers(
            "agent",
            one("default", "bind:NOMAD_HOST_PORT_http", "bind:8001", "bind:9000"),
            one("less", "bind:8001", "bind:8002", policy={"bind": ["8001"]}),
            one("more", "true", policy={"bind": ["8001", "9000"]}),
        )
        t.assertIn("network_policy.bind has 9000, and the agent's plugin option network_policy allows", found.pop("more"))
        t.assertEqual(found, {"default": ["ok", "ok", "EACCES"], "less": ["ok", "EACCES"]})

if abi >= UDP_ABI:
    with subtest("UDP has lists of its own, and who may send has a port for it"):
        free = run(f"-- python3 -c '{TRY}' bind_udp:9000 connect_udp:53 send_udp:53")
        t.assertEqual(free.split()[1::2], ["ok", "ok", "ok"])
        limited = run(f"--bind-udp 8000 --connect-udp 123 -- python3 -c '{TRY}' bind_udp:8000 bind_udp:9000 send_udp:123 connect_udp:53 send_udp:53 bind:9000")
        t.assertEqual(limited.split()[1::2], ["ok", "EACCES", "ok", "EACCES", "EACCES", "ok"])
