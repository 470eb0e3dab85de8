"""The exception for input that the user has to change."""


class BadInput(ValueError):
    """Input that cannot be used as given.

    The message is one sentence that names the input and says what to change. The
    command line prints it without a traceback and exits with code 2.
    """
