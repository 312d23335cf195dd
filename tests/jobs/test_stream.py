"""The wiring of Ray Data that a later version of Ray might undo."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner import configuration, parquet_dir
from jobs import session, shards, stream, table_rows
from jobs.pools import Workers


class MarkBatch:
    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows.append_column("batch", pa.array([len(rows)] * len(rows)))


class MarkActor:
    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows.append_column("actor", pa.array([os.getpid()] * len(rows)))


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    pq.write_table(pa.table({"serial": range(1000)}), tmp_path / "numbers.parquet")
    return str(tmp_path)


def test_tasks_are_not_fused_into_the_actors_after_them(cluster: str, numbers: str) -> None:
    """Both claim one CPU. Fused, an actor would have one core to decode for it."""

    def mark_task(rows: pa.Table) -> pa.Table:
        return rows.append_column("task", pa.array([os.getpid()] * len(rows)))

    rows = table_rows.read(numbers, ["serial"], 50).map_batches(
        mark_task, batch_size=None, batch_format="pyarrow", num_cpus=1
    )
    found = stream.in_pool(rows, MarkActor, (), 64, Workers(1, 1, 0, memory=1 << 20)).take_all()
    assert len(found) == 1000
    assert not {row["task"] for row in found} & {row["actor"] for row in found}


@pytest.mark.parametrize(
    ("rows", "block"),
    [(1, 1), (7, 8), (16, 16), (33, 64), (50, 64), (64, 64), (65, 128), (256, 256), (300, 320)],
)
def test_blocks_fit_batches(rows: int, block: int) -> None:
    assert table_rows.fitting(rows, 64) == block


@pytest.mark.parametrize(
    ("rows", "actors", "block"),
    [(700, 1, 256), (700, 2, 128), (100_000, 2, 256), (100, 2, 64), (700, 64, 64)],
)
def test_several_actors_have_some_blocks_each(
    rows: int, actors: int, block: int, tmp_path: Path
) -> None:
    config = configuration.parse(
        {"name": "blocks", "run": str(tmp_path), "source": {"images": "Photos"}}, "test"
    )
    url = config.at("manifest")
    assert table_rows.rows_per_block(url, config, 64, rows, actors) == block


@pytest.mark.parametrize("wished", [7, 50, 300])
def test_batches_are_of_the_encoders_size_whatever_the_blocks(
    cluster: str, numbers: str, wished: int
) -> None:
    rows = table_rows.read(numbers, ["serial"], table_rows.fitting(wished, 64))
    found = stream.in_pool(rows, MarkBatch, (), 64, Workers(1, 1, 0, memory=1 << 20)).take_all()
    assert sorted(row["serial"] for row in found) == [*range(1000)]
    assert sorted(row["batch"] for row in found) == [40] * 40 + [64] * 960


def test_files_are_bounded_and_row_groups_small(
    cluster: str, numbers: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("out")
    schema = pa.schema([("serial", pa.int64())])
    sink = shards.Shards(str(out), schema, rows_per_file=600, block=50)
    table_rows.read(numbers, ["serial"], 50).write_datasink(sink)
    files = [pq.read_metadata(file) for file in out.glob("*.parquet")]
    assert sum(file.num_rows for file in files) == 1000
    assert max(file.num_rows for file in files) <= 300  # half: the next is gathered meanwhile
    assert len(files) <= 5
    groups = [f.row_group(i).num_rows for f in files for i in range(f.num_row_groups)]
    assert max(groups) <= 256


def test_rows_that_are_out_of_date_are_gone_from_their_files(cluster: str, tmp_path: Path) -> None:
    for part in range(4):
        rows = pa.table({"serial": range(10 * part, 10 * part + 10), "value": [part] * 10})
        pq.write_table(rows, tmp_path / f"part-{part}.parquet", row_group_size=4)
    untouched = (tmp_path / "part-3.parquet").stat().st_mtime_ns
    session.start(session.Cluster())
    current = [*range(1, 10), 15, *range(30, 40)]
    shards.drop_outdated(str(tmp_path), current)
    assert parquet_dir.serials(str(tmp_path)).tolist() == current
    assert not (tmp_path / "part-2.parquet").exists()
    assert (tmp_path / "part-3.parquet").stat().st_mtime_ns == untouched


def test_a_small_source_is_not_cut_into_hundreds_of_blocks(cluster: str, numbers: str) -> None:
    session.start(session.Cluster())
    blocks = table_rows.read(numbers, ["serial"], 256).materialize()
    assert blocks.num_blocks() == 4
    assert sorted(row["serial"] for row in blocks.take_all()) == [*range(1000)]
