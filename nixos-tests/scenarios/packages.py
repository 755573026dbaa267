# /// scenario
# description = "The .deb is installed, upgraded and removed while an agent and tasks run; the .rpm is installed into a root of its own."
# guests = ["debian"]
# payload = ["packages"]
# seconds = 31
# ///
# `make test-vm` puts the packages into PACKAGES by --payload. They are Debian's way: NixOS has the module.

from exec2.agent import wait_for_driver
from exec2.allocs import run_job, stop_job, wait_for_alloc
from exec2.guest import machine, subtest, t

PACKAGES = "/srv/exec2-packages"
NAME = "nomad-driver-exec2"
PROGRAM = f"/usr/bin/{NAME}"
LINK = f"/opt/nomad/data/plugins/{NAME}"
# The newest that HashiCorp's repositories have of a package of this name.
THEIRS = "0.1.2-1"
# The guest's dpkg leaves documentation out.
DPKG = "dpkg --path-include='/usr/share/*'"


def sleeper(name):
    """Starts a job that keeps running, and returns its allocation."""
    run_job(f"""
job "{name}" {{
  group "main" {{
    task "main" {{
      driver = "exec2"
      config {{
        command = "sleep"
        args    = ["100000"]
      }}
      resources {{
        cpu    = 100
        memory = 32
      }}
    }}
  }}
}}
""".lstrip())
    return wait_for_alloc(name, "running")


def pids(alloc):
    return machine.succeed(f"cat /sys/fs/cgroup/nomad.slice/*/{alloc['ID']}.*.scope/cgroup.procs").split()


def version():
    return machine.succeed(f"dpkg-query -W -f '${{Version}}' {NAME}")


def package(kind, which):
    return machine.succeed(f"ls {PACKAGES}/{which}/*.{kind}").strip()


machine.wait_for_unit("multi-user.target")
machine.succeed(f"test -d {PACKAGES}/this -a -d {PACKAGES}/next")
machine.succeed(f"systemctl stop nomad.service; rm -f {LINK} {PROGRAM}; rmdir --ignore-fail-on-non-empty /opt/nomad/data/plugins")

with subtest("install: the program, the link that Nomad looks for, documentation; nothing else happens"):
    # Apart from dpkg's own files, everything that could start or configure something is in one of these.
    traces = "find /etc /usr/lib/systemd /usr/lib/tmpfiles.d /usr/lib/sysusers.d -type f -o -type l | sort"
    before = machine.succeed(traces)
    machine.succeed(f"{DPKG} -i {package('deb', 'this')}")
    t.assertEqual(machine.succeed(f"readlink {LINK}").strip(), PROGRAM)
    t.assertEqual(machine.succeed(f"stat -c '%U:%G %a' {PROGRAM}").strip(), "root:root 755")
    machine.succeed(f"test -s /usr/share/man/man8/{NAME}.8.gz", f"test -s /usr/share/doc/{NAME}/copyright", f"test -s /usr/share/doc/{NAME}/examples/exec2.hcl")
    machine.succeed(f"{PROGRAM} --version", f"dpkg --verify {NAME}")
    # an upgrade of the system must not replace it by the package of the same name in HashiCorp's repository
    machine.succeed(f"dpkg --compare-versions {version()} gt {THEIRS}")
    t.assertEqual(machine.succeed(traces), before)

with subtest("an agent finds the plugin and runs a job with it"):
    machine.succeed("systemctl start nomad.service")
    wait_for_driver()
    first = sleeper("first")
    task = pids(first)
    t.assertEqual(len(task), 1)

with subtest("upgrade under a running agent: its tasks and its plugin keep running"):
    old = version()
    machine.succeed(f"{DPKG} -i {package('deb', 'next')}")
    t.assertNotEqual(version(), old)
    t.assertEqual(machine.succeed(f"readlink {LINK}").strip(), PROGRAM)
    t.assertEqual(pids(first), task)
    # It is the old plugin, whose file is gone.
    t.assertIn("(deleted)", machine.succeed(f"(ls -l /proc/[0-9]*/exe 2>/dev/null || true) | grep {NAME}"))
    second = sleeper("second")
    t.assertEqual(len(pids(second)), 1)

with subtest("after a restart the agent has the new plugin, and the tasks are the same processes"):
    machine.succeed("systemctl restart nomad.service")
    wait_for_driver()
    for alloc in (first, second):
        t.assertEqual(wait_for_alloc(alloc["JobID"], "running")["ID"], alloc["ID"])
    t.assertEqual(pids(first), task)
    sleeper("third")
    stop_job("third")

with subtest("removal under a running agent: tasks and plugin keep running"):
    machine.succeed(f"dpkg -r {NAME}")
    machine.fail(f"test -e {PROGRAM} -o -L {LINK}")
    t.assertEqual(machine.succeed(f"find /usr /opt/nomad -name '*{NAME}*' -not -path '/opt/nomad/data/*' -not -path '{PACKAGES}/*'").strip(), "")
    t.assertEqual(pids(first), task)
    fourth = sleeper("fourth")
    t.assertEqual(len(pids(fourth)), 1)
    for alloc in (first, second, fourth):
        stop_job(alloc["JobID"])

with subtest("the data of the agent is still there"):
    machine.succeed("test -d /opt/nomad/data", "test -n \"$(ls /opt/nomad/data)\"")

with subtest("rpm: into a root of its own, without scripts, with the same link"):
    root = "/var/tmp/rpm-root"
    rpm = f"rpm --root {root}"
    machine.succeed(f"mkdir -p {root}", f"{rpm} --initdb", f"{rpm} -i {package('rpm', 'this')}")
    t.assertEqual(machine.succeed(f"readlink {root}{LINK}").strip(), PROGRAM)
    machine.succeed(f"{root}{PROGRAM} --version", f"test -s {root}/usr/share/licenses/{NAME}/LICENSE")
    t.assertEqual(machine.succeed(f"{rpm} -q --scripts --triggers {NAME}").strip(), "")
    t.assertEqual(machine.succeed(f"{rpm} -q --qf '%{{EPOCH}}' {NAME}"), "1")
    machine.succeed(f"{rpm} -V {NAME}")
    machine.succeed(f"{rpm} -U {package('rpm', 'next')}")
    # An old package's removal comes after the new one's installation; the link has to survive it.
    t.assertEqual(machine.succeed(f"readlink {root}{LINK}").strip(), PROGRAM)
    t.assertEqual(len(machine.succeed(f"{rpm} -q {NAME}").splitlines()), 1)
    machine.succeed(f"{rpm} -e {NAME}")
    machine.fail(f"test -e {root}{PROGRAM} -o -L {root}{LINK}")
