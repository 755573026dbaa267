# /// scenario
# description = "Devices: nodes of a task's own with the permissions of the job, a cgroup that denies all others, and what a device plugin mounts."
# nomad = "pluginhost"
# guests = ["debian"]
# seconds = 150
# ///
# Each allowed action has a denied one beside it.

import json

from exec2.agent import wait_for_driver
from exec2.guest import CLEANUP_TIMEOUT_S, kernel, machine, subtest, t, write
from exec2.harness import end, harness, refusal, run_plugin
from exec2.probes import PROBE, compare

wait_for_driver()
machine.succeed("systemctl stop nomad.service")

FOLDER = "/srv/devices"
OK, DENIED, MISSING = "ok", "EACCES", "ENOENT"
USER = "nomad-80001"
# Block devices, so that there is an ioctl that only asks, and neither is of the usual ones.
GPU, OTHER = "/dev/exec2-gpu", "/dev/exec2-dir/other"
# Landlock ABI 5
IOCTL = kernel() >= (6, 10)
USUAL = {"write /dev/null": OK, "read /dev/zero": OK, "read /dev/urandom": OK, "list /dev/pts": OK}


def device(source, path=None, permissions="rw"):
    return {"task_path": path or source, "host_path": source, "cgroup_permissions": permissions}


def write_task(name, *command, devices=(), config=None, user=USER, **fields):
    path = f"{FOLDER}/{name}.json"
    config = {"command": command[0], "args": list(command[1:]), **(config or {})}
    write(path, json.dumps({"config": config, "cpu": 1000, "memory": 128, "user": user, "devices": list(devices), **fields}))
    return path


def stop(task):
    """Ends the task without `cgroup.kill`: after that, Debian's 6.1 kills what is cloned into the cgroup."""
    machine.succeed(f"pluginhost task stop -s SIGTERM {task}", f"pluginhost task destroy {task}")


def out_of(name, *command, status=0, **fields):
    """What a task writes until it ends with the status."""
    task = write_task(name, *command, **fields)
    harness(f"start {task}")
    result = harness(f"wait -timeout {CLEANUP_TIMEOUT_S}s {task}")["result"]
    output = machine.succeed(f"pluginhost task logs {task}; pluginhost task logs -stderr {task}")
    end(task)
    t.assertEqual(result["exit_code"], status, output)
    return output


def tried(wanted, *devices, **fields):
    """Compares what a task with these devices can do with what is expected of it."""
    output = out_of("probe", "python3", "-ISc", PROBE, json.dumps(list(wanted)), devices=devices, **fields)
    compare(json.loads(output.splitlines()[-1]), wanted)


def refused(why, *devices, **fields):
    """The task does not start, for a reason that matches."""
    task = write_task("refused", "true", devices=devices, **fields)
    error = refusal(f"start {task}")
    machine.execute(f"pluginhost task cleanup {task}")
    t.assertRegex(error["message"], why)


def node(path, kind, number):
    """As udev makes it: for a group that no dynamic user is in."""
    machine.succeed(f"mkdir -p $(dirname {path}); mknod -m 660 {path} {kind} {number}; chgrp video {path}")


machine.succeed(f"mkdir -p {FOLDER}; chmod 755 {FOLDER}; modprobe loop")
for path in GPU, OTHER:
    image = f"/var/tmp/{path.replace('/', '-')}.img"
    loop = machine.succeed(f"truncate -s 1M {image}; losetup -f --show {image}").strip()
    node(path, "b", machine.succeed(f"stat -c '%Hr %Lr' {loop}").strip())
node("/dev/exec2-kmsg", "c", "1 11")
run_plugin("unveil_by_task = true")

with subtest("a device of a group that the task is not in: read and written with it, and not there without; the usual ones stay"):
    tried({f"read {GPU}": OK, f"write {GPU}": OK, f"ioctl {GPU}": OK, f"stat {OTHER}": MISSING, **USUAL}, device(GPU))
    tried({f"read {GPU}": MISSING, f"write {GPU}": MISSING, **USUAL})
    # another path in the task, in a directory that the host need not have, and by a link
    machine.succeed(f"ln -s {GPU} /dev/exec2-link")
    tried({"read /dev/dri/card0": OK, f"read {GPU}": MISSING, "read /dev/one": OK}, device(GPU, "/dev/dri/card0"), device("/dev/exec2-link", "/dev/one"))

with subtest("the permissions of the device hold for the node, whatever its modes, also for root"):
    tried({f"read {GPU}": OK, f"write {GPU}": DENIED, f"ioctl {GPU}": OK, f"chmod {GPU}": "EPERM"}, device(GPU, permissions="r"))
    tried({f"read {GPU}": DENIED, f"write {GPU}": OK}, device(GPU, permissions="w"))
    tried({f"read {GPU}": OK, f"write {GPU}": OK, "char /tmp/node": "EPERM|EACCES", "char /dev/node": "EPERM|EACCES|EROFS"}, device(GPU, permissions="rwm"))
    # of two device blocks that need the same device, both
    tried({f"read {GPU}": OK, f"write {GPU}": OK}, device(GPU, permissions="r"), device(GPU, permissions="w"))
    # root may change the mode, and the cgroup, which the kernel asks first, still holds
    wanted = {f"chmod {GPU}": OK, f"read {GPU}": OK, f"write {GPU}": "EPERM", "read /.task/devices/0": DENIED}
    tried(wanted, device(GPU, permissions="r"), user="root")
    t.assertEqual(machine.succeed(f"stat -c '%a %G' {GPU}").split(), ["660", "video"], "the host's node is as it was")

with subtest("a directory stands for the devices in it"):
    machine.succeed("ln -s ../exec2-kmsg /dev/exec2-dir/link", "mkdir -p /dev/exec2-dir/in; mknod -m 660 /dev/exec2-dir/in/full c 1 7")
    wanted = {f"read {OTHER}": OK, f"ioctl {OTHER}": OK, "read /dev/exec2-dir/in/full": OK, "stat /dev/exec2-dir/link": MISSING, f"stat {GPU}": MISSING}
    tried(wanted, device("/dev/exec2-dir"))
    tried({"read /dev/all/other": OK, "write /dev/all/other": DENIED}, device("/dev/exec2-dir", "/dev/all", "r"))

with subtest("the cgroup of the task denies devices that no path decides about; that of a task without devices does not"):
    # A process of the host's root, with the host's /dev, in the cgroup of a task.
    task = write_task("limited", "sleep", "4321", devices=[device(GPU, permissions="r")])
    handle = harness(f"start {task}")["handle"]
    cgroup = handle["config"]["resources"]["linux_resources"]["cpuset_cgroup"]

    def inside(action):
        return machine.execute(f"sh -c 'echo $$ > {cgroup}/cgroup.procs; {action}' 2>&1")

    for action in f"head -c 1 {GPU}", "echo x > /dev/null", "head -c 1 /dev/urandom", 'python3 -ISc "import pty; pty.openpty()"':
        t.assertEqual(inside(action)[0], 0, action)
    for action in f"echo x > {GPU}", "head -c 1 /dev/exec2-kmsg", "head -c 1 /dev/mem", f"mknod {FOLDER}/node c 1 3", f"head -c 1 {OTHER}":
        status, output = inside(action)
        t.assertNotEqual(status, 0, action)
        t.assertIn("Operation not permitted", output, action)
    # An open file is not asked about: only opening it again, or another.
    opened = "exec 3< /dev/exec2-kmsg; echo $$ > {cgroup}/cgroup.procs; "
    t.assertEqual(machine.execute(f"sh -c '{opened.format(cgroup=cgroup)} dd bs=8192 count=1 <&3 > {FOLDER}/read'")[0], 0)
    t.assertNotEqual(machine.execute(f"sh -c '{opened.format(cgroup=cgroup)} head -c 1 /proc/self/fd/3'")[0], 0)
    # a session is in a cgroup below it
    answer = harness(f"exec -stream {task} -- sh -c 'head -c 1 {GPU} | wc -c; echo x > {GPU}'")
    t.assertEqual(answer["stdout"], "1\n")
    t.assertIn("Permission denied", answer["stderr"])

    # The plugin holds no part of it, and a restart in the same cgroup has one program.
    harness("plugin kill")
    harness(f"recover {task}")
    t.assertRegex(inside("head -c 1 /dev/exec2-kmsg")[1], "Operation not permitted")
    stop(task)
    harness(f"start {write_task('limited', 'sleep', '4321', devices=[device(GPU)])}")
    t.assertEqual(inside(f"echo x > {GPU}")[0], 0, "the program is the new start's")
    t.assertRegex(inside("head -c 1 /dev/exec2-kmsg")[1], "Operation not permitted")
    # as when the agent has been restarted since: Nomad sends the variables alone
    stop(task)
    variables = {"env": {"GPU": "1"}, "device_env": {"GPU": "1"}}
    status, output = machine.execute(f"pluginhost task start {write_task('limited', 'true', **variables)}")
    t.assertEqual(status, 1, output)
    t.assertIn("Nomad forgot its devices", json.loads(output)["error"]["message"])
    t.assertEqual(out_of("variables", "printenv", "GPU", **variables), "1\n", "a plugin may have nothing else")
    harness(f"start {write_task('limited', 'sleep', '4321', devices=[device(GPU)], **variables)}")
    # as when the agent's unveil_paths have changed
    stop(task)
    harness(f"start {write_task('limited', 'sleep', '4321', devices=[device(GPU)], config={'unveil': ['r:/dev/exec2-dir']})}")
    t.assertEqual(inside("exec 3< /dev/exec2-kmsg")[0], 0, "what is in an unveiled directory of devices later is not known")
    end(task)

    task = write_task("unlimited", "sleep", "4321")
    cgroup = harness(f"start {task}")["handle"]["config"]["resources"]["linux_resources"]["cpuset_cgroup"]
    t.assertEqual(inside("exec 3< /dev/exec2-kmsg")[0], 0)
    end(task)

with subtest("unveiled devices: beside those of a plugin, and with an ioctl only where they may be written"):
    machine.succeed(f"chmod 666 {OTHER}")
    tried({f"read {GPU}": OK, f"read {OTHER}": OK, "stat /dev/exec2-kmsg": MISSING}, device(GPU), config={"unveil": [f"rw:{OTHER}"]})
    tried({f"read {GPU}": OK, f"read {OTHER}": OK}, device(GPU), config={"unveil": ["rw:/dev/exec2-dir"]})
    denied = DENIED if IOCTL else OK
    for unveiled in OTHER, "/dev/exec2-dir":
        tried({f"read {OTHER}": OK, f"ioctl {OTHER}": OK}, config={"unveil": [f"rw:{unveiled}"]})
        tried({f"read {OTHER}": OK, f"ioctl {OTHER}": denied}, config={"unveil": [f"r:{unveiled}"]})
    # An unplugged device takes its mount with it where the host's directory is unveiled.
    node("/dev/exec2-dir/plug", "c", "1 7")
    task = write_task("unplugged", "sleep", "4321", devices=[device("/dev/exec2-dir/plug")], config={"unveil": ["r:/dev/exec2-dir"]})
    harness(f"start {task}")
    session = f"exec -stream {task} -- sh -c 'head -c 1 /dev/exec2-dir/plug | wc -c'"
    t.assertEqual(harness(session)["stdout"], "1\n")
    machine.succeed("rm /dev/exec2-dir/plug")
    answer = harness(session)
    t.assertEqual(answer["stdout"], "0\n", answer)
    t.assertIn("No such file", answer["stderr"])
    end(task)
    # the terminals of the task's own
    terminal = "import os, pty; a, b = pty.openpty(); os.close(os.open(os.ttyname(b), os.O_RDWR | os.O_NOCTTY)); print(os.isatty(b), os.isatty(0))"
    t.assertEqual(out_of("terminal", "python3", "-ISc", terminal), "True False\n")

with subtest("what a GPU needs: nodes, capabilities below a directory, libraries and /proc/driver, and the environment of the plugin"):
    # NVIDIA's set, as a fake tree.
    machine.succeed("mkdir -p /opt/nvidia; echo library > /opt/nvidia/libcuda.so.1; echo config > /opt/nvidia/config")
    nodes = ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-caps/nvidia-cap1"]
    for path in nodes:
        node(path, "c", "1 5")
    mounts = [
        {"task_path": "/usr/local/nvidia/libcuda.so.1", "host_path": "/opt/nvidia/libcuda.so.1", "readonly": True},
        {"task_path": "/opt/nvidia", "host_path": "/opt/nvidia", "readonly": True},
        {"task_path": "/proc/driver/nvidia", "host_path": "/proc/driver/nvidia", "readonly": True},
    ]
    wanted = {f"read {path}": OK for path in nodes} | {
        "read /usr/local/nvidia/libcuda.so.1": OK,
        "write /usr/local/nvidia/libcuda.so.1": DENIED,
        "read /opt/nvidia/config": OK,
        "create /opt/nvidia/new": "EROFS",
        "list /proc/driver": OK,
        "stat /dev/nvidia1": MISSING,
    }
    tried(wanted, *[device(path) for path in nodes], mounts=mounts)
    environment = {"env": {"NVIDIA_VISIBLE_DEVICES": "GPU-1"}, "device_env": {"NVIDIA_VISIBLE_DEVICES": "GPU-1"}}
    t.assertIn("NVIDIA_VISIBLE_DEVICES=GPU-1", out_of("env", "env", devices=[device("/dev/nvidia0")], **environment))

with subtest("refusals name the device and what to change"):
    # Where the host refuses devices, as in what its users mount, a file may claim to be any.
    machine.succeed(f"mkdir {FOLDER}/nodev; mount -t tmpfs -o nodev tmpfs {FOLDER}/nodev; mknod {FOLDER}/nodev/null c 1 3")
    for wanted, why in [
        (device("/dev/exec2-none"), "/dev/exec2-none.*No such file"),
        (device("/etc/hostname", "/dev/x"), "is no device file"),
        (device("/dev/shm", "/dev/x"), "is no device file"),
        (device(f"{FOLDER}/nodev/null", "/dev/x"), "mounted with nodev"),
        (device(f"{FOLDER}/nodev", "/dev/x"), "mounted with nodev"),
        (device(GPU, "/srv/gpu"), "must be below /dev"),
        (device(GPU, "/dev/pts/7"), "is the task's own"),
        (device(GPU, permissions="rx"), "not letters out of rwm"),
    ]:
        refused(why, wanted)
    refused("the same path", device(GPU), device(OTHER, GPU))
    refused("no mount point can be made", device(GPU, "/dev/exec2-none/gpu"), config={"unveil": ["rw:/dev"]})
    run_plugin('root = "host"')
    refused('with root = \\\\?"host', device(GPU))

with subtest("nothing is left"):
    t.assertEqual(harness("violations"), [])
    machine.succeed("pluginhost task plugin stop")
    machine.fail("grep /var/lib/pluginhost /proc/self/mountinfo")
