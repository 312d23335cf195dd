"""Training on several runs at once: each row once, spread evenly, the configured share of each."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from captioner import features, parquet_dir, storage
from captioner.config import JobConfig, Share, Train
from captioner.errors import InputError, StorageUnavailable
from captioner.metrics import CiderD
from captioner.vocabulary import END, tokenize
from jobs import lock, mixture, train
from jobs.tally import Tally
from tests.runs import build_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobConfig, JobConfig]:
    first, second = (build_run(tmp_path_factory.mktemp(name) / "r") for name in ("a", "b"))
    # The same weights wherever the tower stands: only its path differs, which is part of its name.
    source = Path(second.at("features"))
    done = {"manifest": "of the second", "serial": 7}
    storage.write_summary(second.at("manifest"), done)
    storage.write_summary(str(source), {**done, "rows": features.count_rows(str(source))})
    for shard in source.glob("*.parquet"):
        table = features.pq.read_table(shard)
        there = features.read_identity(first.at("features"))
        features.pq.write_table(table.replace_schema_metadata(there.metadata()), shard)
    return first, second


def mixed(runs: tuple[JobConfig, JobConfig], share: float = 1.0, own: float = 1.0) -> JobConfig:
    also = [Share(run=runs[1].run, share=share)]
    changed = runs[0].train.model_copy(update={"mixed_with": also, "own_share": own})
    return runs[0].model_copy(update={"train": changed})


def test_rows_of_both_runs_come_once_each_with_serials_of_their_own(
    cluster: str, runs: tuple[JobConfig, JobConfig]
) -> None:
    config = mixed(runs)
    identity = features.read_identity(config.at("features"))
    mixture.check(config, identity)
    rows = train.feature_rows(config, identity, "train").take_all()
    alone = train.feature_rows(runs[0], identity, "train").take_all()
    serials = [row["serial"] for row in rows]
    assert len(rows) == len(set(serials)) == 2 * len(alone) == 6  # one of four has failed
    own = {row["serial"] for row in alone}
    assert set(serials) == own | {serial + (1 << 48) for serial in own}
    assert mixture.counts(config) == [3, 3]
    assert mixture.drawn_of([4, 4], mixed(runs, share=0.5)) == 6
    assert len(train.feature_rows(config, identity, "val").take_all()) == 2  # this run's alone


def test_shards_of_a_small_run_are_spread_over_those_of_a_large_one() -> None:
    files = mixture.spread([[f"large-{number}" for number in range(9)], ["x", "y", "z"]])
    assert sorted(file["url"] for file in files if file["run"] == 1) == ["x", "y", "z"]
    assert [file["url"] for file in files if not file["run"]] == [f"large-{n}" for n in range(9)]
    assert [[file["run"] for file in files[at : at + 4]].count(1) for at in (0, 4, 8)] == [1, 1, 1]


def test_shards_stand_in_the_order_of_their_images_whatever_they_are_called(
    tmp_path: Path,
) -> None:
    serials = {"a": [9, 7], "b": [1, 30], "c": [4]}
    for name, values in serials.items():
        storage.write_table(f"{tmp_path}/{name}.parquet", pa.table({"serial": values}))
    urls = mixture.by_serial([f"{tmp_path}/{name}.parquet" for name in serials])
    assert [Path(url).stem for url in urls] == ["b", "c", "a"]


def test_each_epoch_has_an_order_of_its_own_and_the_same_when_it_goes_on(
    cluster: str, tmp_path: Path
) -> None:
    urls = [[f"{tmp_path}/{run}{number}.parquet" for number in range(3)] for run in "ab"]
    for run, of_run in enumerate(urls):
        for number, url in enumerate(of_run):
            first = 100 * run + 8 * number
            rows = pa.table({"serial": range(first, first + 8)})
            storage.write_table(url, rows, row_group_size=2)
    tally = Tally.remote("train")
    orders = []
    for epoch in (0, 1, 0):
        ray.get(tally.begin.remote(epoch, "cross_entropy"))
        places = pa.table({"place": range(6)})
        tables = mixture.read_shards(places, urls, ["serial"], [], 0, tally)
        orders.append([n for table in tables for n in table["serial"].to_pylist()])
    assert orders[0] == orders[2] != orders[1]
    other = [number + (1 << 48) for number in range(100, 124)]
    assert sorted(orders[0]) == sorted(orders[1]) == [*range(24), *other]
    assert orders[0] != sorted(orders[0])


def test_an_epoch_draws_its_share_and_the_next_one_others() -> None:
    serials = np.concatenate([np.arange(10_000), np.arange(10_000) + (1 << 48)])
    shares = [1.0, 0.25]
    first, again, second = (mixture.is_drawn(serials, shares, 0, epoch) for epoch in (0, 0, 1))
    assert (first == again).all()
    assert first[:10_000].all()
    for drawn in (first, second):
        assert 2300 < drawn[10_000:].sum() < 2700
    both = (first & second)[10_000:].sum()
    assert 500 < both < 750  # a sixteenth: what one epoch has seen does not matter to the next
    another = mixture.is_drawn(serials, shares, 1, 0)
    assert 500 < (first & another)[10_000:].sum() < 750


def test_tasks_ask_which_epoch_it_is(cluster: str) -> None:
    tally = Tally.remote("train")
    rows = features.pa.table({"serial": range(1000)})
    sizes = []
    for epoch in (0, 1, 0):
        ray.get(tally.begin.remote(epoch, "cross_entropy"))
        sizes.append(mixture.drawn(rows, [0.5], 0, tally)["serial"].to_pylist())
    assert sizes[0] == sizes[2] != sizes[1]


def test_the_vocabulary_and_rewards_are_of_all_runs(
    cluster: str, runs: tuple[JobConfig, JobConfig]
) -> None:
    both = train.build_vocabulary(mixed(runs))
    assert sorted(both.words) == sorted(train.build_vocabulary(runs[0]).words)  # alike, but twice
    for config, times in ((runs[0], 1), (mixed(runs), 2)):
        rows = parquet_dir.read(config.at("manifest"), ["captions"], ["train"]).to_pylist()
        references = [[[*tokenize(text), END] for text in row["captions"]] for row in rows] * times
        expected, found = CiderD.of_references(references), train.cider(config, 1)
        said = references[0][0][:-2]
        wanted = expected.score(said, expected.references(references[0]))
        assert wanted > 0
        assert found.score(said, found.references(references[0])) == pytest.approx(wanted)


def test_a_run_that_is_not_all_there_yet_is_refused(runs: tuple[JobConfig, JobConfig]) -> None:
    config, run = mixed(runs), Path(runs[1].run)
    mixture.require(config)
    summary = run / "features" / storage.SUMMARY
    text = summary.read_text()
    for other in (None, text.replace("7", "8")):  # of a listing since
        summary.unlink() if other is None else summary.write_text(other)
        with pytest.raises(InputError, match=rf"train\.mixed_with: .*`captioner extract {run}`"):
            mixture.require(config)
    summary.write_text(text)
    shard = sorted((run / "features").glob("*.parquet"))[0]
    whole = shard.read_bytes()
    for left, why in ((b"", "shards are gone"), (whole[: len(whole) // 2], "shard is damaged")):
        shard.write_bytes(left) if left else shard.unlink()
        with pytest.raises(InputError, match=rf"train\.mixed_with: .*{why}"):
            mixture.require(config)
    shard.write_bytes(whole)
    (run / "manifest").rename(run / "elsewhere")
    with pytest.raises(InputError, match=rf"`captioner index {run}`"):
        mixture.require(config)
    with (
        lock.hold(str(run)),
        pytest.raises(StorageUnavailable, match="another command is at work there, and index"),
    ):
        mixture.require(config)
    (run / "elsewhere").rename(run / "manifest")


def test_features_that_go_while_they_are_read(
    cluster: str, runs: tuple[JobConfig, JobConfig], tmp_path: Path
) -> None:
    """Nobody holds the other run: its own `extract --update` may replace shards meanwhile."""
    tally = Tally.remote("train")
    places, urls = pa.table({"place": [0]}), [[str(tmp_path / "gone.parquet")]]
    with pytest.raises(StorageUnavailable, match=r"gone\.parquet: gone\. Other features"):
        list(mixture.read_shards(places, urls, ["serial"], [], 0, tally))
    told = ray.get(tally.told.remote())
    assert isinstance(told, StorageUnavailable)


def test_a_run_is_mixed_once(tmp_path: Path) -> None:
    values = {"name": "x", "run": f"{tmp_path}/a", "source": {"images": "/photos"}}
    for runs in ([f"{tmp_path}/a"], [f"{tmp_path}/b", f"{tmp_path}/b/"]):
        twice = JobConfig(**values, train=Train(mixed_with=[Share(run=run) for run in runs]))
        with pytest.raises(InputError, match="twice, or the run itself"):
            mixture.require(twice)
    # What a model was trained on need not be there to caption with it.
    config = JobConfig(**values, train=Train(mixed_with=[Share(run="/b")]))
    assert set(config.places) == {"run", "source.images"}
    assert config.mixed_runs == {"train.mixed_with[0].run": "/b"}


def test_a_run_of_another_encoder_is_refused_by_name(
    runs: tuple[JobConfig, JobConfig], tmp_path: Path
) -> None:
    config = mixed(runs)
    identity = features.read_identity(config.at("features"))
    other = identity.from_dict({**identity.to_dict(), "weights_sha256": "0" * 64})
    with pytest.raises(InputError, match=r"train\.mixed_with: .*b0.*another encoder"):
        mixture.check(config, other)
    mirrored = config.features.model_copy(update={"mirrored": True})
    with pytest.raises(InputError, match=r"other views .*features\.mirrored"):
        mixture.check(config.model_copy(update={"features": mirrored}), identity)
    nothing = Share(run=str(tmp_path / "nothing"))
    empty = config.train.model_copy(update={"mixed_with": [nothing]})
    with pytest.raises(InputError, match="no features here"):
        mixture.check(config.model_copy(update={"train": empty}), identity)


def test_images_without_captions_are_none_to_validate_by(
    cluster: str, runs: tuple[JobConfig, JobConfig], tmp_path: Path
) -> None:
    """The loss of no words would be the best there is."""
    config = runs[0].model_copy(update={"run": str(tmp_path)})
    rows = parquet_dir.read(runs[0].at("features"))
    captions = zip(rows["split"].to_pylist(), rows["captions"].to_pylist())
    place = rows.schema.get_field_index("captions")
    left = pa.array([[] if split == "val" else texts for split, texts in captions])
    shutil.copytree(runs[0].at("manifest"), config.at("manifest"))
    rows = rows.set_column(place, rows.schema.field(place), left)
    storage.write_table(config.at("features", "one.parquet"), rows)
    with pytest.raises(InputError, match="no images in the val split have features and captions"):
        train.train(config)
    assert not storage.exists(config.at("model"))
