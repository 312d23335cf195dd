"""WebDataset's tar shards, listed in place and never unpacked: of each member, where its bytes
are."""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterator
from typing import IO, Any, Self

import pyarrow as pa

from captioner import storage
from captioner.config import Source
from captioner.reference_formats import text_of
from captioner.sources import columns
from captioner.sources.listing import Part, Rows, Version

_CAPTION_BYTES = 1 << 20  # of a .txt or .json member: longer ones are not captions
_HEADER_BYTES = 1 << 20  # of a long name or of PAX headers, which tarfile reads whole
_OF_HEADERS = {
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
}


def list_members(part: Part, source: Source) -> Iterator[pa.Table]:
    """Every member is an image, ``SHARD/NAME``, but for those that the globs leave out.

    A sample is the members of one name up to its first dot. Its ``.txt``, or the ``caption`` in
    its ``.json``, goes with each of its images; or only what ``source.caption_column`` names in the
    ``.json``. ``source.keep_columns`` are keys of it too.
    """
    rows = Rows(source)
    fs, path = storage.filesystem(part.url)
    shard = Version.of(fs.info(path))
    sample: list[tarfile.TarInfo] = []
    captions: list[str] = []
    labels: dict[str, str | None] = {}

    def finish() -> Iterator[pa.Table]:
        for member in sample:
            image_id = f"{part.prefix}/{member.name}"
            if rows.wants(image_id):
                version = Version(member.size, shard.modified, shard.etag)
                offset = member.offset_data
                rows.add(image_id, part.url, version, offset=offset, captions=captions, **labels)
        yield from rows.full()

    key = None
    with fs.open(path, "rb") as file:
        try:
            for member in _members(file, shard.size):
                if not member.isreg() or member.issparse():
                    if not member.isdir():
                        rows.skip("tar member that is no plain file")
                    continue
                if (name := _sample(member.name)) != key:
                    yield from finish()
                    key, sample, captions, labels = name, [], [], {}
                texts, document = _beside(file, member, source.caption_column)
                captions = captions or texts
                if document:
                    labels = columns.as_labels(document, source.keep_columns)
                sample.append(member)
        except tarfile.ReadError as error:  # what stands before the damage is listed
            rows.skip(f"the rest of a damaged or compressed tar file: {part.prefix} ({error})")
    yield from finish()
    yield from rows.rest()


class _Header(tarfile.TarInfo):
    """A header. tarfile follows one of a negative size back, for ever."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError(f"a member of {header.size} bytes")
        if header.type in _OF_HEADERS and header.size > _HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def _members(file: IO[bytes], size: int | None) -> Iterator[tarfile.TarInfo]:
    """The members of a shard of so many bytes. The file may be read in between.

    Raises:
        tarfile.ReadError: what follows is neither a member nor the end.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if not 0 <= member.size <= sys.maxsize:  # by its PAX headers, or base 256
                    raise tarfile.ReadError(f"a member of {member.size} bytes")
                yield member
                if size is not None and tar.offset > size:
                    raise tarfile.ReadError("unexpected end of data")
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes it for the end
                raise tarfile.ReadError("neither a member nor the end")
    # tarfile raises these of headers that do not say what they should.
    except (ValueError, LookupError, OverflowError) as error:
        raise tarfile.ReadError(str(error)) from None


def _sample(name: str) -> str:
    """WebDataset's key: the path up to the first dot of the file name."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}"


def _beside(
    file: IO[bytes], member: tarfile.TarInfo, chosen: str | None
) -> tuple[list[str], dict[str, Any]]:
    """The captions in a ``.txt`` or ``.json``, and what else the ``.json`` holds; of an image,
    nothing."""
    name = member.name.lower()
    if not name.endswith((".txt", ".json")) or member.size > _CAPTION_BYTES:
        return [], {}
    file.seek(member.offset_data)
    content = file.read(member.size)
    if len(content) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    text = text_of(content)
    if name.endswith(".txt"):
        return ([] if chosen else columns.as_captions(text)), {}
    try:
        document = json.loads(text)
    except storage.NOT_JSON:
        return [], {}
    if not isinstance(document, dict):
        return [], {}
    return columns.as_captions(document.get(chosen or "caption")), document
