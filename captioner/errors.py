"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Bad input: the message names the file or field, what is wrong, and the way out.

    The command line prints it without a traceback and exits with status 2.
    """
