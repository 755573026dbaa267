"""The lines that a run prints, and its exit status."""

import threading

from .console import result
from .driver import Outcome

# Of the reason, in the closing lines.
SHORT = 400


def _short(reason: str) -> str:
    """The start and the end of a reason on one line: a traceback says at its end what went wrong."""
    line = " | ".join(part.strip() for part in reason.splitlines() if part.strip())
    return line if len(line) <= SHORT else f"{line[: SHORT // 2]} … {line[-SHORT // 2 :]}"


class Report:
    """Counts what happened; a scenario that does not support a kernel is neither passed nor skipped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._passed = 0
        self._failed: list[str] = []
        self._skipped = 0
        self._not_applicable = 0

    def _line(self, word: str, kernel: str, name: str, agent: str, rest: str) -> str:
        return f"{word:4}  {kernel:15}  {name:28}  {agent:10}  {rest}".rstrip()

    def finished(self, kernel: str, name: str, agent: str, outcome: Outcome, detail: str) -> None:
        boot = f" ({'resumed' if outcome.resumed else 'boot'} {outcome.boot_seconds:.1f} s)" if outcome.boot_seconds is not None else ""
        if outcome.emulator_errors:
            boot += f" (QEMU crashed {outcome.emulator_errors} times while booting and was restarted)"
        lines = [self._line("ok" if outcome.passed else "FAIL", kernel, name, agent, f"{outcome.seconds:6.1f} s{boot}")]
        for depth, title, passed, seconds in outcome.subtests:
            lines.append(f"      {'  ' * depth}{'ok' if passed else 'FAIL'}  {title}  {seconds:.1f} s")
        if not outcome.passed:
            lines += ["      " + line for line in (outcome.reason + detail).splitlines()]
        with self._lock:
            if outcome.passed:
                self._passed += 1
            else:
                self._failed.append(f"{kernel} {name} {agent}: {_short(outcome.reason)}")
            result("\n".join(lines))

    def failed(self, kernel: str, name: str, agent: str, seconds: float, reason: str) -> None:
        with self._lock:
            self._failed.append(f"{kernel} {name} {agent}".rstrip() + f": {_short(reason)}")
            result(self._line("FAIL", kernel, name, agent, f"{seconds:6.1f} s") + "".join("\n      " + line for line in reason.splitlines()))

    def skipped(self, kernel: str, name: str, reason: str) -> None:
        with self._lock:
            self._skipped += 1
            result(self._line("SKIP", kernel, name, "", reason))

    def not_applicable(self, kernel: str, name: str, reason: str) -> None:
        with self._lock:
            self._not_applicable += 1
            result(self._line("n/a", kernel, name, "", reason))

    def finish(self) -> int:
        """The closing lines; 1 if anything failed, or if nothing was run at all."""
        for name in self._failed:
            result(f"failed: {name}")
        if self._not_applicable:
            result(f"{self._not_applicable} not applicable")
        result(f"{self._passed} passed, {len(self._failed)} failed, {self._skipped} skipped")
        return 1 if self._failed or self._passed == 0 else 0
