"""A small run directory with every stage done, made without Ray and without training."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from captioner import (
    counting,
    decoders,
    features,
    manifest,
    metrics,
    model,
    model_files,
    parquet_dir,
    scores,
    selection,
    storage,
    tower_copy,
)
from captioner.captions import caption_rows
from captioner.config import JobConfig, Score
from captioner.configuration import parse
from captioner.encoder import Encoder
from captioner.images import decode
from captioner.vocabulary import Vocabulary, count_words, tokenize

TINY_VIT = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1},
    }
}
PATCHES = 16
SCRIPT = "<script>alert(1)</script> a dog"
NASTY_ID = """a "quoted" 'name' <b>&amp;.png"""
REASON = "OSError: image file is truncated <12 bytes>"
COLOURS = ("red", "green", "blue", "white")
SHAPES = ("circle", "square")


def build_run(root: Path) -> JobConfig:
    """A small scored run, as the jobs leave it, without Ray: 30 images, 22 of them captioned,
    one of the test split and one of the training split failed."""
    (root / "tower").mkdir(parents=True)
    (root / "tower" / "open_clip_config.json").write_text(json.dumps(TINY_VIT))
    values = {
        "name": "Small & <quick>",
        "run": str(root / "run"),
        "source": {"images": str(root / "images")},
        "encoder": {"model": f"local-dir:{root / 'tower'}", "pretrained": "none"},
        "vocabulary": {"minimum_count": 1},
        "decoder": {"embed_size": 8, "hidden_size": 16, "attention_size": 8},
        "report": {"gallery": 6, "attention": 2},
    }
    config = parse(values, "test")
    images = write_manifest(config, root / "images")
    encoder = Encoder(config.encoder)
    rows = write_features(config, images, encoder)
    words = count_words(caption for row in images.to_pylist() for caption in row["captions"])
    vocabulary = Vocabulary.build(words, minimum_count=1)
    decoder = decoders.build(config.decoder, encoder.identity, len(vocabulary))
    model.save_weights(config.at("model", model_files.WEIGHTS), decoder)
    model.write_description(config.at("model"), config, vocabulary, encoder.identity)
    tower_copy.write(config.at("model"), config.encoder)
    history = [history_entry(1, 4.25, 4.5), history_entry(2, 3.25, 3.75), history_entry(3, 2.5, 4)]
    lines = "".join(json.dumps(entry) + "\n" for entry in history)
    storage.write_text(config.at("model", "history.jsonl"), lines)
    known = encoder.identity.metadata()
    write_captions(config, captions_of(rows.slice(6)).replace_schema_metadata(known))
    write_metrics(config, encoder.identity.to_dict())
    return config


def write_manifest(config: JobConfig, directory: Path) -> pa.Table:
    """Shapes in colours, in pictures of several proportions, six of them to learn from."""
    directory.mkdir()
    dice = random.Random(0)
    rows = []
    for number in range(30):
        colour, shape = dice.choice(COLOURS), dice.choice(SHAPES)
        name = NASTY_ID if number == 7 else f"picture-{number:02}.png"
        image = Image.new("RGB", ((96, 48), (40, 80), (64, 64))[number % 3], "#333")
        box = (8, 8, 36, 36)
        pen = ImageDraw.Draw(image)
        (pen.ellipse if shape == "circle" else pen.rectangle)(box, colour)
        image.save(directory / name)
        rows.append(
            {
                "image_id": name,
                "serial": number,
                "uri": str(directory / name),
                "size": (directory / name).stat().st_size,
                "split": "train" if number < 4 else "val" if number < 6 else "test",
                "captions": [f"a {colour} {shape} on the ground {number}", f"one {colour} {shape}"],
            }
        )
    table = pa.Table.from_pylist(rows, schema=manifest.SCHEMA)
    writer = manifest.Writer(config.at("manifest"))
    writer.add(table)
    writer.commit({"serial": len(table) - 1})
    return table


def write_features(config: JobConfig, images: pa.Table, encoder: Encoder) -> pa.Table:
    """Two feature shards. Rows 2 and 9 failed."""
    schema, target = features.schema(encoder.identity), encoder.identity.preprocessing
    valid = np.array([number not in (2, 9) for number in range(len(images))])
    decoded = [decode(storage.read_bytes(uri), target, 10**6) for uri in images["uri"].to_pylist()]
    pixels = np.stack([image.pixels for image, good in zip(decoded, valid) if good])
    embedding, tokens = encoder.encode(pixels)
    assert tokens is not None
    columns = {name: images[name] for name in ("image_id", "serial", "uri", "split", "captions")}
    columns |= {
        "width": pa.array([image.width for image in decoded], pa.int32()),
        "height": pa.array([image.height for image in decoded], pa.int32()),
        "embedding": features.column(embedding.numpy(), valid, schema.field("embedding").type),
        "tokens": features.column(tokens.numpy(), valid, schema.field("tokens").type),
        "error": pa.array([None if good else REASON for good in valid], pa.string()),
    }
    rows = pa.table(columns, schema=schema)
    Path(config.at("features")).mkdir()
    pq.write_table(rows.slice(0, 15), config.at("features", "one.parquet"))
    pq.write_table(rows.slice(15), config.at("features", "two.parquet"))
    return rows


def captions_of(rows: pa.Table) -> pa.Table:
    """Some captions word for word a reference, some alike, the rest the same for all."""
    captions: list[selection.Caption | None] = []
    for number, row in enumerate(rows.to_pylist()):
        words = row["captions"][0].split()
        text = "a dog on the road"
        if number % 3 == 0:
            text = " ".join(words[: 4 + number // 3])
        if row["image_id"] == NASTY_ID:
            text = SCRIPT
        captions.append(None if row["error"] else selection.Caption(text, -1.5))
    return caption_rows(rows, captions)


def write_captions(config: JobConfig, rows: pa.Table) -> None:
    shutil.rmtree(config.at("captions"), ignore_errors=True)
    Path(config.at("captions")).mkdir()
    half = len(rows) // 2
    pq.write_table(rows.slice(0, half), config.at("captions", "one.parquet"))
    pq.write_table(rows.slice(half), config.at("captions", "two.parquet"))


def write_metrics(config: JobConfig, encoder: dict[str, Any]) -> None:
    """What ``jobs.score.score`` writes, which needs Ray to add it up."""
    rows = parquet_dir.read(config.at("captions"))
    baseline = "a white circle on the ground"
    cider = counting.cider_of(counting.add_up([counting.count_texts(rows)]))
    scored = scores.score_rows(rows, cider, tokenize(baseline)).sort_by("image_id")
    scored = scored.select(scores.schema([]).names)
    options = Score(resamples=100)
    variety = metrics.Variety.of(rows["caption"].drop_null().to_pylist())
    values = {
        "images": len(scored),
        "errors": len(rows) - rows["error"].null_count,
        **scores.figures(
            scores.sum_groups(scored), scores.sum_resamples(scored, 100, 0), baseline, options
        ),
        "distinct_captions": variety.distinct,
        "distinct_share": variety.distinct / variety.captions,
        "most_frequent_caption": variety.most_frequent,
        "most_frequent_share": variety.most_frequent_share,
        "encoder": encoder,
    }
    storage.write_table(config.at("scores", "one.parquet"), scored)
    storage.write_summary(config.at("scores"), {"rows": len(scored), "serial": None})
    storage.write_json(config.at("metrics.json"), values)


def history_entry(epoch: int, train_loss: float, val_loss: float) -> dict[str, Any]:
    losses: dict[str, Any] = {"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss}
    losses["stage"] = "cross_entropy"
    return {**losses, "seconds": 61.5, "captions_per_second": 1234.0}
