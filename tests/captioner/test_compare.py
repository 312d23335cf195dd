from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from captioner import compare, parquet_dir, selection, storage
from captioner.captions import caption_rows
from captioner.config import JobConfig
from captioner.errors import InputError
from captioner.metrics import BleuStatistics, CiderD
from captioner.vocabulary import tokenize
from tests.pages import Page, image_of
from tests.runs import NASTY_ID, SCRIPT, build_run, history_entry, write_captions, write_metrics

Change = Callable[[int, dict[str, Any]], dict[str, Any] | None]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    """A run of 23 captioned images that tests only read; two thirds of them say the same."""
    return build_run(tmp_path_factory.mktemp("first"))


def another(first: JobConfig, root: Path, change: Change, **sections: Any) -> JobConfig:
    """A run with other captions or references, scored. ``change`` gets every image's row, and
    gives it back or leaves it out."""
    shutil.copytree(first.run, root / "run")
    update = {name: getattr(first, name).model_copy(update=new) for name, new in sections.items()}
    config = first.model_copy(update={"run": str(root / "run"), "name": "other", **update})
    rows = parquet_dir.read(config.at("captions")).sort_by("image_id").to_pylist()
    kept = [row for number, old in enumerate(rows) if (row := change(number, old)) is not None]
    images = pa.table(
        {
            "image_id": [row["image_id"] for row in kept],
            "serial": pa.array([row["serial"] for row in kept], pa.int64()),
            "uri": [row["uri"] for row in kept],
            "split": pa.array([row["split"] for row in kept], pa.string()),
            "captions": pa.array([row["references"] for row in kept], pa.list_(pa.string())),
            "error": pa.array([row["error"] for row in kept], pa.string()),
        }
    )
    said = [None if row["error"] else selection.Caption(row["caption"], -1.0) for row in kept]
    write_captions(config, caption_rows(images, said))
    write_metrics(config, storage.read_json(first.at("metrics.json"))["encoder"])
    return config


def same(number: int, row: dict[str, Any]) -> dict[str, Any]:
    return row


def better(number: int, row: dict[str, Any]) -> dict[str, Any]:
    """Half of a reference, where there is a caption."""
    if row["error"]:
        return row
    words = row["references"][0].split()
    return {**row, "caption": " ".join(words[: 5 + number % 2])}


@pytest.fixture(scope="module")
def second(first: JobConfig, tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    root = tmp_path_factory.mktemp("second")
    found = another(first, root, better, search={"beam_size": 3}, train={"epochs": 40})
    lines = [{**history_entry(1, 3.0, 3.5), "val_cider": 0.4}, history_entry(2, 2.5, 3.25)]
    lines[1]["train_reward"] = lines[1].pop("train_loss")  # of a self-critical epoch
    text = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write_text(found.at("model", "history.jsonl"), text)
    return found


@pytest.fixture(scope="module")
def comparison(first: JobConfig, second: JobConfig) -> compare.Comparison:
    return compare.compare(first, second)


@pytest.fixture(scope="module")
def page(comparison: compare.Comparison, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(compare.write(comparison, str(tmp_path_factory.mktemp("page") / "compare.html")))


def test_scores_of_both_are_those_of_their_runs(
    comparison: compare.Comparison, first: JobConfig, second: JobConfig
) -> None:
    assert [row.title for row in comparison.differences] == [
        "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D",
    ]  # fmt: skip
    assert comparison.images == 23
    assert comparison.warnings == []
    one, other = (storage.read_json(run.at("metrics.json")) for run in (first, second))
    for row, name in zip(comparison.differences, one["intervals"]):
        assert row.first == pytest.approx({**one, **one["all_references"]}[name])
        assert row.second == pytest.approx({**other, **other["all_references"]}[name])
        assert row.low < row.difference < row.high


def test_a_large_difference_is_real_in_its_direction(
    comparison: compare.Comparison, first: JobConfig, second: JobConfig
) -> None:
    assert all(row.is_real and row.low > 0 for row in comparison.differences)
    back = compare.compare(second, first).differences
    assert all(row.is_real and row.high < 0 for row in back)
    for row, turned in zip(comparison.differences, back):
        assert (row.low, row.high) == pytest.approx((-turned.high, -turned.low))


def test_a_run_against_itself_differs_in_nothing(first: JobConfig) -> None:
    found = compare.compare(first, first)
    assert all((row.low, row.difference, row.high) == (0, 0, 0) for row in found.differences)
    assert not any(row.is_real for row in found.differences)
    assert "The configurations are alike." in compare.describe(found)
    assert "may be chance" in compare.describe(found)


def test_what_bleu_has_in_the_place_of_zero_is_no_difference() -> None:
    assert not compare.Difference("BLEU-4", 2e-78, 1e-80, -3e-78, -1e-78).is_real
    assert compare.Difference("BLEU-4", 0.2, 0.1, -0.15, -0.05).is_real


def test_a_difference_on_one_image_may_be_chance(first: JobConfig, tmp_path: Path) -> None:
    def change(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return better(number, row) if number == 4 else row

    found = compare.compare(first, another(first, tmp_path, change))
    cider = found.differences[-1]
    assert cider.low == 0.0 < cider.difference < cider.high  # not drawn in one of three resamples
    assert not cider.is_real


def test_the_pairs_are_resampled_together(first: JobConfig, tmp_path: Path) -> None:
    """A word more on every image: small beside the spread of images, and yet real."""

    def change(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return row if row["error"] else {**row, "caption": row["caption"] + " ground"}

    found = compare.compare(first, another(first, tmp_path, change))
    for row, (low, high) in zip(
        found.differences, storage.read_json(first.at("metrics.json"))["intervals"].values()
    ):
        assert row.high - row.low < high - low
    assert found.differences[4].is_real  # ROUGE-L


def test_only_images_that_both_captioned_count(first: JobConfig, tmp_path: Path) -> None:
    def change(number: int, row: dict[str, Any]) -> dict[str, Any] | None:
        if number < 5:
            return None
        if number in (7, 8):
            return {**row, "references": ["another one"]}
        return better(number, row)

    other = another(first, tmp_path, change)
    found = compare.compare(first, other)
    left_out = compare.compare(other, first).warnings
    every = parquet_dir.read(first.at("captions")).sort_by("image_id").to_pylist()
    rows = [row for row in (*every[5:7], *every[9:]) if row["error"] is None]
    assert found.images == len(rows)
    assert found.warnings == [
        f"Only {len(rows)} images are compared. Left out: {21 - len(rows)} that A alone has "
        "captioned, 0 that B alone has, 2 with other references in A than in B"
    ]
    assert "0 that A alone has" in left_out[0]
    known = [[tokenize(text) for text in row["references"]] for row in rows]
    said = [tokenize(row["caption"]) for row in rows]
    cider = CiderD.of_references(known)  # of these images alone
    each = [cider.score(mine, cider.references(theirs)) for mine, theirs in zip(said, known)]
    assert found.differences[-1].first == pytest.approx(sum(each) / len(each))
    statistics = sum(map(BleuStatistics.of, said, known), BleuStatistics())
    assert [row.first for row in found.differences[:4]] == pytest.approx(statistics.bleu())


def test_runs_that_share_no_image_are_refused(first: JobConfig, tmp_path: Path) -> None:
    def renamed(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "image_id": f"other-{number}"}

    def known_otherwise(number: int, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "references": ["another one"]}

    for number, (change, why) in enumerate(
        ((renamed, "captioned none alike"), (known_otherwise, "references differ on every one"))
    ):
        other = another(first, tmp_path / str(number), change)
        with pytest.raises(InputError, match=f"share no image to compare: .*{why}"):
            compare.compare(first, other)


def test_a_run_without_scores_is_refused(first: JobConfig, tmp_path: Path) -> None:
    other = another(first, tmp_path, same)
    storage.write_summary(other.at("captions"), {"rows": 24, "serial": 99})
    with pytest.raises(InputError, match="captions that are newer than their scores"):
        compare.compare(first, other)
    storage.remove(other.at("scores"))
    with pytest.raises(InputError, match="not scored; run `captioner score`"):
        compare.compare(other, first)


def test_towers_and_differing_configuration_are_told(
    comparison: compare.Comparison, first: JobConfig, tmp_path: Path
) -> None:
    text = compare.describe(comparison)
    assert "A's tower: tower, RANDOM WEIGHTS (untrained), embedding 32, 16 tokens of 32" in text
    assert "B's tower: the same" in text
    assert "train.epochs: 15 in A, 40 in B" in text
    assert "search.beam_size: 5 in A, 3 in B" in text
    assert "name:" not in text
    other = another(first, tmp_path, same)
    metrics = storage.read_json(other.at("metrics.json"))
    encoder = {**metrics["encoder"], "weights_sha256": "0" * 64, "pretrained": "openai"}
    storage.write_json(other.at("metrics.json"), {**metrics, "encoder": encoder})
    found = compare.compare(first, other)
    assert "B's tower: tower, weights openai" in compare.describe(found)
    alarms = Page(compare.write(found, str(tmp_path / "page.html"))).text.count("RANDOM ENCODER")
    assert alarms == 1


@pytest.mark.parametrize("weights", [None, "0" * 64])
def test_clip_scores_are_compared_of_one_tower_alone(
    first: JobConfig, tmp_path: Path, weights: str | None
) -> None:
    runs = [another(first, tmp_path / name, same) for name in ("one", "other")]
    for config, value in zip(runs, (0.5, 0.75)):
        rows = parquet_dir.read(config.at("scores"))
        column = pa.array([value] * len(rows), pa.float64())
        url = config.at("scores", "one.parquet")
        storage.write_table(url, rows.append_column("clip_score", column))
    metrics = storage.read_json(runs[1].at("metrics.json"))
    if weights:
        metrics["encoder"]["weights_sha256"] = weights
        storage.write_json(runs[1].at("metrics.json"), metrics)
    found = compare.compare(*runs)
    clip = [row for row in found.differences if row.title == "CLIPScore"]
    if weights:
        assert clip == []
        assert found.warnings == [
            "CLIPScore is not compared: that of another tower is another scale"
        ]
    else:
        assert clip == [compare.Difference("CLIPScore", 0.5, 0.75, 0.25, 0.25)]


def test_the_page_has_the_table(page: Page, comparison: compare.Comparison) -> None:
    for row in comparison.differences:
        numbers = f"{row.first:.4f} {row.second:.4f} {row.difference:+.4f}"
        assert (
            f"{row.title} {numbers} {row.low:+.4f} to {row.high:+.4f} real"
            in (page.sections["scores"])
        )
    assert "train.epochs 15 40" in page.sections["configuration"]
    assert "Small & <quick>" in page.text


def test_the_page_has_curves_of_both(page: Page) -> None:
    training = page.sections["training"]
    for label in ("A train", "A val", "B train", "B val", "loss, nats per word"):
        assert label in training
    assert training.count("validation CIDEr-D") == 1
    assert training.count("training reward") == 1
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 3
    assert "var(--val)" in page.source


def test_the_page_shows_the_images_that_differ_most(
    page: Page, comparison: compare.Comparison
) -> None:
    first, second = (
        dict(zip(run.scores["image_id"].to_pylist(), run.scores["cider"].to_pylist()))
        for run in (comparison.first, comparison.second)
    )
    gains = {image_id: second[image_id] - first[image_id] for image_id in first}
    ranked = sorted(gains, key=lambda image_id: (-gains[image_id], image_id))
    assert page.ids("better") == ranked[: compare.EXAMPLES]
    assert page.ids("worse") == [image for image in ranked[::-1] if gains[image] < 0]
    shown = page.sections["better"]
    best = ranked[0]
    said = dict(
        zip(*(comparison.second.captions[name].to_pylist() for name in ("image_id", "caption")))
    )
    assert f"B {said[best]} CIDEr-D {second[best]:.2f}" in shown
    assert all(image_of(picture).size[0] for picture in page.pictures["better"])


def test_the_page_is_one_file_and_escapes_what_it_shows(page: Page, first: JobConfig) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith("#")
    assert "default-src 'none'" in page.source
    assert "url(http" not in page.source
    assert SCRIPT in page.text
    assert NASTY_ID in page.ids("better") + page.ids("worse")


def test_runs_without_a_history_say_so(first: JobConfig, tmp_path: Path) -> None:
    other = another(first, tmp_path, same)
    storage.remove(other.at("model"))
    found = compare.compare(other, other)
    page = Page(compare.write(found, str(tmp_path / "deep" / "compare.html")))
    assert "No training history in A" in page.sections["training"]
    assert "No training history in B" in page.sections["training"]
    assert "On no image does B score more" in page.sections["better"]
    assert page.ids("worse") == []
