"""Progress lines on standard error. Results go to standard output, so that the two can be separated."""

import sys
import threading
import time

_START = time.monotonic()
_LOCK = threading.Lock()


def progress(text: str) -> None:
    """One line with the seconds since the start."""
    with _LOCK:
        print(f"[{time.monotonic() - _START:6.1f}s] {text}", file=sys.stderr, flush=True)


def result(text: str) -> None:
    """A part of the report, of one or more lines."""
    with _LOCK:
        print(text, flush=True)
