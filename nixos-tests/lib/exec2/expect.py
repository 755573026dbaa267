"""Drives a program of the guest on a terminal, step by step, as a user would."""

import json
import shlex
from typing import Any

from .guest import machine, write

Step = tuple[Any, ...]

# A program on an emulated CPU answers within seconds; this only bounds what hangs.
STEP_TIMEOUT_S = 90

# Runs argv[2:] on a pseudoterminal of 24 rows and 80 columns and takes the steps of argv[1]:
#   ["send", TEXT]         types the text
#   ["expect", REGEX]      waits until the output since the last match has it; "the rest" is then what follows
#   ["resize", ROWS, COLS] changes the size of the window
#   ["running", REGEX]     waits until there is a process whose command line matches
#   ["kill", REGEX]        kills it
#   ["end"]                waits until the program ends
# It prints {"status": the program's, "output": all of it, "failed": the step that was not reached, or null}.
_DRIVER = r"""
import fcntl, json, os, pty, re, select, signal, struct, subprocess, sys, termios, time
steps, limit, command = json.loads(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
def resize(rows, columns):
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
resize(24, 80)
output, seen, over = b"", 0, False
def read(until):
    global output, over
    if select.select([terminal], [], [], max(0.0, until - time.monotonic()))[0]:
        try:
            got = os.read(terminal, 65536)
        except OSError:
            got = b""
        output, over = output + got, over or not got
failed = None
for step in steps:
    until = time.monotonic() + limit
    if step[0] == "send":
        os.write(terminal, step[1].encode())
    elif step[0] == "resize":
        resize(*step[1:])
    elif step[0] == "running":
        while subprocess.run(["pgrep", "-f", step[1]], stdout=subprocess.DEVNULL).returncode and not failed:
            failed = step if time.monotonic() > until else None
            time.sleep(0.1)
    elif step[0] == "kill":
        subprocess.run(["pkill", "-KILL", "-f", step[1]], check=True)
    elif step[0] == "end":
        while not over and time.monotonic() < until:
            read(until)
        if not over:
            failed = step
    else:
        while True:
            match = re.compile(step[1].encode(), re.S).search(output, seen)
            if match:
                seen = match.end()
                break
            if over or time.monotonic() > until:
                failed = step
                break
            read(until)
    if failed:
        break
if not over:
    os.kill(pid, signal.SIGKILL)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(json.dumps({"status": status, "output": output.decode(errors="backslashreplace"), "failed": failed}))
"""


def send(text: str) -> Step:
    return ("send", text)


def expect(regex: str) -> Step:
    return ("expect", regex)


def resize(rows: int, columns: int) -> Step:
    return ("resize", rows, columns)


def running(pattern: str) -> Step:
    return ("running", pattern)


def kill(pattern: str) -> Step:
    return ("kill", pattern)


END: Step = ("end",)


def on_terminal(command: list[str], *steps: Step, status: int | None = 0) -> str:
    """The output of the command, which has to go through all steps, and to end with the status unless that is None."""
    write("/run/expect.py", _DRIVER)
    words = " ".join(shlex.quote(word) for word in command)
    answer = machine.succeed(f"python3 -ISc \"$(cat /run/expect.py)\" {shlex.quote(json.dumps(steps))} {STEP_TIMEOUT_S} {words}",
                             timeout=STEP_TIMEOUT_S * (len(steps) + 1))  # fmt: skip
    result: dict[str, Any] = json.loads(answer.splitlines()[-1])
    if result["failed"]:
        raise AssertionError(f"{command}: not reached: {result['failed']}; the output: {result['output']!r}")
    if status is not None and result["status"] != status:
        raise AssertionError(f"{command}: ended with {result['status']} instead of {status}; the output: {result['output']!r}")
    output: str = result["output"]
    return output
