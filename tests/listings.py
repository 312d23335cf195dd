"""Sources that tests make, and what is listed of them."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captioner import sources, storage
from captioner.config import Source


def listed(images: str | Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The images of a source, sorted by id, and how many are skipped for which reason."""
    source = Source(images=str(images), **options)
    tables = [table for part in sources.parts(source) for table in sources.list_part(part, source)]
    assert all(table.schema == sources.schema(source.keep_columns) for table in tables)
    found: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    for row in pa.concat_tables(tables).to_pylist():
        reason, times = row.pop("skipped"), row.pop("times")
        if reason is None:
            found.append(row)
        else:
            skipped[reason] += times
    return sorted(found, key=lambda row: str(row["image_id"])), dict(skipped)


def ids(images: str | Path, **options: Any) -> tuple[list[str], dict[str, int]]:
    found, skipped = listed(images, **options)
    return [row["image_id"] for row in found], skipped


def fill(root: str | Path, *names: str) -> None:
    """Files whose content is their name."""
    for name in names:
        storage.write_bytes(storage.join(str(root), name), name.encode())


def tar(members: dict[str, bytes], **options: Any) -> bytes:
    """A tar file with these members, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path
