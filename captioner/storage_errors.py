"""What an error of a storage means: it is away, it said no, it is full, or a file is damaged."""

from __future__ import annotations

import errno
import os

import pyarrow as pa

from captioner.errors import InputError

# What fsspec's file systems say while a storage does not answer.
AWAY = (
    "Could not connect to the endpoint",
    "Connect timeout",
    "Read timeout",
    "Connection was closed",
    "Connection reset",
    "Connection refused",
    "Connection lost",
    "Cannot connect to host",
    "Server disconnected",
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
)
# What they say where somebody may not do this, or nobody can.
_REFUSED = (
    "Unable to locate credentials",
    "Access Denied",
    "AccessDenied",
    "Forbidden",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "Anonymous caller",
    "bucket does not exist",
)
# Of a place where nothing can be written, whoever asks.
_NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.ENOENT, errno.EROFS, errno.ENAMETOOLONG)
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
CREDENTIALS = (
    "Credentials of an object store come from where its library looks for them, such as "
    "AWS_ACCESS_KEY_ID"
)


def is_away(error: BaseException) -> bool:
    """Whether a storage did not answer."""
    return any(words in str(error) for words in AWAY)


def is_refused(error: BaseException) -> bool:
    """Whether a storage did answer, and said no."""
    return isinstance(error, PermissionError) or any(words in str(error) for words in _REFUSED)


def is_full(error: BaseException) -> bool:
    """Whether a disk, or somebody's part of it, is. Ray passes on the words, not the number."""
    return any(words in str(error) for words in _FULL)


def reason(error: BaseException) -> str:
    """The line that says it: what Ray passes on comes with tracebacks, one for each worker."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    telling = [line for line in lines if any(words in line for words in (*_FULL, *AWAY))]
    return (telling or lines)[-1].strip()


def is_damage(error: Exception) -> bool:
    """Whether Arrow complains of a file's content, and not a storage of its absence."""
    # Arrow's own errors of reading have no number.
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


def no_place(what: str, error: OSError) -> Exception:
    """The error, as one that a user can do something about where it is of the place."""
    return InputError(f"{what}: {error}") if error.errno in _NO_PLACE else error
