"""The Parquet schema of a caption shard, and captions as its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from captioner.metrics import BleuStatistics, sentence_bleu_4
from captioner.vocabulary import tokenize

if TYPE_CHECKING:  # it imports torch, which takes seconds in every worker that scores
    from captioner.selection import Caption

BLEU_STATISTICS = pa.list_(pa.int32(), 10)  # metrics.BleuStatistics.to_list
_N_BEST = pa.struct([("caption", pa.string()), ("log_probability", pa.float32())])
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("serial", pa.int64()),  # of the version of the image, as in the manifest
        pa.field("uri", pa.string()),
        pa.field("split", pa.string()),
        pa.field("caption", pa.string()),  # null where there is an error
        pa.field("log_probability", pa.float32()),
        pa.field("confidence", pa.float32()),  # selection.Caption.confidence
        pa.field("n_best", pa.list_(_N_BEST)),  # null unless search.n_best asks for more than one
        pa.field("references", pa.list_(pa.string())),
        pa.field("bleu_4", pa.float32()),  # of this caption alone, smoothed; null: no references
        pa.field("bleu_statistics", BLEU_STATISTICS),
        pa.field("error", pa.string()),
    ]
)


def caption_rows(rows: pa.Table, captions: Sequence[Caption | None]) -> pa.Table:
    """Captions beside their references, with the counts that scores are made of."""
    made = []
    for caption, references in zip(captions, rows["captions"].to_pylist()):
        row: dict[str, Any] = {"references": references}
        if caption is not None:
            row |= {
                "caption": caption.text,
                "log_probability": caption.log_probability,
                "confidence": caption.confidence,
            }
            if caption.n_best:
                row["n_best"] = [dict(zip(_N_BEST.names, found)) for found in caption.n_best]
            if references:
                said = tokenize(caption.text)
                known = [tokenize(reference) for reference in references]
                row["bleu_4"] = sentence_bleu_4(said, known)
                row["bleu_statistics"] = BleuStatistics.of(said, known).to_list()
        made.append(row)
    table = pa.Table.from_pylist(made, schema=SCHEMA)
    for name in ("image_id", "serial", "uri", "split", "error"):
        table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), rows[name])
    return table
