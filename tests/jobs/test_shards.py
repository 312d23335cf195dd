"""What a job that goes on asks of the shards and checkpoints before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner import storage
from captioner.errors import InputError
from jobs.shards import require_kept
from jobs.table_rows import Input

ROWS, DONE, KEPT = 40, 20, 12  # of the manifest; of an earlier job; of the one that broke off


def write(path: Path, serials: range) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"serial": pa.array(serials, pa.int64())}), path)


@pytest.fixture
def broken_off(tmp_path: Path) -> Path:
    write(tmp_path / "manifest" / "a.parquet", range(ROWS))
    write(tmp_path / "features" / "a.parquet", range(DONE))
    for place in ("features", "features.checkpoints"):
        write(tmp_path / place / "b.parquet", range(DONE, DONE + KEPT // 2))
        write(tmp_path / place / "c.parquet", range(DONE + KEPT // 2, DONE + KEPT))
    # Written and not yet known of, and half written: Ray deletes both.
    write(tmp_path / "features" / "d.parquet", range(DONE + KEPT, DONE + KEPT + 3))
    (tmp_path / "features" / "e.parquet").write_bytes(b"PAR1")
    for name in "de":
        write(tmp_path / "features.checkpoints" / f"{name}.pending.parquet", range(1))
    return tmp_path


def check(run: Path, after: int = DONE - 1) -> None:
    rows = Input(str(run / "manifest"), ["serial"])
    require_kept(rows, str(run / "features"), str(run / "features.checkpoints"), after)


def test_what_a_crash_leaves_is_gone_on_with(broken_off: Path, tmp_path: Path) -> None:
    check(broken_off)
    storage.remove(str(broken_off / "features"))
    storage.remove(str(broken_off / "features.checkpoints"))
    check(broken_off, after=-1)  # nothing is there yet


def test_rows_of_images_that_have_changed_since_need_not_be_there(broken_off: Path) -> None:
    for name in ("b", "d"):
        (broken_off / "features" / f"{name}.parquet").unlink()
    write(broken_off / "manifest" / "a.parquet", range(DONE))
    write(broken_off / "manifest" / "b.parquet", range(DONE + KEPT // 2, ROWS))
    check(broken_off)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda run: (run / "features" / "a.parquet").unlink(), "15 rows where 32 were written"),
        (lambda run: (run / "features" / "b.parquet").write_bytes(b"PAR1"), "29 rows where 32"),
        (lambda run: storage.remove(f"{run}/features.checkpoints"), "that no checkpoint knows of"),
        (
            lambda run: (run / "features.checkpoints" / "b.parquet").write_bytes(b"PAR1"),
            "a file is damaged",
        ),
    ],
)
def test_what_is_gone_or_damaged_is_told(
    broken_off: Path, harm: Callable[[Path], object], message: str
) -> None:
    if "no checkpoint" in message:
        (broken_off / "features" / "e.parquet").unlink()
    harm(broken_off)
    with pytest.raises(InputError, match=message) as told:
        check(broken_off)
    assert "Delete both, and the same command makes all of it anew" in str(told.value)
