"""What a scenario did, for a person who reads it after a failure."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Output beyond this says little in a transcript and fills the log folder.
MAX_OUTPUT_BYTES = 20_000


class Transcript:
    """Writes `driver.log`, and keeps how the subtests ended."""

    def __init__(self, path: Path, echo: Callable[[str], None] | None = None) -> None:
        self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115  (open until close())
        self._start = time.monotonic()
        self._depth = 0
        self._echo = echo
        self.subtests: list[tuple[int, str, bool, float]] = []  # depth, name, passed, seconds

    def close(self) -> None:
        self._file.close()

    def event(self, text: str) -> None:
        line = f"{time.monotonic() - self._start:8.2f}  {'  ' * self._depth}{text}"
        self._file.write(line + "\n")
        self._file.flush()
        if self._echo:
            self._echo(line)

    def command(self, machine: str, command: str, status: int, output: str, seconds: float) -> None:
        self.event(f"{machine}$ {command}")
        shown = output if len(output) <= MAX_OUTPUT_BYTES else output[:MAX_OUTPUT_BYTES] + f"\n… {len(output)} bytes in all"
        for line in shown.splitlines():
            self.event(f"  | {line}")
        self.event(f"  = {status} after {seconds:.2f} s")

    @contextlib.contextmanager
    def nested(self, text: str) -> Iterator[None]:
        self.event(text)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextlib.contextmanager
    def subtest(self, name: str) -> Iterator[bool]:
        """A part of a scenario; a failure in it ends the scenario, as in the NixOS driver."""
        started = time.monotonic()
        place = len(self.subtests)
        depth = self._depth
        passed = False
        try:
            with self.nested(f"subtest: {name}"):
                yield True
            passed = True
        finally:
            self.subtests.insert(place, (depth, name, passed, time.monotonic() - started))
            self.event(f"subtest: {name}: {'ok' if passed else 'FAIL'}")
