# /// scenario
# description = "Volumes under Nomad: host, dynamic and sticky volumes, read-only mounts, and refusals in the events."
# nomad = "real"
# guests = ["debian"]
# seconds = 200
# timeout_s = 2400
# ///
# PostgreSQL in a volume is the example `postgres`. What a volume is in the task is the scenario `volumes`.

import re

from exec2.agent import agent_command, nomad, run_agent
from exec2.allocs import driver_errors, logs, run_job, stop_job, wait_for_alloc
from exec2.disks import mappable
from exec2.guest import ALLOC_TIMEOUT_S, machine, poll, subtest, t, write
from exec2.jobs import group, job, task

FOLDER = "/srv/volumes"
UID = 4321


def volume(name, source, kind="host", **options):
    lines = "\n".join(f"{key} = {str(value).lower() if isinstance(value, bool) else value}" for key, value in options.items())
    return f'volume "{name}" {{\n type = "{kind}"\n source = "{source}"\n {lines}\n}}\n'


def mount(name, destination, **options):
    lines = "\n".join(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value).replace(chr(39), chr(34))}" for key, value in options.items())
    return f'volume_mount {{\n volume = "{name}"\n destination = "{destination}"\n {lines}\n}}\n'


def run(name, script, volumes, mounts, wanted="complete", kind="batch", **options):
    """The allocation of a job that runs the script with these volumes."""
    run_job(job(name, group("g", task("t", "sh", "-c", script, extra=mounts, **options), extra=volumes), kind=kind))
    return wait_for_alloc(name, wanted)


def done(name, script, volumes, mounts, **options):
    """The output of such a job."""
    alloc = run(name, script, volumes, mounts, **options)
    output = poll("the log", lambda: logs(alloc), ALLOC_TIMEOUT_S)
    stop_job(name)
    return output


def directory(name, uid=UID):
    place = f"{FOLDER}/{name}"
    machine.succeed(f"install -d -o {uid} -g {uid} -m 750 {place}; echo content > {place}/file; chown {uid}:{uid} {place}/file")
    return place


mappable(FOLDER)
owned, root = directory("owned"), directory("root", 0)
write(
    "/run/volumes.hcl",
    f"""
client {{
  host_volumes_dir = "{FOLDER}/dynamic"
  host_volume "owned" {{ path = "{owned}" }}
  host_volume "seen" {{
    path      = "{owned}"
    read_only = true
  }}
  host_volume "root" {{ path = "{root}" }}
}}
""".replace("{ path", "{\n path").replace('" }', '"\n }'),
)
run_agent(f"{agent_command()} -config=/run/volumes.hcl")

with subtest("a host volume: written as its owner by two jobs with other uids, and hidden without it"):
    uids = set()
    for number in "1", "2":
        script = f"id -u; touch /data/by-{number}; ls /data; [ -O /data/file ] && echo own; ls {FOLDER}"
        output = done(f"host-{number}", f"{{ {script}; }} 2>&1", volume("v", "owned"), mount("v", "/data"), wanted=("complete", "failed"))
        uids.add(output.split()[0])
        t.assertIn("own\n", output)
        t.assertIn("No such file or directory", output)
    t.assertEqual(set(machine.succeed(f"stat -c %u:%g {owned}/by-1 {owned}/by-2").split()), {f"{UID}:{UID}"})
    print("uids:", uids)

with subtest("read-only: by the mount, by the volume of the job, by the agent"):
    script = "cat /data/file; touch /data/x 2>&1; echo $?"
    for number, (volumes, mounts) in enumerate([
        (volume("v", "owned"), mount("v", "/data", read_only=True)),
        (volume("v", "owned", read_only=True), mount("v", "/data")),
        (volume("v", "seen", read_only=True), mount("v", "/data")),
    ]):  # fmt: skip
        output = done(f"read-only-{number}", script, volumes, mounts)
        t.assertRegex(output, r"(?s)^content\n.*Read-only file system\n1\n$")
    machine.fail(f"test -e {owned}/x")

with subtest("below the task's directory, by the name that Nomad fills in; the alloc directory is refused with what to write"):
    output = done("below", "cat $NOMAD_TASK_DIR/data/file", volume("v", "owned"), mount("v", "${NOMAD_TASK_DIR}/data"))
    t.assertEqual(output, "content\n")
    for name, mounts, why in [
        ("in-alloc", mount("v", "${NOMAD_ALLOC_DIR}/data"), "write a path outside it"),
        ("bidirectional", mount("v", "/data", propagation_mode="bidirectional"), "would stay on the host"),
    ]:
        alloc = run(name, "true", volume("v", "owned"), mounts, wanted="failed")
        t.assertIn(why, " ".join(driver_errors(alloc)))
        stop_job(name)

with subtest("root's directory: the event names the parameters of the mkdir plugin; a named user gets it as it is"):
    alloc = run("of-root", "true", volume("v", "root"), mount("v", "/data"), wanted="failed")
    t.assertIn("uid and gid of the mkdir plugin", " ".join(driver_errors(alloc)))
    stop_job("of-root")

DYNAMIC = """
name      = "{name}"
type      = "host"
plugin_id = "mkdir"
capacity_min = "1MB"
capacity_max = "1GB"
capability {{
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}}
parameters = {{
{parameters}
}}
"""


def dynamic(name, parameters):
    """The id of a new dynamic host volume."""
    write(f"/tmp/{name}.hcl", DYNAMIC.format(name=name, parameters=parameters))
    output = machine.succeed(f"nomad volume create /tmp/{name}.hcl 2>&1", timeout=ALLOC_TIMEOUT_S)
    found = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", output)
    assert found, output
    return found[0]


with subtest("dynamic host volumes of the mkdir plugin: one with an owner is written, one of root is refused"):
    made = dynamic("made", f'uid = "{UID}"\ngid = "{UID}"\nmode = "0700"')
    of_root = dynamic("plain", 'mode = "0700"')
    access = {"access_mode": '"single-node-writer"', "attachment_mode": '"file-system"'}
    output = done("dynamic", "date > /data/file; stat -c '%u %a' /data; id -u", volume("v", "made", **access), mount("v", "/data"))
    uid, mode, own = output.split()
    t.assertEqual((uid, mode), (own, "700"))
    place = machine.succeed(f"find {FOLDER}/dynamic -type d -name {made}").split()[0]
    t.assertEqual(machine.succeed(f"stat -c %u {place}/file").strip(), str(UID))
    alloc = run("dynamic-root", "true", volume("v", "plain", **access), mount("v", "/data"), wanted="failed")
    t.assertIn("uid and gid of the mkdir plugin", " ".join(driver_errors(alloc)))
    stop_job("dynamic-root")

with subtest("a sticky volume: the next allocation, with another uid, continues with its files"):
    dynamic("sticky", f'uid = "{UID}"\ngid = "{UID}"\nmode = "0700"')
    script = "echo $(id -u) >> /data/starts && cat /data/starts && sleep 36000"
    sticky = volume("v", "sticky", sticky=True, **access)
    alloc = run("sticky", script, sticky, mount("v", "/data"), wanted="running", kind="service")
    first = poll("the first line", lambda: logs(alloc).split(), ALLOC_TIMEOUT_S)
    nomad(f"alloc stop -detach {alloc['ID']}")

    def another():
        found = wait_for_alloc("sticky", ("running", "complete", "pending"))
        return found if found["ID"] != alloc["ID"] else None

    second = poll("another allocation", another, ALLOC_TIMEOUT_S)
    lines = poll("both lines", lambda: len(found := logs(second).split()) == 2 and found, ALLOC_TIMEOUT_S)
    t.assertEqual(lines[:1], first)
    stop_job("sticky")

with subtest("a restart of the agent: the task keeps its volume; a restart of the task mounts it again"):
    script = "touch /data/restarted; echo ready; sleep 36000"
    alloc = run("restarted", script, volume("v", "owned"), mount("v", "/data"), wanted="running", kind="service")
    machine.succeed("systemctl restart nomad.service")
    machine.wait_until_succeeds(f"nomad alloc exec -t=false -i=false {alloc['ID']} sh -c 'cat /data/file && touch /data/by-session'", timeout=ALLOC_TIMEOUT_S)
    machine.succeed(f"rm {owned}/restarted; nomad alloc restart {alloc['ID']}")
    machine.wait_for_file(f"{owned}/restarted", timeout=ALLOC_TIMEOUT_S)
    t.assertEqual(set(machine.succeed(f"stat -c %u {owned}/restarted {owned}/by-session").split()), {str(UID)})
    stop_job("restarted")
