"""Runs programs: those of the host, and those of a Debian tree that works on any host."""

import re
import subprocess
from pathlib import Path

from .errors import RunnerError

BUILD_TIMEOUT_S = 1800  # after this time a build hangs; the longest takes 2 minutes on a slow machine
ERROR_TAIL_LINES = 12


def run(command: list[str], *, timeout: float = BUILD_TIMEOUT_S, stdin: bytes | None = None, env: dict[str, str] | None = None) -> bytes:
    """Runs the command; a failure is a RunnerError with its output."""
    try:
        done = subprocess.run(command, input=stdin if stdin is not None else b"", capture_output=True, timeout=timeout, env=env, check=False)  # fmt: skip
    except OSError as error:
        raise RunnerError(f"{command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RunnerError(f"{' '.join(command[:3])} … did not end within {timeout:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        telling = [line for line in lines[:-ERROR_TAIL_LINES] if re.search(r"\b(error|E):", line)] + lines[-ERROR_TAIL_LINES:]
        raise RunnerError(f"{' '.join(command[:3])} … ended with {done.returncode}:\n  " + "\n  ".join(telling))
    return done.stdout


class Tools:
    """A tree of Debian programs that is run through its own loader and libraries, whatever the host has."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree

    def command(self, program: str, *arguments: object) -> list[str]:
        path = next((self.tree / folder / program for folder in ("usr/bin", "usr/sbin", "usr/lib/klibc/bin")
                     if (self.tree / folder / program).exists()), None)  # fmt: skip
        if path is None:
            raise RunnerError(f"{self.tree} has no program {program}; delete that folder, and it is built again")
        return [str(self.tree / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(self.tree / "usr/lib/x86_64-linux-gnu"),
                "--argv0", program, str(path)] + [str(argument) for argument in arguments]  # fmt: skip

    def run(self, program: str, *arguments: object, stdin: bytes | None = None) -> bytes:
        return run(self.command(program, *arguments), stdin=stdin)

    def decompress(self, tool: str, data: bytes) -> bytes:
        """zstd, lz4 and xz report bytes after the end of the stream as an error, after writing all that came before."""
        done = subprocess.run(self.command(tool, "-d", "-c", "-q"), input=data, capture_output=True, check=False)
        if not done.stdout:
            raise RunnerError(f"{tool} -d: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def erofs(self, image: Path, source: Path, *options: str) -> None:
        self.run("mkfs.erofs", "--quiet", "-T0", *options, image, source)
