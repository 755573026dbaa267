# /// scenario
# description = "Commands that Nomad itself runs in tasks: script checks that pass, fail and time out, and the script of a template."
# nomad = "real"
# guests = ["debian"]
# seconds = 150
# timeout_s = 2400
# ///
# EXEC2_CHECK_MINUTES: how long the checks run, by default one minute.

import json
import os
import shlex

from exec2.agent import agent_command, nomad, plugin_pid, run_agent, wait_for_driver
from exec2.allocs import alloc_status, allocs, events, messages, run_job, stop_job, wait_for_alloc
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, descriptors, machine, poll, subtest, t, write
from exec2.jobs import group, job, task
from exec2.tasks import RUN, inside, scope

MINUTES = float(os.environ.get("EXEC2_CHECK_MINUTES", "1"))
TASKS = 20
UPDATES = "/run/check-updates"

# Nomad runs script checks only for Consul. This has of Consul's agent what Nomad's client asks for, and keeps the reports.
CONSUL = r"""
import http.server, json, threading
services, checks, lock = {}, {}, threading.Lock()
ME = {"Config": {"Datacenter": "dc1", "PrimaryDatacenter": "dc1", "NodeName": "machine", "NodeID": "0f0c1a4e-8f2d-4a51-8b1e-0123456789ab",
                 "Server": True, "Version": "1.20.1", "Revision": "x"},
      "DebugConfig": {}, "Member": {"Name": "machine", "Addr": "127.0.0.1"}, "Stats": {"agent": {}}, "Meta": {}}
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_):
        pass
    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:  # the agent no longer waits
            self.close_connection = True
    def do_GET(self):
        path = self.path.split("?")[0]
        known = {"/v1/agent/self": ME, "/v1/agent/services": services, "/v1/agent/checks": checks, "/v1/status/leader": "127.0.0.1:8300"}
        with lock:
            self.answer(known.get(path), 200 if path in known else 404)
    def do_PUT(self):
        path = self.path.split("?")[0]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        name = path.rsplit("/", 1)[1]
        with lock:
            if path == "/v1/agent/service/register":
                services[body["ID"]] = {"ID": body["ID"], "Service": body["Name"], "Tags": body.get("Tags") or [], "Address": body.get("Address", ""),
                                        "Port": body.get("Port", 0), "Meta": body.get("Meta") or {}}
            elif path == "/v1/agent/check/register":
                checks[body["ID"]] = {"CheckID": body["ID"], "Name": body["Name"], "ServiceID": body.get("ServiceID", ""), "Status": "critical"}
            elif path.startswith("/v1/agent/service/deregister/"):
                services.pop(name, None)
            elif path.startswith("/v1/agent/check/deregister/"):
                checks.pop(name, None)
            elif path.startswith("/v1/agent/check/update/"):
                with open("UPDATES", "a") as file:
                    line = {"check": checks.get(name, {}).get("Name"), "service": checks.get(name, {}).get("ServiceID"),
                            "status": body["Status"], "output": body.get("Output", "")}
                    file.write(json.dumps(line) + "\n")
        self.answer(None)
http.server.ThreadingHTTPServer(("127.0.0.1", 8500), Handler).serve_forever()
""".replace("UPDATES", UPDATES)


def check(name, script, timeout="60s", interval="60s"):
    return f"""
      check {{
        type     = "script"
        name     = "{name}"
        command  = "sh"
        args     = ["-c", {json.dumps(script)}]
        interval = "{interval}"
        timeout  = "{timeout}"
      }}"""


def updates():
    """What the checks have reported: {name: [(status, output, service)]}."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for line in machine.execute(f"cat {UPDATES} 2>/dev/null")[1].splitlines():
        update = json.loads(line)
        found.setdefault(update["check"], []).append((update["status"], update["output"], update["service"]))
    return found


def run_templated(name, script):
    """A job with a file from a variable, and a script for when that changes."""
    template = f"""
    template {{
      data        = "{{{{ with nomadVar \\"nomad/jobs/{name}\\" }}}}{{{{ .color }}}}{{{{ end }}}}\\n"
      destination = "local/color"
      change_mode = "script"
      change_script {{
        command       = "sh"
        args          = ["-c", {json.dumps(script)}]
        timeout       = "20s"
        fail_on_error = true
      }}
    }}"""
    run_job(job(name, group("g", task("t", "sleep", "36000", extra=template)), kind="service"))


wait_for_driver()
write("/run/consul.py", CONSUL)
machine.succeed("systemd-run --unit consul python3 -IS /run/consul.py")
machine.wait_for_open_port(8500)
run_agent(agent_command())

with subtest(f"script checks of {TASKS} tasks that pass, fail and time out, for {MINUTES:g} min"):
    service = f"""
    service {{
      name     = "checked"
      provider = "consul"
      {check("passes", "echo fine for $(id -un); test ! -e /etc/shadow")}
      {check("fails", "echo broken; exit 2")}
      {check("hangs", "sleep 4711 & setsid sleep 4712", timeout="2s")}
    }}"""
    run_job(job("checked", group("g", task("t", "sleep", "36000", cpu=50, memory=16, extra=service), count=TASKS), kind="service"))
    poll("all run", lambda: [alloc["ClientStatus"] for alloc in allocs("checked")] == ["running"] * TASKS, ALLOC_TIMEOUT_S)

    def all_reported():
        return all(len({service for _, _, service in updates().get(name, [])}) == TASKS for name in ("passes", "fails", "hangs"))

    poll("every check of every task has reported", all_reported, ALLOC_TIMEOUT_S)
    plugin, before = plugin_pid(), descriptors(plugin_pid())
    memory = int(machine.succeed(f"awk '/^RssAnon/ {{print $2}}' /proc/{plugin}/status"))
    machine.succeed(f"sleep {MINUTES * 60:.0f}", timeout=MINUTES * 60 + ALLOC_TIMEOUT_S)
    seen = updates()
    print({name: len(found) for name, found in seen.items()}, "reports")
    t.assertEqual({status for status, _, _ in seen["passes"]}, {"passing"}, [entry for entry in seen["passes"] if entry[0] != "passing"])
    t.assertTrue(all(output.startswith("fine for nomad-") for _, output, _ in seen["passes"]))
    t.assertEqual({(status, output) for status, output, _ in seen["fails"]}, {("critical", "broken\n")})
    t.assertEqual({status for status, _, _ in seen["hangs"]}, {"critical"})
    print("output of a check that times out:", {output for _, output, _ in seen["hangs"]})
    t.assertEqual(plugin_pid(), plugin)
    t.assertLess(descriptors(plugin) - before, 4 * TASKS)
    grown = int(machine.succeed(f"awk '/^RssAnon/ {{print $2}}' /proc/{plugin}/status")) - memory
    print(f"the plugin's memory grew by {grown} KiB")
    t.assertLess(grown, 4 << 10)
    for alloc in allocs("checked"):
        t.assertEqual(len(events(alloc_status(alloc["ID"]), "Started")), 1)
    stop_job("checked")
    poll("nothing that timed out is left", lambda: not machine.execute("pgrep -f '^sleep 47'")[1], CLEANUP_TIMEOUT_S)

with subtest("the script of a template runs in the task, and sees the new file"):
    nomad("var put -force nomad/jobs/colors color=red")
    script = "id -un > who; cat /proc/self/cgroup > where; ls /etc/shadow 2> denied; cp color seen"
    run_templated("colors", f"cd $NOMAD_TASK_DIR && {script}")
    alloc = wait_for_alloc("colors", "running")
    nomad("var put -force nomad/jobs/colors color=blue")
    poll("the script has seen it", lambda: machine.execute(f"nomad alloc fs {alloc['ID']} t/local/seen")[1].strip() == "blue", ALLOC_TIMEOUT_S)

    def file(name):
        return nomad(f"alloc fs {alloc['ID']} t/local/{name}").strip()

    t.assertRegex(file("who"), r"^nomad-\d+$")
    t.assertIn(f"{alloc['ID']}.t.scope/exec-", file("where"))
    t.assertIn("No such file or directory", file("denied"))
    t.assertEqual(len(events(alloc_status(alloc["ID"]), "Started")), 1)
    leader = inside(alloc)
    t.assertEqual(len(leader), 1)
    t.assertEqual(machine.execute(f"find {scope(alloc)} -mindepth 1 -type d | grep .")[1], "")
    stop_job("colors")

with subtest("a script that fails ends the task, as the job wants"):
    nomad("var put -force nomad/jobs/fussy color=red")
    run_templated("fussy", "exit 3")
    wait_for_alloc("fussy", "running")
    nomad("var put -force nomad/jobs/fussy color=blue")
    alloc = wait_for_alloc("fussy", "failed")
    t.assertTrue(any("exit code 3" in message or "exited with code: 3" in message for message in messages(alloc)), messages(alloc))
    stop_job("fussy")
    t.assertEqual(machine.execute(f"ls -A {RUN} | grep -v ^@")[1].split(), [], shlex.quote(RUN))
