"""Functions and actors as Ray gets them: what they raise has no secret in it.

Ray writes the exceptions of tasks into its session logs, which everyone who sees the cluster's
dashboard can read. An InputError is clean from the beginning; what nobody has foreseen, such as an
HTTP client's error with a signed URL, is made so here.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ray.data import Dataset

from captioner import redaction
from captioner.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])


def map_batches(rows: Dataset, function: Callable[..., Any], **options: Any) -> Dataset:
    """``rows.map_batches``, in tables of Arrow."""
    return rows.map_batches(redacting(function), batch_format="pyarrow", **options)


def redacting(function: F) -> F:
    """A function, a generator, or the class of an actor, whose exceptions have no secrets."""
    if isinstance(function, type):
        methods = {name: redacting(getattr(function, name)) for name in ("__init__", "__call__")}
        own = {name: getattr(function, name) for name in ("__module__", "__qualname__", "__doc__")}
        return type(function.__name__, (function,), {**own, **methods})  # type: ignore[return-value]

    @functools.wraps(function)
    def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with _redacted():
            yield from function(*args, **kwargs)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _redacted():
            return function(*args, **kwargs)

    return generate if inspect.isgeneratorfunction(function) else call  # type: ignore[return-value]


@contextlib.contextmanager
def _redacted() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        text = "".join(traceback.format_exception(error))  # with what it came from
        clean = redaction.clean(text)
        if clean == text:
            raise
        if isinstance(error, InputError):
            raise error from None
        raise RuntimeError(clean) from None
