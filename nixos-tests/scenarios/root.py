# /// scenario
# description = "A task's own root: what is in it, what each kind of unveil adds, and what the host mounts later."
# across = "the mount API and Landlock"
# seconds = 60
# ///
# What a denied access returns, and what other allocations cannot be named by, is the scenario `isolation`.

import fnmatch
import json
import shlex

from exec2.agent import wait_for_driver
from exec2.cli import PLUGIN, run
from exec2.defaults import patterns
from exec2.guest import landlock_abi, machine, nixos, subtest, t, write
from exec2.probes import PROBE, compare, listen

OK, DENIED, MISSING, READ_ONLY = "ok", "EACCES", "ENOENT", "EROFS"
HERE = "/srv/root"
GO = "/usr/share/exec2-go"
# What a task has of its own; what it may name below these is its own as well.
OWN = ["/proc", "/tmp", "/var/tmp", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts", "/dev/shm",
       "/dev/mqueue", "/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/etc/passwd", "/etc/group", "/etc/.host", "/.task"]  # fmt: skip
# Links of the host that other files may lead by.
LINKS = ["/etc/mtab", "/etc/static", "/var/run"]

# Python. Prints each name of the root, without what is in the folders that are given; and where something is mounted.
WALK = """
import json, os, sys
whole = set(json.loads(sys.argv[1]))
names = {}
def walk(folder):
    for entry in os.scandir(folder):
        names[entry.path] = os.readlink(entry.path) if entry.is_symlink() else None
        if entry.is_dir(follow_symlinks=False) and entry.path not in whole:
            walk(entry.path)
walk("/")
with open("/proc/self/mountinfo") as file:
    mounts = [line.split()[4] for line in file]
cgroup = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().strip().split(":", 2)[2]
print(json.dumps({"names": names, "mounts": mounts, "own": os.path.dirname(os.environ["NOMAD_TASK_DIR"]), "cgroup": cgroup}))
"""


def tried(wanted, *unveils, options=""):
    """Compares what a task with these unveils can do with what is expected of it."""
    rules = " ".join(f"--unveil {rule}" for rule in unveils)
    output = run(f"{options} {rules} -- python3 -ISc {shlex.quote(PROBE)} {shlex.quote(json.dumps(list(wanted)))} < /dev/null")
    compare(json.loads(output.splitlines()[-1]), wanted)


def really(paths):
    """Where the paths that exist in the guest lead: {path: path without links}."""
    found = machine.succeed(f"for p in {' '.join(paths)}; do [ ! -e $p ] || echo $p $(readlink -f $p); done").splitlines()
    return dict(line.split() for line in found)


def within(path, folders):
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


wait_for_driver()
machine.succeed(f"mkdir -p {HERE}; chmod 755 {HERE}")

with subtest("the root has what was unveiled, the links that lead there, and nothing else"):
    machine.succeed(f"mkdir -p {HERE}/seen {HERE}/not-seen; echo x > {HERE}/seen/file")
    defaults = really([path.rstrip("/") for path in patterns()])
    granted = {*defaults, *defaults.values(), *OWN, f"{HERE}/seen"}
    walk = f"python3 -ISc {shlex.quote(WALK)} {shlex.quote(json.dumps(sorted(granted - {'/.task'})))}"
    found = json.loads(run(f"--unveil r:{HERE}/seen -- {walk}").splitlines()[-1])
    granted |= {found["own"], found["cgroup"]}
    names = found["names"]

    def planned(path):
        """Whether the plan has this name: it is unveiled, or something below it is, or it is the task's own."""
        # the files of the root of cgroup2, and its folders, which are empty but for the way to the task's own cgroup
        in_cgroup_root = path.rpartition("/")[0] == "/sys/fs/cgroup"
        pattern = any(fnmatch.fnmatch(path, pattern.rstrip("/")) for pattern in patterns())
        return path == "/" or in_cgroup_root or pattern or within(path, granted) or any(other.startswith(path + "/") for other in granted)

    def leads_on(path):
        """Whether it is a link of the host that leads to something unveiled."""
        if names[path] is None or machine.execute(f"readlink {path}")[1].strip() != names[path]:
            return False
        return path in LINKS or within(machine.succeed(f"readlink -f {path}").strip(), granted)

    t.assertEqual([path for path in names if not planned(path) and not leads_on(path)], [])
    t.assertNotIn(f"{HERE}/not-seen", names)
    # and all that the host has of the table is there
    t.assertEqual([path for path in defaults if path not in names and not within(path, granted - {path})], [])
    t.assertEqual([path for path in found["mounts"] if not planned(path)], [])

with subtest("find / -xdev: the folders of the root itself"):
    listed = run(f"--unveil r:{HERE}/seen -- find / -xdev ! -path '/sys/fs/cgroup/*/run-*' ! -type l").split()
    t.assertIn(HERE, listed)
    t.assertEqual([path for path in listed if not planned(path)], [])

with subtest("unveils inside the trees of the defaults, which stay"):
    machine.succeed(
        "mkdir -p /etc/myapp /etc/other /var/lib/app /var/lib/other /usr/share/exec2/bin /usr/lib/exec2-none /usr/exec2/bin; chmod 777 /etc/myapp /var/lib/app",
        "echo x | tee /etc/myapp/conf /etc/other/conf /var/lib/app/data /var/lib/other/data > /dev/null; chmod 666 /etc/myapp/conf /var/lib/app/data",
        "for d in /usr/share/exec2/bin /usr/exec2/bin; do cp $(readlink -f /bin/sh) $d/program; done",
    )
    unveils = ["r:/etc/myapp", "rwc:/var/lib/app", "rx:/usr/share/exec2/bin", "rx:/usr/exec2/bin"]
    usual = {"read /etc/hosts": OK, "read /etc/passwd": OK, "list /usr/share": OK, "write /dev/null": OK, "create /tmp/new": OK}
    with_them = {
        "read /etc/myapp/conf": OK,
        "write /etc/myapp/conf": READ_ONLY,
        "create /etc/myapp/new": READ_ONLY,
        "write /var/lib/app/data": OK,
        "create /var/lib/app/new": OK,
        "exec /usr/share/exec2/bin/program": OK,
        "exec /usr/exec2/bin/program": OK,
        "create /usr/exec2/bin/new": READ_ONLY,
        "list /usr/share/exec2": OK,
    }
    neighbours = {"read /etc/other/conf": MISSING, "read /var/lib/other/data": MISSING, "read /etc/shadow": MISSING, "list /usr/src": MISSING}
    tried({**usual, **with_them, **neighbours}, *unveils)
    without = {probe: MISSING for probe in with_them if not probe.split()[1].startswith("/usr/share")}
    tried({**usual, **without, **neighbours, "exec /usr/share/exec2/bin/program": OK})

with subtest("r:/ shows all of the host but what the task has of its own"):
    machine.succeed(f"echo x > /tmp/of-the-host; cp $(readlink -f /bin/sh) {HERE}/program; chmod 755 {HERE}/program")
    wanted = {
        f"read {HERE}/seen/file": OK,
        "list /": OK,
        "list /var/lib": OK,
        "read /etc/passwd": OK,
        "read /etc/shadow": DENIED,
        f"exec {HERE}/program": DENIED,
        f"create {HERE}/new": READ_ONLY,
        "stat /tmp/of-the-host": MISSING,
        "create /tmp/new": OK,
        "read /proc/1/environ": DENIED,
    }
    tried(wanted, "r:/")
    tried({f"read {HERE}/seen/file": MISSING, "list /var/lib/other": MISSING})

with subtest("a single file, a socket, a device, and a path below a link"):
    machine.succeed(
        f"cd {HERE}; mkdir -p real/folder; echo x | tee one two real/folder/file real/folder/other > /dev/null; ln -s real link",
        f"mknod -m 666 {HERE}/device c 1 5; mknod -m 666 /dev/exec2-device c 1 5; chmod 666 {HERE}/one",
    )
    listen(f"{HERE}/socket", f"{HERE}/seen-socket")
    unveils = [f"r:{HERE}/one", f"w:{HERE}/socket", f"r:{HERE}/seen-socket", "r:/dev/exec2-device", f"r:{HERE}/device", f"r:{HERE}/link/folder/file"]
    wanted = {
        f"read {HERE}/one": OK,
        f"connect {HERE}/socket": OK,
        f"stat {HERE}/seen-socket": OK,
        "read /dev/exec2-device": OK,
        f"readlink {HERE}/link": OK,
        f"read {HERE}/link/folder/file": OK,
        f"read {HERE}/real/folder/file": OK,
    }
    closed = {
        f"write {HERE}/one": READ_ONLY,
        f"read {HERE}/two": MISSING,
        f"write {HERE}/two": MISSING,
        f"read {HERE}/link/folder/other": MISSING,
        # ABI 9, Linux 7.1
        f"connect {HERE}/seen-socket": OK if landlock_abi() < 9 else DENIED,
        # a device works below /dev only
        f"read {HERE}/device": DENIED,
    }
    tried({**wanted, **closed}, *unveils)
    tried(dict.fromkeys(wanted, MISSING))

with subtest("two tasks that run with different unveils below the same folder"):
    machine.succeed(f"mkdir -p {HERE}/pair/a {HERE}/pair/b")
    ready = f"until [ -e {GO} ]; do sleep 0.2; done"
    both = " ".join(f"{PLUGIN} run --unveil r:{HERE}/pair/{name} -- sh -c '{ready}; ls {HERE}/pair' > /tmp/two-{name} 2>&1 & " for name in "ab")
    machine.succeed(f"rm -f {GO}; {both} sleep 1; touch {GO}; wait; cat /tmp/two-a /tmp/two-b > /tmp/two")
    t.assertEqual(machine.succeed("cat /tmp/two").split(), ["a", "b"])

with subtest("/dev/shm: bounded by the memory limit and charged to the task; terminals of its own; the host's name"):
    script = """
import os, pty
print(os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize >> 20)
open("/dev/shm/x", "wb").write(b"x" * (20 << 20))
cgroup = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().strip().split(":", 2)[2]
print(int(next(line for line in open(cgroup + "/memory.stat") if line.startswith("shmem ")).split()[1]) >> 20)
print(pty.openpty() and sorted(os.listdir("/dev/pts")))
"""
    output = run(f"--memory 64 -- python3 -ISc {shlex.quote(script)}").splitlines()
    t.assertEqual(output, ["64", "20", "['0', 'ptmx']"])
    status, output = machine.execute(f"{PLUGIN} run --memory 64 -- sh -c 'head -c 200000000 /dev/zero > /dev/shm/x' 2>&1")
    t.assertTrue(status == 137 or "No space left" in output, (status, output))
    t.assertEqual(machine.succeed("ls /dev/shm | grep -cx x || true").strip(), "0")
    name = machine.succeed("uname -n")
    for user, options, wanted in (("root", "", 1), ("root", "--cap-add sys_admin", 0)):
        set_name = "python3 -ISc 'import socket; socket.sethostname(\"exec2\")' 2>/dev/null"
        t.assertEqual(run(f"--user {user} {options} -- sh -c {shlex.quote(f'uname -n; {set_name}')}", wanted), name)
    t.assertEqual(machine.succeed("uname -n"), name)


def while_it_runs(unveils, command, change, after, before="before", wait=300):
    """A task prints the output of the command, which has to be `before`; and again once it is `after`, when the host has changed."""
    again = f"n=0; until {command} 2>&1 | grep -q '{after}' || [ $n = {wait} ]; do n=$((n + 1)); sleep 0.2; done; {command}"
    script = f"{command}; until [ -e {GO} ]; do sleep 0.2; done; {again}"
    rules = " ".join(f"--unveil {rule}" for rule in unveils)
    machine.succeed(f"rm -f {GO} /tmp/out")
    machine.execute(
        f"{PLUGIN} run {rules} -- sh -c {shlex.quote(script)} > /tmp/out 2>&1 < /dev/null & pid=$!;"
        f" until grep -q '{before}' /tmp/out || ! kill -0 $pid; do sleep 0.2; done; {change}; touch {GO}; wait $pid"
    )
    return machine.succeed("cat /tmp/out")


with subtest("a file system that the host mounts, and mounts again, at an unveiled path is seen by the running task"):
    machine.succeed(f"mkdir -p {HERE}/volume {HERE}/auto; echo before > {HERE}/volume/state")
    state, unveils = f"cat {HERE}/volume/state", [f"r:{HERE}/volume"]
    mount = f"mount -t tmpfs none {HERE}/volume; echo after > {HERE}/volume/state"
    again = f"umount {HERE}/volume; mount -t tmpfs none {HERE}/volume; echo again > {HERE}/volume/state"
    t.assertEqual(while_it_runs(unveils, state, mount, "after").split(), ["before", "after"])
    # one that was mounted when the task started stays in use
    t.assertEqual(while_it_runs(unveils, state, again, "again", "after", wait=15).split(), ["after", "after"])
    machine.succeed(f"umount {HERE}/volume")
    t.assertEqual(while_it_runs(unveils, state, f"{mount}; {again}", "again").split(), ["before", "again"])
    machine.succeed(f"umount {HERE}/volume")

with subtest("an automount point that the task is the first to touch"):
    write("/run/systemd/system/srv-root-auto.mount", f"[Mount]\nWhat=none\nWhere={HERE}/auto\nType=tmpfs\nOptions=mode=777\n")
    write("/run/systemd/system/srv-root-auto.automount", f"[Automount]\nWhere={HERE}/auto\n")
    machine.succeed("systemctl daemon-reload", "systemctl start srv-root-auto.automount")
    t.assertEqual(machine.execute(f"grep -c '{HERE}/auto tmpfs' /proc/mounts")[1].strip(), "0")
    # what the host mounts later has the host's flags: here Landlock alone denies writing
    tried({f"list {HERE}/auto": OK, f"create {HERE}/auto/new": DENIED}, f"r:{HERE}/auto")
    tried({f"list {HERE}/auto": MISSING})
    machine.succeed("systemctl stop srv-root-auto.automount")

if not nixos():
    with subtest("ldconfig while a task runs: it finds the new library, and still starts programs"):
        library = machine.succeed("ldconfig -p | sed -n 's/.*=> //p' | grep /libm.so.6 | head -1").strip()
        machine.succeed(f"mkdir -p /usr/local/lib/exec2; cp {library} /usr/local/lib/exec2/")
        change = "echo /usr/local/lib/exec2 > /etc/ld.so.conf.d/0-exec2.conf; ldconfig"
        # without -q: ldd, a shell script, complains when its reader ends before it does
        command = "(ldd $(command -v python3) | grep exec2/libm.so.6 > /dev/null && echo after || echo before)"
        t.assertEqual(while_it_runs([], command, change, "after").split(), ["before", "after"])
        machine.succeed("rm /etc/ld.so.conf.d/0-exec2.conf; ldconfig")
