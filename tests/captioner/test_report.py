from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from captioner import features, manifest, model, parquet_dir, report, report_table, storage
from captioner import page as pages
from captioner.config import JobConfig, Report
from captioner.errors import InputError
from captioner.images import decode
from captioner.reading import DELETED
from captioner.vocabulary import Vocabulary
from tests.pages import Page, image_of
from tests.runs import (
    NASTY_ID,
    PATCHES,
    REASON,
    SCRIPT,
    build_run,
    write_captions,
)


def written(config: JobConfig) -> Page:
    return Page(report.write(config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> JobConfig:
    """A run that tests only read."""
    return build_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def page(finished: JobConfig) -> Page:
    return written(finished)


@pytest.fixture
def run(finished: JobConfig, tmp_path: Path) -> JobConfig:
    """A copy of it that a test may change, its images too."""
    root = Path(finished.run).parent
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns("report.html"))
    config = finished.model_copy(update={"run": str(tmp_path / "copy" / "run")})
    (file,) = parquet_dir.files(config.at("manifest"))
    for url, write in (
        (config.at("captions"), write_captions),
        (config.at("manifest"), lambda _, table: pq.write_table(table, file)),
    ):
        rows = parquet_dir.read(url)
        moved = [uri.replace(str(root), str(tmp_path / "copy")) for uri in rows["uri"].to_pylist()]
        place = rows.column_names.index("uri")
        write(config, rows.set_column(place, rows.schema.field(place), pa.array(moved)))
    return config


def captioned(config: JobConfig) -> list[dict[str, Any]]:
    rows = parquet_dir.read(config.at("captions")).sort_by("image_id").to_pylist()
    return [row for row in rows if row["caption"] is not None]


def change_metrics(config: JobConfig, **values: Any) -> None:
    url = config.at("metrics.json")
    storage.write_json(url, {**storage.read_json(url), **values})


def test_returns_where_the_page_is(finished: JobConfig) -> None:
    assert report.write(finished) == finished.at("report.html")


def test_one_file_that_asks_for_nothing_else(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert tag != "script" or "src" not in attributes
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("xlink:href", "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in page.source
    assert "url(http" not in page.source
    policy = [tag for _, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"].startswith("default-src 'none'")
    (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy[0]["content"].endswith(f"script-src 'sha256-{digest}'")


def packed(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_all_captions_are_packed_into_the_page(page: Page, finished: JobConfig) -> None:
    found = packed(page.source.split('id="packed">')[1].split("</script>")[0])
    rows = parquet_dir.read(finished.at("captions")).sort_by("image_id").to_pylist()
    scored = {row["image_id"]: row for row in parquet_dir.read(finished.at("scores")).to_pylist()}
    assert found["id"] == [row["image_id"] for row in rows]
    assert [found["id"][place] for place in found["gallery"]] == page.ids("gallery")
    for place, row in enumerate(rows):
        said, why = found["caption"][place], found["error"][place]
        assert (found["texts"][said] if said >= 0 else None) == row["caption"]
        assert (found["reasons"][why] if why >= 0 else None) == row["error"]
        if said >= 0:
            assert found["words"][said] == len(row["caption"].split())
            assert found["bleu_4"][place] == round(100 * row["bleu_4"])
            assert found["cider"][place] == round(100 * scored[row["image_id"]]["cider"])


def test_of_many_captions_a_sample_is_packed_and_the_page_says_so(run: JobConfig) -> None:
    few = run.model_copy(update={"report": Report(table_rows=7, gallery=6, attention=0)})
    shown = [row["image_id"] for row in captioned(run)][8:11]
    table = report_table.table(few, 7, shown)
    assert (table.rows, table.of) == (7, 24)
    assert table == report_table.table(few, 7, shown)
    assert shown == [packed(table.packed)["id"][place] for place in packed(table.packed)["gallery"]]
    assert report_table.table(few, 2, shown).rows == 3  # a card needs its row
    assert "7 of 24 images, a quarter of them" in written(few).sections["captions"]


def test_failures_and_the_worst_are_in_the_sample(run: JobConfig) -> None:
    found = packed(report_table.table(run, 8, []).packed)
    assert len(found["id"]) == 8
    rows = captioned(run)
    ranked = sorted(rows, key=lambda row: (row["bleu_4"], row["image_id"]))
    assert {row["image_id"] for row in ranked[:2]} <= set(found["id"])
    assert "picture-09.png" in found["id"]  # which has failed
    write_captions(run, by_confidence(parquet_dir.read(run.at("captions"))))
    unsure = sorted(captioned(run), key=lambda row: row["confidence"])
    found = packed(report_table.table(run, 8, []).packed)
    assert {row["image_id"] for row in unsure[:2]} <= set(found["id"])


def by_confidence(rows: pa.Table) -> pa.Table:
    """Without scores; the later a row, the less sure its caption."""
    sure = [None if e else 1.0 - n / 100 for n, e in enumerate(rows["error"].to_pylist())]
    for name, values in {"bleu_4": [None] * len(rows), "confidence": sure}.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, pa.array(values, pa.float32()))
    return rows


def test_the_words_that_captions_are_made_of(page: Page, finished: JobConfig) -> None:
    found = report_table.words(finished)
    assert found.most[0][0] == "a"
    assert found.repeated[0] == ("a dog on the road", 15)
    assert {"one"} <= {word for word, _ in found.never}
    assert "a dog on the road 15" in page.sections["words"]


def test_links_lead_to_sections_of_the_page(page: Page) -> None:
    there = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 11
    assert {link.removeprefix("#") for link in links} <= there


def test_encoder_images_and_configuration(page: Page, finished: JobConfig) -> None:
    identity = features.read_identity(finished.at("features"))
    assert identity.describe() in page.text
    assert identity.weights_sha256[:12] in page.text
    assert "30: train 4, val 2, test 24. Captioned: test." in page.text
    assert "minimum_count 1" in page.sections["configuration"]
    assert "learning_rate 0.0003" in page.sections["configuration"]


def test_values_that_differ_from_the_defaults_stand_out(page: Page) -> None:
    names = page.source[page.source.index('<section id="configuration"') :]
    assert '<dt class="set">minimum_count</dt><dd class="set">1</dd>' in names
    assert "<dt>learning_rate</dt><dd>0.0003</dd>" in names


def test_random_weights_are_announced_loudly(page: Page) -> None:
    alarms = [attributes for _, attributes in page.tags if attributes.get("role") == "alert"]
    assert len(alarms) == 1
    assert "RANDOM ENCODER WEIGHTS" in page.text
    assert "learned from random features" in page.text
    assert "Its weights are random" in page.text


def test_real_weights_raise_no_alarm(run: JobConfig) -> None:
    encoder = storage.read_json(run.at("metrics.json"))["encoder"]
    change_metrics(run, encoder={**encoder, "pretrained": "openai"})
    page = written(run)
    assert not [attributes for _, attributes in page.tags if attributes.get("role") == "alert"]
    assert "Its weights are real" in page.text
    assert "random" not in page.sections[""].lower()


def test_bleu_table(page: Page, finished: JobConfig) -> None:
    values = storage.read_json(finished.at("metrics.json"))
    for name, key in (
        ("all references", "all_references"),
        ("one reference", "one_reference"),
        ("baseline: always the most frequent caption", "always_the_most_frequent_caption"),
    ):
        numbers = " ".join(f"{values[key][f'bleu_{order}']:.4f}" for order in (1, 2, 3, 4))
        assert f"{name} {numbers}" in page.sections["bleu"]
    assert "“a white circle on the ground”" in page.sections["bleu"]


def test_scores_with_intervals_beside_the_baseline(page: Page, finished: JobConfig) -> None:
    values = storage.read_json(finished.at("metrics.json"))
    baseline = values["always_the_most_frequent_caption"]
    assert values["cider"] > baseline["cider"] > 0
    for title, name, value in (
        ("BLEU-4", "bleu_4", values["all_references"]["bleu_4"]),
        ("ROUGE-L", "rouge_l", values["rouge_l"]),
        ("CIDEr-D", "cider", values["cider"]),
    ):
        low, high = values["intervals"][name]
        row = f"{title} {value:.4f} {low:.4f} to {high:.4f} {baseline[name]:.4f}"
        assert row in page.sections["bleu"]
    assert "95 % of 100 resamples" in page.sections["bleu"]


def test_variety(page: Page) -> None:
    # 23 captions: 7 that begin as a reference does, one with a script, 15 the same
    assert "distinct captions 9 39.1% of all captions" in page.text
    assert "share of the most frequent caption 65.2% “a dog on the road”" in page.text


def test_says_when_the_model_is_no_better_than_one_caption_for_all(run: JobConfig) -> None:
    values = storage.read_json(run.at("metrics.json"))
    same = dict(values["all_references"])
    change_metrics(run, always_the_most_frequent_caption={"caption": "a cat", **same})
    assert "No better than the baseline: saying “a cat”" in written(run).text
    better = {**same, "bleu_4": same["bleu_4"] / 2}
    change_metrics(run, always_the_most_frequent_caption={"caption": "a cat", **better})
    assert "No better than the baseline" not in written(run).text


def test_a_baseline_of_the_references_themselves_is_said_to_be_one(run: JobConfig) -> None:
    """Of a captioned directory nothing is for training, and they are all that there is."""
    same = dict(storage.read_json(run.at("metrics.json"))["all_references"])
    baseline = {"caption": "a cat", **same}
    change_metrics(run, always_the_most_frequent_caption=baseline, baseline_of="references")
    text = written(run).text
    assert "No better than the baseline" not in text
    assert "frequent in training" not in text
    assert "the most frequent reference of these very images, which favours it, “a cat”" in text


def test_loss_curves_with_the_best_epoch(page: Page) -> None:
    training = page.sections["training"]
    for word in ("train", "val", "epoch", "nats per word"):
        assert word in training
    assert "weights were kept: 2, with the best validation loss, 3.7500" in training
    assert "3 2.5000 4.0000 61.5 1,234" in training
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 1
    # No colour of the drawing is left that would not follow light and dark.
    assert "var(--train)" in page.source
    assert "#030303" not in page.source


def test_the_epoch_of_a_second_stage_is_kept_for_its_cider(run: JobConfig) -> None:
    url = run.at("model", "history.jsonl")
    more = {"epoch": 4, "stage": "self_critical", "train_reward": 0.5, "val_loss": 5.0}
    entry = {**more, "val_cider": 0.625, "seconds": 1.0, "captions_per_second": 10.0}
    storage.write_text(url, storage.read_text(url) + json.dumps(entry) + "\n")
    training = written(run).sections["training"]
    assert "weights were kept: 4, with the best validation cider, 0.6250" in training


def test_gallery_shows_captions_references_and_scores(page: Page, finished: JobConfig) -> None:
    shown = page.ids("gallery")
    assert len(set(shown)) == finished.report.gallery
    rows = {row["image_id"]: row for row in captioned(finished)}
    for image_id in shown:
        row = rows[image_id]
        card = f"{row['caption']} BLEU-4 {row['bleu_4']:.2f} {image_id} "
        assert card + " ".join(row["references"]) in page.sections["gallery"]


def test_thumbnails_keep_the_proportions_and_the_picture(page: Page, finished: JobConfig) -> None:
    uris = {row["image_id"]: row["uri"] for row in captioned(finished)}
    sizes = set()
    for picture in page.pictures["best"]:
        shown = image_of(picture)
        with Image.open(uris[picture["alt"].removeprefix("Picture ")]) as original:
            scale = 320 / max(original.size)
            assert shown.size == tuple(round(side * scale) for side in original.size)
            small = np.asarray(shown.resize(original.size).convert("RGB")).astype(int)
            assert np.abs(small - np.asarray(original)).mean() < 12
        sizes.add(shown.size)
    assert sizes == {(320, 160), (160, 320), (320, 320)}


def test_best_and_worst_captions_in_order(page: Page, finished: JobConfig) -> None:
    ranked = sorted(captioned(finished), key=lambda row: (-row["bleu_4"], row["image_id"]))
    ids = [row["image_id"] for row in ranked]
    assert len(ids) == 23
    assert page.ids("best") == ids[:10]
    assert page.ids("worst") == ids[::-1][:10]


def test_few_images_are_not_both_best_and_worst(run: JobConfig) -> None:
    rows = parquet_dir.read(run.at("captions")).sort_by([("bleu_4", "descending")])
    write_captions(run, rows.slice(0, 5))
    page = written(run)
    ids = rows["image_id"].to_pylist()
    assert sorted(page.ids("best")) == sorted(ids[:3])
    assert sorted(page.ids("worst")) == sorted(ids[3:5])
    assert len(page.ids("gallery")) == 5


def test_images_without_references_are_in_the_gallery_and_not_ranked(run: JobConfig) -> None:
    rows = parquet_dir.read(run.at("captions"))
    column = rows.column_names.index("bleu_4")
    scores = pa.array([None] * (len(rows) - 1) + [0.5], pa.float32())
    rows = rows.set_column(column, "bleu_4", scores)
    write_captions(run, rows)
    page = written(run)
    assert page.ids("best") == [rows["image_id"][-1].as_py()]
    assert page.ids("worst") == []
    assert len(page.ids("gallery")) == run.report.gallery
    assert "not scored" in page.sections["gallery"]


def test_markup_in_captions_and_ids_shows_as_text(run: JobConfig) -> None:
    everyone = run.model_copy(update={"report": Report(gallery=30, attention=30)})
    page = written(everyone)
    assert SCRIPT in page.sections["gallery"]
    assert NASTY_ID in page.sections["gallery"]
    assert NASTY_ID in page.ids("gallery")
    assert SCRIPT in page.sections["attention"]
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "text/plain", "id": "packed"}, {}]  # the page's own
    assert "<script>alert" not in page.source
    assert "Small & <quick>" in page.text
    assert "<quick>" not in page.source


def test_markup_in_references_and_reasons_shows_as_text(run: JobConfig) -> None:
    rows = parquet_dir.read(run.at("captions"))
    column = rows.column_names.index("references")
    references = pa.array([["<img src=x onerror=alert(1)>"]] * len(rows), pa.list_(pa.string()))
    write_captions(run, rows.set_column(column, "references", references))
    page = written(run)
    assert "<img src=x onerror=alert(1)>" in page.sections["gallery"]
    assert not [tag for tag in page.tags if "onerror" in tag[1]]
    assert REASON in page.sections["errors"]


def test_errors_of_every_split_with_their_reasons(page: Page) -> None:
    errors = page.sections["errors"]
    assert f"picture-02.png {REASON}" in errors  # of the training split
    assert f"picture-09.png {REASON}" in errors
    assert "2 of 30 images failed" in errors
    assert "images scored 23 1 failed" in page.text


def test_many_errors_are_counted_and_the_first_shown(
    run: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_ERRORS", 1)
    errors = written(run).sections["errors"]
    assert "2 of 30 images failed" in errors
    assert "Here are the first 1" in errors
    assert "picture-02.png" in errors
    assert "picture-09.png" not in errors


def test_images_that_cannot_be_read_have_a_placeholder(run: JobConfig) -> None:
    for number, row in enumerate(captioned(run)):
        if number % 2:
            Path(row["uri"]).unlink()
        else:
            Path(row["uri"]).write_bytes(b"no picture at all")
    everyone = run.model_copy(update={"report": Report(gallery=30, attention=1)})
    page = written(everyone)
    assert page.ids("gallery") == []
    assert page.sections["gallery"].count("No picture FileNotFoundError") == 11
    assert page.sections["gallery"].count("No picture not an image") == 12
    assert SCRIPT in page.sections["gallery"]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_inside_shards_are_read_from_where_the_manifest_says(
    run: JobConfig, tmp_path: Path, kind: str
) -> None:
    (file,) = parquet_dir.files(run.at("manifest"))
    rows = parquet_dir.read(run.at("manifest")).to_pylist()
    contents = [Path(row["uri"]).read_bytes() for row in rows]
    shard = tmp_path / f"shard.{kind}"
    if kind == "tar":
        shard.write_bytes(b"head" + b"".join(contents))  # only offsets and sizes count here
        offset = 4
        for row, content in zip(rows, contents):
            row |= {"uri": str(shard), "offset": offset, "size": len(content)}
            offset += len(content)
    else:
        pq.write_table(pa.table({"image": contents}), shard, row_group_size=7)
        for number, row in enumerate(rows):
            row |= {"uri": str(shard), "row": number}
    expected = written(run).pictures
    pq.write_table(pa.Table.from_pylist(rows, schema=manifest.SCHEMA), file)
    captions = parquet_dir.read(run.at("captions"))
    place = captions.column_names.index("uri")
    same = pa.array([str(shard)] * len(captions))
    write_captions(run, captions.set_column(place, captions.schema.field(place), same))
    assert written(run).pictures == expected


def test_a_uri_of_an_unknown_kind_has_a_placeholder(run: JobConfig) -> None:
    (file,) = parquet_dir.files(run.at("manifest"))
    rows = parquet_dir.read(run.at("manifest"))
    place = rows.column_names.index("uri")
    uris = pa.array([f"no-such-protocol://{number}" for number in range(len(rows))])
    pq.write_table(rows.set_column(place, rows.schema.field(place), uris), file)
    assert written(run).sections["gallery"].count("No picture InputError") == run.report.gallery


def maps_of(page: Page) -> Iterator[tuple[str, Image.Image]]:
    for picture in page.pictures["attention"]:
        if picture["alt"].startswith("Attention at the word "):
            yield picture["alt"].removeprefix("Attention at the word "), image_of(picture)


def test_attention_has_a_map_for_each_word(page: Page, finished: JobConfig) -> None:
    shown = page.ids("attention")
    assert shown == page.ids("gallery")[:2]
    captions = {row["image_id"]: row["caption"] for row in captioned(finished)}
    vocabulary = Vocabulary.from_json(storage.read_text(finished.at("model", "vocabulary.json")))
    expected = []
    for image_id in shown:
        known = [vocabulary.words[number] for number in vocabulary.encode(captions[image_id])]
        expected += [*known[1:-1], "(end)"]
    found = list(maps_of(page))
    assert [word for word, _ in found] == expected
    assert {image.size for _, image in found} == {(192, 192)}


def test_attention_maps_are_of_their_own_image(
    run: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    attention = model.CaptionModel.attention

    def record(self: Any, embedding: Any, tokens: Any, captions: Any) -> Any:
        asked.append((embedding, tokens, captions))
        return attention(self, embedding, tokens, captions)

    monkeypatch.setattr(model.CaptionModel, "attention", record)
    report.write(run.model_copy(update={"report": Report(gallery=1, attention=12)}))
    (embedding, tokens, captions), *_ = asked
    assert tokens.shape == (12, PATCHES, 32)
    rows = parquet_dir.read(run.at("features"))
    known = rows.filter(rows["error"].is_null())
    every = features.to_numpy(known["embedding"])
    text = {row["image_id"]: row["caption"] for row in captioned(run)}
    for row, caption in zip(embedding, captions):
        alike = np.flatnonzero((every == row).all(axis=1)).tolist()  # some pictures are drawn twice
        assert caption in [text.get(known["image_id"][index].as_py()) for index in alike]


def test_attention_without_a_picture_still_shows_its_maps(run: JobConfig) -> None:
    rows = parquet_dir.read(run.at("features"))
    column = rows.column_names.index("uri")
    gone = rows.set_column(column, "uri", pa.array(["/no/such/picture.png"] * len(rows)))
    shutil.rmtree(run.at("features"))
    Path(run.at("features")).mkdir()
    pq.write_table(gone, run.at("features", "one.parquet"))
    assert len(list(maps_of(written(run)))) > 4


def test_patches_that_form_no_square_are_not_drawn(run: JobConfig) -> None:
    url = run.at("model", "encoder.json")
    storage.write_json(url, {**storage.read_json(url), "patches": 15})
    page = written(run)
    assert "15 patches of the encoder's 32 x 32 pixels form no square" in page.sections["attention"]
    assert "attention" not in page.pictures


def test_pictures_that_are_not_square_are_not_drawn(run: JobConfig) -> None:
    url = run.at("model", "encoder.json")
    values = storage.read_json(url)
    values["preprocessing"] |= {"width": 64}
    storage.write_json(url, values)
    assert "64 x 32 pixels form no square" in written(run).sections["attention"]


def test_decoders_without_attention_have_no_such_section(run: JobConfig) -> None:
    decoder = run.decoder.model_copy(update={"attention": "none"})
    page = written(run.model_copy(update={"decoder": decoder}))
    assert "attention" not in page.sections
    assert "#attention" not in [attributes.get("href") for _, attributes in page.tags]


def test_attention_can_be_left_out(run: JobConfig) -> None:
    page = written(run.model_copy(update={"report": Report(gallery=2, attention=0)}))
    assert "attention" not in page.sections
    assert len(page.ids("gallery")) == 2


def test_the_same_rows_give_the_same_page_in_any_order(run: JobConfig) -> None:
    before = storage.read_text(report.write(run))
    rows = parquet_dir.read(run.at("captions"))
    write_captions(run, rows.take(list(range(len(rows)))[::-1]))
    assert storage.read_text(report.write(run)) == before


def test_captions_that_were_never_scored(run: JobConfig) -> None:
    storage.remove(run.at("metrics.json"))
    with pytest.raises(InputError, match=r"metrics\.json.*captioner score"):
        report.write(run)
    assert not storage.exists(run.at("report.html"))


@pytest.mark.parametrize("limit", [1000, 5])
def test_deleted_images_are_neither_captioned_nor_failed(run: JobConfig, limit: int) -> None:
    storage.remove(run.at("features"))
    before = report_table.table(run, limit, [])
    failed = 0
    for url in parquet_dir.files(run.at("captions")):
        with storage.parquet(url) as file:
            rows = file.read()
        place = rows.schema.get_field_index("error")
        gone = pc.if_else(rows["error"].is_valid(), DELETED, rows["error"])
        storage.write_table(url, rows.set_column(place, rows.schema.field(place), gone))
        failed += len(rows) - rows["error"].null_count
    after = report_table.table(run, limit, [])
    assert failed > 0
    assert before.of - after.of == failed
    packed = json.loads(gzip.decompress(base64.b64decode(after.packed)))
    assert packed["reasons"] == []
    assert after.rows == min(limit, after.of)
    assert report._errors(run) == []


def test_captions_of_another_runs_model(run: JobConfig) -> None:
    """``captioner caption DIRECTORY --model MODEL`` leaves neither features nor a model."""
    storage.remove(run.at("model"))
    storage.remove(run.at("features"))
    page = written(run)
    assert "No training history" in page.sections["training"]
    assert "no model or no features" in page.sections["attention"]
    assert f"picture-09.png {REASON}" in page.sections["errors"]
    assert len(page.ids("gallery")) == run.report.gallery


def test_captions_of_a_model_elsewhere_have_its_maps(run: JobConfig, tmp_path: Path) -> None:
    own = list(maps_of(written(run)))
    elsewhere = str(tmp_path / "elsewhere")
    shutil.move(run.at("model"), elsewhere)
    storage.remove(run.at("features"))
    found = list(maps_of(Page(report.write(run, elsewhere))))
    assert [word for word, _ in found] == [word for word, _ in own]
    for (_, image), (_, expected) in zip(found, own):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() < 8


def test_maps_that_cannot_be_drawn_leave_a_page_with_the_reason(
    run: JobConfig, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(run.at("model"), elsewhere)
    storage.remove(run.at("features"))
    rows = parquet_dir.read(run.at("captions"))
    known = {**rows.schema.metadata, model.METADATA_KEY: model.digest(str(elsewhere))}
    write_captions(run, rows.replace_schema_metadata(known))
    assert list(maps_of(Page(report.write(run, str(elsewhere)))))
    vocabulary = elsewhere / "vocabulary.json"
    before = vocabulary.read_text()
    vocabulary.write_text(before.replace('"circle"', '"ellipse"'))
    assert "trained anew since" in Page(report.write(run, str(elsewhere))).sections["attention"]
    vocabulary.write_text(before)
    described = elsewhere / "config.yaml"
    described.write_text(described.read_text().replace("hidden_size: 16", "hidden_size: 24"))
    page = Page(report.write(run, str(elsewhere)))
    assert "cannot be had to draw maps from: NotAModel" in page.sections["attention"]


def test_captions_that_are_newer_than_their_scores_have_no_page(run: JobConfig) -> None:
    storage.write_summary(run.at("scores"), {"rows": 22, "serial": 29})
    storage.write_summary(run.at("captions"), {"rows": 25, "serial": 30})
    with pytest.raises(InputError, match="newer than their scores"):
        report.write(run)


def test_captions_of_a_model_that_is_gone_have_a_page_all_the_same(run: JobConfig) -> None:
    storage.remove(run.at("features"))
    page = Page(report.write(run, run.at("no-model")))
    assert "cannot be had to draw maps from" in page.sections["attention"]
    assert len(page.ids("gallery")) == run.report.gallery


def test_a_run_without_failures_says_so(run: JobConfig) -> None:
    storage.remove(run.at("features"))
    rows = parquet_dir.read(run.at("captions"))
    write_captions(run, rows.filter(rows["error"].is_null()))
    assert "None: every image could be read" in written(run).sections["errors"]


def test_run_directory_on_another_file_system(run: JobConfig, memory_root: str) -> None:
    fs, path = fsspec.core.url_to_fs(memory_root)
    fs.put(run.run, path, recursive=True)
    config = run.model_copy(update={"run": memory_root})
    assert report.write(config) == f"{memory_root}/report.html"
    assert written(config).ids("best") == written(run).ids("best")


def test_thumbnail_of_a_picture_of_one_row() -> None:
    line = io.BytesIO()
    Image.new("RGB", (3000, 1), "red").save(line, "PNG")
    shown = pages.thumbnail(decode(line.getvalue(), pages.THUMBNAIL, 10**6))
    assert shown is not None
    assert image_of({"src": shown}).size == (320, 1)


def test_captions_without_references_have_a_page_too(run: JobConfig) -> None:
    storage.remove(run.at("metrics.json"))
    with pytest.raises(InputError, match="run `captioner score` first"):
        report.write(run)
    rows = parquet_dir.read(run.at("captions"))
    nothing = pa.array([[]] * len(rows), rows.schema.field("references").type)
    place = rows.schema.get_field_index("references")
    rows = rows.set_column(place, "references", nothing)
    rows = rows.set_column(
        rows.schema.get_field_index("bleu_4"), "bleu_4", pa.nulls(24, pa.float32())
    )
    identity = features.read_identity(run.at("features"))
    write_captions(run, rows.replace_schema_metadata(identity.metadata()))
    page = written(run)
    assert "no references to be scored by" in page.text
    assert "captions 23 2 failed" in page.text
    assert not {"bleu", "best", "worst"} & page.sections.keys()
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    there = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link.removeprefix("#") for link in links} <= there
    assert "All 24 images, the least confident first" in page.sections["captions"]
    storage.remove(run.at("captions"))
    with pytest.raises(InputError, match="nothing has been captioned here yet"):
        report.write(run)
