# /// scenario
# description = "A task as a process: isolated, without privileges, with nothing of the agent's; and the shim beside it."
# across = "the mount API, namespaces, and what /proc shows"
# seconds = 39
# ///

from exec2.agent import agent_command, plugin_pid, run_agent, stand_in, wait_for_driver
from exec2.allocs import driver_errors, exits, logs, messages, run_job, wait_for_groups, wait_for_log
from exec2.guest import machine, subtest, t, write
from exec2.jobs import group, job, task

# Shell, run by each task here.
SHOW = """
section() { echo "== $1"; }
section status; cat /proc/self/status
section fds; ls -l /proc/$$/fd
section environ; tr '\\0' '\\n' < /proc/$$/environ
section processes; ps -e -o pid=,ppid=,sid=,args= --cols 60
section cwd; readlink /proc/$$/cwd
section oom; cat /proc/$$/oom_score_adj
section umask; umask
section ids; id -u; id -g; id -G
section cgroup; cut -d: -f3 /proc/$$/cgroup
section limit; cat /sys/fs/cgroup$(cut -d: -f3 /proc/$$/cgroup)/memory.max
section signal; kill -KILL 1; echo alive
"""
END = "section end; exec sleep 3600"

# Python. Numbers of add_key(2) and keyctl(2); the agent puts a key where all that share its session keyring find it.
KEYRING = """
import ctypes, os, sys
add_key, keyctl = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
JOIN_SESSION_KEYRING, SETPERM, SEARCH, SESSION_KEYRING, ALL = 1, 5, 10, -3, 0x3F3F3F3F
libc = ctypes.CDLL(None, use_errno=True)
def search():
    return "found" if libc.syscall(keyctl, SEARCH, SESSION_KEYRING, b"user", b"exec2-agent", 0) > 0 else "none"
"""
LEAK = """
libc.syscall(keyctl, JOIN_SESSION_KEYRING, None)
key = libc.syscall(add_key, b"user", b"exec2-agent", b"secret", 6, SESSION_KEYRING)
for which in (key, SESSION_KEYRING):
    libc.syscall(keyctl, SETPERM, which, ALL)
with open("/run/exec2-agent", "w") as file:
    file.write(search())
os.dup2(os.open("/etc/shadow", os.O_RDONLY), 9)
os.execv(sys.argv[1], sys.argv[1:])
"""
# What a root task tries on the shim, and on a child of its own, where it succeeds.
ATTACK = """
def attempt(what, action):
    try:
        action()
        print(what + ": ok")
    except OSError as error:
        print(what + ":", os.strerror(error.errno))
def attach(pid):
    if libc.ptrace(16, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")
child = os.fork()
if child == 0:
    while True:
        pass
for name, pid in (("child", child), ("shim", 1)):
    attempt(name + " environ", lambda: open(f"/proc/{pid}/environ", "rb").close())
    attempt(name + " exe", lambda: os.readlink(f"/proc/{pid}/exe"))
    attempt(name + " attach", lambda: attach(pid))
os.kill(child, 9)
print("keyring:", search())
"""

ENVIRONMENT = (
    "LD_PRELOAD=/nonexistent.so LD_DEBUG_OUTPUT=/tmp/x LS_COLORS=x XAUTHORITY=x DISPLAY=:0 COLORTERM=x MAIL=x"
    " OLDPWD=/root STATE_DIRECTORY=/var/lib/nomad MEMORY_PRESSURE_WATCH=/x SYSTEMD_LOG_LEVEL=err PLUGIN_UNIX_SOCKET_DIR=/run"
    " AWS_SECRET_ACCESS_KEY=agents LOGNAME=agent EXEC2_AGENT=passed"
)
# Variables that a task has with values of its own, and those that the service manager and the shell give the agent.
OWN = {"EXEC2_AGENT", "LOGNAME"}
SERVICE_MANAGERS = {"NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "LISTEN_PID", "LISTEN_FDS", "PWD"}
NO_CAPABILITIES, NET_BIND_SERVICE = "0000000000000000", "0000000000000400"
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def sections(alloc):
    """What SHOW wrote, by section."""
    result: dict[str, list[str]] = {}
    for line in wait_for_log(alloc, "== end").splitlines():
        if line.startswith("== "):
            lines = result.setdefault(line[3:], [])
        else:
            lines.append(line)
    return result


def fields(lines):
    """/proc/PID/status as a dictionary."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def status(pid):
    return fields(machine.succeed(f"cat /proc/{pid}/status").splitlines())


def environment(alloc):
    return dict(line.split("=", 1) for line in sections(alloc)["environ"])


wait_for_driver()

with subtest("an agent that would leak: variables, a file, a session keyring"):
    write("/run/exec2-agent.py", KEYRING + LEAK)
    # the agent would keep the running plugin, which has none of this
    old = plugin_pid()
    command = agent_command()
    machine.succeed("systemctl stop nomad.service", f"kill {old} 2>/dev/null || true; while [ -e /proc/{old} ]; do sleep 0.1; done")
    run_agent(f"{machine.succeed('type -P python3').strip()} /run/exec2-agent.py {command}", f"Environment={ENVIRONMENT}")
    t.assertEqual(machine.succeed("cat /run/exec2-agent"), "found")
    plugin = plugin_pid()
    t.assertEqual(machine.succeed(f"readlink /proc/{plugin}/fd/9").strip(), "/etc/shadow")
    t.assertIn("AWS_SECRET_ACCESS_KEY=agents", machine.succeed(f"tr '\\0' '\\n' < /proc/{plugin}/environ"))

with subtest("the jobs"):
    env = 'env {\n EMPTY = ""\n PASSWORD = "hunter2"\n LD_LIBRARY_PATH = "/tmp"\n}'
    # another name for uid 0 in the user database, and names that Nomad treats as dynamic users
    machine.succeed("useradd -o -u 0 -g 0 -M toor", "groupadd -g 7777 exec2-team", "usermod -aG exec2-team alice")
    refused = ["nomad-0", "nomad-00", "toor"]
    attack = f"{SHOW} section attack; python3 -ISc '{KEYRING}{ATTACK}'; {END}"
    run_job(
        job(
            "process",
            group("dynamic", task("t", "sh", "-c", SHOW + END, extra=env)),
            group("alice", task("t", "sh", "-c", SHOW + END, extra='user = "alice"', oom_score_adj=500, work_dir="tmp")),
            group("root", task("t", "sh", "-c", attack, extra='user = "root"\nenv {\n HOME = "/srv/own"\n}')),
            group("asks", task("t", "sh", "-c", SHOW + END, extra='user = "root"', cap_add=["net_bind_service"])),
            *(group(f"refused-{number}", task("t", "true", cpu=50, extra=f'user = "{user}"')) for number, user in enumerate(refused)),
        )
    )
    shows = ("dynamic", "alice", "root", "asks")
    wanted = dict.fromkeys(shows, "running") | {f"refused-{number}": "failed" for number in range(len(refused))}
    running = wait_for_groups("process", wanted)
    shown = {name: sections(running[name]) for name in shows}

with subtest("no privileges: ids, groups, capabilities, no_new_privs"):
    # a named user has the groups of the user database, as initgroups(3) sets them
    groups = {"dynamic": "", "alice": "1001 7777", "root": "0", "asks": "0"}
    for name, uid, gid in (("alice", "1001", "1001"), ("root", "0", "0"), ("asks", "0", "0")):
        t.assertEqual(shown[name]["ids"], [uid, gid, groups[name]])
    user = environment(running["dynamic"])["USER"]
    t.assertRegex(user, r"^nomad-\d+$")
    t.assertEqual(shown["dynamic"]["ids"], [user.removeprefix("nomad-")] * 3)
    for name in shown:
        own = fields(shown[name]["status"])
        t.assertEqual(own["Groups"], groups[name])
        # only root's bounding set is reduced: programs with file capabilities need it
        for capability in CAPABILITIES if name in ("root", "asks") else set(CAPABILITIES) - {"CapBnd"}:
            # root has only what its job asks for as well, and needs no ambient set
            t.assertEqual(own[capability], NET_BIND_SERVICE if name == "asks" and capability != "CapAmb" else NO_CAPABILITIES, capability)
        t.assertEqual(own["NoNewPrivs"], "1")
        t.assertEqual(len(set(own["Uid"].split())), 1)
        t.assertEqual(len(set(own["Gid"].split())), 1)

with subtest("alone: own processes, own session, alone in its cgroup"):
    for name in shown:
        processes = [line.split(None, 3) for line in shown[name]["processes"]]
        t.assertEqual(len(processes), 3, processes)
        (shim, command, ps) = processes
        t.assertEqual((shim[0], shim[3]), ("1", "nomad-driver-exec2 shim"))
        t.assertEqual((command[1], command[2]), ("1", command[0]))
        t.assertEqual(ps[1], command[0])
        procs = machine.succeed(f"cat /sys/fs/cgroup{shown[name]['cgroup'][0]}/cgroup.procs").split()
        t.assertEqual(len(procs), 1)
        t.assertEqual(machine.succeed(f"cat /proc/{procs[0]}/comm").strip(), "sleep")
        t.assertEqual(shown[name]["limit"], [str(64 << 20)])

with subtest("a fresh process: open files, signals, umask, oom_score_adj"):
    for name in shown:
        files = dict(line.split()[-3::2] for line in shown[name]["fds"] if " -> " in line)
        t.assertEqual(set(files), {"0", "1", "2"})
        t.assertEqual(files["0"], "/dev/null")
        t.assertRegex(files["1"], r"/alloc/logs/\.t\.stdout\.fifo$")
        t.assertRegex(files["2"], r"/alloc/logs/\.t\.stderr\.fifo$")
        own = fields(shown[name]["status"])
        for mask in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"):
            t.assertEqual(int(own[mask], 16), 0, mask)
        t.assertEqual(shown[name]["umask"], ["0022"])
        # the agent has -1000
        t.assertEqual(shown[name]["oom"], ["500" if name == "alice" else "0"])

with subtest("the environment: of Nomad and the job, nothing for the dynamic linker or of the agent's session"):
    for name in shown:
        variables = environment(running[name])
        unwanted = {variable.split("=")[0] for variable in ENVIRONMENT.split()} - OWN | {"LD_LIBRARY_PATH"} | SERVICE_MANAGERS
        t.assertEqual(unwanted & set(variables), set())
        t.assertFalse([variable for variable in variables if variable.startswith("LD_")])
        # Nomad passes the agent's other variables to tasks, so the test would see a leak
        t.assertEqual(variables["EXEC2_AGENT"], "passed")
        t.assertEqual(variables["NOMAD_ALLOC_ID"], running[name]["ID"])
        root = variables["NOMAD_TASK_DIR"].removesuffix("/local")
        t.assertEqual(variables["TMPDIR"], f"{root}/tmp")
        t.assertEqual(shown[name]["cwd"], [f"{root}/tmp" if name == "alice" else f"{root}/local"])
        t.assertEqual(variables["NOMAD_WORK_DIR"], shown[name]["cwd"][0])
        t.assertEqual(variables["LOGNAME"], variables["USER"])
    t.assertIn("EMPTY=", shown["dynamic"]["environ"])
    who = {name: tuple(environment(running[name])[variable] for variable in ("USER", "HOME")) for name in shown}
    t.assertEqual(who["dynamic"], (user, environment(running["dynamic"])["NOMAD_TASK_DIR"]))
    t.assertEqual(who["alice"], ("alice", machine.succeed("getent passwd alice").split(":")[5]))
    t.assertEqual(who["asks"], ("root", "/root"))
    t.assertEqual(who["root"], ("root", "/srv/own"), "a home that the job sets stands")

with subtest("root cannot access the shim, and has no key of the agent"):
    t.assertEqual(
        dict(line.split(": ") for line in shown["root"]["attack"]),
        {
            "child environ": "ok",
            "child exe": "ok",
            "child attach": "ok",
            "shim environ": "Permission denied",
            "shim exe": "Permission denied",
            "shim attach": "Operation not permitted",
            "keyring": "none",
        },
    )
    for name in shown:
        t.assertEqual(shown[name]["signal"], ["alive"])

with subtest("the shim: no capabilities, outside the task's cgroup, no secrets"):
    for name in shown:
        pid = machine.succeed(f"cat /sys/fs/cgroup{shown[name]['cgroup'][0]}/cgroup.procs").strip()
        shim = status(pid)["PPid"]
        of_shim = status(shim)
        t.assertEqual({capability: of_shim[capability] for capability in CAPABILITIES}, dict.fromkeys(CAPABILITIES, NO_CAPABILITIES))
        t.assertEqual((of_shim["NoNewPrivs"], of_shim["Threads"]), ("1", "1"))
        t.assertEqual(machine.succeed(f"cat /proc/{shim}/cgroup").strip(), "0::/nomad.slice/nomad-driver-exec2.scope")
        t.assertEqual(machine.succeed(f"tr '\\0' ' ' < /proc/{shim}/cmdline").strip(), "nomad-driver-exec2 shim")
        t.assertEqual(machine.succeed(f"cat /proc/{shim}/environ"), "")
        t.assertNotIn("/etc/shadow", machine.succeed(f"ls -l /proc/{shim}/fd"))
    t.assertEqual(machine.succeed("grep -l 'hunter[2]' /proc/[0-9]*/cmdline || true"), "")

with subtest("other names for root are refused"):
    for number, name in enumerate(refused):
        errors = driver_errors(running[f"refused-{number}"])
        t.assertEqual(len(errors), 1)
        t.assertIn(f'user "{name}" is another spelling of uid 0: write user = "root" if the task really has to run as root', errors[0])

with subtest("a dynamic user of another allocation, or outside the dynamic range, is refused"):
    asks = {"taken": user, "outside": "nomad-95000", "free": "nomad-89990"}
    run_job(job("users", *(group(name, task("t", "true", cpu=50, extra=f'user = "{name_of_user}"')) for name, name_of_user in asks.items())))
    done = wait_for_groups("users", {"taken": "failed", "outside": "failed", "free": "complete"})
    (error,) = driver_errors(done["taken"])
    t.assertIn("which a task of another allocation on this host is using", error)
    (error,) = driver_errors(done["outside"])
    t.assertIn('user "nomad-95000" is outside of 80000-89999, the plugin option dynamic_user_range', error)

# Python. The interfaces that the task sees, and the result of a connection to the host's loopback address.
PORT = 8199
CONNECT = f"""
import errno, socket
try:
    socket.create_connection(("127.0.0.1", {PORT}), 20).close()
    result = "connected"
except OSError as error:
    result = errno.errorcode.get(error.errno, str(error))
print(result, *sorted(name for _, name in socket.if_nameindex()), flush=True)
"""
EAT = "x = bytearray(200 << 20); print(len(x))"
LIMITS = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cat memory.max memory.low; exec python3 -ISc \"$0\""

with subtest("more jobs: networks, memory without a limit, users by number"):
    python = machine.succeed("type -P python3").strip()
    machine.succeed(f"systemd-run --unit=exec2-listener {python} -m http.server --bind 127.0.0.1 {PORT}")
    machine.wait_until_succeeds(f"curl -sS --fail http://127.0.0.1:{PORT}/ > /dev/null", timeout=60)
    def network(mode):
        return group(mode, task("t", "python3", "-ISc", CONNECT, cpu=300), extra=f'network {{ mode = "{mode}" }}')
    memory = {
        "unlimited": group("unlimited", task("t", "sh", "-c", LIMITS, EAT, cpu=300, memory_max=-1)),
        "limited": group("limited", task("t", "sh", "-c", LIMITS, EAT, cpu=300)),
    }
    numbers = {f"number-{place}": user for place, user in enumerate(("1001", "1001:1001"))}
    users = {name: group(name, task("t", "true", cpu=100, extra=f'user = "{user}"')) for name, user in numbers.items()}
    run_job(job("no-network", network("none")))
    run_job(job("more", network("host"), *memory.values(), *users.values()))
    wanted = dict.fromkeys(["host", "unlimited"], "complete") | dict.fromkeys(["limited", *users], "failed")
    more = wait_for_groups("more", wanted)
    none = wait_for_groups("no-network")["none"]

with subtest("network mode none: only a loopback interface; host: the interfaces of the host"):
    (connected, *interfaces) = wait_for_log(more["host"], "lo").split()
    t.assertEqual(connected, "connected")
    t.assertIn("eth0", interfaces)
    if none["ClientStatus"] == "failed" and not stand_in():
        # Nomad 1.11 and 2.0 fail such an allocation themselves, whatever the driver
        t.assertIn('pre-run hook "network" failed: network already configured but not found in state', "".join(messages(none)))
        t.assertEqual(driver_errors(none), [])
        print("mode none: not tried, because this Nomad fails such allocations before it asks the driver")
    else:
        t.assertEqual(none["ClientStatus"], "complete")
        (refused, *interfaces) = wait_for_log(none, "lo").split()
        t.assertIn(refused, ("ECONNREFUSED", "ENETUNREACH"))
        t.assertEqual(interfaces, ["lo"])
    machine.succeed("systemctl stop exec2-listener")

with subtest("memory_max = -1: no limit, and memory is the reservation"):
    t.assertEqual(wait_for_log(more["unlimited"], str(200 << 20)).split(), ["max", str(64 << 20), str(200 << 20)])
    t.assertEqual(logs(more["limited"]).split(), [str(64 << 20), "0"])
    t.assertEqual(exits(more["limited"]), [(137, 9)])

with subtest("users by number: the client refuses them before it calls the driver"):
    for name, user in numbers.items():
        t.assertIn(f"unknown user {user}", "".join(messages(more[name])))
        t.assertEqual(driver_errors(more[name]), [])
