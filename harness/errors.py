"""The one exception that tells a user what to change."""


class BadInput(ValueError):
    """Input that cannot be used as given.

    The message is one sentence that names the offending input and says what to do about it. The
    command line prints it without a traceback and exits with code 2.
    """
