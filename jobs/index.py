"""source -> manifest: list the images, give each its captions and split, count what is odd."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from captioner import captions, manifest, sources, storage
from captioner.config import JobConfig
from captioner.errors import InputError


def index(config: JobConfig) -> dict[str, Any]:
    """Write ``manifest/`` and return the counts.

    Raises:
        InputError: no images, an unreadable captions file, or one name for two images.
    """
    source = config.source
    file = None
    if source.captions:
        file = captions.read(storage.resolve(source.captions), source.captions_format)
    names = captions.Names(list(file.captions) if file else [], source.captions or "")
    splitter = captions.Splitter(config.split, file)
    skipped: Counter[str] = Counter()
    rows = []
    for image in sources.list_directory(source.images, source.include, source.exclude, skipped):
        name = names.find(image.image_id)
        rows.append(
            {
                "image_id": image.image_id,
                "uri": image.uri,
                "size": image.size,
                "modified": image.modified,
                "split": splitter.split(image.image_id),
                "captions": file.captions[name] if file and name else [],
            }
        )
    if not rows:
        left_out = "; ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise InputError(
            f"{storage.resolve(source.images)}: no images in this directory"
            + (f" ({left_out})" if left_out else "")
        )
    manifest.write(config.at("manifest"), pa.Table.from_pylist(rows, schema=manifest.SCHEMA))
    by_split = Counter(row["split"] or "on no list" for row in rows)
    summary = {
        "images": len(rows),
        "bytes": sum(row["size"] for row in rows),
        "captions": sum(len(row["captions"]) for row in rows),
        "images_without_captions": sum(not row["captions"] for row in rows) if file else 0,
        "captioned_images_not_there": len(names.unused),
        "listed_images_not_there": len(splitter.unused),
        "splits": dict(sorted(by_split.items())),
        "skipped": dict(skipped),
    }
    storage.write_summary(config.at("manifest"), summary)
    return summary


def describe(summary: dict[str, Any]) -> str:
    """The counts as lines for people."""
    lines = [
        f"index: {summary['images']:,} images, {summary['bytes'] / 1e6:,.1f} MB, "
        f"{summary['captions']:,} captions; "
        + ", ".join(f"{split} {count:,}" for split, count in summary["splits"].items())
    ]
    for key, text in (
        ("images_without_captions", "images have no captions"),
        ("captioned_images_not_there", "images of the captions file are not there"),
        ("listed_images_not_there", "images of the split lists are not there"),
    ):
        if summary[key]:
            lines.append(f"index: {summary[key]:,} {text}")
    lines += [f"index: {count:,} skipped: {why}" for why, count in summary["skipped"].items()]
    return "\n".join(lines)
