# /// scenario
# description = "Commands in a running task (alloc exec, script checks): as the task, within its limits, and gone with it."
# across = "the namespaces, cgroups and terminals that a session joins"
# nomad = "pluginhost"
# guests = ["debian"]
# seconds = 180
# ///
# Each allowed action has a denied one beside it. The scenario `harness` has the calls themselves.

import json
import shlex
import time

from exec2.agent import PLUGIN_NAME, wait_for_driver
from exec2.guest import CLEANUP_TIMEOUT_S, landlock_abi, machine, pgrep, poll, subtest, t, write
from exec2.harness import harness, refusal, run_plugin
from exec2.probes import PROBE, compare, listen
from exec2.tasks import SHIMS

wait_for_driver()
machine.succeed("systemctl stop nomad.service")

FOLDER = "/srv/exec"
HELPERS = "nomad-driver-exec2 enter"
KILLED, NOT_RUN, NOT_FOUND = 137, 126, 127
# A time that no test waits for.
LONG = 4321
SESSIONS_PER_TASK = 64
# Python. The digest of the output that an answer has.
DIGEST = """
import base64, hashlib, json, sys
print(hashlib.sha256(base64.b64decode(json.load(sys.stdin)["stdout"]["base64"])).hexdigest())
"""

# Python. Listens in each of the task's directories, then waits for a socket that a session makes.
SOCKETS = """
import os, socket, time
here = {name: os.environ[name] + "/socket" for name in ("NOMAD_TASK_DIR", "NOMAD_ALLOC_DIR", "NOMAD_SECRETS_DIR", "TMPDIR")}
listeners = [socket.socket(socket.AF_UNIX) for _ in here]
for listener, path in zip(listeners, here.values()):
    listener.bind(path)
    listener.listen()
while True:
    try:
        socket.socket(socket.AF_UNIX).connect(os.environ["NOMAD_ALLOC_DIR"] + "/of-the-session")
        open(os.environ["NOMAD_TASK_DIR"] + "/reached", "w").close()
        break
    except FileNotFoundError:
        time.sleep(0.2)
time.sleep(4321)
"""
OF_SESSION = """
import os, socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["NOMAD_ALLOC_DIR"] + "/of-the-session")
listener.listen()
listener.accept()
time.sleep(1)
"""


def write_task(name, command, *args, config=None, **fields):
    path = f"{FOLDER}/{name}.json"
    write(path, json.dumps({"config": {"command": command, "args": list(args), **(config or {})}, "cpu": 2000, "memory": 128, **fields}))
    return path


def end(task):
    machine.succeed(f"pluginhost task destroy -force {task}", f"pluginhost task cleanup {task}")


def session(task, *command, options=""):
    """The exit code, output and error output of a session."""
    answer = harness(f"exec -stream {options} {task} -- {shlex.join(command)}")
    t.assertNotIn("violations", answer)
    return answer["result"]["exit_code"], answer["stdout"], answer["stderr"]


def sh(task, script, options=""):
    return session(task, "sh", "-c", script, options=options)


def output(task, *command):
    code, out, err = session(task, *command)
    t.assertEqual((code, err), (0, ""))
    return out


def background(task, script, options="", name="session"):
    """A session whose client runs on; its answer will be in a file. Returns the client's pid."""
    command = f"exec pluginhost task exec -stream {options} {task} -- sh -c {shlex.quote(script)}"
    return int(machine.succeed(f"setsid sh -c {shlex.quote(command)} > {FOLDER}/{name}.out 2>&1 < /dev/null & echo $!"))


def answer_of(client, name="session"):
    poll("the client ends", lambda: machine.execute(f"test -d /proc/{client}")[0], CLEANUP_TIMEOUT_S)
    return json.loads(machine.succeed(f"cat {FOLDER}/{name}.out"))


def agent(*options):
    """Starts a plugin with these options."""
    run_plugin(*options, environment="AGENTS_SECRET=planted NOTIFY_SOCKET=/run/agent")


def start(task, env=""):
    """The cgroup, and the pid of the first process."""
    config = harness(f"start {task}", env)["handle"]["config"]
    cgroup = config["resources"]["linux_resources"]["cpuset_cgroup"]
    pid = poll("the task is in its cgroup", lambda: machine.succeed(f"cat {cgroup}/cgroup.procs").split(), CLEANUP_TIMEOUT_S)[0]
    return cgroup, int(pid)


def running(command):
    """The processes whose command line begins like this. The shell that looks for them has it, too, but elsewhere."""
    return pgrep(f"^{command}")


def nothing_left(cgroup, *names):
    """No helper, no cgroup of a session, and none of the programs that the sessions started."""

    def left():
        return running(HELPERS) or machine.succeed(f"ls -d {cgroup}/exec-* 2>/dev/null || true").split() or [pid for name in names for pid in running(name)]

    poll("all of the session is gone", lambda: not left(), CLEANUP_TIMEOUT_S)


def status(text):
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    names = "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "SigIgn", "SigBlk", "Umask"
    return {name: fields[name].split() for name in names}


def plugin_memory():
    return int(machine.succeed(f"awk '/^RssAnon/ {{ print $2 }}' /proc/{harness('plugin pid')['pid']}/status"))


machine.succeed(f"mkdir -p {FOLDER}; echo granted > {FOLDER}/granted; echo kept > {FOLDER}/kept")
listen(f"{FOLDER}/socket")
agent(f'unveil_paths = ["r:{FOLDER}/granted", "r:{FOLDER}/socket"]', 'allow_caps = ["net_bind_service", "kill"]')
web = write_task("web", "sh", "-c", f"echo $$ > $NOMAD_TASK_DIR/pid; exec sleep {LONG}", config={"cap_add": ["net_bind_service"], "oom_score_adj": 300})
other = write_task("other", "sleep", str(LONG))
cgroup, pid = start(web)
start(other)

with subtest("a session has the user, capabilities, limits, directories, namespaces and environment of the task, and no more"):
    ours, theirs = status(output(web, "cat", "/proc/self/status")), status(machine.succeed(f"cat /proc/{pid}/status"))
    t.assertEqual(ours, theirs)
    t.assertNotEqual(theirs["CapEff"], ["0" * 16])
    limits = machine.succeed(f"cat /proc/{pid}/oom_score_adj; awk '/open files/ {{ print $4; print $5 }}' /proc/{pid}/limits").split()
    t.assertEqual(sh(web, "cat /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn")[1].split(), limits)
    t.assertEqual(output(web, "pwd").strip(), machine.succeed(f"readlink /proc/{pid}/cwd").strip())
    for kind in "pid", "mnt", "ipc", "uts", "net", "cgroup", "user":
        t.assertEqual(output(web, "readlink", f"/proc/self/ns/{kind}").strip(), machine.succeed(f"readlink /proc/{pid}/ns/{kind}").strip(), kind)
    env = sorted(output(web, "env").splitlines())
    # The task's own shell has added PWD.
    t.assertEqual(env, sorted(entry for entry in machine.succeed(f"tr '\\0' '\\n' < /proc/{pid}/environ").splitlines() if not entry.startswith("PWD=")))
    t.assertEqual([entry for entry in env if "planted" in entry or "agent" in entry], [])
    t.assertIn("AGENTS_SECRET=planted", machine.succeed(f"tr '\\0' '\\n' < /proc/{harness('plugin pid')['pid']}/environ"))

with subtest("it reads what the task reads, and neither the host's secrets nor another allocation"):
    t.assertEqual(sh(web, f"cat {FOLDER}/granted"), (0, "granted\n", ""))
    allocs = "/var/lib/pluginhost/alloc_mounts"
    for path in (
        f"{FOLDER}/kept",
        "/etc/shadow",
        "/root/.bashrc",
        *(f"{allocs}/{name}" for name in machine.succeed(f"ls {allocs}").split() if name.endswith("-other")),
    ):
        code, out, err = session(web, "ls", path)
        t.assertEqual((code, out), (2, ""), path)
        t.assertRegex(err, "No such file|Permission denied")
    code, out, err = sh(
        web,
        "echo x > /etc/hosts; echo x > /usr/bin/x; mkdir /sys/fs/cgroup/x; mount -t tmpfs none /tmp; echo x > $NOMAD_TASK_DIR/mine && cat $NOMAD_TASK_DIR/mine",
    )
    t.assertEqual((code, out), (0, "x\n"))
    t.assertEqual(len(err.splitlines()), 5, err)

with subtest("it sees the task's processes and the shim as PID 1, can signal the task, and can look into neither"):
    commands = output(web, "ps", "-e", "-o", "pid=,args=").splitlines()
    t.assertRegex(commands[0], r"^ *1 nomad-driver-exec2 shim$")
    t.assertIn(f"sleep {LONG}", " ".join(commands))
    t.assertNotIn("enter", " ".join(commands))
    t.assertEqual(sh(web, "kill -0 $(cat $NOMAD_TASK_DIR/pid)"), (0, "", ""))
    for target in "1", "$(cat $NOMAD_TASK_DIR/pid)":
        for name in "environ", "mem", "fd/0":
            t.assertNotEqual(sh(web, f"head -c 1 /proc/{target}/{name}")[0], 0, (target, name))
    t.assertNotEqual(sh(web, "kill -9 1")[0], 0)
    code, out, _ = sh(web, "for n in /proc/self/fd/*; do readlink $n; done")
    t.assertEqual([line for line in out.splitlines() if not line.startswith(("pipe:", "/proc/"))], [])

with subtest("a session and the task reach each other's sockets, and not one of the host that can only be read"):
    sockets = write_task("sockets", "python3", "-ISc", SOCKETS)
    start(sockets)
    folders = "$NOMAD_TASK_DIR", "$NOMAD_ALLOC_DIR", "$NOMAD_SECRETS_DIR", "$TMPDIR"
    wanted = {f"connect {folder}/socket": "ok" for folder in folders}
    poll("the task listens", lambda: sh(sockets, "test -S $TMPDIR/socket")[0] == 0, CLEANUP_TIMEOUT_S)
    # ABI 9, Linux 7.1
    wanted |= {f"stat {FOLDER}/socket": "ok", f"connect {FOLDER}/socket": "ok" if landlock_abi() < 9 else "EACCES"}
    compare(json.loads(output(sockets, "python3", "-ISc", PROBE, json.dumps(list(wanted)))), wanted)
    t.assertEqual(output(sockets, "python3", "-ISc", OF_SESSION), "")
    t.assertEqual(sh(sockets, "cat $NOMAD_TASK_DIR/reached"), (0, "", ""))
    end(sockets)

with subtest("exit codes, and what a command that does not run says"):
    t.assertEqual(sh(web, "exit 7")[0], 7)
    t.assertEqual(sh(web, "kill -TERM $$")[0], 143)
    code, _, err = session(web, "nosuch")
    t.assertEqual(code, NOT_FOUND)
    t.assertRegex(err, r'^nomad-driver-exec2: failed to start the command: run command "nosuch": No such file or directory \(not found in PATH=')
    t.assertEqual(session(web, "/etc/passwd")[0], NOT_RUN)
    t.assertIn("the command is empty", refusal(f"exec -stream {web}")["message"])
    answer = harness(f"exec {web} -- nosuch")
    t.assertEqual((answer["result"]["exit_code"], answer["stdout"][:40]), (NOT_FOUND, "failed to start the command: run command"))

with subtest("input and output are exact, in both directions, and separate"):
    machine.succeed(f"head -c 2000000 /dev/urandom > {FOLDER}/random")
    digest = machine.succeed(f"sha256sum < {FOLDER}/random").split()[0]
    before = plugin_memory()
    t.assertEqual(session(web, "sha256sum", options=f"-stdin {FOLDER}/random")[1].split()[0], digest)
    t.assertEqual(sh(web, "head -c 32000000 /dev/zero | wc -c >&2; echo done > /dev/stdout; echo again > /dev/stderr"), (0, "done\n", "32000000\nagain\n"))
    write(f"{FOLDER}/digest.py", DIGEST)
    t.assertEqual(machine.succeed(f"pluginhost task exec -stream -stdin {FOLDER}/random {web} -- cat | python3 {FOLDER}/digest.py").strip(), digest)
    t.assertLess(plugin_memory() - before, 4096, "KiB")
    t.assertEqual(session(web, "cat"), (0, "", ""))

with subtest("a terminal: of the task's own, controlling, with job control, the client's size, and closed to others"):
    code, out, err = sh(
        web,
        "tty; stty size; echo $TERM; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; echo x > /dev/tty; stat -c '%U %a' $(tty); exec 3<>$(tty)",
        options="-tty -size 33x77",
    )
    lines = out.split("\r\n")
    t.assertEqual([lines[0], *lines[2:6]], ["/dev/pts/0", "xterm", "all", "x", "root 600"], out)
    t.assertIn("Permission denied", out)
    code, out, _ = sh(web, "trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.1; done", options="-tty -size 24x80 -resize 50x132 -keep-open")
    t.assertEqual((code, out), (5, "ready\r\n50 132\r\n"))
    write(f"{FOLDER}/keys", "\x03")
    t.assertEqual(sh(web, f"sleep {LONG} | cat", options=f"-tty -stdin {FOLDER}/keys")[0], 130)
    write(f"{FOLDER}/keys", "größe\n\x04")
    t.assertEqual(sh(web, "stty -echo; cat; echo end", options=f"-tty -keep-open -stdin {FOLDER}/keys")[1].replace("größe\r\n", "", 1).count("größe"), 1)
    # Ctrl-Z gives the terminal back to the shell.
    keys = " sleep 4; ".join(["", *(f"printf '{text}';" for text in (f"sleep {LONG}\\n", "\\032", "kill -9 %%1; sleep 2; exit 6\\n"))])
    answer = harness(f"exec -stream -tty -timeout 90s -keep-open -stdin - {web} -- bash --norc -i", f"({keys}) |")
    code, out = answer["result"]["exit_code"], answer["stdout"]
    t.assertIn("Stopped", out)
    t.assertEqual(code, 6)
    t.assertEqual(sh(web, "cat; echo end")[1], "end\n")
    # Raw, it is 8-bit clean.
    answer = harness(
        f"exec -stream -tty -timeout 90s -keep-open -stdin - {web} -- sh -c 'stty -echo raw; head -c 20000 | sha256sum'",
        f"(sleep 5; head -c 20000 {FOLDER}/random) |",
    )
    t.assertEqual(answer["stdout"].split()[0], machine.succeed(f"head -c 20000 {FOLDER}/random | sha256sum").split()[0])
    t.assertIn("\r\n", session(web, "nosuch", options="-tty")[2])

with subtest("what a command leaves behind ends with it: orphans, sessions of their own, stopped processes"):
    t.assertEqual(
        sh(web, f"(setsid sh -c 'trap \"\" HUP TERM; sleep {LONG - 1} & sleep {LONG - 2}' &) ; (sleep {LONG - 3} & kill -STOP $!) ; echo started")[1],
        "started\n",
    )
    nothing_left(cgroup, *(f"sleep {LONG - n}" for n in (1, 2, 3)))
    t.assertEqual(running(f"sleep {LONG}$").count(pid), 1)

with subtest("a time-out ends all of it, and begins when the command runs; output is limited to its end"):
    since = time.monotonic()
    error = refusal(f"exec -timeout 2s {web} -- sh -c 'sleep {LONG - 1} & setsid sleep {LONG - 2}'")
    t.assertEqual(error["code"], "DeadlineExceeded")
    t.assertIn("2s", error["message"])
    t.assertLess(time.monotonic() - since, CLEANUP_TIMEOUT_S)
    nothing_left(cgroup, f"sleep {LONG - 1}", f"sleep {LONG - 2}")
    t.assertEqual(harness(f"exec -timeout 60s {web} -- sh -c 'echo out; echo err >&2'")["stdout"], "out\nerr\n")
    t.assertEqual(harness(f"exec {web} -- sh -c 'seq 100000; echo last'")["stdout"][-12:], "100000\nlast\n")
    t.assertEqual(len(harness(f"exec {web} -- seq 100000")["stdout"]), 4096)
    t.assertEqual(harness(f"exec {web} -- cat")["stdout"], "", "its input is /dev/null")

with subtest("the task's memory limit holds for both; a session that is killed for it says so, and the task runs on"):
    answer = harness(f"exec -stream {web} -- python3 -c 'x = bytearray(300 << 20)'")
    t.assertEqual(answer["result"], {"exit_code": KILLED, "signal": 9, "oom_killed": True}, answer)
    t.assertFalse(harness(f"exec -stream {web} -- sh -c 'kill -9 $$'")["result"]["oom_killed"])
    t.assertIn("exec-", output(web, "cat", "/proc/self/cgroup"))
    machine.succeed(f"test -d /proc/{pid}")

with subtest("a client that goes away ends its session"):
    client = background(web, f"sleep {LONG - 1} & setsid sleep {LONG - 2}")
    poll("the session runs", lambda: running(f"sleep {LONG - 2}"), CLEANUP_TIMEOUT_S)
    machine.succeed(f"kill -9 {client}")
    nothing_left(cgroup, f"sleep {LONG - 1}", f"sleep {LONG - 2}")

with subtest("the end of a helper ends its session as well"):
    client = background(web, f"sleep {LONG - 1} & setsid sleep {LONG - 2}")
    poll("the session runs", lambda: running(f"sleep {LONG - 2}"), CLEANUP_TIMEOUT_S)
    machine.succeed("kill -9 " + " ".join(map(str, running(HELPERS))))
    answer = answer_of(client)
    t.assertEqual(answer["result"]["exit_code"], NOT_RUN)
    t.assertIn("the exit status is unknown", answer["stderr"])
    nothing_left(cgroup, f"sleep {LONG - 1}", f"sleep {LONG - 2}")

with subtest("a client that reads nothing stalls only its own session, and the plugin stays small"):
    before = plugin_memory()
    clients = [background(web, "exec cat /dev/zero", name=f"stalled{n}") for n in range(4)]
    poll("they run", lambda: len(running("cat /dev/zero")) == 4, CLEANUP_TIMEOUT_S)
    machine.succeed("kill -STOP " + " ".join(map(str, clients)))
    time.sleep(2)
    t.assertEqual(output(web, "echo", "still"), "still\n")
    stalled = plugin_memory() - before
    t.assertLess(stalled, 4 * 1024, "KiB for four sessions")
    machine.succeed("kill -9 " + " ".join(map(str, clients)))
    nothing_left(cgroup, "cat /dev/zero")

with subtest("50 sessions at a time; more than the limit is refused, and the task's end waits for none"):
    before = plugin_memory()
    machine.succeed(
        f"for n in $(seq {SESSIONS_PER_TASK}); do setsid pluginhost task exec -stream {web} -- sleep {LONG - 1} > /dev/null 2>&1 < /dev/null & done"
    )
    poll("all run", lambda: len(running(f"sleep {LONG - 1}")) == SESSIONS_PER_TASK, 300)
    t.assertLess(plugin_memory() - before, SESSIONS_PER_TASK * 128, "KiB, 128 for each session")
    t.assertIn(f"{SESSIONS_PER_TASK} sessions", refusal(f"exec {web} -- true")["message"])
    t.assertEqual(output(other, "echo", "other"), "other\n")
    since = time.monotonic()
    harness(f"stop -s SIGTERM -timeout 60s {web}")
    t.assertEqual(harness(f"wait -timeout {CLEANUP_TIMEOUT_S}s {web}")["result"]["exit_code"], 143)
    t.assertLess(time.monotonic() - since, CLEANUP_TIMEOUT_S)
    nothing_left(cgroup, f"sleep {LONG - 1}")
    t.assertIn("the task has ended", refusal(f"exec {web} -- true")["message"])
    harness(f"destroy {web}")
    machine.succeed(f"rmdir {cgroup}")
    t.assertEqual(refusal(f"exec {web} -- true")["message"], "task not found for given id")

with subtest("the end of the plugin ends its sessions; a recovered task has sessions as before, by the rules of its start"):
    cgroup, pid = start(web)
    background(web, f"sleep {LONG - 1} & setsid sleep {LONG - 2}")
    poll("the session runs", lambda: running(f"sleep {LONG - 2}"), CLEANUP_TIMEOUT_S)
    machine.succeed("pluginhost task plugin kill")
    nothing_left(cgroup, f"sleep {LONG - 1}", f"sleep {LONG - 2}")
    machine.succeed(f"test -d /proc/{pid}")
    agent(f'unveil_paths = ["r:{FOLDER}/kept"]')
    harness(f"recover {web}")
    t.assertEqual(sh(web, f"cat {FOLDER}/granted; id -u"), (0, f"granted\n{machine.succeed(f'stat -c %u /proc/{pid}')}", ""))
    t.assertNotEqual(sh(web, f"cat {FOLDER}/kept")[0], 0)
    t.assertEqual(status(output(web, "cat", "/proc/self/status")), status(machine.succeed(f"cat /proc/{pid}/status")))

with subtest("without the record of its start there are no sessions in a task, and it says so"):
    record = machine.succeed("ls /run/nomad-driver-exec2/*.web.*/session").strip()
    t.assertEqual(machine.succeed(f"stat -c '%U %a' {record}").strip(), "root 600")
    machine.succeed(f"mv {record} {record}.kept")
    t.assertIn("restart the task", refusal(f"exec {web} -- true")["message"])
    machine.succeed(f"mv {record}.kept {record}")
    t.assertEqual(sh(web, "true")[0], 0)

with subtest("a hostile task cannot keep a session from ending, nor outlive its own end by it"):
    hostile = write_task("hostile", "sh", "-c", "while :; do kill -STOP -1; done")
    theirs, first = start(hostile)
    # It is stopped before it runs, or while it runs until its client gives up, or not at all.
    _, text = machine.execute(f"pluginhost task exec -stream -timeout 30s {hostile} -- echo ran")
    answer = json.loads(text)
    t.assertTrue(answer.get("error", {}).get("code") == "DeadlineExceeded" or answer["result"]["exit_code"] in (0, NOT_RUN), text)
    nothing_left(theirs)
    background(hostile, f"exec sleep {LONG - 1}", name="hostile")
    since = time.monotonic()
    harness(f"stop -s SIGKILL -timeout 1s {hostile}")
    t.assertLess(time.monotonic() - since, CLEANUP_TIMEOUT_S)
    nothing_left(theirs, f"sleep {LONG - 1}")
    harness(f"destroy {hostile}")
    machine.succeed(f"rmdir {theirs}")

with subtest("a task with the host's root has sessions within its rules as well"):
    agent('root = "host"', f'unveil_paths = ["r:{FOLDER}/granted"]')
    whole = write_task("whole", "sleep", str(LONG))
    theirs, first = start(whole)
    t.assertEqual(sh(whole, f"cat {FOLDER}/granted; pwd"), (0, f"granted\n{machine.succeed(f'readlink /proc/{first}/cwd')}", ""))
    code, _, err = sh(whole, f"cat {FOLDER}/kept")
    t.assertEqual(code, 1)
    t.assertIn("Permission denied", err)
    code, out, _ = sh(whole, "tty; stat -c '%u %a' $(tty); echo x > /dev/tty", options="-tty")
    t.assertRegex(out, r"^/dev/pts/\d+\r\n0 600\r\nx\r\n$")
    t.assertEqual(status(output(whole, "cat", "/proc/self/status")), status(machine.succeed(f"cat /proc/{first}/status")))

with subtest("proc_hidepid: which processes a session sees, in both kinds of root, also when the option has changed since"):
    look = "cd /proc; ls -d [0-9]* | tr '\\n' ' '; cat 1/status > /dev/null 2>&1 && echo read"
    kept = None
    for root, hidden in (("private", "noaccess"), ("private", "ptraceable"), ("private", "invisible"), ("host", "invisible"), ("private", "off")):
        agent(f'root = "{root}"', f'proc_hidepid = "{hidden}"')
        if kept:
            # that of the agent's earlier option
            harness(f"recover {kept}")
            t.assertNotRegex(sh(kept, look)[1], r"^1 ")
            end(kept)
            kept = None
        seen = write_task(f"hidden-{root}-{hidden}", "sleep", str(LONG))
        _, first = start(seen)
        code, out, _ = sh(seen, look)
        numbers = out.removesuffix("read\n").split()
        t.assertEqual((numbers[0] == "1", out.endswith("read\n")), (hidden in ("off", "noaccess"), hidden == "off"), (root, hidden, out))
        # the session's own are there
        t.assertEqual(sh(seen, "test -e /proc/self/status -a -e /proc/$$/status")[0], 0)
        options = machine.succeed(f"grep ' - proc ' /proc/{first}/mountinfo | awk '$5 == \"/proc\"' | tail -n 1").split()[-1].split(",")
        t.assertEqual(f"hidepid={hidden}" in options, hidden != "off", options)
        if hidden == "invisible":
            kept = seen
        else:
            end(seen)

with subtest("the plugin broke no rule of the protocol, and nothing is left"):
    t.assertEqual(harness("violations"), [])
    for path in machine.succeed(f"ls {FOLDER}/*.json").split():
        machine.execute(f"pluginhost task stop -timeout 1s {path}; pluginhost task destroy -force {path}")
        machine.succeed(f"pluginhost task cleanup {path}")
    machine.succeed("pluginhost task plugin stop")
    t.assertEqual(pgrep(PLUGIN_NAME) + pgrep(SHIMS) + running(HELPERS), [])
    machine.fail(f"test -e {cgroup}")
