# /// scenario
# description = "What a hostile task can try: each attack succeeds on the host, and is refused to tasks as docs/attacks.md says."
# across = "what each layer of the sandbox covers"
# nomad = "pluginhost"
# guests = ["debian"]
# payload = ["attack"]
# seconds = 75
# ///
# The attacks are in tests/pluginhost/internal/attack. The results are those of nixos-tests/attacks.json, from which
# scripts/attack_table.py makes docs/attacks.md; with EXEC2_ATTACK_RESULTS=DIR the scenario writes what it found there instead of comparing.

import json
import os
from pathlib import Path

import exec2
from exec2.agent import wait_for_driver
from exec2.guest import CLEANUP_TIMEOUT_S, kernel, machine, subtest, t
from exec2.harness import end, harness, run_plugin
from exec2.single import ATTACK, STATE, finish, write_task

wait_for_driver()
machine.succeed("systemctl stop nomad.service")

FOLDER = "/srv/attacks"
OUT = os.environ.get("EXEC2_ATTACK_RESULTS")
# A dynamic user, and root.
USERS = {"user": 80777, "root": 0}
# The default of allow_caps.
CAPABLE = ["audit_write", "chown", "dac_override", "fowner", "fsetid", "kill", "net_bind_service", "setgid", "setpcap", "setuid", "sys_chroot"]
LAXEST_PLUGIN = [
    'root = "host"',
    'abstract_sockets = "host"',
    'allow_caps = ["all"]',
    'allow_seccomp = ["unconfined"]',
    "unveil_by_task = true",
    'denied_host_uids = ""',
    'denied_host_gids = ""',
]
# The kernel on which all columns are compared.
FULL = (6, 12)
LAXEST_TASK = {"cap_add": ["all"], "seccomp": "unconfined"}
SUCCEEDED = "succeeded"
TABLE = Path(exec2.__file__).resolve().parents[2] / "attacks.json"


def plugin(*options):
    """Starts a plugin with these options, and returns its socket."""
    run_plugin(*options)
    return machine.succeed("ls -t /tmp/exec2-*/plugin.sock | head -1").strip()


def serve(name, uid, socket, alloc=""):
    """Makes the targets, and returns the process that does so."""
    further = f"-socket {alloc}/passing" if alloc else ""
    targets = f"{alloc or FOLDER}/targets.json"
    command = f"{ATTACK} serve -dir {FOLDER}/{name} -uid {uid} -plugin {socket} -data {STATE}/alloc_mounts -targets {targets} {further}"
    pid = int(machine.succeed(f"rm -f {targets}; setsid {command} > {FOLDER}/{name}.log 2>&1 < /dev/null & echo $!"))
    waits = f"until grep -q ready {FOLDER}/{name}.log || ! kill -0 {pid}; do sleep 0.1; done"
    machine.succeed(f"timeout {CLEANUP_TIMEOUT_S} sh -c '{waits}'; grep ready {FOLDER}/{name}.log || {{ cat {FOLDER}/{name}.log; false; }}")
    return pid


def end_targets(pid, name):
    machine.succeed(f"kill -9 {pid}; umount -l {FOLDER}/{name}")


def results(text):
    return {each["name"]: each["result"] for each in json.loads(text)}


def control(name, uid, socket, names=()):
    """The attacks without a sandbox, or those of these names."""
    pid = serve(name, uid, socket)
    command = f"{ATTACK} run -json -targets {FOLDER}/targets.json -inherit {FOLDER}/{name}/writable {' '.join(names)} < /dev/null"
    outcome = results(machine.succeed(f"cd {FOLDER}/{name}/open/own && setpriv --reuid {uid} --regid {uid} --clear-groups {command}"))
    end_targets(pid, name)
    return outcome


def task(name, uid, config, *args):
    """A task's file."""
    return write_task(f"{FOLDER}/{name}.json", uid, args, config)


def attack(name, uid, socket, config):
    """The attacks as a task."""
    path = task(name, uid, config, "run", "-json")
    alloc = harness(f"prepare {path}")["alloc_dir"] + "/alloc"
    pid = serve(name, uid, socket, alloc)
    harness(f"start {path}")
    text = finish(path)
    end_targets(pid, name)
    return results(text)


def attack_in_session(uid, socket):
    """The attacks as a command in a running task."""
    path = task("session", uid, {}, "neighbour", "-for", "1h")
    alloc = harness(f"prepare {path}")["alloc_dir"] + "/alloc"
    pid = serve("session", uid, socket, alloc)
    harness(f"start {path}")
    answer = harness(f"exec -stream {path} -- {ATTACK} run -json")
    t.assertEqual(answer["result"]["exit_code"], 0, answer)
    end(path)
    end_targets(pid, "session")
    return results(answer["stdout"])


def expected(column):
    """What the table says about the kernel of this guest, or about the newest that it knows."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    version = ".".join(map(str, kernel()))
    version = version if version in table["kernels"] else table["kernels"][-1]
    cells = {row["name"]: row["results"][column] for row in table["attacks"]}
    return {name: cell if isinstance(cell, str) else cell[version] for name, cell in cells.items()}


def save(folder):
    version = ".".join(map(str, kernel()))
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps({"kernel": version, "attacks": attacks, "results": found}, indent=1)
    Path(folder, f"{version}.json").write_text(text, encoding="utf-8")


attacks = json.loads(machine.succeed(f"mkdir -p {FOLDER}; {ATTACK} list -json"))
found = {}

with subtest("on the host, each attack succeeds as root, or else as the user"):
    socket = plugin()
    found["control"] = control("control-root", USERS["root"], socket)
    rest = [name for name, value in found["control"].items() if value != SUCCEEDED]
    if rest:
        again = control("control-user", USERS["user"], socket, rest)
        found["control"] |= {name: value for name, value in again.items() if value == SUCCEEDED}

with subtest("tasks with the default options, and a session"):
    for user, uid in USERS.items():
        found[user] = attack(user, uid, socket, {})
    found["session"] = attack_in_session(USERS["user"], socket)

if OUT or kernel() == FULL:
    with subtest("a user with the capabilities that a job may request by default"):
        found["capable"] = attack("capable", USERS["user"], socket, {"cap_add": CAPABLE})

with subtest("tasks with the laxest options"):
    socket = plugin(*LAXEST_PLUGIN)
    for user, uid in USERS.items():
        # With all capabilities a user can do what root can: one kernel is enough to compare them.
        if user != "root" or OUT or kernel() == FULL:
            found[f"{user}-laxest"] = attack(f"{user}-laxest", uid, socket, LAXEST_TASK)

with subtest("docs/attacks.md says the same"):
    if OUT:
        save(OUT)
    else:
        for column, outcome in found.items():
            wanted = expected(column)
            differences = {name: f"{value}, not {wanted.get(name)}" for name, value in outcome.items() if value != wanted.get(name)}
            t.assertEqual(differences, {}, f"{column}; if that is intended, make attacks")
