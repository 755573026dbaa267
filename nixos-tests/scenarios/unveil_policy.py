# /// scenario
# description = "unveil_allow and unveil_deny: what jobs may unveil, decided on what a path leads to, in both kinds of root."
# across = "Landlock and mounts"
# nomad = "pluginhost"
# guests = ["debian"]
# seconds = 50
# ///

from exec2.agent import configure, wait_for_driver
from exec2.allocs import driver_errors, run_job, wait_for_groups
from exec2.guest import machine, subtest, t
from exec2.jobs import group, job, task
from exec2.probes import check_probes, probe

OK, DENIED = "ok", "EACCES"

POLICY = "/srv/exec2/policy"

wait_for_driver()


def decided(root):
    """What jobs may unveil, by a configuration that allows some and denies some of that."""
    configure(
        root=root,
        unveil_by_task=False,
        unveil_allow=[f"rx:{POLICY}", "r:/etc", "r:/opt", "r:/run"],
        unveil_deny=["default", f"{POLICY}/secret", f"{POLICY}/listed", f"{POLICY}/later"],
    )
    inside = {
        f"read {POLICY}/open/file": OK,
        f"read {POLICY}/secret/key": "ENOENT" if root == "private" else DENIED,
        f"read {POLICY}/listed": "ENOENT" if root == "private" else DENIED,
        f"read {POLICY}/hard": "ENOENT" if root == "private" else DENIED,
        f"read {POLICY}/bound/key": "ENOENT" if root == "private" else DENIED,
        "read /etc/hosts": OK,
        "read /etc/shadow": "ENOENT" if root == "private" else DENIED,
        f"create {POLICY}/open/new": "EROFS" if root == "private" else DENIED,
    }
    asks = {
        "write": (f"rw:{POLICY}/open", f"the agent's plugin option unveil_allow does not allow it (it allows: rx:{POLICY}, r:/etc, r:/opt, r:/run)"),
        "outside": ("r:/srv/exec2/files", "unveil_allow does not allow it"),
        "link": (f"r:{POLICY}/link", "unveil_allow does not allow it"),
        "denied": (f"r:{POLICY}/secret/key", f"{POLICY}/secret is denied to all tasks"),
        "bound": (f"r:{POLICY}/bound", f"{POLICY}/secret is denied to all tasks"),
        "shadow": ("r:/etc/shadow", "/etc/shadow is denied to all tasks"),
        "agent": ("r:/opt/nomad/data/client", "is denied to all tasks"),
        "allocs": ("r:/opt/nomad/data/alloc", "is denied to all tasks"),
        "records": ("r:/run/nomad-driver-exec2", "/run/nomad-driver-exec2 is denied to all tasks"),
    }
    run_job(
        job(
            f"decided-{root}",
            group("inside", probe("t", inside, unveil=[f"rx:{POLICY}", "r:/etc"], extra='user = "root"')),
            *(group(name, task("t", "true", unveil=[rule], extra='user = "root"')) for name, (rule, _) in asks.items()),
        )
    )
    done = wait_for_groups(f"decided-{root}", {"inside": "complete", **dict.fromkeys(asks, "failed")})
    check_probes(done["inside"], "t", inside)
    for name, (_, why) in asks.items():
        (error,) = driver_errors(done[name])
        t.assertIn(why, error, name)


with subtest("unveil_allow and unveil_deny: decided on what is opened, also for root"):
    machine.succeed(
        f"mkdir -p /srv/exec2/files {POLICY}/open {POLICY}/secret {POLICY}/bound",
        f"echo open > {POLICY}/open/file; echo secret | tee {POLICY}/secret/key {POLICY}/listed",
        f"ln {POLICY}/listed {POLICY}/hard; ln -s /srv/exec2/files {POLICY}/link; mount --bind {POLICY}/secret {POLICY}/bound",
    )
    for root in ("private", "host"):
        decided(root)
