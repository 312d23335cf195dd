"""What an address is by its name alone: on this machine, in an archive, a chain of file systems."""

from __future__ import annotations

import re


def is_chain(url: str) -> bool:
    """Whether one file system stands on another: ``simplecache::s3://`` or ``zip://a::s3://``.

    fsspec takes any ``::`` for one; but file names may have it, and object names do. A member of an
    archive always has one.
    """
    return re.search(r"^[^:/]*::.*://|::[^:/]*://|^(?:zip|tar|libarchive)://", url) is not None


def is_archive(url: str) -> bool:
    """Whether it is in an archive: ``zip://photos::s3://bucket/photos.zip``, its ``photos``."""
    return re.match(r"(?:zip|tar|libarchive)://.*?::", url) is not None


def is_local_url(url: str) -> bool:
    """By its name alone: of a chain, such as ``zip://x::/path.zip``, it is none."""
    return "://" not in url or url.startswith("file://")


def is_absolute(url: str) -> bool:
    """Whether it leads to the same place from wherever it is read."""
    return url.startswith("/") or "://" in url


def is_here(url: str) -> bool:
    """Whether it is on this machine, if in an archive."""
    return is_local_url(url.rpartition("::")[2] if is_chain(url) else url)
