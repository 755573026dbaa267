# /// scenario
# description = "Findings of a security audit stay fixed: paths, the shim's identity, what a task inherits, how failures are reported."
# across = "how paths are opened, what a task inherits"
# nomad = "none"
# seconds = 15
# ///

import re
import shlex

from exec2.cli import PLUGIN, run
from exec2.guest import machine, subtest, t

SHIM_ID = 4294967294


def script(text):
    return f"python3 -c {shlex.quote(text)}"


machine.succeed("mkdir -p /srv/audit && cd /srv/audit && mkdir real mine open sticky staff",
                "cd /srv/audit && echo secret > real/file && chmod 644 real/file",
                "cd /srv/audit && chown alice mine && chmod 777 open && chmod 1777 sticky && chmod 775 staff")

with subtest("a link that root owns is followed, on every path that leads to it"):
    machine.succeed("cd /srv/audit && ln -s real link && ln -s /srv/audit alias && ln -s ../link staff/link && ln -s ../real sticky/of_root")
    for path in ("link/file", "alias/link/file", "staff/link/file", "sticky/of_root/file"):
        t.assertEqual(run(f"--unveil r:/srv/audit/{path} -- cat /srv/audit/{path}"), "secret\n")

with subtest("a link that another user could have made is not followed"):
    machine.succeed("cd /srv/audit && ln -s /srv/audit/real mine/of_root && ln -s ../real open/of_root",
                    "cd /srv/audit && for d in mine open sticky; do ln -s ../real $d/of_alice; chown -h alice $d/of_alice; done")
    for path in ("mine/of_root", "mine/of_alice", "open/of_root", "open/of_alice", "sticky/of_alice", "alias/mine/of_alice"):
        t.assertIn("the symbolic link", run(f"--unveil r:/srv/audit/{path}/file -- true", 125))

with subtest("a user's link may lead only to files of the same user"):
    machine.succeed("cd /srv/audit/mine && mkdir -p releases/5 && ln -s releases/5 current && echo five > releases/5/file",
                    "chown -hR alice /srv/audit/mine/releases /srv/audit/mine/current")
    t.assertEqual(run("--unveil r:/srv/audit/mine/current -- cat /srv/audit/mine/current/file"), "five\n")
    machine.succeed("chown root /srv/audit/mine/releases/5")
    t.assertIn("belongs to uid 0", run("--unveil r:/srv/audit/mine/current -- true", 125))

with subtest("a path through /proc/PID is refused"):
    for root in ("private", "host"):
        t.assertIn("proc(5)", run(f"--root {root} --unveil r:/proc/1/root/srv -- true", 125))
        t.assertIn("No such file", run(f"--root {root} --unveil r:/proc/nope -- true", 125))
        run(f"--root {root} --unveil r:/proc/sys/kernel -- true")

with subtest("a job's paths are opened with the task's rights: they neither reveal nor reach root's directories"):
    machine.succeed("mkdir -p -m 700 /root/there; echo x > /root/there/file")
    there, missing = (run(f"--unveil r:/root/{name} -- true", 125).replace(name, "") for name in ("there", "nope"))
    t.assertEqual(there, missing)
    t.assertIn("Permission denied", there)
    for path in ("/root", "/root/there"):
        t.assertIn("Permission denied", run(f"--root host --work-dir {path} -- pwd", 125))
    t.assertIn("Permission denied", run("--work-dir /root/there -- pwd", 125))
    t.assertEqual(run("--root host --user root --work-dir /root/there -- pwd"), "/root/there\n")
    # where nothing is unveiled, a root of its own has an empty folder
    t.assertEqual(run("--user root --work-dir /root/there -- sh -c 'pwd; ls -A'"), "/root/there\n")
    t.assertEqual(run("--work-dir /root -- sh -c 'pwd; ls -A'"), "/root\n")
    t.assertEqual(run("--work-dir /usr/share -- pwd"), "/usr/share\n")
    t.assertIn("../x", run("--work-dir ../x -- pwd", 125))

with subtest("/proc/self: all of /proc, or an error that says so"):
    t.assertIn('write "rw:/proc"', run("--unveil rw:/proc/self/comm -- true", 125))
    t.assertIn('write "r:/proc"', run("--no-defaults --unveil rx:/usr --unveil r:/proc/self/mountinfo -- true", 125))
    t.assertIn("/proc", run("--unveil r:/proc/self/mountinfo -- cat /proc/self/mountinfo"))

with subtest("a root task can neither limit, renice, pin, signal nor forge its shim; the same works on a child of its own"):
    attempts = """
for p in CHILD 1; do
  prlimit --pid $p --fsize=0:0 2>/dev/null && echo $p limited
  renice -n 5 -p $p >/dev/null 2>&1 && echo $p reniced
  taskset -p 1 $p >/dev/null 2>&1 && echo $p pinned
  kill -URG $p 2>/dev/null && echo $p signalled
done
stat -c %u /proc/1
exit 7
"""
    output = run("--user root -- sh -c " + shlex.quote("sleep 100 & " + attempts.replace("CHILD", "$!")), 7).split()
    t.assertEqual(output.count("1"), 0, output)
    for done in ("limited", "reniced", "pinned", "signalled"):
        t.assertEqual(output.count(done), 1, output)
    show = "for p in 1 $$; do grep -E '^(Uid|Gid|CapPrm|CapBnd|NoNewPrivs)' /proc/$p/status; done; ls -ld /proc/1/fd"
    status = run("--user root -- sh -c " + shlex.quote(show)).splitlines()
    t.assertEqual(status[:2], [f"{name}:" + f"\t{SHIM_ID}" * 4 for name in ("Uid", "Gid")])
    t.assertTrue(all(line.split()[1].strip("0") == "" for line in status[2:4]), status)
    forge = "--unveil rw:/proc/self/fd/5 --unveil r:/run/nomad-driver-exec2"
    t.assertIn("/proc", run(f"--user root {forge} -- sh -c 'exit 0'", 125))

with subtest("no task has the shim's id"):
    for user in (SHIM_ID, f"{SHIM_ID}:{SHIM_ID}", f"1001:{SHIM_ID}"):
        run(f"--user {user} -- true", 125)

with subtest("attributes of the caller's process do not reach the task"):
    odd = "umask 0; exec nice -n 10 chrt --batch 0 taskset -c 1 setarch -R sh -c 'echo 0 > /proc/self/coredump_filter; exec \"$@\"' x"
    show = "umask; nice; chrt -p $$ | head -1; taskset -p $$; cat /proc/self/personality /proc/self/timerslack_ns /proc/self/coredump_filter"
    cpus = machine.succeed("nproc").strip()
    plain = run("-- sh -c " + shlex.quote(show))
    got = machine.succeed(f"sh -c {shlex.quote(odd + ' ' + PLUGIN + ' run -- sh -c ' + shlex.quote(show))}")
    def without_pid(text):
        return re.sub(r"pid \d+", "pid", text)
    t.assertEqual(without_pid(got), without_pid(plain))
    for value in ("0022\n0\n", "SCHED_OTHER", "00000000\n50000\n00000033"):
        t.assertIn(value, got)
    bare = machine.succeed(f"sh -c {shlex.quote(odd + ' sh -c ' + shlex.quote(show))}")
    t.assertNotEqual(without_pid(bare), without_pid(plain), "the twin without a sandbox")
    t.assertGreater(int(cpus), 1, "one CPU cannot show an affinity")

with subtest("a program with file capabilities starts without them"):
    machine.succeed("cp $(readlink -f $(command -v cat)) /srv/audit/capable; setcap cap_ipc_lock=ep /srv/audit/capable")
    run_it = "--unveil rx:/srv/audit/capable -- /srv/audit/capable /proc/self/status"
    for user in ("", "--user alice"):
        t.assertRegex(run(f"{user} {run_it}"), r"CapPrm:\t0{16}\n")
    # the mounts of a root of its own ignore file capabilities; with the host's, the kernel refuses to start without them
    t.assertRegex(run(f"--user root {run_it}"), r"CapPrm:\t0{16}\n")
    t.assertIn("getcap", run(f"--root host --user root {run_it}", 126))
    added = f"--cap-add net_bind_service {run_it}"
    t.assertRegex(run(added), r"CapPrm:\t0+400\n")
    t.assertRegex(run(f"--root host {added}"), r"CapPrm:\t0{16}\n", "nor what was added, as for every program with file capabilities")

with subtest("a long error is cut, and the start is reported as failed"):
    for count in (10_000, 60_000):
        text = f"""
import shutil, subprocess
done = subprocess.run([shutil.which("{PLUGIN}"), "run", "--", "c" * {count}], env={{"PATH": "/usr/local/bin:" + "/p" * {count}}}, stdout=-1, stderr=-2)
print(done.returncode, len(done.stdout), done.stdout.decode()[-400:])
"""
        output = machine.succeed(script(text))
        t.assertRegex(output, r"^12[67] ")
        t.assertLess(int(output.split()[1]), 20_000)

with subtest("the reason why a command cannot be executed is reported"):
    machine.succeed("mkdir -p /srv/audit/noexec; mount -t tmpfs -o noexec none /srv/audit/noexec; cp $(readlink -f $(command -v cat)) /srv/audit/noexec/t")
    t.assertIn("mounted noexec", run("--unveil rx:/srv/audit/noexec -- /srv/audit/noexec/t", 126))
    machine.succeed("mkdir -p -m 700 /root/bin")
    t.assertIn("not found in PATH", run("-- no-such-command", 127, before="env PATH=/root/bin:$PATH"))
    t.assertIn("the command is empty", run("-- ''", 127))
