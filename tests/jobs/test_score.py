"""Scoring on the cluster, of captions that no model has made."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch

from captioner import features, manifest, parquet_dir, storage
from captioner.captions import caption_rows
from captioner.config import JobConfig
from captioner.configuration import parse
from captioner.encoder import Encoder
from captioner.errors import InputError
from captioner.metrics import BleuStatistics, CiderD, Variety, java, most_frequent, rouge_l
from captioner.metrics.clip import PROMPT
from captioner.selection import Caption
from captioner.vocabulary import tokenize
from jobs import counts, score, session

TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
IMAGES = 40
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no java on the PATH")


def build(root: Path, **also: Any) -> JobConfig:
    """A captioned run in three files, its images noise. Of each ten images the first has no
    references, and the last has failed."""
    (root / "tower").mkdir()
    (root / "tower" / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP}))
    values = {
        "name": "scored",
        "run": str(root / "run"),
        "source": {"images": str(root)},
        "encoder": {
            "model": f"local-dir:{root / 'tower'}", "pretrained": "none", "precision": "float32",
        },
        "score": {"resamples": 100, **also},
    }  # fmt: skip
    config = parse(values, "test")
    encoder = Encoder(config.encoder)
    rows = _features(encoder)
    for part in range(3):
        some = rows.slice(part * 15, 15)
        storage.write_table(config.at("features", f"{part}.parquet"), some)
        said = [None if row["error"] else Caption(_said(row), -1.0) for row in some.to_pylist()]
        table = caption_rows(some, said).replace_schema_metadata(encoder.identity.metadata())
        storage.write_table(config.at("captions", f"{2 - part}.parquet"), table)
    storage.write_summary(config.at("captions"), {"rows": len(rows), "serial": IMAGES - 1})
    shared = [name for name in manifest.SCHEMA.names if name in rows.column_names]
    listed = pa.Table.from_pylist(rows.select(shared).to_pylist(), schema=manifest.SCHEMA)
    storage.write_table(config.at("manifest", "part-0.parquet"), listed)
    return config


def _features(encoder: Encoder) -> pa.Table:
    dice = np.random.default_rng(0)
    schema = features.schema(encoder.identity)
    good = np.arange(IMAGES) % 10 != 9
    pixels = dice.integers(0, 256, (int(good.sum()), 32, 32, 3), np.uint8)
    embedding, tokens = encoder.encode(pixels)
    assert tokens is not None
    things = ("dog", "cat", "horse", "man")
    columns: dict[str, Any] = {
        "image_id": [f"{number:02}.jpg" for number in range(IMAGES)],
        "serial": list(range(IMAGES)),
        "uri": [f"/photos/{number:02}.jpg" for number in range(IMAGES)],
        "split": ["test" if number % 4 else "train" for number in range(IMAGES)],
        "captions": [
            [
                f"A {things[n % 4]} on {n % 3} legs .",
                f"one {things[n % 4]} runs over the grass",
            ]
            if n % 10
            else []
            for n in range(IMAGES)
        ],
        "width": [32] * IMAGES,
        "height": [32] * IMAGES,
        "error": [None if fine else "OSError: truncated" for fine in good],
        "embedding": features.column(embedding.numpy(), good, schema.field("embedding").type),
        "tokens": features.column(tokens.numpy(), good, schema.field("tokens").type),
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _said(row: dict[str, Any]) -> str:
    number = row["serial"]
    return "" if number == 5 else f"a {('dog', 'cat')[number % 2]} runs over the grass {number % 5}"


def scored(config: JobConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is written: ``metrics.json``, and the rows of ``scores/`` in order."""
    returned = score.score(config)
    written = storage.read_json(config.at("metrics.json"))
    assert written == json.loads(json.dumps(returned))
    rows: list[dict[str, Any]] = (
        parquet_dir.read(config.at("scores")).sort_by("image_id").to_pylist()
    )
    return written, rows


def captions_of(config: JobConfig) -> list[dict[str, Any]]:
    rows = parquet_dir.read(config.at("captions")).sort_by("image_id").to_pylist()
    return [row for row in rows if row["caption"] is not None and row["references"]]


def test_the_same_scores_whatever_the_blocks(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(tmp_path)
    written, rows = scored(config)
    expected = captions_of(config)
    said = [tokenize(row["caption"]) for row in expected]
    known = [[tokenize(text) for text in row["references"]] for row in expected]
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in expected]
    cider = CiderD.of_references(known)
    each = [cider.score(mine, cider.references(theirs)) for mine, theirs in zip(said, known)]
    assert [row["cider"] for row in rows] == each
    assert written["cider"] == pytest.approx(np.mean(each))
    assert [row["rouge_l"] for row in rows] == [rouge_l(a, b) for a, b in zip(said, known)]
    assert (written["images"], written["errors"]) == (32, 4)
    texts = [row["caption"] for row in parquet_dir.read(config.at("captions")).to_pylist()]
    variety = Variety.of(text for text in texts if text is not None)
    assert written["distinct_captions"] == variety.distinct
    assert written["distinct_share"] == variety.distinct / variety.captions
    assert written["most_frequent_caption"] == variety.most_frequent
    assert written["most_frequent_share"] == variety.most_frequent_share
    said = Counter(
        " ".join(tokenize(text))
        for row in parquet_dir.read(config.at("manifest"), splits=["train"]).to_pylist()
        for text in row["captions"]
    )
    assert written["always_the_most_frequent_caption"]["caption"] == most_frequent(said)
    low, high = written["intervals"]["cider"]
    assert 0 < low < written["cider"] < high
    monkeypatch.setattr(score, "_ROWS_PER_BLOCK", 7)
    monkeypatch.setattr(score, "_ROWS_PER_SUM", 5)
    monkeypatch.setattr(counts, "_AT_ONCE", 50)
    monkeypatch.setattr(score, "_PARTS_AT_ONCE", 2)
    assert scored(config) == (written, rows)


def test_clip_scores_are_those_of_open_clips_own_embeddings(cluster: str, tmp_path: Path) -> None:
    config = build(tmp_path, also=["clip_score", "ref_clip_score"])
    written, rows = scored(config)
    torch.manual_seed(0)
    own = open_clip.create_model(config.encoder.model, load_weights=False).eval()
    tokenizer = open_clip.get_tokenizer(config.encoder.model)
    table = parquet_dir.read(config.at("features"), ["image_id", "embedding"])
    images = dict(zip(table["image_id"].to_pylist(), table["embedding"].to_pylist()))

    def near(one: torch.Tensor, other: torch.Tensor) -> float:
        return max(0.0, float(torch.nn.functional.cosine_similarity(one, other).max()))

    @torch.inference_mode()
    def text(*texts: str) -> torch.Tensor:
        embedding: torch.Tensor = own.encode_text(tokenizer([PROMPT + each for each in texts]))
        return embedding

    for found, row in zip(rows, captions_of(config)):
        image = torch.tensor([images[row["image_id"]]], dtype=torch.float32)
        seen = 2.5 * near(image, text(row["caption"]))
        known = near(text(row["caption"]), text(*row["references"]))
        assert found["clip_score"] == pytest.approx(seen, abs=1e-5)
        mean = 2 * seen * known / (seen + known) if seen else 0.0
        assert found["ref_clip_score"] == pytest.approx(mean, abs=1e-5)
    assert written["clip_score"] == pytest.approx(np.mean([row["clip_score"] for row in rows]))
    assert max(row["clip_score"] for row in rows) > 0.01
    assert set(written["intervals"]) >= {"clip_score", "ref_clip_score", "bleu_4"}


@pytest.mark.slow
@needs_java
def test_meteor_is_run_on_the_cluster(cluster: str, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    config = build(tmp_path, also=["meteor"])
    written, rows = scored(config)
    statistics = np.array([row["meteor_statistics"] for row in rows])
    assert [row["meteor"] for row in rows] == pytest.approx(java.meteor(statistics).tolist())
    assert written["meteor"] == pytest.approx(float(java.meteor(statistics.sum(axis=0))))
    low, high = written["intervals"]["meteor"]
    assert 0.1 < low < written["meteor"] < high < 0.9
    assert rows[5 - 1]["meteor"] == 0.0  # the empty caption; the first image has no references


def test_clip_score_without_features_is_refused(tmp_path: Path) -> None:
    config = build(tmp_path, also=["clip_score"])
    storage.remove(config.at("features"))
    with pytest.raises(InputError, match="clip_score needs the image embeddings of a run"):
        score.score(config)
    assert not storage.exists(config.at("scores"))


def test_clip_score_of_another_towers_features_is_refused(tmp_path: Path) -> None:
    config = build(tmp_path, also=["clip_score"])
    other = config.encoder.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match="these features are of another encoder"):
        score.score(config.model_copy(update={"encoder": other}))


def test_captions_without_references_are_refused(cluster: str, tmp_path: Path) -> None:
    config = build(tmp_path)
    for file in Path(config.at("captions")).glob("*.parquet"):
        rows = parquet_dir.dataset(str(file)).to_table()
        nothing = pa.array([[]] * len(rows), rows.schema.field("references").type)
        place = rows.schema.get_field_index("references")
        storage.write_table(str(file), rows.set_column(place, "references", nothing))
    with pytest.raises(InputError, match="no caption has a reference to score it by"):
        score.score(config)


def test_groups_are_looked_up_in_the_manifest(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(tmp_path, group_by="camera")
    cameras = {f"{number:02}.jpg": ("front", "rear", None)[number % 3] for number in range(IMAGES)}
    listed = parquet_dir.read(config.at("manifest")).to_pylist()
    rows = [{**row, "camera": cameras[row["image_id"]]} for row in listed]
    for part in range(2):
        some = pa.Table.from_pylist(rows[part::2], manifest.schema(["camera"]))
        storage.write_table(config.at("manifest", f"part-{part}.parquet"), some)
    monkeypatch.setattr(score, "_ROWS_PER_BLOCK", 7)
    written, scored_rows = scored(config)
    assert written["groups"]["by"] == "camera"
    captioned = captions_of(config)
    for camera in ("front", "rear", None):
        alone = [row for row in captioned if cameras[row["image_id"]] == camera]
        together = sum(
            (BleuStatistics.from_list(row["bleu_statistics"]) for row in alone), BleuStatistics()
        )
        found = written["groups"]["scores"][camera or ""]
        assert found["images"] == len(alone) > 5
        assert found["bleu_2"] == pytest.approx(together.bleu()[1])
    assert [row["group"] for row in scored_rows] == [
        cameras[row["image_id"]] or "" for row in captioned
    ]


def test_a_column_that_is_not_there_is_told_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build(tmp_path, group_by="camera")
    monkeypatch.setattr(session, "begin", lambda *_: pytest.fail("Ray was started"))
    with pytest.raises(InputError, match=r"no column `camera`; it has uri, .*split.*keep_columns"):
        score.score(config)
    with pytest.raises(InputError, match="no column `camera`"):
        score.require(config)
    kept = config.source.model_copy(update={"keep_columns": ["camera"]})
    score.require(config.model_copy(update={"source": kept}))  # it will be there
