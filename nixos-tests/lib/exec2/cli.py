"""The command line of the driver, in the guest."""

from .guest import machine, t

PLUGIN = "nomad-driver-exec2"


def run(arguments: str, status: int = 0, before: str = "") -> str:
    """The output (both streams) of `run`, which has to end with the status."""
    got, output = machine.execute(f"{before} {PLUGIN} run {arguments} 2>&1")
    t.assertEqual(got, status, output)
    return output
