"""Runs one scenario with the NixOS driver's globals, and returns its outcome."""

import contextlib
import linecache
import sys
import time
import traceback
import unittest
from pathlib import Path
from typing import Any, NamedTuple

from exec2 import agent, allocs, cleanup, cli, guest, jobs, probes, tasks

from .errors import CommandError, MachineError
from .machine import Machine, retry
from .scenario import Scenario
from .transcript import Transcript

# A guest that responds sends its journal within this time.
JOURNAL_TIMEOUT_S = 60


class Outcome(NamedTuple):
    passed: bool
    seconds: float
    boot_seconds: float | None
    resumed: bool
    emulator_errors: int
    subtests: list[Any]
    reason: str  # empty if passed


class Driver:
    """The machines and the globals of one scenario."""

    def __init__(self, machines: list[Machine], transcript: Transcript, folder: Path) -> None:
        self.machines = machines
        self._log = transcript
        self._folder = folder

    def script_globals(self) -> dict[str, Any]:
        """The names that the NixOS driver gives a script, also for the library of this thread's scenario."""
        case = unittest.TestCase()
        case.maxDiff = None
        names: dict[str, Any] = {
            "__name__": "scenario",
            "start_all": self.start_all,
            "join_all": self.join_all,
            "subtest": self._log.subtest,
            "retry": retry,
            "t": case,
            "machines": self.machines,
            "print": lambda *words, **_: self._log.event(" ".join(str(word) for word in words)),
        }
        for machine in self.machines:
            names[machine.name.replace("-", "_")] = machine
        if len(self.machines) == 1:
            names["machine"] = self.machines[0]
        guest.bind(names)
        return names

    def interactive_globals(self) -> dict[str, Any]:
        """The same, and all of the scenarios' library."""
        names = {}
        for module in (guest, agent, allocs, jobs, tasks, cleanup, probes, cli):
            names.update({name: value for name, value in vars(module).items() if not name.startswith("_")})
        return names | self.script_globals()

    def start_all(self) -> None:
        for machine in self.machines:
            machine.start()

    def join_all(self) -> None:
        """Waits until every machine has ended by itself."""
        for machine in self.machines:
            machine.wait_for_shutdown()

    def run(self, scenario: Scenario) -> Outcome:
        started = time.monotonic() - sum(machine.boot_seconds or 0 for machine in self.machines if machine.resumed)
        reason = ""
        try:
            _execute(scenario.path, self.script_globals())
        except (CommandError, MachineError, AssertionError) as error:
            reason = f"{_place(error, scenario.path)}{type(error).__name__}: {error}"
        except (Exception, SystemExit):  # an error in the scenario is a failure too
            reason = _traceback(scenario.path)
        seconds = time.monotonic() - started
        if reason:
            self._log.event("FAIL: " + reason)
            self.collect()
        self.stop()
        return Outcome(not reason, seconds, self.machines[0].boot_seconds, self.machines[0].resumed, sum(machine.emulator_errors for machine in self.machines),
                       self._log.subtests, reason)

    def collect(self) -> None:
        """Saves the guest's journal if the guest still responds."""
        for machine in self.machines:
            if not machine.is_up():
                continue
            machine.extend_deadline(JOURNAL_TIMEOUT_S)
            with contextlib.suppress(MachineError, CommandError, ValueError):
                _, journal = machine.execute("journalctl --no-pager -b", timeout=JOURNAL_TIMEOUT_S)
                (self._folder / f"{machine.name}-journal.log").write_text(journal, encoding="utf-8")

    def stop(self) -> None:
        for machine in self.machines:
            machine.kill()


def _execute(path: Path, names: dict[str, Any]) -> None:
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)


def _traceback(path: Path) -> str:
    """The traceback from the scenario's frame on, without the runner's."""
    kind, error, trace = sys.exc_info()
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    return "".join(traceback.format_exception(kind, error, trace)).rstrip()


def _place(error: BaseException, path: Path) -> str:
    """"boot.py:12: `the line`" of the innermost frame in the scenario."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if not frames:
        return ""
    line = linecache.getline(str(path), frames[-1].lineno or 0).strip()
    return f"{path.name}:{frames[-1].lineno}: `{line}`\n"
