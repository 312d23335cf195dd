from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from captioner import config, configuration, staleness
from captioner.errors import InputError
from jobs.cli import options

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
MINIMAL: dict[str, Any] = {"name": "n", "run": "runs/n", "source": {"images": "photos"}}


def load(folder: Path, values: Any, *overrides: str) -> config.JobConfig:
    path = folder / "job.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return configuration.load(str(path), overrides)


def with_section(name: str, **values: Any) -> dict[str, Any]:
    return {**MINIMAL, name: values}


def test_a_minimal_file_gets_the_defaults(tmp_path: Path) -> None:
    job = load(tmp_path, MINIMAL)
    assert (job.name, job.encoder.model, job.encoder.pretrained) == ("n", "ViT-B-32", "openai")
    assert (job.split.train, job.split.val, job.split.test) == (0.8, 0.1, 0.1)
    assert job.train.learning_rate == 3e-4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    job = configuration.load(str(path))
    assert job.name == path.stem


def test_an_unknown_nested_key_names_the_nearest_valid_one(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        load(tmp_path, with_section("train", learning_rat=1))
    assert str(tmp_path / "job.yaml") in str(refusal.value)
    assert "train.learning_rat: unknown key; did you mean train.learning_rate?" in str(
        refusal.value
    )


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("trian={}", "train"),
        ("learning_rate=1", "train.learning_rate"),
        ("search.beams=3", "search.beam_size"),
        ("encoder.modle=ViT-B-16", "encoder.model"),
        ("source.image=photos", "source.images"),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(
    tmp_path: Path, override: str, nearest: str
) -> None:
    key = override.partition("=")[0]
    with pytest.raises(InputError) as refusal:
        load(tmp_path, MINIMAL, override)
    assert f"{key}: unknown key; did you mean {nearest}?" in str(refusal.value)


@pytest.mark.parametrize("key", ["train.lr", "train.xyzzy"])
def test_an_unknown_key_near_to_nothing_lists_its_section(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError) as refusal:
        load(tmp_path, MINIMAL, f"{key}=1")
    message = str(refusal.value)
    assert f"{key}: unknown key; known keys here: " in message
    assert "train.gradient_clip, train.label_smoothing, train.learning_rate" in message
    assert "search.beam_size" not in message


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        load(tmp_path, MINIMAL, "train.epoch=3", "search.beam_siz=3")
    assert "train.epochs" in str(refusal.value)
    assert "search.beam_size" in str(refusal.value)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("train.learning_rate=0.5", "train.learning_rate", 0.5),
        ("train.gradient_clip=1e-2", "train.gradient_clip", 0.01),
        ("train.gradient_clip=null", "train.gradient_clip", None),
        ("train.epochs=3", "train.epochs", 3),
        ("caption.splits=[train, val]", "caption.splits", ["train", "val"]),
        ("vocabulary.remove_stop_words=true", "vocabulary.remove_stop_words", True),
        ("encoder.pretrained=none", "encoder.pretrained", "none"),
        ("name=a=b", "name", "a=b"),
        ("name=trip #2", "name", "trip #2"),
        ("name='trip #2'", "name", "trip #2"),
        ("name=2026-11-25", "name", "2026-11-25"),
    ],
)
def test_an_override_sets_one_key(tmp_path: Path, override: str, key: str, value: Any) -> None:
    changed = staleness.flatten(load(tmp_path, MINIMAL, override))
    expected = {**staleness.flatten(load(tmp_path, MINIMAL)), key: value}
    assert changed == expected


def test_an_override_wins_over_the_file_and_a_later_one_over_an_earlier(tmp_path: Path) -> None:
    values = with_section("train", epochs=2, batch_size=7)
    job = load(tmp_path, values, "train.epochs=3", "train.epochs=4")
    assert (job.train.epochs, job.train.batch_size) == (4, 7)


@pytest.mark.parametrize("override", ["train.epochs", "=3", "name.first=1"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError, match=f"--set {override}"):
        load(tmp_path, MINIMAL, override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.epochs=0", "train.epochs"),
        ("train.epochs=many", "train.epochs"),
        ("train.learning_rate=fast", "train.learning_rate"),
        ("search.repetition_penalty=0.5", "search.repetition_penalty"),
        ("image.max_pixels=200000000", "image.max_pixels"),
        ("decoder.attention=multiplicative", "decoder.attention"),
        ("caption.splits=[test, dev]", "caption.splits.1"),
        ("split.train=0.5", "split"),
        ("train=3", "train"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(tmp_path: Path, override: str, key: str) -> None:
    with pytest.raises(InputError) as refusal:
        load(tmp_path, MINIMAL, override)
    assert f"job.yaml: {key}: " in str(refusal.value)


def test_a_bad_value_is_shown(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.epochs: .*\(got 'many'\)"):
        load(tmp_path, MINIMAL, "train.epochs=many")
    with pytest.raises(InputError, match=r'source\.include: .*stand in quotes: \["\*\.jpg"\]'):
        load(tmp_path, MINIMAL, "source.include=[*.jpg]")


@pytest.mark.parametrize("key", ["name", "run", "source"])
def test_a_required_key_is_named(tmp_path: Path, key: str) -> None:
    values = {name: value for name, value in MINIMAL.items() if name != key}
    with pytest.raises(InputError, match=f"{key}: required"):
        load(tmp_path, values)


def test_attention_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"decoder\.attention needs encoder\.tokens"):
        load(tmp_path, MINIMAL, "encoder.tokens=false")
    job = load(tmp_path, MINIMAL, "encoder.tokens=false", "decoder.attention=none")
    assert not job.encoder.tokens


def test_patches_are_dropped_only_where_they_are_looked_at(tmp_path: Path) -> None:
    changes = {"decoder": {"attention": "none"}, "train": {"self_critical": {"patch_dropout": 0.5}}}
    with pytest.raises(InputError, match=r"patch_dropout needs decoder\.attention"):
        load(tmp_path, {**MINIMAL, **changes})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such configuration file"):
        configuration.load(str(tmp_path / "nowhere.yaml"))


def test_a_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: a directory without a config.yaml"):
        configuration.load(str(tmp_path))


@pytest.mark.parametrize("name", ["trip #2", "2026-11-25", "20261125", "a: b"])
def test_a_run_directory_is_where_it_is_whatever_its_name(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(MINIMAL))
    found = options.load(str(run), ("train.epochs=3",))
    assert (found.run, found.train.epochs) == (str(run), 3)


@pytest.mark.parametrize("text", ["name: [1", "a: b: c", "\x00"])
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"job\.yaml: not a YAML file"):
        load(tmp_path, text)


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="not a YAML file"):
        configuration.load(str(path))


@pytest.mark.parametrize("text", ["name: 2026-02-30", 3000 * "["])
def test_what_the_parser_cannot_take_is_no_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"\.yaml: not a YAML file"):
        load(tmp_path, text)
    assert load(tmp_path, MINIMAL, f"name={text}").name == text


def test_merged_keys_may_be_set_again(tmp_path: Path) -> None:
    text = yaml.safe_dump(MINIMAL) + (
        "encoder: &x\n  <<: &base {batch_size: 1, seed: 2}\n  batch_size: 2\n"
        "train: {<<: *base, batch_size: 3}\n"
    )
    job = load(tmp_path, text)
    assert (job.encoder.batch_size, job.train.batch_size, job.train.seed) == (2, 3, 2)


def test_a_key_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    text = yaml.safe_dump(MINIMAL) + "train:\n  epochs: 3\n  seed: 1\n  epochs: 4\n"
    with pytest.raises(InputError, match=r"`epochs` stands there twice\n.*line \d+, column 3"):
        load(tmp_path, text)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "hello", "3"])
def test_yaml_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="expected keys and values"):
        load(tmp_path, text)


def test_a_dumped_configuration_is_the_same_when_read(tmp_path: Path) -> None:
    job = load(tmp_path, MINIMAL, "train.learning_rate=1e-5", "name=Grüße")
    assert load(tmp_path, configuration.dump(job)) == job


def test_flattened_it_is_plain_values(tmp_path: Path) -> None:
    """Reports and comparisons write them as JSON."""
    job = load(tmp_path, with_section("train", mixed_with=[{"run": "s3://bucket/run"}]))
    flat = staleness.flatten(job)
    assert flat["train.mixed_with"] == [{"run": "s3://bucket/run", "share": 1.0}]
    assert json.loads(json.dumps(flat)) == flat


@pytest.mark.parametrize("run", ["runs/why?", "/runs/a\nb", "file:///runs/a?b"])
def test_a_run_directory_is_one_that_ray_finds(run: str) -> None:
    values = {**MINIMAL, "run": run}
    with pytest.raises(InputError, match=r"run: a run directory has no `\?`"):
        configuration.parse(values, "x.yaml")


def test_paths_are_made_absolute_and_urls_are_kept(tmp_path: Path) -> None:
    job = load(
        tmp_path,
        MINIMAL,
        "source.captions=s3://bucket/captions.txt",
        "encoder.model=local-dir:towers/small",
        "split.train_list=lists/train.txt",
    )
    here = os.getcwd()
    assert job.run == f"{here}/runs/n"
    assert job.source.images == f"{here}/photos"
    assert job.source.captions == "s3://bucket/captions.txt"
    assert job.encoder.model == f"local-dir:{here}/towers/small"
    assert job.split.lists == {"train": f"{here}/lists/train.txt"}
    assert job.at("model", "config.yaml") == f"{here}/runs/n/model/config.yaml"


def test_a_weights_tag_stays_a_tag_and_a_weights_file_becomes_absolute(tmp_path: Path) -> None:
    tag = load(tmp_path, MINIMAL, "encoder.pretrained=laion2b_e16")
    file = load(tmp_path, MINIMAL, "encoder.pretrained=weights/clip.pt")
    assert tag.encoder.pretrained == "laion2b_e16"
    assert file.encoder.pretrained == f"{os.getcwd()}/weights/clip.pt"


def test_differences_give_both_values(tmp_path: Path) -> None:
    old = load(tmp_path, MINIMAL)
    new = load(tmp_path, MINIMAL, "train.epochs=3", "search.beam_size=1")
    assert staleness.differences(old, new) == {
        "train.epochs": (15, 3),
        "search.beam_size": (5, 1),
    }
    assert staleness.differences(old, old) == {}


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "cluster.encoders=2",
        "encoder.batch_size=2",
        "features.rows_per_file=2",
        "caption.rows_per_file=2",
        "caption.batch_size=2",
    ],
)
def test_what_changes_speed_alone_is_no_difference(tmp_path: Path, override: str) -> None:
    old, new = load(tmp_path, MINIMAL), load(tmp_path, MINIMAL, override)
    assert old != new
    assert staleness.differences(old, new) == {}


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("source.images", "index"),
        ("split.seed", "index"),
        ("encoder.model", "extract"),
        ("image.max_pixels", "extract"),
        ("vocabulary.minimum_count", "train"),
        ("decoder.layers", "train"),
        ("search.beam_size", "caption"),
        ("report.gallery", "report"),
    ],
)
def test_the_first_stage_that_reads_a_key(key: str, stage: str) -> None:
    assert staleness.stage_of(key) == stage


def test_every_key_that_can_differ_belongs_to_a_stage(tmp_path: Path) -> None:
    keys = set(staleness.flatten(load(tmp_path, MINIMAL)))
    outside = {"name", "run", *(key for key in keys if key.startswith("cluster."))}
    assert {staleness.stage_of(key) for key in keys - outside} <= set(staleness.STAGES)


def test_stages_from_one_to_the_last() -> None:
    assert list(staleness.stages_from("train")) == ["train", "caption", "score", "report"]
    assert list(staleness.stages_from("index")) == list(staleness.STAGES)
    assert list(staleness.stages_from("report")) == ["report"]
