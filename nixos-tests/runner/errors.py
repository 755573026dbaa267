"""Errors that end a step with one sentence for the user instead of a traceback."""


class RunnerError(Exception):
    """Something on this host or on the command line is missing or wrong; the text says what to do."""


class MachineError(Exception):
    """The guest crashed, panicked, ran out of time, or its shell is gone."""


class CommandError(Exception):
    """A command in the guest did not have the required outcome."""


class EmulatorError(MachineError):
    """QEMU itself crashed (an assertion, a segmentation fault); this is no result for the guest."""
