# /// scenario
# description = "alloc exec with Nomad's own command line: a shell on a terminal, pipes, actions, and restarts of plugin and agent during sessions."
# nomad = "real"
# guests = ["debian"]
# seconds = 400
# timeout_s = 3000
# ///
# What a command may do is the scenario `exec`; here Nomad's client is at the other end.

import hashlib
import shlex

from exec2.agent import PLUGIN_NAME, new_plugin, plugin_pid, start_agent, wait_for_driver
from exec2.allocs import alloc_status, run_job, wait_for_alloc, wait_for_log
from exec2.expect import END, expect, kill, on_terminal, resize, running, send
from exec2.guest import ALLOC_TIMEOUT_S, CLEANUP_TIMEOUT_S, machine, poll, subtest, t
from exec2.jobs import group, job, task
from exec2.tasks import inside, scope, stop_all_of

MIB = 1 << 20
BIG_MIB = 100
# At the start of a line, but for what bash sends to have pasted text marked.
PROMPT = r"\n(?:\x1b\[\?2004[hl]|\r)*ready> "
# Of Nomad's own example for actions.
ACTION = """
    action "who" {
      command = "sh"
      args    = ["-c", "echo action by $(id -un); exit 3"]
    }
"""

# Python. Shows the size of the screen, and again whenever that changes, until a key is typed.
SCREEN = """
import curses
def main(screen):
    key = curses.KEY_RESIZE
    while key == curses.KEY_RESIZE:
        screen.erase()
        screen.addstr(0, 0, "size %d %d" % screen.getmaxyx())
        screen.refresh()
        key = screen.getch()
    return key
print("key", chr(curses.wrapper(main)))
"""

wait_for_driver()
run_job(job("shell", group("g", task("t", "sh", "-c", "echo ready; exec sleep 36000", memory=128, extra=ACTION)), kind="service"))
alloc = wait_for_alloc("shell", "running")
wait_for_log(alloc, "ready")
leader = inside(alloc)


def session(*command, options="-i -t"):
    return ["nomad", "alloc", "exec", *options.split(), "-task", "t", alloc["ID"], *command]


def in_task(script, status=0, options="-i=false -t=false", before=""):
    """The output (both streams) of a shell script in the task."""
    got, output = machine.execute(f"{before} {shlex.join(session('sh', '-c', script, options=options))} 2>&1", timeout=ALLOC_TIMEOUT_S)
    t.assertEqual(got, status, output)
    return output


def started():
    """Steps to a shell that has its prompt."""
    return send("PS1='ready> '\n"), expect(PROMPT)


def left_behind(number):
    """A process that leaves the shell's session."""
    return *started(), send(f"nohup setsid sleep {number} &\n"), running(f"^sleep {number}")


def no_session_is_left():
    """Only the task itself is in its cgroup, and no cgroup of a session."""

    def alone():
        return inside(alloc) == leader and not machine.execute(f"find {scope(alloc)} -mindepth 1 -type d | grep .")[1]

    poll("the sessions are gone", alone, ALLOC_TIMEOUT_S)


with subtest("a shell on a terminal: prompt, size and its changes, UTF-8, the exit code"):
    shell = session("bash", "--norc", "--noprofile")
    output = on_terminal(
        shell,
        *started(),
        send("stty size\n"),
        expect("24 80\r\n"),
        resize(50, 132),
        send("sleep 1; stty size\n"),
        expect("50 132\r\n"),
        send("tty; echo $TERM $USER\n"),
        expect(r"/dev/pts/\d+\r\n\S+ nomad-\d+\r\n"),
        send("printf '\\303\\274\\342\\202\\254\\n'\n"),
        expect("ü€\r\n"),
        send("exit 7\n"),
        END,
        status=7,
    )
    t.assertNotIn("no job control", output)
    no_session_is_left()

with subtest("Ctrl-C ends a pipeline, Ctrl-Z stops it, Ctrl-D ends the shell"):
    on_terminal(
        shell,
        *started(),
        send("sleep 1000 | cat\n"),
        running("^sleep 1000"),
        send("\x03"),
        expect("ready> "),
        send("echo status $?\n"),
        expect("status 130\r\n"),
        send("sleep 1000 | cat\n"),
        expect("cat\r\n"),
        running("^sleep 1000"),
        send("\x1a"),
        expect("Stopped"),
        send("jobs; bg; fg\n"),
        expect("Stopped.*sleep 1000 . cat.*sleep 1000"),
        send("\x03"),
        expect("ready> "),
        send("\x04"),
        END,
        status=None,
    )
    no_session_is_left()

with subtest("a program in full screen, which follows the size of the window"):
    on_terminal(session("python3", "-ISc", SCREEN), expect("size 24 80"), resize(30, 100), expect("size 30 100"), send("q"), expect("key q"), END)

with subtest("~. of Nomad's command ends the session, and all that it started"):
    on_terminal(shell, *left_behind(4242), send("\r~."), END, status=None)
    # Nomad itself learns of it with the next output; until then the driver knows by the client's missing heartbeats.
    no_session_is_left()
    t.assertEqual(machine.execute("pgrep -f '^sleep 4242'")[1], "")

with subtest("without a terminal: both streams, standard input with its end, exit codes and signals"):
    t.assertEqual(in_task("cat; echo err >&2", options="-i -t=false", before="printf 'a\\0b' |"), "a\0berr\n")
    in_task("exit 42", status=42)
    in_task("kill -9 $$", status=137)
    t.assertIn("No such file or directory", in_task("cat /etc/shadow", status=1))
    t.assertEqual(machine.execute("test -s /etc/shadow")[0], 0)
    got, output = machine.execute(shlex.join(session("no-such-program", options="-i=false -t=false")) + " 2>&1")
    t.assertEqual((got, "no-such-program" in output), (127, True), output)

with subtest(f"{BIG_MIB} MiB through sha256sum"):
    expected = hashlib.sha256(bytes(BIG_MIB * MIB)).hexdigest()
    before = int(machine.succeed(f"awk '/^VmHWM/ {{print $2}}' /proc/{plugin_pid()}/status"))
    output = machine.succeed(f"head -c {BIG_MIB}M /dev/zero | {shlex.join(session('sha256sum', options='-i -t=false'))}", timeout=5 * ALLOC_TIMEOUT_S)
    t.assertIn(expected, output)
    after = int(machine.succeed(f"awk '/^VmHWM/ {{print $2}}' /proc/{plugin_pid()}/status"))
    t.assertLess(after - before, 8 << 10, "KiB that the plugin's memory grew by")

with subtest("an action of the job"):
    got, output = machine.execute(f"nomad action -job=shell -alloc={alloc['ID']} -task=t -t=false -i=false who 2>&1")
    t.assertEqual((got, "action by nomad-" in output), (3, True), output)

with subtest("the plugin is killed during a session: the session ends, with all that it started; the task and later sessions do not notice"):
    old = plugin_pid()
    on_terminal(shell, *left_behind(4243), kill(PLUGIN_NAME), END, status=None)
    new_plugin(old)
    no_session_is_left()
    t.assertEqual(machine.execute("pgrep -f '^sleep 4243'")[1], "")
    poll("sessions work again", lambda: machine.execute(shlex.join(session("true", options="-i=false -t=false")))[0] == 0, ALLOC_TIMEOUT_S)
    t.assertEqual(in_task("id -un; cat /proc/self/cgroup").count("nomad"), 2)

with subtest("the agent is killed during a session: likewise"):
    # The unit's KillMode=process leaves the plugin, and the next agent finds it again.
    old = plugin_pid()
    on_terminal(shell, *left_behind(4244), kill("^[^ ]*nomad agent"), END, status=None)
    machine.wait_until_fails("systemctl is-active nomad.service")
    start_agent()
    t.assertEqual(plugin_pid(), old)
    no_session_is_left()
    t.assertEqual(machine.execute("pgrep -f '^sleep 4244'")[1], "")
    poll("sessions work again", lambda: machine.execute(shlex.join(session("true", options="-i=false -t=false")))[0] == 0, ALLOC_TIMEOUT_S)
    t.assertEqual(alloc_status(alloc["ID"])["ClientStatus"], "running")

with subtest("the task ends during a session: so does the session"):
    on_terminal(shell, *left_behind(4245), kill("^sleep 36000"), END, status=None)
    poll("nothing is left of it", lambda: not machine.execute("pgrep -f '^sleep 4245'")[1], CLEANUP_TIMEOUT_S)
    stop_all_of("shell", wait_for_alloc("shell", ("running", "complete", "failed", "pending")))
