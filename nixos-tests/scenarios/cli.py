# /// scenario
# description = "The command line without an agent: run, check, and what the plugin prints when it is started manually."
# nomad = "none"
# seconds = 60
# ///

import json
import shlex

from exec2.cli import PLUGIN, run
from exec2.guest import machine, subtest, t, write
from exec2.tasks import run_directories

SLICE = "/sys/fs/cgroup/nomad-driver-exec2.slice"


with subtest("started manually: a description, and exit status 1"):
    status, output = machine.execute(f"{PLUGIN} 2>&1")
    t.assertEqual(status, 1)
    for word in ("plugin", "check", "run", "--help"):
        t.assertIn(word, output)

with subtest("--help has examples, --version the version"):
    t.assertIn("Examples:", machine.succeed(f"{PLUGIN} run --help"))
    t.assertRegex(machine.succeed(f"{PLUGIN} --version"), rf"^{PLUGIN} \d+\.\d+\.\d+\n$")
    t.assertEqual(machine.succeed(f"{PLUGIN} -version"), machine.succeed(f"{PLUGIN} --version"))
    machine.fail(f"{PLUGIN} no-such-verb")

with subtest("check: a table and a JSON object for a supported host"):
    t.assertIn("healthy", machine.succeed(f"{PLUGIN} check"))
    found = json.loads(machine.succeed(f"{PLUGIN} check --json"))
    t.assertTrue(found["healthy"], found)

with subtest("check: a kernel without a call that a task's own root needs is not enough, unless tasks have the host's root"):
    lacking = f"strace -qq -o /dev/null -e inject=mount_setattr:error=ENOSYS {PLUGIN} check"
    status, output = machine.execute(f"{lacking} --json")
    t.assertEqual(status, 1, output)
    found = json.loads(output)
    own_root = next(each for each in found["requirements"] if each["name"] == "own root")
    t.assertEqual([own_root["state"], own_root["found"]], ["missing", "the kernel lacks mount_setattr"])
    t.assertIn('set root = "host"', own_root["fix"])
    t.assertEqual(found["health"], "unhealthy")
    machine.succeed(f"{lacking} --root host")

with subtest("without root: check fails, run reports that it needs root"):
    output = machine.fail(f"setpriv --reuid alice --regid alice --clear-groups {PLUGIN} run -- true 2>&1")
    t.assertIn("root", output)
    machine.fail(f"setpriv --reuid alice --regid alice --clear-groups {PLUGIN} check")

with subtest("a dynamic user in a sandbox"):
    environment = dict(line.split("=", 1) for line in run("-- env").splitlines() if "=" in line)
    t.assertRegex(environment["USER"], r"^nomad-9\d{4}$")
    t.assertIn("No such file or directory", run("-- cat /etc/shadow", 1))
    t.assertIn("root:", run("--unveil r:/etc/passwd -- cat /etc/passwd"))
    t.assertIn("No such file or directory", run("--no-defaults -- env", 127))
    t.assertIn("x\n", run("-- sh -c 'echo x > $NOMAD_TASK_DIR/x; cat $NOMAD_TASK_DIR/x'"))
    t.assertIn("Read-only file system", run("-- sh -c 'echo x > /usr/x || exit 2'", 2))

with subtest("users by name and by number; root only by its name"):
    t.assertEqual(run("--user alice -- id -u").strip(), machine.succeed("id -u alice").strip())
    t.assertIn("USER=alice\n", run("--user $(id -u alice) -- env"))
    t.assertEqual(run("--user 4242:4343 -- id -g").strip(), "4343")
    for alias in ("0", "0:0", "nomad-0"):
        t.assertIn('"root"', run(f"--user {alias} -- id", 125))
    t.assertEqual(run("--user root -- id -u").strip(), "0")

with subtest("exit statuses are those of a shell"):
    for code in (0, 1, 7, 255):
        run(f"-- sh -c 'exit {code}'", code)
    run("-- sh -c 'kill -9 $$'", 137)
    run("-- sh -c 'kill -TERM $$'", 143)
    t.assertIn("not found in PATH", run("-- no-such-command", 127))
    machine.succeed("mkdir -p /srv/cli; cp $(readlink -f /bin/sh) /srv/cli/x; chmod 755 /srv/cli/x")
    t.assertIn("does not exist", run("-- /srv/cli/x -c true", 127))
    t.assertIn("not unveiled with x", run("--unveil r:/srv/cli/x -- /srv/cli/x -c true", 126))
    run("--unveil rx:/srv/cli/x -- /srv/cli/x -c true")
    t.assertIn('failed to start the command: unveil "r:/no/such": No such file or directory', run("--unveil r:/no/such -- true", 125))
    t.assertIn("mode letter", run("--unveil q:/etc -- true", 2))
    t.assertIn("unknown capability", run("--cap-add bogus -- true", 2))

with subtest("limits: in the cgroup, and enforced"):
    show = "'cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cat memory.max cpu.max'"
    memory, cpu = run(f"--memory 64 --cpu 100 -- sh -c {show}").splitlines()
    t.assertEqual(memory, str(64 * 1024 * 1024))
    t.assertRegex(cpu, r"^\d+ 100000$")
    t.assertEqual(run(f"-- sh -c {show}").splitlines(), ["max", "max 100000"])
    eat = "-- python3 -c 'x = bytearray(100 << 20)'"
    t.assertIn("more memory than --memory allows", run(f"--memory 20 {eat}", 137))
    run(f"--memory 200 {eat}")
    for option in ("", "--memory 200"):
        # a limit that the driver did not set
        machine.succeed(f"mkdir {SLICE}; echo +memory > {SLICE}/cgroup.subtree_control; echo 20M > {SLICE}/memory.max")
        output = run(f"{option} {eat}", 137)
        t.assertIn("the host, or a cgroup above its own, was out of memory", output)
        t.assertNotIn("--memory allows", output)

# Runs a command in a cgroup namespace, as a container does: its root is INNER, where there is no controller for memory.
INNER = "/sys/fs/cgroup/exec2-outer/inner"
CONTAINER = f"""
echo $$ > {INNER}/cgroup.procs
exec unshare --cgroup --mount sh -c '
mount -t cgroup2 none /sys/fs/cgroup
[ "$1" = inhabited ] || {{ mkdir /sys/fs/cgroup/leaf; echo $$ > /sys/fs/cgroup/leaf/cgroup.procs; }}
shift; exec "$@"' sh "$@"
"""

with subtest("missing controllers are reported, and are an error for a limit that needs one"):
    write("/tmp/container", CONTAINER)
    machine.succeed(f"mkdir -p {INNER}; echo +cpu +pids > {INNER}/../cgroup.subtree_control")

    def contained(how, arguments, status=0):
        got, output = machine.execute(f"sh /tmp/container {how} {PLUGIN} run {arguments} 2>&1")
        t.assertEqual(got, status, output)
        machine.succeed(f"rmdir {INNER}/leaf 2>/dev/null || true; echo -cpu -pids > {INNER}/cgroup.subtree_control")
        machine.fail(f"ls -d {INNER}/*/ 2>&1")
        return output

    t.assertEqual(machine.succeed(f"cat {INNER}/cgroup.controllers").split(), ["cpu", "pids"])
    output = contained("empty", "-- echo done")
    t.assertIn("running without the controller memory, so without its limits: failed to write", output)
    t.assertNotIn("controller cpu", output)
    t.assertIn("done\n", output)
    t.assertRegex(contained("empty", "--cpu 100 -- sh -c 'cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/cpu.max'"), r"\n\d+ 100000\n")
    t.assertIn("failed to set the memory limit: failed to write", contained("empty", "--memory 100 -- true", 125))
    output = contained("inhabited", "-- echo done")
    for controller in ("memory", "cpu", "pids"):
        t.assertIn(f"running without the controller {controller}, so without its limits: there are processes in", output)
    t.assertIn("done\n", output)
    t.assertIn("failed to set the cpu limit: there are processes in", contained("inhabited", "--cpu 100 -- true", 125))
    machine.succeed("cd /sys/fs/cgroup; rmdir -p exec2-outer/inner")

with subtest("a cgroup that cannot be removed does not hide the exit status"):
    # the host adds a process to the cgroup once the command is in it; the command sees that as process 0, and ends
    procs = f"{SLICE}/run-*.scope/cgroup.procs"
    intrude = f"sleep 1000 & echo $! > /tmp/intruder; until grep -q . {procs}; do sleep 0.1; done; for f in {procs}; do echo $! > $f; done"
    machine.succeed(f"sh -c {shlex.quote(intrude)} < /dev/null > /dev/null 2>&1 &")
    output = run("-- sh -c 'until grep -qx 0 /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/cgroup.procs; do sleep 0.2; done; exit 7'", 7)
    t.assertRegex(output, r"failed to remove .*/run-\d+-\d+\.scope\": Device or resource busy")
    machine.succeed(f"kill $(cat /tmp/intruder); rmdir {SLICE}/run-*.scope {SLICE}")

with subtest("the environment: the requested variables, and none of the caller's session"):
    secret = "AWS_SECRET_ACCESS_KEY=k NOMAD_TOKEN=t SUDO_USER=u LC_TIME=C"
    output = machine.succeed(f"{secret} {PLUGIN} run --env NOMAD_TOKEN --env A=b=c -- env")
    names = {line.split("=")[0] for line in output.splitlines()}
    t.assertTrue({"PATH", "LC_TIME", "NOMAD_TOKEN", "A"} <= names, output)
    t.assertFalse({"AWS_SECRET_ACCESS_KEY", "SUDO_USER"} & names, output)
    t.assertIn("A=b=c\n", output)
    t.assertIn("has no effect", run("--env LD_PRELOAD=/x -- true", 125))
    output = machine.succeed(f"LC_TIME=$(printf 'x\\377') {PLUGIN} run -- sh -c 'echo ${{LC_TIME-unset}}' 2>&1")
    t.assertEqual(output.splitlines(), ["nomad-driver-exec2: left out of the environment, because it is not UTF-8: LC_TIME", "unset"])

with subtest("arguments that are not UTF-8 are refused with the documented status"):
    t.assertIn("not UTF-8", run("-- printf \"$(printf '\\377')\"", 125))

with subtest("standard output and error can be reopened; the caller's file keeps its owner"):
    t.assertEqual(machine.succeed(f"{PLUGIN} run -- sh -c 'echo out > /dev/stdout' | cat"), "out\n")
    t.assertEqual(machine.succeed(f"{PLUGIN} run --unveil rw:/dev/stdout -- echo out | cat"), "out\n")
    machine.succeed(f"{PLUGIN} run -- sh -c 'echo err > /dev/stderr' 2> /tmp/err")
    t.assertEqual(machine.succeed("cat /tmp/err; stat -c %u:%a /tmp/err"), "err\n0:644\n")
    # the denied twin: standard input, which is the caller's own file
    machine.fail(f"{PLUGIN} run -- sh -c 'echo x > /dev/stdin' < /tmp/err")
    machine.succeed("rm /tmp/err")

with subtest("the caller's TMPDIR is not used; with the host's root, neither is a private one, and a missing one is an error"):
    machine.succeed("install -d -m 700 /tmp/private", "install -d -m 1777 /tmp/public")
    for directory in ("private", "public"):
        shown = machine.succeed(f"TMPDIR=/tmp/{directory} {PLUGIN} run --unveil r:/tmp/public -- sh -c 'ls /tmp/public; mktemp -u'")
        t.assertRegex(shown, r"^/task/tmp/tmp\.\w+\n$")
    machine.succeed(f"TMPDIR=/nonexistent/x {PLUGIN} run -- true")
    host = f"{PLUGIN} run --root host --"
    t.assertRegex(machine.succeed(f"TMPDIR=/tmp/private {host} mktemp"), r"^/tmp/exec2-run-")
    t.assertRegex(machine.succeed(f"TMPDIR=/tmp/public {host} mktemp"), r"^/tmp/public/exec2-run-")
    t.assertIn('"/nonexistent/x": No such file', machine.fail(f"TMPDIR=/nonexistent/x {host} true 2>&1"))
    machine.succeed("rmdir /tmp/private /tmp/public")

with subtest("capabilities: only the requested one"):
    t.assertIn("CapEff:\t0000000000000400", run("--cap-add net_bind_service -- grep CapEff /proc/self/status"))
    t.assertIn("CapEff:\t0000000000000000", run("-- grep CapEff /proc/self/status"))

with subtest("the working directory"):
    t.assertTrue(run("-- pwd").strip().endswith("/local"))
    t.assertTrue(run("--work-dir tmp -- pwd").strip().endswith("/tmp"))
    t.assertEqual(run("--work-dir /usr -- pwd").strip(), "/usr")

def interrupted(script):
    """Output and exit status of a command that gets SIGINT once it has printed that it is ready."""
    machine.succeed("rm -f /tmp/out /tmp/status")
    # Commands of a scenario run under `set -e`.
    command = f"{PLUGIN} run -- sh -c {shlex.quote(script)} > /tmp/out 2>&1 && echo 0 > /tmp/status || echo $? > /tmp/status"
    machine.succeed(f"({command}) < /dev/null > /dev/null 2>&1 &")
    machine.wait_until_succeeds("grep ready /tmp/out", timeout=60)
    machine.succeed(f"pkill -INT -f '^{PLUGIN} run'")
    machine.wait_until_succeeds("test -s /tmp/status", timeout=60)
    return machine.succeed("cat /tmp/out").split(), int(machine.succeed("cat /tmp/status"))


with subtest("Ctrl-C reaches the command, which may handle it"):
    t.assertEqual(interrupted("echo ready; exec sleep 100"), (["ready"], 130))
    caught = interrupted("trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done")
    t.assertEqual(caught, (["ready", "caught"], 5))

with subtest("a signal that was ignored stays ignored"):
    ignoring = f"trap '' HUP; exec {PLUGIN} run -- sh -c 'echo ready; sleep 5; echo survived'"
    machine.succeed(f"rm -f /tmp/out; sh -c {shlex.quote(ignoring)} < /dev/null > /tmp/out 2>&1 & echo $! > /tmp/pid")
    machine.wait_until_succeeds("grep ready /tmp/out", timeout=60)
    machine.succeed("kill -HUP $(cat /tmp/pid)")
    machine.wait_until_succeeds("grep survived /tmp/out", timeout=60)

with subtest("killing run kills its command, and the next run cleans up"):
    machine.succeed(f"rm -f /tmp/out; {PLUGIN} run -- sh -c 'echo ready; exec sleep 71236' < /dev/null > /tmp/out 2>&1 & echo $! > /tmp/pid")
    machine.wait_until_succeeds("grep ready /tmp/out", timeout=60)
    machine.succeed("kill -KILL $(cat /tmp/pid)")
    machine.wait_until_fails("pgrep -f '^sleep 71236'", timeout=60)
    machine.succeed(f"test -d {SLICE}/run-$(cat /tmp/pid)-*.scope; ls -d /run/nomad-driver-exec2/run-$(cat /tmp/pid)-*")
    run("-- true")
    machine.fail(f"ls -d {SLICE}/run-$(cat /tmp/pid)-*.scope")

# An interactive shell at a pseudo-terminal: each argument is one step, and all output is printed.
TYPIST = r"""
import os, pty, select, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.environ.update(PS1="SHELL> ", TERM="dumb")
    os.execvp("sh", ["sh", "-i"])
shown, deadline = b"", time.time() + 120
for step in sys.argv[1:]:
    kind, text = step[0], step[1:].encode().decode("unicode_escape").encode()
    if kind == ">":
        os.write(terminal, text)
        continue
    while text not in shown:
        if time.time() > deadline:
            sys.exit(f"no {text} in {shown}")
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 4096)
    at = shown.index(text) + len(text)
    sys.stdout.write(shown[:at].decode(errors="replace"))
    shown = shown[at:]
os.kill(pid, 9)
"""


def typed(*steps):
    """What a terminal shows. A step is > and the text to type, or < and the text to wait for."""
    write("/tmp/typist.py", TYPIST)
    return machine.succeed("python3 /tmp/typist.py " + " ".join(shlex.quote(step) for step in steps) + " 2>&1")


with subtest("Ctrl-Z stops the command, and the shell reads the keyboard until fg"):
    write("/tmp/ask", 'echo ready; read x; echo "TASK: $x"')
    until_stopped = ["<SHELL> ", f">{PLUGIN} run --unveil r:/tmp/ask -- sh /tmp/ask\\r", "<ready\\r\\n", ">\\x1a", "<SHELL> "]
    shown = typed(*until_stopped, ">echo pass''word\\r", "<password\\r\\n", "<SHELL> ")
    t.assertNotIn("TASK:", shown)
    typed(*until_stopped, ">fg\\r", "<\\n", ">mine\\r", "<TASK: mine\\r\\n", "<SHELL> ")

with subtest("Ctrl-C at the terminal ends the command"):
    write("/tmp/wait", "echo ready; exec sleep 1000")
    typed("<SHELL> ", f">{PLUGIN} run --unveil r:/tmp/wait -- sh /tmp/wait\\r", "<ready\\r\\n", ">\\x03", "<SHELL> ", ">echo status $?\\r", "<status 130\\r\\n")

with subtest("a password is not echoed in a pipeline"):
    write("/tmp/password", "stty -echo < /dev/tty; printf 'Password: ' > /dev/tty; read x < /dev/tty; stty echo < /dev/tty; echo $x | tr a-z A-Z > /dev/tty")
    command = f"{PLUGIN} run --unveil r:/tmp/password -- sh /tmp/password"
    for streams in ("> /tmp/out", "| cat", "< /etc/hostname"):
        shown = typed("<SHELL> ", f">{command} {streams}\\r", "<Password: ", ">hunter2\\r", "<HUNTER2\\r\\n", "<SHELL> ")
        t.assertNotIn("hunter2", shown)

with subtest("lost output is a failure"):
    machine.succeed("mkdir /tmp/small; mount -t tmpfs -o size=8k tmpfs /tmp/small")
    t.assertIn("No space left", machine.fail(f"{PLUGIN} run -- head -c 50000 /dev/zero 2>&1 > /tmp/small/file"))
    machine.succeed(f"{PLUGIN} run -- head -c 100 /dev/zero > /tmp/small/file")
    machine.succeed("umount /tmp/small; rmdir /tmp/small")

with subtest("nothing is left"):
    machine.fail(f"pgrep -f '{PLUGIN} (run|shim)'")
    t.assertEqual(run_directories(), [])
    t.assertEqual(machine.succeed("find /tmp /var/tmp -name 'exec2-*'").strip(), "")
    machine.fail(f"test -e {SLICE}")
