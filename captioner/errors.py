"""The exceptions that a user is meant to read. The command line prints them without a traceback
and exits with their status."""

from captioner import redaction


class InputError(Exception):
    """Bad input: the message names the file or field, what is wrong, and the way out.

    Ray writes exceptions of tasks into its own logs, so a message has no secret from the beginning.
    """

    status = 2

    def __init__(self, message: str) -> None:
        super().__init__(redaction.clean(message))


class ErrorRateExceeded(InputError):
    """More images of a job have failed than its configuration allows. What is done stays done."""

    status = 3


class CannotSchedule(InputError):
    """The cluster can never have what the job asks of it."""

    status = 4


class ClusterUnavailable(InputError):
    """A cluster, or its job API, did not answer. The same command later goes on."""

    status = 75


class StorageUnavailable(InputError):
    """A storage did not answer for minutes. The same command later goes on."""

    status = 75  # EX_TEMPFAIL of sysexits.h


class Stopped(InputError):
    """The job was told to stop. The same command goes on."""

    status = 75
