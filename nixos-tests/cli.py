# The verbs for people: run, check, and what the plugin says when it is started by hand.
# needs: no-agent

PLUGIN = "nomad-driver-exec2"


def run(arguments, status=0):
    """The output (both streams) of `run`, which has to end with the status."""
    got, output = machine.execute(f"{PLUGIN} run {arguments} 2>&1")
    t.assertEqual(got, status, output)
    return output


with subtest("started by hand: what it is, and exit status 1"):
    status, output = machine.execute(f"{PLUGIN} 2>&1")
    t.assertEqual(status, 1)
    for word in ("plugin", "check", "run", "--help"):
        t.assertIn(word, output)

with subtest("--help has examples, --version the version"):
    t.assertIn("Examples:", machine.succeed(f"{PLUGIN} run --help"))
    t.assertRegex(machine.succeed(f"{PLUGIN} --version"), rf"^{PLUGIN} \d+\.\d+\.\d+\n$")
    machine.fail(f"{PLUGIN} no-such-verb")

with subtest("check: a table and an object for a host that will do"):
    t.assertIn("healthy", machine.succeed(f"{PLUGIN} check"))
    found = json.loads(machine.succeed(f"{PLUGIN} check --json"))
    t.assertTrue(found["healthy"], found)

with subtest("without root: check sees less, run says that it needs root"):
    output = machine.fail(f"setpriv --reuid alice --regid alice --clear-groups {PLUGIN} run -- true 2>&1")
    t.assertIn("root", output)
    machine.fail(f"setpriv --reuid alice --regid alice --clear-groups {PLUGIN} check")

with subtest("a dynamic user in a sandbox"):
    environment = dict(line.split("=", 1) for line in run("-- env").splitlines() if "=" in line)
    t.assertRegex(environment["USER"], r"^nomad-8\d{4}$")
    t.assertIn("Permission denied", run("-- cat /etc/passwd", 1))
    t.assertIn("root:", run("--unveil r:/etc/passwd -- cat /etc/passwd"))
    t.assertIn("Permission denied", run("--no-defaults -- env", 126))
    t.assertIn("x\n", run("-- sh -c 'echo x > $NOMAD_TASK_DIR/x; cat $NOMAD_TASK_DIR/x'"))
    t.assertIn("denied", run("-- sh -c 'echo x > /usr/x || exit 2'", 2))

with subtest("users: by name and by numbers, and no name for root but root"):
    t.assertEqual(run("--user alice -- id -u").strip(), machine.succeed("id -u alice").strip())
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
    t.assertIn("not unveiled with x", run("-- /root/x", 126))
    t.assertIn('unveil "r:/no/such": No such file or directory', run("--unveil r:/no/such -- true", 125))
    t.assertIn("mode letter", run("--unveil q:/etc -- true", 2))

with subtest("limits: in the cgroup, and enforced"):
    show = "'cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cat memory.max cpu.max'"
    memory, cpu = run(f"--memory 64 --cpu 100 -- sh -c {show}").splitlines()
    t.assertEqual(memory, str(64 * 1024 * 1024))
    t.assertRegex(cpu, r"^\d+ 100000$")
    t.assertEqual(run(f"-- sh -c {show}").splitlines(), ["max", "max 100000"])
    t.assertIn("more memory than --memory allows", run("--memory 20 -- python3 -c 'x = bytearray(100 << 20)'", 137))
    run("--memory 200 -- python3 -c 'x = bytearray(100 << 20)'")

with subtest("capabilities: the one that was asked for"):
    t.assertIn("CapEff:\t0000000000000400", run("--cap-add net_bind_service -- grep CapEff /proc/self/status"))
    t.assertIn("CapEff:\t0000000000000000", run("-- grep CapEff /proc/self/status"))

with subtest("the working directory"):
    t.assertTrue(run("-- pwd").strip().endswith("/local"))
    t.assertTrue(run("--work-dir tmp -- pwd").strip().endswith("/tmp"))
    t.assertEqual(run("--work-dir /usr -- pwd").strip(), "/usr")

def interrupted(script):
    """Output and exit status of a command that gets SIGINT once it has said that it is ready."""
    machine.succeed("rm -f /tmp/out /tmp/status")
    # Commands of a scenario run under `set -e`.
    command = f"{PLUGIN} run -- sh -c {shlex.quote(script)} > /tmp/out 2>&1 && echo 0 > /tmp/status || echo $? > /tmp/status"
    machine.succeed(f"({command}) < /dev/null > /dev/null 2>&1 &")
    machine.wait_until_succeeds("grep ready /tmp/out", timeout=60)
    machine.succeed(f"pkill -INT -f '^{PLUGIN} run'")
    machine.wait_until_succeeds("test -s /tmp/status", timeout=60)
    return machine.succeed("cat /tmp/out").split(), int(machine.succeed("cat /tmp/status"))


with subtest("Ctrl-C reaches the command, which decides"):
    t.assertEqual(interrupted("echo ready; exec sleep 100"), (["ready"], 130))
    caught = interrupted("trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done")
    t.assertEqual(caught, (["ready", "caught"], 5))

with subtest("nothing is left"):
    machine.fail(f"pgrep -f '{PLUGIN} (run|shim)'")
    t.assertEqual(machine.succeed("ls -A /run/nomad-driver-exec2").strip(), "")
    t.assertEqual(machine.succeed("find /tmp /var/tmp -name 'exec2-*'").strip(), "")
    machine.fail("test -e /sys/fs/cgroup/nomad-driver-exec2.slice")
