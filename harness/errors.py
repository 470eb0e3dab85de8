"""The exceptions that end a command with one sentence."""


class BadInput(ValueError):
    """Input that cannot be used as given.

    The message is one sentence that names the input and says what to change. The
    command line prints it without a traceback and exits with code 2.
    """


class MachineFailure(BadInput):
    """The machine, not the input or an engine, prevents the work: a full disk, a killed process."""
