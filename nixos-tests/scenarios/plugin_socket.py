# /// scenario
# description = "The plugin's socket serves processes of the host, and no task, whatever user it runs as."
# across = "the two ways to identify a peer"
# seconds = 17
# ///

import base64

from exec2.agent import plugin_pid, wait_for_driver
from exec2.allocs import logs, run_job, wait_for_alloc
from exec2.guest import machine, subtest, t
from exec2.jobs import group, job, task

wait_for_driver()
plugin = plugin_pid()
socket = machine.succeed("ls /tmp/exec2-*/plugin.sock").strip()

# BasePlugin/SetConfig as gRPC has it: no compression, the length, and field 1 of the request: {"unveil_by_task": true} in MessagePack.
CONFIG = b"\x81\xaeunveil_by_task\xc3"
REQUEST = b"\x0a" + bytes([len(CONFIG)]) + CONFIG
BODY = base64.b64encode(b"\0" + len(REQUEST).to_bytes(4, "big") + REQUEST).decode()
CALL = (
    f"echo {BODY} | base64 -d | curl -sS -D - -o /dev/null --max-time 60 --http2-prior-knowledge --unix-socket {socket}"
    " -X POST -H content-type:application/grpc -H te:trailers --data-binary @-"
    " http://unused/hashicorp.nomad.plugins.base.proto.BasePlugin/SetConfig"
)


def warnings():
    return int(machine.execute("journalctl -b -u nomad.service -o cat --no-pager | grep -ac 'from another PID namespace'")[1])


with subtest("a process of the host is served"):
    t.assertIn("grpc-status: 0", machine.succeed(CALL))
    t.assertEqual(warnings(), 0)

CONNECT = f"import socket; socket.socket(socket.AF_UNIX).connect('{socket}'); print('connected')"


def asks(name, **options):
    """What a root task prints that connects to the socket, and calls the plugin."""
    script = f"id -u; python3 -ISc \"{CONNECT}\" 2>&1; {CALL} 2>&1; echo curl=$?"
    run_job(job(name, group("g", task("t", "sh", "-c", script, memory=128, extra='user = "root"', **options))))
    return logs(wait_for_alloc(name, "complete"))


with subtest("a root task cannot name the socket"):
    output = asks("hidden")
    t.assertIn("FileNotFoundError", output)
    t.assertNotIn("curl=0", output)
    t.assertEqual(warnings(), 0)

with subtest("where a job may unveil it, a root task can connect to the socket, and is not served"):
    # It may connect, so the plugin itself refuses it.
    output = asks("root", unveil=[f"rw:{socket}"])
    t.assertIn("0\nconnected\n", output)
    t.assertNotIn("grpc-status", output)
    t.assertNotIn("curl=0", output)
    t.assertEqual(warnings(), 1, "said once in 10 s")

with subtest("the agent has not lost its connection"):
    t.assertEqual(plugin_pid(), plugin)
    run_job(job("after", group("g", task("t", "true"))))
    wait_for_alloc("after", "complete")
    t.assertIn("grpc-status: 0", machine.succeed(CALL))
