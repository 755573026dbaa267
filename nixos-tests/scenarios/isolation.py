# /// scenario
# description = "A task reaches what it was unveiled, with the rights it was given, and nothing else."
# across = "Landlock's ABI, and what a denied access returns"
# seconds = 60
# ///

from typing import Any

from exec2.agent import configure, node, wait_for_driver
from exec2.allocs import driver_errors, run_job, wait_for_alloc, wait_for_groups, wait_for_log
from exec2.guest import AGENT_TIMEOUT_S, landlock_abi, machine, nixos, poll, subtest, t
from exec2.jobs import PRESTART, group, job, task
from exec2.probes import check_probes, probe

OK, DENIED = "ok", "EACCES"
# Files that every user may read, write and execute: if that is refused, Landlock refuses it.
PROGRAM, DATA = "exec2-program", "exec2-data"

# The table of docs/security.md; folders end in a slash. A pattern is represented by a name that it matches.
DEFAULTS = {
    "rx": """/bin/ /sbin/ /usr/bin/ /usr/sbin/ /usr/games/ /usr/local/bin/ /usr/local/sbin/ /lib/ /lib64/ /usr/lib/ /usr/lib32/ /usr/lib64/
             /usr/libexec/ /usr/local/lib/ /usr/local/lib64/ /usr/local/libexec/ /usr/share/ /usr/local/share/ /nix/store/
             /run/current-system/sw/""",
    "r": """/etc/ld.so.conf /etc/ld.so.cache /etc/ld.so.conf.d/ /usr/include/ /usr/local/include/ /dev/zero /dev/random /dev/urandom
            /etc/localtime /etc/timezone /etc/alternatives/ /etc/mime.types /etc/magic /etc/exec2-release /etc/debian_version
            /etc/gitconfig /etc/java/ /etc/java-99-openjdk/ /etc/perl/ /etc/php.ini /etc/php.d/ /etc/php99/php.ini /etc/php99/conf.d/ /etc/php99/cli/
            /etc/php/9.9/cli/ /etc/php/9.9/mods-available/ /etc/python3.99/ /etc/fonts/ /var/cache/fontconfig/ /etc/manpath.config /etc/man_db.conf
            /etc/hosts /etc/host.conf /etc/hostname /etc/nsswitch.conf /etc/gai.conf /etc/services /etc/protocols
            /etc/resolv.conf /run/systemd/resolve/ /run/resolvconf/ /run/netconfig/ /etc/ssl/certs/ /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem
            /etc/pki/tls/certs/ /etc/pki/tls/cacert.pem
            /etc/pki/ca-trust/extracted/ /etc/ca-certificates/extracted/ /var/lib/ca-certificates/ /etc/ssl/openssl.cnf /etc/ssl/engines3.d/
            /etc/ssl/engdef3.d/ /etc/pki/tls/openssl.cnf /etc/pki/tls/openssl.d/ /etc/crypto-policies/
            /proc/ /sys/devices/system/cpu/ /sys/fs/cgroup/cgroup.controllers""",
    "rw": "/dev/null /dev/full",
    "w": "/dev/log",
}
# Folders beside, above and below those of the table.
NEIGHBOURS = """/etc /etc/ssl /etc/ssl/private /etc/pki /etc/pki/tls /etc/pki/tls/private /etc/ca-certificates /etc/php /etc/php99 /etc/php/9.9
                /etc/php/9.9/fpm /etc/php-fpm.d /etc/java-99-keys /etc/profile.d /usr /usr/src /usr/local /usr/local/etc /usr/local/src
                /opt /srv /var/lib /var/tmp /tmp /root /home /run /run/wrappers /run/NetworkManager /nix"""
# Those that no distribution in the table has.
CLOSED = "/etc/ssl/private /etc/pki/tls/private /etc/php/9.9/fpm /etc/php-fpm.d /etc/java-99-keys /etc/profile.d /usr/src /usr/local/etc"
FILES = "/sys/fs/cgroup/cgroup.procs /etc/passwd /etc/group /etc/shadow /etc/fstab /etc/machine-id /etc/ssl/openssl-ca.cnf /etc/npmrc /etc/wgetrc"
DEVICES = "/dev/tty /dev/ptmx /dev/kmsg /dev/mem /dev/vda"
FOLDERS = "/ /dev /dev/shm /sys /sys/fs/cgroup /sys/kernel /run/nomad-driver-exec2 /opt/nomad /opt/nomad/data /var/lib/nomad"

wait_for_driver()
abi = landlock_abi()
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
        f"for d in {' '.join(folders)}; do"
        f" cp {shell} $d/{PROGRAM} 2>/dev/null && echo x > $d/{DATA} && chmod 777 $d/{PROGRAM} $d/{DATA} && echo $d; done; true"
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


def defaults():
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
            # a socket cannot be opened, but Landlock decides first
            granted = "ENXIO" if path == "/dev/log" else OK
            wanted[f"read {path}"] = granted if "r" in mode else DENIED
            wanted[f"write {path}"] = granted if "w" in mode else DENIED
        for path in planted:
            wanted[f"read {path}/{DATA}"] = OK
            wanted[f"exec {path}/{PROGRAM}"] = OK if "x" in mode else DENIED
            for action in ("write", "remove"):
                wanted[f"{action} {path}/{DATA}"] = DENIED
            for action in ("create", "mkdir"):
                wanted[f"{action} {path}/exec2-new"] = DENIED
    return wanted


def neighbours():
    wanted = {}
    # those on read-only file systems are in the lists below
    planted = plant(existing(NEIGHBOURS))
    t.assertIn("/run/wrappers", planted)
    for path in planted:
        wanted[f"list {path}"] = DENIED
        for action in ("read", "write", "remove"):
            wanted[f"{action} {path}/{DATA}"] = DENIED
        wanted[f"exec {path}/{PROGRAM}"] = DENIED
        wanted[f"create {path}/exec2-new"] = DENIED
    for path in existing(FILES, DEVICES):
        wanted[f"read {path}"] = DENIED
        wanted[f"write {path}"] = DENIED
    for path in existing(FOLDERS):
        wanted[f"list {path}"] = DENIED
        wanted[f"create {path}/exec2-new"] = DENIED
    return wanted


def own_folder(path):
    """Everything but device nodes is allowed in the task's own folders."""
    return {
        f"list {path}": OK,
        f"create {path}/new": OK,
        f"read {path}/new": OK,
        f"write {path}/new": OK,
        f"truncate {path}/new": OK,
        f"mkdir {path}/folder": OK,
        f"link {path}/new {path}/linked": OK,
        f"rename {path}/linked {path}/renamed": OK,
        # ABI 2, Linux 5.19
        f"rename {path}/renamed {path}/folder/moved": OK if abi >= 2 else "EXDEV",
        f"symlink /etc/passwd {path}/passwd": OK,
        f"read {path}/passwd": DENIED,
        f"symlink /etc/hosts {path}/hosts": OK,
        f"read {path}/hosts": OK,
        f"fifo {path}/fifo": OK,
        f"socket {path}/socket": OK,
        f"remove {path}/fifo": OK,
        f"char {path}/char": DENIED,
        f"block {path}/block": DENIED,
    }


def others(mounts, neighbour, sibling, cgroup):
    """Another allocation, and another task of the same one."""
    wanted = {f"list {mounts}": DENIED, "list $NOMAD_TASK_DIR/..": DENIED, f"list {mounts}/{neighbour}": DENIED}
    for folder in ("local", "alloc", "secrets", "tmp"):
        wanted[f"list {mounts}/{neighbour}/{folder}"] = DENIED
        wanted[f"read {mounts}/{neighbour}/{folder}/mark"] = DENIED
        wanted[f"create {mounts}/{neighbour}/{folder}/new"] = DENIED
        if folder != "alloc":
            wanted[f"read {mounts}/{sibling}/{folder}/mark"] = DENIED
    wanted["read $NOMAD_ALLOC_DIR/mark"] = OK
    wanted["read $NOMAD_ALLOC_DIR/link"] = DENIED
    wanted["list $CGROUP"] = OK
    wanted["read $CGROUP/memory.max"] = OK
    wanted["write $CGROUP/memory.max"] = DENIED
    wanted["write $CGROUP/cgroup.procs"] = DENIED
    wanted[f"list {cgroup}"] = DENIED
    wanted[f"read {cgroup}/memory.max"] = DENIED
    return wanted


MARK = 'for d in $NOMAD_TASK_DIR $NOMAD_ALLOC_DIR $NOMAD_SECRETS_DIR $TMPDIR; do echo x > $d/mark; chmod 666 $d/mark; chmod 777 $d; done'

with subtest("a neighbour with files that every user may read"):
    stay = "; echo $NOMAD_TASK_DIR; cut -d: -f3 /proc/self/cgroup; echo ready; exec sleep 3600"
    run_job(job("neighbour", group("g", task("t", "sh", "-c", MARK + stay))))
    neighbour = wait_for_alloc("neighbour", "running")
    folder, cgroup = wait_for_log(neighbour, "ready").split()[:2]
    mounts = folder.rsplit("/", 2)[0]

with subtest("files for unveil to grant"):
    modes = ["r", "w", "x", "c", "rx", "wc", "rwxc"]
    machine.succeed(
        f"mkdir -p /srv/exec2/; cd /srv/exec2; for d in {' '.join(modes)} none; do mkdir $d; cp {shell} $d/file; touch $d/old $d/gone; done;"
        f" mkdir a:b files; for f in a:b/file files/read files/write files/exec files/run files/none; do cp {shell} $f; done;"
        " chmod -R 777 /srv/exec2; : > log; chmod 600 log"
    )


def granted(mode):
    """What a folder unveiled with the mode allows; `none` is not unveiled."""
    path = f"/srv/exec2/{mode}"
    def may(*letters):
        return OK if mode != "none" and all(letter in mode for letter in letters) else DENIED
    return {
        f"list {path}": may("r"),
        f"read {path}/file": may("r"),
        f"write {path}/file": may("w"),
        # the kernel opens a program for reading too
        f"exec {path}/file": may("r", "x"),
        f"create {path}/new": may("c"),
        f"mkdir {path}/folder": may("c"),
        f"symlink file {path}/link": may("c"),
        f"fifo {path}/fifo": may("c"),
        f"rename {path}/old {path}/renamed": may("c"),
        f"remove {path}/gone": may("c"),
        # ABI 3, Linux 6.2
        f"truncate {path}/file": may("w") if abi >= 3 else OK,
    }


complete()
unveiled = {probe: result for mode in [*modes, "none"] for probe, result in granted(mode).items()}
unveiled.update(
    {
        "list /srv/exec2": DENIED,
        # a moved file must not gain rights
        "create /srv/exec2/c/a": OK,
        "rename /srv/exec2/c/a /srv/exec2/wc/a": "EXDEV",
        "rename /srv/exec2/c/a /srv/exec2/none/a": DENIED if abi >= 2 else "EXDEV",
        "create /srv/exec2/rwxc/a": OK,
        "rename /srv/exec2/rwxc/a /srv/exec2/c/b": OK if abi >= 2 else "EXDEV",
        "list /srv/exec2/a:b": OK,
        "read /srv/exec2/a:b/file": OK,
        "write /srv/exec2/a:b/file": DENIED,
        "read /srv/exec2/files/read": OK,
        "write /srv/exec2/files/read": DENIED,
        "write /srv/exec2/files/write": OK,
        "read /srv/exec2/files/write": DENIED,
        "read /srv/exec2/files/exec": DENIED,
        "exec /srv/exec2/files/run": OK,
        "exec /srv/exec2/files/read": DENIED,
        "read /srv/exec2/files/none": DENIED,
        "list /srv/exec2/files": DENIED,
        "remove /srv/exec2/files/write": DENIED,
    }
)
files = ["r:/srv/exec2/files/read", "w:/srv/exec2/files/write", "x:/srv/exec2/files/exec", "xr:/srv/exec2/files/run"]
unveil = [f"{mode}:/srv/exec2/{mode}" for mode in modes] + ["r:/srv/exec2/a:b"] + files

by_default = {
    **defaults(),
    **neighbours(),
    **own_folder("$NOMAD_TASK_DIR"),
    **own_folder("$NOMAD_SECRETS_DIR"),
    **own_folder("$TMPDIR"),
    **others(mounts, f"{neighbour['ID']}-t", "$NOMAD_ALLOC_ID-sibling", f"/sys/fs/cgroup{cgroup}"),
    "create $NOMAD_ALLOC_DIR/$NOMAD_TASK_NAME": OK,
    "write /dev/stdout": OK,
    "write /dev/stderr": OK,
    "read /proc/1/environ": DENIED,
    "read /proc/self/environ": OK,
    "read /proc/sys/kernel/core_pattern": OK,
    "write /proc/sys/kernel/core_pattern": DENIED,
}

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

with subtest("the jobs"):
    def replaced(how):
        return f"{how} $NOMAD_ALLOC_DIR/logs/.t.stdout.fifo"
    link = "ln -s /etc/passwd $NOMAD_ALLOC_DIR/link"
    run_job(
        job(
            "isolation",
            group(
                "defaults",
                task("sibling", "sh", "-c", f"{MARK}; {link}", extra=PRESTART),
                probe("dynamic", by_default),
                # file modes do not restrict root: if something is refused, Landlock refuses it
                probe("root", by_default, extra='user = "root"'),
            ),
            group("modes", probe("t", unveiled, unveil=unveil)),
            group("link", task("sibling", "sh", "-c", link, extra=PRESTART), task("t", "true", unveil=["r:${NOMAD_ALLOC_DIR}/link"])),
            group("symlink", task("sibling", "sh", "-c", replaced("ln -s /srv/exec2/log"), extra=PRESTART), task("t", "true")),
            group("pipe", task("sibling", "python3", "-ISc", OWN_PIPE, extra=SIDECAR), task("t", "false"), attempts=1),
            group("file", task("sibling", "sh", "-c", replaced("cp /dev/null"), extra=PRESTART), task("t", "true")),
            group("env", task("t", "true", extra='env { NOMAD_TASK_DIR = "/" }')),
        )
    )
    done = wait_for_groups("isolation")

with subtest("a dynamic user: every default and its neighbours"):
    check_probes(done["defaults"], "dynamic", by_default)

with subtest("root: the same"):
    check_probes(done["defaults"], "root", by_default)

with subtest("each mode grants its letters and no more"):
    check_probes(done["modes"], "t", unveiled)

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
        "none": {},
    }
    run_job(job("policy", *(group(name, task("t", "true", **options)) for name, options in asks.items())))
    done = wait_for_groups("policy", {name: "failed" if options else "complete" for name, options in asks.items()})
    (error,) = driver_errors(done["unveil"])
    t.assertIn("the task sets unveil, which the agent's plugin option unveil_by_task does not allow", error)
    t.assertIn("; remove unveil from the task, or set unveil_by_task = true", error)
    (error,) = driver_errors(done["work-dir"])
    t.assertIn('work_dir "/srv/exec2" is outside the task\'s own directories', error)
    (error,) = driver_errors(done["caps"])
    t.assertRegex(error, r'net_raw.*set allow_caps = \["kill", "net_bind_service", "net_raw"\]')

with subtest("unveil_defaults = false: only what is unveiled is reachable"):
    configure(unveil_by_task=True, unveil_defaults=False, unveil_paths=["r:/srv/exec2/files/read"])
    poll("the node has the attribute", lambda: node()["Attributes"]["driver.exec2.unveil.defaults"] == "false", AGENT_TIMEOUT_S)
    programs = [f"rx:{path}" for path in existing("/usr /lib /lib64 /nix/store")] + [f"r:{path}" for path in existing("/etc/ld.so.cache /proc")]
    bare = {
        # the agent's unveil_paths, and the job's
        "read /srv/exec2/files/read": OK,
        "read /srv/exec2/files/none": DENIED,
        f"exec {shell}": OK,
        # on NixOS /etc/hosts is in the store, which is unveiled
        **{f"read {path}": DENIED for path in existing("/etc/hosts /etc/ld.so.conf")},
        "write /dev/null": DENIED,
        "list $NOMAD_TASK_DIR": DENIED,
        "create $NOMAD_TASK_DIR/new": DENIED,
        "list $NOMAD_ALLOC_DIR": DENIED,
        "list $TMPDIR": DENIED,
        "list $CGROUP": DENIED,
    }
    run_job(job("bare", group("some", probe("t", bare, unveil=programs)), group("nothing", task("t", "true"))))
    done = wait_for_groups("bare", {"some": "complete", "nothing": "failed"})
    check_probes(done["some"], "t", bare)
    (error,) = driver_errors(done["nothing"])
    t.assertRegex(error, 'run command ".*/true": Permission denied .it is not executable for the task\'s user, or not unveiled with x')
