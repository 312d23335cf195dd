"""Whole runs through the command line."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result
from nltk.translate.bleu_score import corpus_bleu
from PIL import Image
from webdataset import WebDataset

from captioner import parquet_dir, storage
from captioner.vocabulary import tokenize
from jobs import mixture
from tests.conftest import TINY_VIT
from tests.language import save_gpt2

Cli = Callable[..., Result]


def test_run_takes_a_configuration_through_all_stages(
    finished_run: Path, finished_output: str
) -> None:
    run = finished_run
    ids = parquet_dir.read(str(run / "manifest"))["image_id"].to_pylist()
    assert len(ids) == 120
    encoded = parquet_dir.read(str(run / "features"), ["image_id", "error"])
    assert sorted(encoded["image_id"].to_pylist()) == ids
    assert encoded["error"].null_count == 120
    captions = parquet_dir.read(str(run / "captions"))
    assert sorted(captions["image_id"].to_pylist()) == ids
    assert captions["caption"].null_count == 0
    assert len((run / "model" / "history.jsonl").read_text().splitlines()) == 2
    assert (run / "model" / "decoder.safetensors").exists()
    tower = run / "model" / "encoder" / "tiny-vit" / "open_clip_config.json"
    assert tower.read_text() == (TINY_VIT / "open_clip_config.json").read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["images"] == 120
    assert 0 < metrics["all_references"]["bleu_1"] <= 1
    assert 0 < metrics["one_reference"]["bleu_1"] <= 1
    page = (run / "report.html").read_text()
    assert "random" in page.lower()  # the encoder's weights: every output says so
    assert finished_output.count("RANDOM WEIGHTS") == 8  # of every stage, and the demonstration
    metadata = parquet_dir.dataset(str(run / "captions")).schema.metadata
    assert json.loads(metadata[b"captioner.encoder"])["pretrained"] == "none"
    assert "BLEU-4" in finished_output


def test_finished_stages_are_skipped_and_may_be_done_again(
    captioner: Cli, finished_run: Path
) -> None:
    assert captioner("run", finished_run).output.count("done before, skipped") == 6
    metrics = (finished_run / "metrics.json").read_text()
    captioner("score", finished_run)
    assert json.loads((finished_run / "metrics.json").read_text()) == json.loads(metrics)


def test_a_form_that_is_missing_is_written_though_the_captions_are_done(
    captioner: Cli, finished_run: Path
) -> None:
    form = "--set=caption.formats=[csv]"
    again = captioner("run", finished_run, form).output
    assert "csv: 120 captions" in again
    assert again.count("done before, skipped") == 5
    assert (finished_run / "captions.csv").exists()
    assert captioner("run", finished_run, form).output.count("done before, skipped") == 6


def test_scores_equal_those_of_nltk_on_the_collected_captions(finished_run: Path) -> None:
    rows = parquet_dir.read(str(finished_run / "captions")).to_pylist()
    said = [tokenize(row["caption"]) for row in rows]
    references = [[tokenize(text) for text in row["references"]] for row in rows]
    scores = json.loads((finished_run / "metrics.json").read_text())
    for order in (1, 2, 3, 4):
        weights = tuple([1 / order] * order)
        every = corpus_bleu(references, said, weights)
        one = corpus_bleu([texts[:1] for texts in references], said, weights)
        assert scores["all_references"][f"bleu_{order}"] == pytest.approx(every, abs=1e-9)
        assert scores["one_reference"][f"bleu_{order}"] == pytest.approx(one, abs=1e-9)


def test_feature_shards_are_bounded_and_readable_by_arrow_alone(finished_run: Path) -> None:
    files = sorted((finished_run / "features").glob("*.parquet"))
    rows = [pq.read_metadata(file).num_rows for file in files]
    assert max(rows) <= 64
    assert len(rows) > 1
    assert sum(rows) == 120
    schema = pq.read_schema(files[0])
    assert str(schema.field("embedding").type) == "fixed_size_list<element: halffloat>[128]"
    assert schema.field("tokens").type.shape == [36, 192]
    encoder = json.loads(schema.metadata[b"captioner.encoder"])
    assert encoder["pretrained"] == "none"
    assert len(encoder["weights_sha256"]) == 64


def test_features_come_in_the_order_of_the_images_whichever_is_done_first(
    captioner: Cli, small_config: Path, scene_data: Path, tmp_path: Path
) -> None:
    """Or a seed would not give the same training again. The first block is decoded last."""
    images = Path(shutil.copytree(scene_data / "Images", tmp_path / "images"))
    first, *others = sorted(images.iterdir())[:8]
    Image.new("RGB", (6_000, 6_000), "red").save(first)
    for other in others:
        shutil.copy(first, other)
    values = (f"source.images={images}", "cluster.encoders=2", "cluster.rows_per_block=8")
    settings = [f"--set={value}" for value in (*values, "encoder.batch_size=4")]
    captioner("index", small_config, *settings)
    captioner("extract", small_config, *settings)
    serials = [
        serial
        for file in mixture.by_serial(parquet_dir.files(str(tmp_path / "run" / "features")))
        for serial in pq.read_table(file, columns=["serial"])["serial"].to_pylist()
    ]
    assert serials == list(range(120))


def test_a_finished_run_goes_on_with_self_critical_training(
    captioner: Cli, finished_run: Path
) -> None:
    weights = (finished_run / "model" / "decoder.safetensors").read_bytes()
    # The weights were learned with these words, whatever a later manifest has.
    words = finished_run / "model" / "vocabulary.json"
    words.write_text(words.read_text().replace('"red"', '"rot"'))
    shutil.rmtree(finished_run / "checkpoints")  # the second stage needs the first's weights alone
    second = ("--set=train.self_critical.epochs=1", "--set=train.self_critical.samples=2")
    partial = finished_run / f"_{32 * 'a'}.partial"  # of a command that was killed as it wrote
    partial.touch()
    output = captioner("run", finished_run, *second).output
    assert output.count("done before, skipped") == 2  # index and extract
    assert "train: goes on with the self-critical stage" in output
    assert not partial.exists()
    history = [
        json.loads(line)
        for line in (finished_run / "model" / "history.jsonl").read_text().splitlines()
    ]
    stages = [entry["stage"] for entry in history]
    assert stages == ["cross_entropy", "cross_entropy", "self_critical"]
    assert history[-1]["train_reward"] > 0
    assert '"rot"' in words.read_text()
    assert history[-1]["val_cider"] >= 0
    assert (finished_run / "model" / "decoder.safetensors").read_bytes() != weights
    assert (finished_run / "model" / "cross_entropy.safetensors").read_bytes() == weights
    assert "self_critical" in (finished_run / "config.yaml").read_text()
    again = captioner("run", finished_run, "--set=train.self_critical.epochs=2", status=2).output
    assert "train.self_critical.epochs: 1 there, 2 here" in again


def test_a_pretrained_language_model_is_trained_on_two_runs_and_captions(
    captioner: Cli, extracted_run: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(extracted_run, tmp_path / "other")
    texts = parquet_dir.read(str(extracted_run / "manifest"))["captions"].to_pylist()
    there = save_gpt2(tmp_path / "gpt2", [text for captions in texts for text in captions])
    options = {"type": "gpt2", "attention": "none", "gate": "false", "tie_weights": "false"}
    settings = [f"--set=decoder.{key}={value}" for key, value in options.items()]
    mixed = f"train.mixed_with=[{{run: '{other}', share: 0.5}}]"
    settings += [f"--set={option}" for option in ("train.learning_rate=0.01", mixed)]
    settings.append("--set=train.tensorboard=true")
    for stage in ("train", "caption"):
        captioner(stage, extracted_run, *settings, f"--set=decoder.pretrained={there}")
    model = extracted_run / "model"
    history = [json.loads(line) for line in (model / "history.jsonl").open()]
    losses = [entry["val_loss"] for entry in history]
    assert losses[-1] < losses[0] < 5.0  # from log(300)
    images = parquet_dir.count(str(extracted_run / "manifest"), ["train"])
    seen = [entry["images"] for entry in history]
    assert all(1.3 * images < count < 1.7 * images for count in seen)
    assert seen[0] != seen[1]  # each epoch draws others
    assert any((extracted_run / "tensorboard").iterdir())
    assert (model / "language_model.json").exists()
    assert "byte_pairs" in (model / "vocabulary.json").read_text()
    captions = parquet_dir.read(str(extracted_run / "captions"))["caption"]
    assert captions.null_count == 0
    gone = captioner(
        "train", extracted_run, *settings, f"--set=decoder.pretrained={tmp_path}/x", status=2
    )
    assert "decoder.pretrained" in gone.output


def test_run_directory_of_another_configuration_is_refused_with_the_difference(
    captioner: Cli, small_config: Path
) -> None:
    captioner("index", small_config)
    refused = captioner("index", small_config, "--set", "split.seed=7", status=2)
    assert "split.seed: 0 there, 7 here" in refused.output
    captioner("index", small_config, "--set", "cluster.rows_per_block=8")  # speed only
    refused = captioner("extract", small_config, "--set", "source.include=['*0.png']", status=2)
    assert "source.include: ['*'] there, ['*0.png'] here" in refused.output
    # A listing brings it: it is what a listing that fails says can be done.
    output = captioner("index", small_config, "--set", "source.exclude=['*0.png']").output
    assert "12 deleted, 108 unchanged" in output


def test_what_is_not_of_a_run_is_not_taken_for_one(
    captioner: Cli, small_config: Path, tmp_path: Path
) -> None:
    shards = tmp_path / "run" / "webdataset"
    shards.mkdir(parents=True)
    refused = captioner("index", small_config, status=2).output
    assert f"{shards}: there already, and not of a run" in refused
    assert shards.exists()


def test_a_model_that_is_none_stops_a_command_before_it_lists_images(
    captioner: Cli, finished_run: Path, scene_data: Path, tmp_path: Path
) -> None:
    call = ("caption", scene_data / "Images", "--model", finished_run, "--out", tmp_path / "out")
    refused = captioner(*call, status=2).output
    assert f"{finished_run}: not a model directory: vocabulary.json" in refused
    assert not (tmp_path / "out" / "manifest").exists()


def test_redo_replaces_a_stage_and_what_comes_after(short_run: Path, short_output: str) -> None:
    assert short_output.count("done before, skipped") == 2
    captions = parquet_dir.read(str(short_run / "captions"), ["caption"])["caption"]
    assert len(captions) == 120
    assert max(len(caption.split()) for caption in captions.to_pylist()) <= 3


def test_a_seed_gives_the_same_model_again(finished_run: Path, short_run: Path) -> None:
    first, again = (run / "model" / "decoder.safetensors" for run in (finished_run, short_run))
    assert first.read_bytes() == again.read_bytes()
    assert first.stat().st_mtime_ns != again.stat().st_mtime_ns


@pytest.mark.parametrize(
    ("stage", "needs"), [("extract", "index"), ("train", "index"), ("caption", "index")]
)
def test_stage_before_its_time_says_what_is_missing(
    captioner: Cli, small_config: Path, stage: str, needs: str
) -> None:
    assert f"{stage} needs {needs}" in captioner(stage, small_config, status=2).output


def without_tower(run: Path, gone: Path) -> None:
    """As on another machine: the image tower that it was trained with is not where it was."""
    for file in (run / "config.yaml", run / "model" / "config.yaml"):
        text = file.read_text()
        assert str(TINY_VIT) in text
        file.write_text(text.replace(str(TINY_VIT), str(gone)))


def test_directory_is_captioned_with_a_model_and_no_configuration(
    captioner: Cli, finished_run: Path, scene_data: Path, tmp_path: Path
) -> None:
    without_tower(finished_run, tmp_path / "gone" / "tiny-vit")
    out = tmp_path / "out"
    arguments = (
        "caption", scene_data / "Images", "--model", finished_run / "model", "--out", out,
        "--format", "jsonl", "--captions", scene_data / "captions.txt",
        "--format", "csv", "--format", "webdataset", "--set", "search.n_best=2",
    )  # fmt: skip
    assert "BLEU-4" in captioner(*arguments).output
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    fused = {row["image_id"]: row["caption"] for row in rows}
    from_features = parquet_dir.read(str(finished_run / "captions"), ["image_id", "caption"])
    assert fused == {row["image_id"]: row["caption"] for row in from_features.to_pylist()}
    assert all(row["log_probability"] < 0 for row in rows)
    assert all(row["n_best"][0]["caption"] == row["caption"] for row in rows)
    with (out / "captions.csv").open() as file:
        assert {row["image_id"]: row["caption"] for row in csv.DictReader(file)} == fused
    tars = sorted(map(str, (out / "webdataset").glob("*.tar")))
    samples = {json.loads(s["json"])["image_id"]: s for s in WebDataset(tars, shardshuffle=False)}
    assert {image_id: sample["txt"].decode() for image_id, sample in samples.items()} == fused
    for image_id, sample in samples.items():
        assert sample["png"] == (scene_data / "Images" / image_id).read_bytes()
    assert "caption: nothing new; 120 rows" in captioner(*arguments).output
    assert "report.html" in captioner("report", out).output
    captioner("report", out, "--set=report.gallery=2")  # another page of the same captions
    assert "a captioned directory" in captioner("run", out, status=2).output
    page = (out / "report.html").read_text()
    assert "All 120 images" in page
    assert "Attention at the word" in page

    # References that stand in the shards themselves: here what the model has said itself.
    shards, again = f"{out}/webdataset/*.tar", tmp_path / "again"
    model = finished_run / "model"
    arguments = ("caption", shards, "--model", model, "--out", again, "--group-by", "uri")
    scored = captioner(*arguments).output
    assert "by uri" in scored
    assert storage.read_json(f"{again}/metrics.json")["all_references"]["bleu_1"] == 1.0


def test_the_only_copy_of_a_tower_is_not_done_away_with(
    captioner: Cli, finished_run: Path, tmp_path: Path
) -> None:
    copy = finished_run / "model" / "encoder" / "tiny-vit"
    moved = tmp_path / "gone" / "tiny-vit"
    without_tower(finished_run, moved)
    refused = captioner("run", finished_run, "--redo", "train", status=2).output
    assert f"copy it to {moved} first" in refused
    assert (copy / "open_clip_config.json").exists()
    assert (finished_run / "model" / "decoder.safetensors").exists()
