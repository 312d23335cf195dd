"""Shards that have not changed since the manifest was written: their images stand in it, so that a
nightly run need not read terabytes of tar files for their headers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from captioner import manifest, parquet_dir
from captioner.config import Source
from captioner.sources.listing import ROWS, Part, Version, schema

_THERE = pc.is_null(pc.field("deleted"))


def unchanged(parts: Sequence[Part], source: Source, manifest_url: str) -> set[str]:
    """The URLs of those tar and Parquet shards all of whose images are in the manifest as of the
    shard's present version. With a captions file there are none: the manifest does not say which
    captions were the shard's own. Nor are there any where it has not kept what is to be kept."""
    rows = parquet_dir.dataset(manifest_url)
    if not set(source.keep_columns) <= set(rows.schema.names):
        return set()
    versions = {part.url: part.version for part in parts if part.version}
    if source.captions or not versions:
        return set()
    found: defaultdict[str, set[str]] = defaultdict(set)
    columns = ["uri", "modified", "etag"]
    for batch in rows.to_batches(columns=columns, filter=_THERE):
        for row in pa.table(batch).group_by(columns).aggregate([]).to_pylist():
            found[row["uri"]].add(Version(None, row["modified"], row["etag"]).tag)
    return {url for url, version in versions.items() if found[url] == {version}}


def list_known(file: str, shards: set[str], kept: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The images of these shards that a file of the manifest names, as a lister lists them."""
    wanted = _THERE & pc.field("uri").isin(sorted(shards))
    listing = schema(kept)
    names = [name for name in listing.names if name in manifest.schema(kept).names]
    rows = parquet_dir.dataset(file)
    for batch in rows.to_batches(columns=names, filter=wanted, batch_size=ROWS):
        table = pa.table(batch)
        for name in listing.names:
            if name not in names:
                empty = pa.nulls(len(table), listing.field(name).type)
                table = table.append_column(name, empty)
        yield table.select(listing.names).cast(listing)
