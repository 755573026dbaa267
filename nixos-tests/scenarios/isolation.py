# /// scenario
# description = "A task reaches what it was unveiled, with the rights it was given, and nothing else."
# across = "Landlock's ABI, and what a denied access returns"
# seconds = 110
# ///

from typing import Any

from exec2.agent import configure, node, wait_for_driver
from exec2.allocs import driver_errors, run_job, wait_for_alloc, wait_for_groups, wait_for_log
from exec2.defaults import examples
from exec2.guest import AGENT_TIMEOUT_S, landlock_abi, machine, nixos, poll, subtest, t
from exec2.jobs import PRESTART, group, job, task
from exec2.probes import check_outside, check_probes, listen, probe

# What a call answers for a path that was not unveiled: in a root of the task's own it does not exist, in the host's it is denied.
HIDDEN = {"private": "ENOENT", "host": "EACCES"}
# Writing where only reading was granted, if file modes allow it: a mount of the task's own root refuses it before Landlock does.
READ_ONLY = {"private": "EROFS", "host": "EACCES"}
OK, DENIED, MISSING = "ok", "EACCES", "ENOENT"
# File modes refuse it to a dynamic user, the mount to root.
NOT_WRITABLE = "EACCES|EROFS"
UID = 95000  # in no user database, as a dynamic user is
# Files that every user may read, write and execute: if that is refused, Landlock refuses it.
PROGRAM, DATA = "exec2-program", "exec2-data"

DEFAULTS = {mode: " ".join(paths) for mode, paths in examples().items()}
# Folders beside, above and below those of the table.
NEIGHBOURS = """/etc /etc/ssl /etc/ssl/private /etc/pki /etc/pki/tls /etc/pki/tls/private /etc/ca-certificates /etc/php /etc/php99 /etc/php/9.9
                /etc/php/9.9/fpm /etc/php-fpm.d /etc/java-99-keys /etc/profile.d /usr /usr/src /usr/local /usr/local/etc /usr/local/src
                /opt /srv /var/lib /tmp /var/tmp /root /home /run /run/wrappers /run/NetworkManager /nix"""
# Those that no distribution in the table has.
CLOSED = "/etc/ssl/private /etc/pki/tls/private /etc/php/9.9/fpm /etc/php-fpm.d /etc/java-99-keys /etc/profile.d /usr/src /usr/local/etc"
FILES = "/sys/fs/cgroup/cgroup.procs /etc/passwd /etc/group /etc/shadow /etc/fstab /etc/machine-id /etc/ssl/openssl-ca.cnf /etc/npmrc /etc/wgetrc"
DEVICES = "/dev/tty /dev/ptmx /dev/kmsg /dev/mem /dev/vda"
# What a task's own root has at these paths is not the host's.
OWN = ("/tmp/", "/var/tmp/", "/dev/shm/", "/dev/pts/", "/dev/mqueue/")
FOLDERS = "/ /dev /dev/shm /sys /sys/fs/cgroup /sys/kernel /run/nomad-driver-exec2 /opt/nomad /opt/nomad/data /var/lib/nomad"

wait_for_driver()
abi = landlock_abi()
# To connect to a socket in sight, without `w`. ABI 9, Linux 7.1
SOCKETS = OK if abi < 9 else DENIED
shell = machine.succeed("readlink -f /bin/sh").strip()


def look(paths, skip=""):
    """The paths that exist in the guest: {path: whether it is a folder}."""
    lines = machine.succeed(f"for p in {' '.join(paths)}; do {skip}if [ -d $p ]; then echo $p d; elif [ -e $p ]; then echo $p f; fi; done")
    return {path: kind == "d" for path, kind in (line.split() for line in lines.splitlines())}


def existing(*lists):
    """look() without paths that lead into the store of NixOS: those are under the rule for the store, and read-only."""
    skip = "case $(readlink -f $p) in /nix/store/*) continue ;; esac; " if nixos() else ""
    return look(" ".join(lists).split(), skip)


def plant(folders):
    """Puts both files into each folder that is writable, and returns those folders."""
    return machine.succeed(
        f"for d in {' '.join(folders)}; do cp {shell} $d/{PROGRAM} 2>/dev/null && echo x > $d/{DATA} && chmod 777 $d/{PROGRAM} $d/{DATA} && echo $d; done; true"
    ).split()


def complete():
    """Creates the paths of the table that this guest lacks, empty: those of other distributions are granted as well."""
    # a system profile as NixOS has it, with the folder of setuid programs beside it
    machine.succeed(
        "[ -e /nix/store ] || mkdir -p /nix/store/exec2-system",
        "[ -e /run/current-system/sw ] || { mkdir -p /run/current-system; ln -s /nix/store/exec2-system /run/current-system/sw; }",
        "[ -e /run/wrappers ] || mkdir -p /run/wrappers",
    )
    for path in " ".join(DEFAULTS.values()).split():
        make = f"mkdir -p {path}" if path.endswith("/") else f"mkdir -p $(dirname {path}) && : > {path}"
        machine.succeed(f"[ -e {path} ] || {{ {make}; }}")
    for path in CLOSED.split():
        machine.succeed(f"mkdir -p {path}; chmod 755 {path}")
    machine.succeed("mkdir -p /run/NetworkManager; : > /etc/ssl/openssl-ca.cnf; : > /etc/npmrc; : >> /etc/wgetrc; chmod 644 /etc/ssl/openssl-ca.cnf")


def skeleton(path, mounts):
    """Whether a task's own root has this folder, because something is unveiled below it."""
    shown = [*" ".join(DEFAULTS.values()).split(), *OWN, mounts + "/"]
    return any(other.startswith(path.rstrip("/") + "/") for other in shown) and path + "/" not in shown


def defaults(root):
    """The expected result for every default path, and for its denied twins."""
    wanted = {}
    for mode, paths in DEFAULTS.items():
        present = look(paths.split())
        t.assertEqual(present, {path: path.endswith("/") for path in paths.split()})
        found = existing(paths)
        for path in set(present) - set(found):
            wanted[f"{'list' if present[path] else 'read'} {path}"] = OK if "r" in mode else DENIED
        folders = [path.rstrip("/") for path, folder in found.items() if folder]
        planted = plant(path for path in folders if not path.startswith(("/proc", "/sys")))
        for path in folders:
            wanted[f"list {path}"] = OK
        for path in (path for path, folder in found.items() if not folder):
            # a task's own devices are of use only to itself
            letters = "rw" if root == "private" and path.startswith("/dev/") else mode
            # a socket cannot be opened, but Landlock decides first
            granted = "ENXIO" if path == "/dev/log" else OK
            wanted[f"read {path}"] = granted if "r" in letters else DENIED
            wanted[f"write {path}"] = granted if "w" in letters else DENIED if root == "host" else NOT_WRITABLE
        for path in planted:
            wanted[f"read {path}/{DATA}"] = OK
            wanted[f"exec {path}/{PROGRAM}"] = OK if "x" in mode else DENIED
            for action in ("write", "remove"):
                wanted[f"{action} {path}/{DATA}"] = READ_ONLY[root]
            for action in ("create", "mkdir"):
                wanted[f"{action} {path}/exec2-new"] = READ_ONLY[root]
    return wanted


def neighbours(root, mounts):
    wanted = {}
    hidden = HIDDEN[root]
    # those on read-only file systems are in the lists below
    planted = plant(existing(NEIGHBOURS))
    t.assertIn("/run/wrappers", planted)
    own = [path.rstrip("/") for path in OWN if root == "private"]

    def stat_of(path):
        # a dynamic user may not enter root's home
        return hidden if root == "private" else OK + "|EACCES" if path == "/root" else OK

    for path in planted:
        shown = root == "private" and skeleton(path, mounts)
        wanted[f"list {path}"] = OK if shown or path in own else hidden
        for action in ("read", "write", "exec", "stat"):
            file = PROGRAM if action == "exec" else DATA
            wanted[f"{action} {path}/{file}"] = stat_of(path) if action == "stat" else hidden
        wanted[f"remove {path}/{DATA}"] = "EROFS" if shown else hidden
        wanted[f"create {path}/exec2-new"] = OK if path == "/tmp" and own else "EROFS" if shown else hidden
        if path == "/var/tmp" and own:
            wanted[f"create {path}/exec2-new"] = "EEXIST"  # it is the same folder
    for path in existing(FILES, DEVICES):
        wanted[f"read {path}"] = wanted[f"write {path}"] = hidden
    if root == "private":
        # programs look at the root of cgroup2; the cgroups in it are empty folders
        wanted["read /sys/fs/cgroup/cgroup.procs"] = OK
        wanted["write /sys/fs/cgroup/cgroup.procs"] = NOT_WRITABLE
    for path in existing(FOLDERS):
        shown = root == "private" and skeleton(path, mounts)
        wanted[f"list {path}"] = OK if shown or path in own else hidden
        wanted[f"create {path}/exec2-new"] = OK if path in own else "EROFS" if shown else hidden
    return wanted


def own_root(mounts):
    """What only a root of the task's own has."""
    wanted = {
        f"only {mounts} $NOMAD_ALLOC_ID-$NOMAD_TASK_NAME": OK,
        f"only {mounts.rsplit('/', 1)[0]} {mounts.rsplit('/', 1)[1]}": OK,
        # what Nomad keeps from the task is covered
        "only $NOMAD_TASK_DIR/.. alloc local private secrets tmp": OK,
        "only $NOMAD_TASK_DIR/../private": OK,
        "create $NOMAD_TASK_DIR/../new": DENIED,
        "only /dev/shm exec2-new": OK,
        "only /dev/mqueue": OK,
        "only /dev/pts ptmx": OK,
        # a terminal without output; no controlling terminal
        "read /dev/ptmx": "EAGAIN",
        "write /dev/ptmx": OK,
        "read /dev/tty": "ENXIO",
        "write /dev/tty": "ENXIO",
        "chmod /dev/null": NOT_WRITABLE + "|EPERM",
    }
    for path in ("/etc/passwd", "/etc/group"):
        wanted[f"read {path}"] = OK
        wanted[f"write {path}"] = NOT_WRITABLE
    return wanted


def own_folder(path, prefix=""):
    """Everything but device nodes is allowed in the task's own folders."""
    path = f"{path}/{prefix}"
    return {
        f"list {path.rpartition('/')[0]}": OK,
        f"create {path}new": OK,
        f"read {path}new": OK,
        f"write {path}new": OK,
        f"truncate {path}new": OK,
        f"mkdir {path}folder": OK,
        f"link {path}new {path}linked": OK,
        f"rename {path}linked {path}renamed": OK,
        # ABI 2, Linux 5.19
        f"rename {path}renamed {path}folder/moved": OK if abi >= 2 else "EXDEV",
        f"symlink /etc/shadow {path}shadow": OK,
        f"readlink {path}shadow": OK,
        f"symlink /etc/hosts {path}hosts": OK,
        f"read {path}hosts": OK,
        f"fifo {path}fifo": OK,
        f"socket {path}socket": OK,
        f"remove {path}fifo": OK,
        # the filter of system calls answers before Landlock
        f"char {path}char": "EPERM",
        f"block {path}block": "EPERM",
    }


def others(root, mounts, neighbour, sibling, cgroup):
    """Another allocation, and another task of the same one."""
    hidden = HIDDEN[root]
    seen = OK if root == "private" else DENIED
    wanted = {f"list {mounts}": seen, "list $NOMAD_TASK_DIR/..": seen, f"list {mounts}/{neighbour}": hidden}
    for other in (f"{mounts}/{neighbour}", f"{mounts}/{sibling}", cgroup):
        wanted[f"stat {other}"] = "ENOENT" if root == "private" else OK
    for folder in ("local", "alloc", "secrets", "tmp"):
        wanted[f"list {mounts}/{neighbour}/{folder}"] = hidden
        wanted[f"read {mounts}/{neighbour}/{folder}/mark"] = hidden
        wanted[f"create {mounts}/{neighbour}/{folder}/new"] = hidden
        if folder != "alloc":
            wanted[f"read {mounts}/{sibling}/{folder}/mark"] = hidden
    wanted["read $NOMAD_ALLOC_DIR/mark"] = OK
    wanted["read $NOMAD_ALLOC_DIR/link"] = hidden
    for folder in ("$NOMAD_TASK_DIR", "$NOMAD_SECRETS_DIR", "$TMPDIR"):
        wanted[f"read {folder}/shadow"] = hidden
    wanted["list $CGROUP"] = OK
    wanted["read $CGROUP/memory.max"] = OK
    wanted["write $CGROUP/memory.max"] = DENIED if root == "host" else NOT_WRITABLE
    wanted["write $CGROUP/cgroup.procs"] = DENIED if root == "host" else NOT_WRITABLE
    wanted[f"list {cgroup}"] = hidden
    wanted[f"read {cgroup}/memory.max"] = hidden
    return wanted


def calls(root):
    """Calls that Landlock does not restrict, or not all of them, on paths that were not unveiled."""
    hidden = "ENOENT" if root == "private" else OK
    return {
        "stat /srv/exec2/hidden/file": hidden,
        "chdir /srv/exec2/hidden": hidden,
        "readlink /srv/exec2/hidden/link": hidden,
        "connect /srv/exec2/hidden/socket": MISSING if root == "private" else SOCKETS,
        "bind /srv/exec2/hidden/new": "ENOENT" if root == "private" else DENIED,
    }


MARK = "for d in $NOMAD_TASK_DIR $NOMAD_ALLOC_DIR $NOMAD_SECRETS_DIR $TMPDIR; do echo x > $d/mark; chmod 666 $d/mark; chmod 777 $d; done"

with subtest("a neighbour with files that every user may read"):
    stay = "; echo $NOMAD_TASK_DIR; cut -d: -f3 /proc/self/cgroup; echo ready; exec sleep 3600"
    run_job(job("neighbour", group("g", task("t", "sh", "-c", MARK + stay))))
    neighbour = wait_for_alloc("neighbour", "running")
    folder, cgroup = wait_for_log(neighbour, "ready").split()[:2]
    mounts = folder.rsplit("/", 2)[0]

modes = ["r", "w", "x", "c", "rx", "wc", "rwxc"]


def make_files():
    """Makes the files for unveil to grant, as they are before a task has tried everything on them."""
    machine.succeed(
        f"mkdir -p /srv/exec2/; cd /srv/exec2; rm -rf {' '.join(modes)} none a:b files;"
        f" for d in {' '.join(modes)} none; do mkdir $d; cp {shell} $d/file; touch $d/old $d/gone; done;"
        f" mkdir a:b files; for f in a:b/file files/read files/write files/exec files/run files/none; do cp {shell} $f; done;"
        " chmod -R 777 .; : > log; chmod 600 log"
    )
    listen(*(f"/srv/exec2/{mode}/socket" for mode in [*modes, "none"]))


make_files()

with subtest("files that are not unveiled, which every user can reach outside"):
    machine.succeed("mkdir /srv/exec2/hidden; cd /srv/exec2/hidden; touch file; ln -s file link; chmod 777 .")
    listen("/srv/exec2/hidden/socket")
    check_outside(UID, dict.fromkeys([*calls("host"), *(f"connect /srv/exec2/{mode}/socket" for mode in [*modes, "none"])], OK))
    machine.succeed("rm -f /srv/exec2/hidden/new")
    complete()


def granted(mode, root):
    """What a folder unveiled with the mode allows; `none` is not unveiled."""
    path = f"/srv/exec2/{mode}"
    # a mount of the task's own root is writable with either letter: the other one is for Landlock to refuse
    refused = HIDDEN[root] if mode == "none" else DENIED if set(mode) & set("wc") else READ_ONLY[root]

    def may(*letters, otherwise=refused):
        return OK if mode != "none" and all(letter in mode for letter in letters) else otherwise

    unread = HIDDEN[root] if mode == "none" else DENIED
    return {
        f"list {path}": may("r", otherwise=unread),
        f"read {path}/file": may("r", otherwise=unread),
        f"write {path}/file": may("w"),
        # the kernel opens a program for reading too
        f"exec {path}/file": may("r", "x", otherwise=unread),
        f"create {path}/new": may("c"),
        f"mkdir {path}/folder": may("c"),
        f"symlink file {path}/link": may("c"),
        f"fifo {path}/fifo": may("c"),
        f"rename {path}/old {path}/renamed": may("c"),
        f"remove {path}/gone": may("c"),
        f"connect {path}/socket": may("w", otherwise=MISSING if (mode, root) == ("none", "private") else SOCKETS),
        # ABI 3, Linux 6.2
        f"truncate {path}/file": OK if abi < 3 and refused == DENIED else may("w"),
    }


def unveiled(root):
    hidden, moved = HIDDEN[root], OK if abi >= 2 and root == "host" else "EXDEV"
    wanted = {probe: result for mode in [*modes, "none"] for probe, result in granted(mode, root).items()}
    return {
        **wanted,
        # `w` and `x` do not let list what is beside them
        "list /srv/exec2": DENIED,
        # a moved file must not gain rights; in a task's own root, each unveil is a mount
        "create /srv/exec2/c/a": OK,
        "rename /srv/exec2/c/a /srv/exec2/wc/a": "EXDEV",
        "rename /srv/exec2/c/a /srv/exec2/none/a": hidden if abi >= 2 or root == "private" else "EXDEV",
        "create /srv/exec2/rwxc/a": OK,
        "rename /srv/exec2/rwxc/a /srv/exec2/c/b": moved,
        "list /srv/exec2/a:b": OK,
        "read /srv/exec2/a:b/file": OK,
        "write /srv/exec2/a:b/file": READ_ONLY[root],
        "read /srv/exec2/files/read": OK,
        "write /srv/exec2/files/read": READ_ONLY[root],
        "write /srv/exec2/files/write": OK,
        "read /srv/exec2/files/write": DENIED,
        "read /srv/exec2/files/exec": DENIED,
        "exec /srv/exec2/files/run": OK,
        "exec /srv/exec2/files/read": DENIED,
        "read /srv/exec2/files/none": hidden,
        "list /srv/exec2/files": DENIED,
        "remove /srv/exec2/files/write": READ_ONLY[root],
    }


files = ["r:/srv/exec2/files/read", "w:/srv/exec2/files/write", "x:/srv/exec2/files/exec", "xr:/srv/exec2/files/run"]
unveil = [f"{mode}:/srv/exec2/{mode}" for mode in modes] + ["r:/srv/exec2/a:b"] + files


def by_default(root):
    wanted = {
        **defaults(root),
        **neighbours(root, mounts),
        **own_folder("$NOMAD_TASK_DIR"),
        **own_folder("$NOMAD_SECRETS_DIR"),
        **own_folder("$TMPDIR"),
        **others(root, mounts, f"{neighbour['ID']}-t", "$NOMAD_ALLOC_ID-sibling", f"/sys/fs/cgroup{cgroup}"),
        **calls(root),
        "create $NOMAD_ALLOC_DIR/$NOMAD_TASK_NAME": OK,
        "write /dev/stdout": OK,
        "write /dev/stderr": OK,
        "read /proc/1/environ": DENIED,
        "read /proc/self/environ": OK,
        "read /proc/sys/kernel/core_pattern": OK,
        "write /proc/sys/kernel/core_pattern": DENIED if root == "host" else NOT_WRITABLE,
    }
    if root == "private":
        wanted.update({**own_folder("/tmp", "tmp-"), **own_folder("/var/tmp", "var-tmp-"), **own_root(mounts)})
    return wanted


SIDECAR = 'lifecycle {\n hook = "prestart"\n sidecar = true\n}'
# Python. Replaces the log pipe of another task of its group again and again, so that the current one has no reader.
OWN_PIPE = """
import os, time
os.chdir(os.environ["NOMAD_ALLOC_DIR"] + "/logs")
while not os.path.exists(".t.stdout.fifo"):
    time.sleep(0.005)
while True:
    os.mkfifo("own")
    os.rename("own", ".t.stdout.fifo")
    time.sleep(0.005)
"""


def probes(root):
    """The groups of a job that tries everything, and what they are expected to find."""
    wanted, modes = by_default(root), unveiled(root)
    groups = [
        group(
            "defaults",
            task("sibling", "sh", "-c", f"{MARK}; {link}", extra=PRESTART),
            probe("dynamic", wanted),
            # file modes do not restrict root: if something is refused, the sandbox refuses it
            probe("root", wanted, extra='user = "root"'),
        ),
        group("modes", probe("t", modes, unveil=unveil)),
    ]
    return groups, wanted, modes


link = "ln -s /etc/shadow $NOMAD_ALLOC_DIR/link"

with subtest("the jobs"):

    def replaced(how):
        return f"{how} $NOMAD_ALLOC_DIR/logs/.t.stdout.fifo"

    groups, wanted, wanted_of_modes = probes("private")
    run_job(
        job(
            "isolation",
            *groups,
            group("link", task("sibling", "sh", "-c", link, extra=PRESTART), task("t", "true", unveil=["r:${NOMAD_ALLOC_DIR}/link"])),
            group("symlink", task("sibling", "sh", "-c", replaced("ln -s /srv/exec2/log"), extra=PRESTART), task("t", "true")),
            group("pipe", task("sibling", "python3", "-ISc", OWN_PIPE, extra=SIDECAR), task("t", "false"), attempts=1),
            group("file", task("sibling", "sh", "-c", replaced("cp /dev/null"), extra=PRESTART), task("t", "true")),
            group("env", task("t", "true", extra='env { NOMAD_TASK_DIR = "/" }')),
        )
    )
    done = wait_for_groups("isolation")

with subtest("a dynamic user: every default and its neighbours"):
    check_probes(done["defaults"], "dynamic", wanted)

with subtest("root: the same"):
    check_probes(done["defaults"], "root", wanted)

with subtest("each mode grants its letters and no more"):
    check_probes(done["modes"], "t", wanted_of_modes)

with subtest("an unveil through a link that a task could have made is refused"):
    t.assertEqual(done["link"]["ClientStatus"], "failed")
    (error,) = driver_errors(done["link"], "t")
    t.assertRegex(error, r'unveil "r:.*/alloc/link": .*symbolic links below .* are not followed: a task could have made them')

with subtest("a log pipe that another task of the group replaced is refused, and the replacement is left alone"):
    for name, reason in (("symlink", "Too many symbolic links"), ("file", "it is not a FIFO")):
        (error,) = driver_errors(done[name], "t")
        t.assertRegex(error, rf'open log ".*/alloc/logs/\.t\.stdout\.fifo": {reason}')
    t.assertEqual(machine.succeed("stat -c '%U %G %a %s' /srv/exec2/log").strip(), "root root 600 0")

with subtest("a log pipe without a reader is an error after 5 s"):
    t.assertEqual(done["pipe"]["ClientStatus"], "failed")
    # the first start may have found the reader
    errors = driver_errors(done["pipe"], "t")
    t.assertIn(len(errors), (1, 2))
    for error in errors:
        t.assertRegex(error, r'open log ".*/alloc/logs/\.t\.stdout\.fifo": No such device or address \(no process reads the log FIFO, waited 5 s\)')

with subtest("a job that sets NOMAD_TASK_DIR does not start"):
    t.assertEqual(done["env"]["ClientStatus"], "failed")
    (error,) = driver_errors(done["env"], "t")
    t.assertIn('NOMAD_TASK_DIR="/" is not the task directory of this task; Nomad sets it, so remove NOMAD_TASK_DIR from the env block of the job', error)

with subtest("jobs may not change the policy: unveil_by_task = false"):
    configure(unveil_by_task=False)
    poll("the node has the attribute", lambda: node()["Attributes"]["driver.exec2.unveil.tasks"] == "false", AGENT_TIMEOUT_S)
    asks: dict[str, dict[str, Any]] = {
        "unveil": {"unveil": ["r:/etc/hosts"]},
        "work-dir": {"work_dir": "/srv/exec2"},
        "caps": {"cap_add": ["net_raw"]},
        "mknod": {"cap_add": ["mknod"]},
        "setfcap": {"cap_add": ["setfcap"]},
        "none": {},
        # The default of allow_caps.
        "default": {
            "cap_add": ["audit_write", "chown", "dac_override", "fowner", "fsetid", "kill", "net_bind_service", "setgid", "setpcap", "setuid", "sys_chroot"]
        },
    }
    allowed = ("none", "default")
    run_job(job("policy", *(group(name, task("t", "true", **options)) for name, options in asks.items())))
    done = wait_for_groups("policy", {name: "complete" if name in allowed else "failed" for name in asks})
    (error,) = driver_errors(done["unveil"])
    t.assertIn("the task sets unveil, which the agent's plugin option unveil_by_task does not allow", error)
    t.assertIn("; remove unveil from the task, or set unveil_by_task = true", error)
    (error,) = driver_errors(done["work-dir"])
    t.assertIn('work_dir "/srv/exec2" is outside the task\'s own directories', error)
    (error,) = driver_errors(done["caps"])
    t.assertRegex(error, r'net_raw.*set allow_caps = \["default", "net_raw"\]')

with subtest("unveil_defaults = false: only what is unveiled is reachable"):
    configure(unveil_by_task=True, unveil_defaults=False, unveil_paths=["r:/srv/exec2/files/read"])
    poll("the node has the attribute", lambda: node()["Attributes"]["driver.exec2.unveil.defaults"] == "false", AGENT_TIMEOUT_S)
    programs = [f"rx:{path}" for path in existing("/usr /lib /lib64 /nix/store")] + [f"r:{path}" for path in existing("/etc/ld.so.cache /proc")]
    bare = {
        # the agent's unveil_paths, and the job's
        "read /srv/exec2/files/read": OK,
        "read /srv/exec2/files/none": "ENOENT",
        f"exec {shell}": OK,
        # on NixOS /etc/hosts is in the store, which is unveiled
        **{f"read {path}": "ENOENT" for path in existing("/etc/hosts /etc/ld.so.conf")},
        "write /dev/null": "ENOENT",
        **{f"list {path}": "ENOENT" for path in ("/tmp", "/var/tmp", "/dev/shm")},
        "list $NOMAD_TASK_DIR": DENIED,
        "create $NOMAD_TASK_DIR/new": DENIED,
        "list $NOMAD_ALLOC_DIR": DENIED,
        "list $TMPDIR": DENIED,
        "list $CGROUP": "ENOENT",
    }
    run_job(job("bare", group("some", probe("t", bare, unveil=programs)), group("nothing", task("t", "true"))))
    done = wait_for_groups("bare", {"some": "complete", "nothing": "failed"})
    check_probes(done["some"], "t", bare)
    (error,) = driver_errors(done["nothing"])
    t.assertRegex(error, 'run command "true": No such file or directory .not found in PATH=')

with subtest('root = "host": the same, where Landlock alone denies'):
    configure(root="host", unveil_by_task=True, unveil_paths=["r:/etc/mime.types"])
    machine.succeed(f"rm -rf $(find / -xdev '(' -name {DATA} -o -name {PROGRAM} ')')")
    make_files()
    groups, wanted, wanted_of_modes = probes("host")
    run_job(job("host", *groups))
    done = wait_for_groups("host")
    for name in ("dynamic", "root"):
        check_probes(done["defaults"], name, wanted)
    check_probes(done["modes"], "t", wanted_of_modes)
