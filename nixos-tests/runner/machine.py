"""One guest, with the interface of the NixOS test driver's `machine`.

The protocol is that driver's: QEMU connects to two sockets in the machine's folder, `monitor` (HMP text) and `shell` (a virtio
console with a root shell at its other end), and writes the serial console to its standard output.
"""

import base64
import contextlib
import math
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import CommandError, EmulatorError, MachineError
from .transcript import Transcript

SHELL_LINE = b"Spawning backdoor root shell..."
PROMPT = b"(qemu) "
PANIC = re.compile(rb"Kernel panic - not syncing|BUG: unable to handle")

COMMAND_TIMEOUT_S = 900  # of execute() and of every wait, as in the NixOS driver
RETRY_INTERVAL_S = 1.0
# Of QEMU's start, and of a shutdown, which is slow in a busy guest under emulation.
QEMU_START_TIMEOUT_S = 30
SHUTDOWN_TIMEOUT_S = 180
CONSOLE_TAIL_LINES = 40
# A second on an idle machine, for some hundred megabytes from or to a file.
MIGRATE_TIMEOUT_S = 120
RESUMED = "resumed"
# QEMU 10 under TCG aborts in about one boot of a hundred, before the kernel prints its first line
# ("msix_table_mmio_write: Assertion"). That is no result for the guest; one that was up is never started again.
BOOT_ATTEMPTS = 3
EMULATOR_SIGNALS = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL)
POLL_S = 0.5  # how soon a dead QEMU or the scenario's deadline is noticed while waiting for output


def retry(fn: Callable[[bool], bool], timeout: float = COMMAND_TIMEOUT_S) -> None:
    """Calls fn(False) once a second until it is true; then fn(True) as the last try."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if fn(False):
            return
        time.sleep(RETRY_INTERVAL_S)
    if not fn(True):
        raise CommandError(f"still failing after {timeout:.0f} s")


class Machine:
    """Started by the first call that needs it. `command` is QEMU's without the sockets."""

    def __init__(self, name: str, command: list[str], folder: Path, transcript: Transcript, deadline: float,
                 release: str | None = None) -> None:  # fmt: skip
        self.name = name
        self.folder = folder
        self._command = command
        self._log = transcript
        self._deadline = deadline
        self._release = release  # what `uname -r` has to print
        self._process: subprocess.Popen[bytes] | None = None
        self._shell: socket.socket | None = None
        self._monitor: socket.socket | None = None
        self._connected = False
        self._buffer = b""
        self._console = bytearray()
        self._panic = False
        self.emulator_errors = 0  # how often QEMU crashed while booting
        self.boot_seconds: float | None = None  # from start to a usable shell
        self.resumed = False  # not booted, but resumed from a snapshot

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self, allow_reboot: bool = False) -> None:
        """Starts QEMU unless it runs. A reboot always ends QEMU here; reboot() starts it again with the same disks."""
        if self._process is None:
            self._launch()

    def _launch(self, *more: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        listeners = []
        for name in ("monitor", "shell"):
            path = self.folder / name
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            with _short_path(path) as short:
                listener.bind(short)
            listener.listen(1)
            listener.settimeout(POLL_S)
            listeners.append(listener)
        arguments = [
            *self._command, "-monitor", "chardev:monitor", "-chardev", "socket,id=monitor,path=monitor",
            "-chardev", "socket,id=shell,path=shell", "-device", "virtio-serial-pci", "-device", "virtconsole,chardev=shell",
            "-device", "virtio-rng-pci", "-serial", "stdio", *more,
        ]  # fmt: skip
        self._log.event(f"{self.name}: starting")
        self._panic = False
        self._started = time.monotonic()
        with open(self.folder / "qemu.log", "ab") as errors:
            # relative socket paths: an absolute one may be longer than the 107 bytes of an address
            self._process = subprocess.Popen(_tied_to_us() + arguments, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        self._console_thread = threading.Thread(target=self._read_console, args=(self._process,), daemon=True)
        self._console_thread.start()
        try:
            self._monitor, self._shell = (self._accept(listener) for listener in listeners)
        finally:
            for listener in listeners:
                listener.close()
        self._connected = False
        self._buffer = b""
        self._read_until_prompt()

    def suspend(self, memory: Path) -> None:
        """Writes the guest's memory to a file and ends QEMU: with its disk, that is all that resume() needs."""
        self._log.event(f"{self.name}: suspend")
        # not stopped first: it would be resumed as stopped
        self.send_monitor_command("migrate_set_parameter max-bandwidth 100G")
        with _link(self.folder / "to", memory.parent):
            answer = self.send_monitor_command(f"migrate file:to/{memory.name}", timeout=MIGRATE_TIMEOUT_S)
        state = self.send_monitor_command("info migrate")
        if not re.search(r"status:\s*completed", state, re.I):
            raise MachineError(f"failed to write the guest's memory: {answer} {state}")
        self.send_monitor_command("quit", answered=False)
        self._wait_for_end()

    def resume(self, memory: Path, console: bytes) -> None:
        """Starts QEMU with the memory of a guest whose root shell has been there before; `console` is what that has printed."""
        self._console += console
        (self.folder / "console.log").write_bytes(console)
        with _link(self.folder / "from", memory.parent):
            self._launch("-incoming", f"file:from/{memory.name}")
            # the guest's clock stopped with it
            self._send(f"date --utc --set=@{time.time():.3f} >/dev/null; echo {RESUMED}")
            while RESUMED.encode() not in self._buffer:
                self._receive(self._started + MIGRATE_TIMEOUT_S)
        self._buffer = self._buffer.partition(RESUMED.encode())[2].lstrip(b"\r\n")
        self._connected = self.resumed = True
        self.boot_seconds = time.monotonic() - self._started
        self._log.event(f"{self.name}: resumed after {self.boot_seconds:.1f} s")

    def _accept(self, listener: socket.socket) -> socket.socket:
        end = time.monotonic() + QEMU_START_TIMEOUT_S
        while time.monotonic() < end:
            with contextlib.suppress(socket.timeout):
                connection, _ = listener.accept()
                return connection
            status = self._process.poll() if self._process is not None else None
            if status is not None:
                broken = EmulatorError if status in EMULATOR_SIGNALS else MachineError
                raise broken(f"QEMU ended at once: {self._qemu_errors()}")
        raise MachineError(f"QEMU did not connect within {QEMU_START_TIMEOUT_S} s: {self._qemu_errors()}")

    def _qemu_errors(self) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / "qemu.log").read_text(errors="replace").strip()
        return ""

    def _read_console(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with open(self.folder / "console.log", "ab") as log:
            while True:
                data = process.stdout.read1(65536)  # type: ignore[attr-defined]
                if not data:
                    return
                data = data.replace(b"\r", b"")
                self._console += data
                log.write(data)
                log.flush()
                if PANIC.search(self._console, max(0, len(self._console) - len(data) - 100)):
                    self._panic = True

    def connect(self) -> None:
        """Waits for the root shell of the guest."""
        if self._connected:
            return
        while True:
            try:
                self.start()
                while SHELL_LINE not in self._buffer:
                    self._receive()
                break
            except EmulatorError as error:
                self._log.event(f"{self.name}: {error}")
                self.kill()
                self.emulator_errors += 1
                if self.emulator_errors >= BOOT_ATTEMPTS:
                    raise
        self._buffer = self._buffer.partition(SHELL_LINE)[2].lstrip(b"\r\n")
        self._connected = True
        self.resumed = False
        self.boot_seconds = time.monotonic() - self._started
        self._log.event(f"{self.name}: root shell after {self.boot_seconds:.1f} s")
        if self._release:
            release = self.execute("uname -r")[1].strip()
            if release != self._release:
                raise MachineError(f"the guest runs Linux {release}, not {self._release}")

    def _receive(self, deadline: float = math.inf) -> None:
        """Adds the shell's output to the buffer; raises if the guest is gone, or at either deadline."""
        assert self._shell is not None and self._process is not None
        while True:
            if select.select([self._shell], [], [], POLL_S)[0]:
                data = self._shell.recv(65536)
                if data:
                    self._buffer += data
                    return
                self._process.wait()
            if self._panic:
                raise MachineError("the guest's kernel panicked")
            status = self._process.poll()
            if status is not None:
                broken = EmulatorError if status in EMULATOR_SIGNALS else MachineError
                raise broken(f"the guest is gone (QEMU ended with {status}) {self._qemu_errors()}".rstrip())
            if time.monotonic() > min(self._deadline, deadline):
                raise MachineError("the scenario ran out of time" if deadline > self._deadline else "the guest does not respond")

    def _read_line(self) -> bytes:
        while b"\n" not in self._buffer:
            self._receive()
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _forget(self) -> None:
        """Closes the connections to a QEMU that has ended."""
        for connection in (self._shell, self._monitor):
            if connection is not None:
                connection.close()
        self._shell = self._monitor = None
        self._connected = False
        if self._process is not None:
            self._console_thread.join(POLL_S * 4)
            if self._process.stdout is not None:
                self._process.stdout.close()
        self._process = None

    def _wait_for_end(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(max(1.0, min(SHUTDOWN_TIMEOUT_S, self._deadline - time.monotonic())))
        except subprocess.TimeoutExpired as error:
            raise MachineError("the guest did not shut down in time") from error
        finally:
            self.kill()

    def shutdown(self) -> None:
        """A clean shutdown. The next call that needs the machine boots it again with its disk."""
        if self._process is None:
            return
        self.connect()
        self._log.event(f"{self.name}: shutdown")
        self._send("poweroff")
        self._wait_for_end()

    def crash(self) -> None:
        """Ends QEMU at once, like a power failure."""
        if self._process is None:
            return
        self._log.event(f"{self.name}: crash")
        self.send_monitor_command("quit", answered=False)
        self._wait_for_end()

    def reboot(self) -> None:
        """A clean shutdown and a new boot."""
        self.connect()
        self._log.event(f"{self.name}: reboot")
        self._send("reboot")
        self._wait_for_end()
        self.connect()

    def kill(self) -> None:
        """Ends QEMU at once; for the end of a scenario."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._forget()

    def terminate(self) -> None:
        """Ends QEMU from another thread; a thread that waits for the guest gets a MachineError."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    def wait_for_shutdown(self) -> None:
        """Waits until the guest has ended by itself."""
        if self._process is not None:
            self._wait_for_end()

    def extend_deadline(self, seconds: float) -> None:
        """Sets a new deadline, for work after the end of the scenario."""
        self._deadline = time.monotonic() + seconds

    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None and not self._panic

    # -- monitor and console ------------------------------------------------------------------------------------------

    def _read_until_prompt(self, timeout: float = QEMU_START_TIMEOUT_S) -> str:
        assert self._monitor is not None
        self._monitor.settimeout(timeout)
        text = b""
        while not text.endswith(PROMPT):
            try:
                data = self._monitor.recv(4096)
            except TimeoutError as error:
                raise MachineError("QEMU's monitor does not respond") from error
            if not data:
                raise MachineError(f"QEMU's monitor is closed: {self._qemu_errors()}")
            text += data
        return text[: -len(PROMPT)].decode(errors="replace")

    def send_monitor_command(self, command: str, answered: bool = True, timeout: float = QEMU_START_TIMEOUT_S) -> str:
        """A line for QEMU's monitor."""
        self.start()
        assert self._monitor is not None
        self._monitor.sendall(command.encode() + b"\n")
        return self._read_until_prompt(timeout) if answered else ""

    def block(self) -> None:
        """Unplugs the network cable."""
        self.send_monitor_command("set_link net0 off")

    def unblock(self) -> None:
        """Plugs the network cable in again."""
        self.send_monitor_command("set_link net0 on")

    def get_console_log(self) -> str:
        """The output of the serial console since the first start."""
        return bytes(self._console).decode(errors="replace")

    def console_tail(self) -> str:
        return "\n".join(self.get_console_log().rstrip().splitlines()[-CONSOLE_TAIL_LINES:])

    def wait_for_console_text(self, regex: str, timeout: float = COMMAND_TIMEOUT_S) -> None:
        self.start()
        with self._log.nested(f"{self.name}: wait for {regex!r} on the console"):
            self._retry(lambda _: re.search(regex, self.get_console_log()) is not None, timeout)

    # -- commands -----------------------------------------------------------------------------------------------------

    def _send(self, line: str) -> None:
        assert self._shell is not None
        try:
            self._shell.sendall(line.encode() + b"\n")
        except OSError as error:
            raise MachineError(f"the guest's shell is gone: {error.strerror}; {self._qemu_errors()}") from error

    def execute(self, command: str, check_return: bool = True, check_output: bool = True,
                timeout: float | None = COMMAND_TIMEOUT_S) -> tuple[int, str]:  # fmt: skip
        """(status, output) of a bash command in the guest, with `set -euo pipefail`."""
        self.connect()
        quoted = shlex.quote("set -euo pipefail; " + command)
        limit = f"timeout {timeout:g} " if timeout is not None else ""
        if not check_output:
            self._send(f"{limit}bash -c {quoted} >/dev/null 2>&1 &")
            return -2, ""
        started = time.monotonic()
        # output and status in one line: a second exchange, and a shell in between, cost an emulated CPU some 10 ms
        self._send(f'{limit}bash -c {quoted} | base64 -w 0; echo " ${{PIPESTATUS[0]}}"')
        encoded, _, status_text = self._read_line().rpartition(b" ")
        output = base64.b64decode(encoded).decode(errors="replace")
        if not check_return:
            return -1, output
        status = int(status_text)
        self._log.command(self.name, command, status, output, time.monotonic() - started)
        return status, output

    def succeed(self, *commands: str, timeout: float | None = None) -> str:
        """The output of commands that must all end with 0."""
        output = ""
        for command in commands:
            status, text = self.execute(command, timeout=timeout)
            if status != 0:
                raise CommandError(f"command `{command}` failed (exit code {status}); its output: {text.rstrip()}")
            output += text
        return output

    def fail(self, *commands: str, timeout: float | None = None) -> str:
        """The output of commands of which none may end with 0."""
        output = ""
        for command in commands:
            status, text = self.execute(command, timeout=timeout)
            if status == 0:
                raise CommandError(f"command `{command}` unexpectedly succeeded; its output: {text.rstrip()}")
            output += text
        return output

    def _retry(self, fn: Callable[[bool], bool], timeout: float) -> None:
        def guarded(last: bool) -> bool:
            if time.monotonic() > self._deadline:
                raise MachineError("the scenario ran out of time")
            return fn(last)

        retry(guarded, timeout)

    def wait_until_succeeds(self, command: str, timeout: float = COMMAND_TIMEOUT_S) -> str:
        """Repeats it once a second until it ends with 0."""
        return self._wait_until(command, timeout, lambda status: status == 0, "succeed")

    def wait_until_fails(self, command: str, timeout: float = COMMAND_TIMEOUT_S) -> str:
        """Repeats it once a second until it does not end with 0."""
        return self._wait_until(command, timeout, lambda status: status != 0, "fail")

    def _wait_until(self, command: str, timeout: float, good: Callable[[int], bool], verb: str) -> str:
        output = ""

        def attempt(_: bool) -> bool:
            nonlocal output
            status, output = self.execute(command, timeout=timeout)
            return good(status)

        with self._log.nested(f"{self.name}: wait until `{command}` {verb}s"):
            try:
                self._retry(attempt, timeout)
            except CommandError as error:
                raise CommandError(f"command `{command}` did not {verb} within {timeout:.0f} s; its last output: {output.rstrip()}") from error
        return output

    def systemctl(self, arguments: str) -> tuple[int, str]:
        return self.execute(f"systemctl {arguments}")

    def wait_for_unit(self, unit: str, timeout: float = COMMAND_TIMEOUT_S) -> None:
        """Waits until the unit is active; a failed unit, or an inactive one without pending jobs, is an error."""

        def active(_: bool) -> bool:
            state = self._property(unit, "ActiveState")
            if state == "failed":
                raise CommandError(f"unit {unit} failed:\n{self.execute(f'systemctl --no-pager --full status {shlex.quote(unit)}')[1]}")
            if state == "inactive":
                jobs = self.execute("systemctl --no-pager list-jobs --full")[1]
                if "No jobs" in jobs and self._property(unit, "ActiveState") == state:
                    raise CommandError(f"unit {unit} is inactive and there are no pending jobs")
            return state == "active"

        with self._log.nested(f"{self.name}: wait for unit {unit}"):
            self._retry(active, timeout)

    def _property(self, unit: str, name: str) -> str:
        line = self.succeed(f"systemctl --no-pager show {shlex.quote(unit)} --property={name}").strip()
        return line.partition("=")[2]

    def start_job(self, unit: str) -> tuple[int, str]:
        return self.systemctl(f"start {unit}")

    def stop_job(self, unit: str) -> tuple[int, str]:
        return self.systemctl(f"stop {unit}")

    def wait_for_file(self, path: str, timeout: float = COMMAND_TIMEOUT_S) -> None:
        self.wait_until_succeeds(f"test -e {shlex.quote(path)}", timeout)

    def wait_for_open_port(self, port: int, addr: str = "localhost", timeout: float = COMMAND_TIMEOUT_S) -> None:
        self.wait_until_succeeds(f"nc -z {addr} {port}", timeout)

    def wait_for_closed_port(self, port: int, addr: str = "localhost", timeout: float = COMMAND_TIMEOUT_S) -> None:
        self.wait_until_fails(f"nc -z {addr} {port}", timeout)

    def sleep(self, seconds: float) -> None:
        """In the guest's time."""
        self.succeed(f"sleep {seconds}")

    def copy_from_host_via_shell(self, source: str, target: str) -> None:
        """Copies a small file through the shell."""
        text = base64.b64encode(Path(source).read_bytes()).decode()
        quoted = shlex.quote(target)
        self.succeed(f"mkdir -p $(dirname {quoted})", f"echo -n {text} | base64 -d > {quoted}")

    # -- interactive ------------------------------------------------------------------------------------------------------

    def shell_interact(self) -> None:
        """The user's terminal becomes one of the guest. Its shell ends the guest; Ctrl-] leaves it at once."""
        self.connect()
        assert self._shell is not None
        size = shutil.get_terminal_size()
        shell = f"stty rows {size.lines} cols {size.columns}; cd /root; TERM=xterm-256color exec bash -i"
        self._send(f"exec script -q -c {shlex.quote(shell)} /dev/null 2>/dev/hvc0; poweroff")
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        try:
            tty.setraw(terminal)
            while True:
                ready = select.select([terminal, self._shell], [], [], POLL_S)[0]
                if self._shell in ready:
                    data = self._shell.recv(65536)
                    if not data:
                        return
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()
                if terminal in ready:
                    keys = os.read(terminal, 4096)
                    if not keys or b"\x1d" in keys:
                        return
                    self._shell.sendall(keys)
                if not self.is_up():
                    return
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)
            print()


def _tied_to_us() -> list[str]:
    """The start of a command that is killed when the runner ends in any way."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


@contextlib.contextmanager
def _link(path: Path, target: Path) -> Iterator[None]:
    """A name without special characters for a folder, for QEMU's `file:`."""
    path.symlink_to(target.resolve())
    try:
        yield
    finally:
        path.unlink()


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """The path through an open folder: a unix address has at most 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
