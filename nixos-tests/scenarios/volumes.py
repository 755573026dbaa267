# /// scenario
# description = "Volumes: where they are mounted, who owns their files, what is refused, and what the host does to them while a task runs."
# across = "the mount API, and which file systems can be mapped"
# nomad = "pluginhost"
# guests = ["debian"]
# packages.debian = ["bindfs", "btrfs-progs", "e2fsprogs", "nfs-kernel-server", "xfsprogs"]
# seconds = 250
# ///
# Each allowed action has a denied one beside it. Under Nomad: `volumes_nomad`.

import json

from exec2.agent import wait_for_driver
from exec2.disks import filesystem
from exec2.guest import CLEANUP_TIMEOUT_S, landlock_abi, machine, poll, subtest, t, write
from exec2.harness import end, harness, refusal, run_plugin
from exec2.probes import PROBE, compare, listen

wait_for_driver()
machine.succeed("systemctl stop nomad.service")

FOLDER = "/srv/volumes"
OK, DENIED, REFUSED, MISSING, READ_ONLY = "ok", "EACCES", "EPERM", "ENOENT", "EROFS"
SET_ID = {"seccomp_allow": ["set_id"]}
# On disk.
OWNER, UID = "owner", 4321
# Of two starts of a task.
FIRST, SECOND = "nomad-80001", "nomad-80002"
KERNEL = tuple(int(part) for part in machine.succeed("uname -r").split("-")[0].split(".")[:2])


def mount(destination, source, readonly=False, propagation="private", label=""):
    return {
        "task_path": destination, "host_path": source, "readonly": readonly, "propagation_mode": propagation, "selinux_label": label,
    }  # fmt: skip


def write_task(name, *command, mounts=(), config=None, user=FIRST, **fields):
    path = f"{FOLDER}/{name}.json"
    config = {"command": command[0], "args": list(command[1:]), **(config or {})}
    write(path, json.dumps({"config": config, "cpu": 1000, "memory": 128, "user": user, "mounts": list(mounts), **fields}))
    return path


def out_of(name, *command, status=0, **fields):
    """What a task writes until it ends with the status."""
    task = write_task(name, *command, **fields)
    harness(f"start {task}")
    result = harness(f"wait -timeout {CLEANUP_TIMEOUT_S}s {task}")["result"]
    output = machine.succeed(f"pluginhost task logs {task}; pluginhost task logs -stderr {task}")
    end(task)
    t.assertEqual(result["exit_code"], status, output)
    return output


def sh(script, name="sh", **fields):
    return out_of(name, "sh", "-c", script, **fields)


def tried(wanted, *mounts, **fields):
    """Compares what a task with these volumes can do with what is expected of it."""
    output = out_of("probe", "python3", "-ISc", PROBE, json.dumps(list(wanted)), mounts=mounts, **fields)
    compare(json.loads(output.splitlines()[-1]), wanted)


def refused(why, *mounts, **fields):
    """The task does not start, for a reason that matches."""
    task = write_task("refused", "true", mounts=mounts, **fields)
    error = refusal(f"start {task}")
    machine.execute(f"pluginhost task cleanup {task}")
    t.assertRegex(error["message"], why)
    return error


def volume(place, uid=UID, gid=UID, mode="750"):
    """A directory with a file in it, both of this owner."""
    machine.succeed(f"mkdir -p {place}; echo content > {place}/file; chown {uid}:{gid} {place} {place}/file; chmod {mode} {place}; chmod 640 {place}/file")
    return place


def owners(place):
    return machine.succeed(f"stat -c %u:%g {place}").split()


machine.succeed(f"mkdir -p {FOLDER}; chmod 755 {FOLDER}", f"useradd --uid {UID} --user-group {OWNER}")
DISK = filesystem("ext4", f"{FOLDER}/ext4")
data, plain = volume(f"{DISK}/data"), volume(f"{DISK}/plain", 0, 0)
run_plugin('unveil_paths = ["r:/etc/mime.types"]', "unveil_by_task = true", 'allow_seccomp = ["set_id"]')

with subtest("the capability: any mount"):
    t.assertEqual(harness("rpc Capabilities")["capabilities"].get("mount_configs", "UNKNOWN_MOUNTS"), "UNKNOWN_MOUNTS")

with subtest("a volume is written, one that is read-only is not, and without it there is nothing; its path on the host is hidden"):
    wanted = {
        "read /data/file": OK,
        "write /data/file": OK,
        "create /data/new": OK,
        "mkdir /data/d": OK,
        "rename /data/new /data/d/new": OK,
        "symlink /etc /data/link": OK,
        "remove /data/link": OK,
        "char /data/char": REFUSED,
        "block /data/block": REFUSED,
        f"stat {data}": MISSING,
        "stat /srv": MISSING,
        "rmdir /data": "EBUSY|EROFS|EACCES",
    }
    tried(wanted, mount("/data", data))
    listen(f"{data}/socket")
    machine.succeed(f"chown {UID}:{UID} {data}/socket")
    # ABI 9, Linux 7.1: to connect to a socket is to write
    tried({"connect /data/socket": OK}, mount("/data", data))
    tried({"stat /data/socket": OK, "connect /data/socket": OK if landlock_abi() < 9 else DENIED}, mount("/data", data, readonly=True))
    machine.succeed(f"rm {data}/socket")
    only_read = {"read /data/file": OK, "list /data": OK, "write /data/file": READ_ONLY, "create /data/x": READ_ONLY, "remove /data/file": READ_ONLY,
                 "chmod /data/file": READ_ONLY, f"stat {data}": MISSING}  # fmt: skip
    tried(only_read, mount("/data", data, readonly=True))
    # below a directory that the task may write: the mount's flag, not Landlock
    here = {probe.replace("/data", "$NOMAD_TASK_DIR/data"): outcome for probe, outcome in only_read.items() if DISK not in probe}
    tried({**here, "create $NOMAD_TASK_DIR/x": OK}, mount("${NOMAD_TASK_DIR}/data", data, readonly=True))
    tried(dict.fromkeys(wanted, "ENOENT|EROFS|EACCES|EPERM"))
    tried({"read /data/file": MISSING, "stat /data": MISSING})

with subtest("files on disk belong to the owner of the volume, whatever uid the task has this time; a named user has only its own"):
    script = "id -u; stat -c %u:%g /data /data/file; umask 077; mkdir -p /data/d; date > /data/d/$(id -u); ls /data/d; cat /data/d/* > /dev/null"
    for user in FIRST, SECOND:
        uid = user.removeprefix("nomad-")
        lines = sh(script, mounts=[mount("/data", data)], user=user).split()
        t.assertEqual(lines[:3], [uid, f"{uid}:{uid}", f"{uid}:{uid}"])
        t.assertIn(uid, lines[3:])
    t.assertEqual(set(owners(f"{data} {data}/d {data}/d/80001 {data}/d/80002")), {f"{UID}:{UID}"})
    tried({"read /data/file": OK, "write /data/file": OK}, mount("/data", data), user=OWNER)
    closed = {"read /data/file": DENIED, "list /data": DENIED, "create /data/x": DENIED}
    tried(closed, mount("/data", data), user="alice")
    tried(closed, mount("/data", data), config={"volume_idmap": "never"})

with subtest("roots directory is never mapped: no task leaves a set-uid program of root; the error says what to do"):
    refused(r"belongs to the user root.*uid and gid of the mkdir plugin", mount("/data", plain))
    wheel = volume(f"{DISK}/wheel", UID, 0)
    refused(r"belongs to the group root", mount("/data", wheel))
    tried({"list /data": OK, "read /data/file": DENIED, "create /data/x": READ_ONLY}, mount("/data", volume(f"{DISK}/seen", 0, 0, "755"), readonly=True))
    tried({"list /data": OK, "create /data/x": DENIED}, mount("/data", f"{DISK}/seen"), config={"volume_idmap": "never"})
    # where all may write, the task's files are its own
    shared = volume(f"{DISK}/shared", 0, 0, "1777")
    sh("cp $(readlink -f /bin/sh) /data/sh; chmod 4755 /data/sh; /data/sh -c 'id -u'", mounts=[mount("/data", shared)], config=SET_ID)
    t.assertEqual(machine.succeed(f"stat -c %u {shared}/sh").strip(), "80001")
    # of the owner of a volume it can be left, but gives the task nothing
    output = sh("cp $(readlink -f /bin/sh) /data/sh; chmod 4755 /data/sh; /data/sh -pc 'id -u'", mounts=[mount("/data", data)], user=SECOND, config=SET_ID)
    t.assertEqual(output.strip(), "80002")
    t.assertEqual(machine.succeed(f"stat -c '%u %a' {data}/sh").split(), [str(UID), "4755"])

with subtest("two tasks with one volume at the same time both own what either writes; a third without it sees nothing"):
    wait_for = "n=0; until [ -e /data/{0} ] || [ $n = 600 ]; do n=$((n + 1)); sleep 0.1; done; [ -O /data/{0} ] && rm /data/{0}"
    tasks = []
    for name, other, user in ("one", "two", FIRST), ("two", "one", SECOND):
        script = f"echo > /data/{name}; {wait_for.format(other)}"
        tasks.append(write_task(f"pair-{name}", "sh", "-c", script, mounts=[mount("/data", data)], user=user))
        harness(f"start {tasks[-1]}")
    sh("ls /data", status=2, user="nomad-80003")
    for task in tasks:
        t.assertEqual(harness(f"wait -timeout {CLEANUP_TIMEOUT_S}s {task}")["result"]["exit_code"], 0)
        end(task)

with subtest("a volume in a volume: where only root can remove its mount point; both are there, the inner one on top"):
    outer = volume(f"{DISK}/outer", 0, 0, "755")
    machine.succeed(f"mkdir {outer}/in {data}/in; echo hidden > {outer}/in/hidden")
    both = [mount("/a", outer, readonly=True), mount("/a/in", data)]
    tried({"list /a": OK, "read /a/in/file": OK, "stat /a/in/hidden": MISSING, "create /a/x": READ_ONLY, "create /a/in/x": OK}, *both)
    tried({"list /a": OK, "read /a/in/file": MISSING, "stat /a/in/hidden": OK, "create /a/in/x": READ_ONLY}, both[0])
    refused("/a is not only root's to write", mount("/a", data), mount("/a/in", plain, readonly=True))
    refused("has no such file or directory", mount("/a", outer, readonly=True), mount("/a/none", data))

with subtest("a destination that is a file, a link, in the alloc directory, or not plain"):
    machine.succeed(f"ln -s /etc {outer}/link")
    refused("a file where a directory is needed", mount("/a", outer, readonly=True), mount("/a/file", data))
    refused("is a symbolic link", mount("/a", outer, readonly=True), mount("/a/link", data))
    tried({"read /opt/app.conf": OK, "write /opt/app.conf": OK, "list /opt": OK, "create /opt/x": "EROFS|EACCES"}, mount("/opt/app.conf", f"{data}/file"))
    for destination, why in [
        ("${NOMAD_ALLOC_DIR}/data", "write a path outside it, for example"),
        ("${NOMAD_TASK_DIR}", "it would hide the task's own directories"),
        ("data", "must be an absolute path"),
        ("/data/../etc", "must be an absolute path"),
        ("/proc/sys", "the kernel's or the driver's"),
        ("/dev", "the kernel's or the driver's"),
        ("/", "it would hide the task's own directories"),
        ("/etc", 'unveil "r:/etc/mime.types"'),
    ]:
        t.assertFalse(refused(why, mount(destination, data))["recoverable"], destination)
    refused("the same destination", mount("/a", data), mount("/a", plain, readonly=True))
    machine.succeed(f"ln -sfn /etc {data}/link-of-task")
    refused("the symbolic link", mount("/data", f"{data}/link-of-task"))
    t.assertTrue(refused("No such file or directory", mount("/data", f"{DISK}/none"))["recoverable"])

with subtest("what the job says about propagation and labels is done, or refused with the reason"):
    refused("bidirectional.*what a task mounts would stay on the host", mount("/data", data, propagation="bidirectional"))
    refused("propagation_mode .* is unknown", mount("/data", data, propagation="rshared"))
    refused("selinux_label is not supported", mount("/data", data, label="z"))
    machine.succeed(f"mkdir -p {data}/later {FOLDER}/mounted; mount --make-shared {DISK}")
    for propagation, seen in ("private", ""), ("host-to-task", "later\n"):
        script = "echo ready; until [ -e /data/go ]; do sleep 0.1; done; ls /data/later"
        task = write_task("propagation", "sh", "-c", script, mounts=[mount("/data", data, propagation=propagation)])
        machine.succeed(f"rm -f {data}/go")
        harness(f"start {task}")
        machine.wait_until_succeeds(f"pluginhost task logs {task} | grep ready", timeout=CLEANUP_TIMEOUT_S)
        machine.succeed(f"mount -t tmpfs none {data}/later; touch {data}/later/later; touch {data}/go")
        harness(f"wait -timeout {CLEANUP_TIMEOUT_S}s {task}")
        t.assertEqual(machine.succeed(f"pluginhost task logs {task}"), f"ready\n{seen}", propagation)
        end(task)
        machine.succeed(f"umount {data}/later")
    t.assertEqual(machine.succeed("grep -c 'idmapped' /proc/self/mountinfo || true").strip(), "0", "no volume is mounted on the host")

with subtest("mounts in a read-only volume are read-only; the flags of the host's mount stay"):
    machine.succeed(
        f"mkdir -p {data}/sub; mount -t tmpfs -o mode=777,noexec none {data}/sub",
        f"cp $(readlink -f /bin/sh) {data}/sub/sh; echo x > {data}/sub/file; chmod 666 {data}/sub/file",
    )
    # A tmpfs can be mapped only since Linux 6.3, and this one belongs to root.
    never = {"volume_idmap": "never"}
    tried({"write /data/sub/file": READ_ONLY, "create /data/sub/new": READ_ONLY, "read /data/sub/file": OK}, mount("/data", data, readonly=True), user=OWNER)
    tried({"write /data/sub/file": OK, "create /data/sub/new": OK, "exec /data/sub/sh": DENIED}, mount("/data", data), user=OWNER, config=never)
    machine.succeed(f"umount {data}/sub")

with subtest("the command and the working directory are in a volume"):
    machine.succeed(f"cp $(readlink -f /bin/sh) {data}/program; chmod 755 {data}/program")
    for readonly in False, True:
        output = out_of("program", "/opt/app/program", "-c", "pwd", mounts=[mount("/opt/app", data, readonly)], config={"work_dir": "/opt/app"})
        t.assertEqual(output, "/opt/app\n")
    refused("Permission denied|No such file", mount("/opt/other", data), config={"work_dir": "/opt/app"})

with subtest("a plugin that is killed: the task keeps its volume, and so do sessions, which write as the volume's owner"):
    task = write_task("kept", "sleep", "4321", mounts=[mount("/data", data), mount("/seen", data, readonly=True)])
    harness(f"start {task}")
    harness("plugin kill")
    harness(f"recover {task}")
    answer = harness(f"exec -stream {task} -- sh -c 'cat /data/file; echo x > /data/of-session; echo x > /seen/of-session; ls {data}'")
    t.assertEqual(answer["stdout"], "content\n")
    t.assertIn("Read-only file system", answer["stderr"])
    t.assertIn("No such file or directory", answer["stderr"])
    t.assertEqual(owners(f"{data}/of-session"), [f"{UID}:{UID}"])

    # the rest of its life without the source
    machine.succeed(f"mv {data} {DISK}/away; rm -r {DISK}/away")
    answer = harness(f"exec -stream {task} -- sh -c 'ls /data; touch /data/x'")
    t.assertNotEqual(answer["result"]["exit_code"], 0)
    t.assertIn("No such file or directory", answer["stderr"])
    t.assertEqual(harness(f"inspect {task}")["task"]["state"], "RUNNING")
    harness(f"stop -timeout 10s {task}")
    harness(f"wait -timeout {CLEANUP_TIMEOUT_S}s {task}")
    end(task)
    volume(data)

with subtest("a file system that is unmounted under a task, and one that the task keeps busy"):
    other = filesystem("ext4", f"{FOLDER}/other")
    volume(other)
    task = write_task("unmounted", "sleep", "4321", mounts=[mount("/data", other)])
    harness(f"start {task}")
    machine.succeed(f"umount {other}")
    answer = harness(f"exec -stream {task} -- cat /data/file")
    t.assertEqual(answer["stdout"], "content\n")
    harness(f"stop -timeout 10s {task}")
    harness(f"wait -timeout {CLEANUP_TIMEOUT_S}s {task}")
    end(task)
    # the task's mount was the last one
    poll("the file system is free", lambda: "other.img" not in machine.succeed("losetup -a"), CLEANUP_TIMEOUT_S)

with subtest("no user namespaces: an error that says what to raise; without a map the volume works"):
    limit = machine.succeed("cat /proc/sys/user/max_user_namespaces").strip()
    machine.succeed("echo 0 > /proc/sys/user/max_user_namespaces")
    refused("user.max_user_namespaces", mount("/data", data))
    tried({"read /data/file": OK}, mount("/data", data), user=OWNER)
    machine.succeed(f"echo {limit} > /proc/sys/user/max_user_namespaces")

with subtest("each file system is mapped, or the error names what to write in the job"):
    disks = {"ext4": DISK}
    for kind in "xfs", "btrfs":
        if machine.execute(f"modprobe {kind}")[0] == 0:
            disks[kind] = filesystem(kind, f"{FOLDER}/{kind}")
    machine.succeed(f"mkdir -p {FOLDER}/tmpfs; mount -t tmpfs none {FOLDER}/tmpfs")
    disks["tmpfs"] = f"{FOLDER}/tmpfs"
    # The guest's root is one.
    t.assertEqual(machine.succeed(f"stat -f -c %T {FOLDER}").strip(), "overlayfs")
    disks["overlay"] = FOLDER
    volume(f"{DISK}/source", UID, UID, "755")
    if machine.execute("modprobe fuse")[0] == 0:
        machine.succeed(f"mkdir -p {FOLDER}/fuse; bindfs {DISK} {FOLDER}/fuse")
        disks["fuse"] = f"{FOLDER}/fuse"
    if machine.execute("modprobe nfsd && modprobe nfs")[0] == 0:
        machine.execute("mount -t nfsd none /proc/fs/nfsd; mkdir -p /run/rpc_pipefs; rpcbind")
        machine.succeed(f"mkdir -p {FOLDER}/nfs; echo '{DISK} *(rw,no_root_squash,insecure,fsid=0)' > /etc/exports")
        server = "exportfs -ra && rpc.nfsd -N 3 -V 4 1 && rpc.mountd -N 3"
        if machine.execute(f"{server} && timeout 60 mount -t nfs -o vers=4.2 127.0.0.1:/ {FOLDER}/nfs")[0] == 0:
            disks["nfs"] = f"{FOLDER}/nfs"
    mapped = {"ext4", "xfs", "btrfs"} | ({"tmpfs"} if KERNEL >= (6, 3) else set())
    for kind, disk in disks.items():
        place = volume(f"{disk}/of-{kind}")
        if kind in mapped:
            tried({"read /data/file": OK, "create /data/new": OK}, mount("/data", place))
            t.assertEqual(owners(f"{place}/new"), [f"{UID}:{UID}"], kind)
        else:
            refused(f"its file system cannot show it as the task's.*the host's user with the uid {UID}", mount("/data", place))
            tried({"read /data/file": OK, "create /data/new": OK}, mount("/data", place), user=OWNER)
            machine.succeed(f"chmod 777 {place}")
            tried({"list /data": OK, "create /data/other": OK, "read /data/file": DENIED}, mount("/data", place))
    print("tried:", sorted(disks), "mapped:", sorted(mapped & set(disks)))
    t.assertLessEqual({"ext4", "overlay", "tmpfs"}, set(disks))

with subtest("the agent's volume_idmap decides, and with the host's root there are no volumes"):
    run_plugin('volume_idmap = "never"')
    tried({"read /data/file": DENIED}, mount("/data", data))
    tried({"read /data/file": OK}, mount("/data", data), user=OWNER)
    refused("the agent's plugin option volume_idmap is", mount("/data", data), config={"volume_idmap": "auto"})
    run_plugin('root = "host"')
    t.assertEqual(harness("rpc Capabilities")["capabilities"]["mount_configs"], "NO_MOUNTS")
    refused('with root = \\\\?"host', mount("/data", data))

with subtest("nothing is left"):
    t.assertEqual(harness("violations"), [])
    machine.succeed("pluginhost task plugin stop")
    t.assertEqual(machine.succeed("grep -c -e idmapped -e /var/lib/pluginhost /proc/self/mountinfo || true").strip(), "0")
