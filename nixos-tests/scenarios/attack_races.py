# /// scenario
# description = "A task swaps the directories and log pipes of its allocation for links to the host while another one is started again and again."
# nomad = "pluginhost"
# guests = ["debian"]
# payload = ["attack"]
# seconds = 50
# ///
# The swaps are in tests/pluginhost/internal/attack. The host's own steps are left out (start -as-is): all that root does in the
# allocation's directory meanwhile is the driver's.

import json
import uuid

from exec2.agent import wait_for_driver
from exec2.guest import machine, subtest, t
from exec2.harness import harness, run_plugin
from exec2.single import answers, write_task

wait_for_driver()
machine.succeed("systemctl stop nomad.service")

FOLDER = "/srv/races"
OUTSIDE = f"{FOLDER}/outside"
SWAPPER = 80900
# A dynamic user, and root.
USERS = {"user": 80901, "root": 0}
STARTS = 15
# Tries of the control.
CHOWNS = 2000
UNKNOWN = 4242
SECRET = "exec2-attack-secret"


def prepare(name, alloc, uid, args, config=None):
    """A task of the allocation with all that the host makes for it; its file for `-as-is`."""
    path = write_task(f"{FOLDER}/{name}.json", uid, args, config, name=name, alloc_id=alloc)
    whole = harness(f"prepare {path}")
    machine.succeed(f"pluginhost task prepare {path} > {FOLDER}/{name}-as-is.json")
    return whole


def state_outside():
    """Owners, modes, sizes and times of all that is outside; the times are those of the last change of any of it."""
    return machine.succeed(f"find {OUTSIDE} -printf '%p %y %U:%G %m %s %T@ %C@\\n' | sort")


def starts(name):
    """Starts the task again and again, and returns the answers: the results of those that ran, and the errors of the others."""
    file = f"-as-is {FOLDER}/{name}-as-is.json"
    # 1: the driver refused it. Anything else would be a fault of the harness.
    begin = f"status=0; pluginhost task start {file} > start 2>&1 || status=$?"
    once = f"{begin}; if [ $status = 0 ]; then pluginhost task wait {file}; else cat start; [ $status = 1 ]; fi"
    return answers(machine.succeed(f"cd {FOLDER}; for i in $(seq {STARTS}); do {once}; pluginhost task destroy -force {file} > destroy 2>&1 || true; done"))


def readers(pipes):
    """Processes that keep the log pipes open: the host's own reader ends with each task."""
    return [machine.succeed(f"(sleep infinity <> {pipe} > /dev/null 2>&1 & echo $!)").strip() for pipe in pipes]


with subtest("a directory outside that every user may read"):
    machine.succeed(f"mkdir -p {OUTSIDE}; echo {SECRET} > {OUTSIDE}/secret; mkfifo -m 600 {OUTSIDE}/pipe; chmod 755 {OUTSIDE}")
    run_plugin("unveil_by_task = true")

for user, uid in USERS.items():
    with subtest(f"{user}: nothing outside changes, and nothing outside can be read"):
        alloc = str(uuid.uuid5(uuid.NAMESPACE_DNS, user))
        config = {"work_dir": "${NOMAD_ALLOC_DIR}/data", "unveil": ["rwc:${NOMAD_ALLOC_DIR}/tmp"]}
        name = f"started-{user}"
        started = prepare(name, alloc, uid, ["look", "-outside", OUTSIDE], config)
        swapper = f"swapper-{user}"
        pipes = started["stdout_path"], started["stderr_path"]
        held = readers(pipes)
        prepare(swapper, alloc, SWAPPER, ["swap", "-task", name, "-outside", OUTSIDE])
        harness(f"start -as-is {FOLDER}/{swapper}-as-is.json")
        # The control: root that changes the owner of the log pipe by its path is led outside.
        control = f"for i in $(seq {CHOWNS}); do chown {UNKNOWN} {pipes[0]} 2> /dev/null; [ $(stat -c %u {OUTSIDE}/pipe) = {UNKNOWN} ] && exit 0; done; exit 1"
        machine.succeed(f"sh -c '{control}'")
        machine.succeed(f"chown 0 {OUTSIDE}/pipe")
        before = state_outside()
        outcomes = starts(name)
        t.assertEqual(state_outside(), before)
        ran = [answer["result"] for answer in outcomes if "result" in answer]
        print(f"{len(ran)} of {STARTS} ran", *{answer["error"]["message"] for answer in outcomes if "error" in answer}, sep="\n")
        t.assertGreater(len(ran), 0)
        # Such as the secret outside, which the task could read: its errors say by which name.
        t.assertEqual({result["exit_code"] for result in ran}, {0}, machine.succeed(f"pluginhost task logs -stderr {FOLDER}/{name}.json"))
        harness(f"stop -s SIGTERM -timeout 30s {FOLDER}/{swapper}.json")
        exchanges = json.loads(machine.succeed(f"pluginhost task logs {FOLDER}/{swapper}.json"))["exchanges"]
        print(f"{exchanges} exchanges")
        t.assertGreater(exchanges, 100 * STARTS)
        machine.succeed(f"kill {' '.join(held)}")
        print(machine.succeed(f"pluginhost task logs {FOLDER}/{name}.json; pluginhost task logs -stderr {FOLDER}/{name}.json"))
        for each in (name, swapper):
            machine.succeed(f"pluginhost task destroy -force {FOLDER}/{each}.json")
        # The first of them cannot remove what is mounted for the second one.
        machine.execute(f"pluginhost task cleanup {FOLDER}/{name}.json")
        for each in (swapper, name):
            machine.succeed(f"pluginhost task cleanup {FOLDER}/{each}.json")
