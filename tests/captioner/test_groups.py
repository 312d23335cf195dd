from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest

from captioner import groups, manifest, parquet_dir, storage
from captioner.errors import InputError


def test_images_can_be_grouped_by_text_numbers_and_booleans() -> None:
    columns = pa.schema([*manifest.schema(["camera"]), pa.field("night", pa.bool_())])
    labels = ["uri", "offset", "row", "size", "etag", "split", "camera", "night"]
    assert groups.labels(columns) == labels


def test_images_are_grouped_by_columns_of_captions_and_of_the_manifest() -> None:
    known = [
        {
            "image_id": f"{n}.jpg",
            "serial": n,
            "uri": "signed?",
            "size": n % 2 or None,
            "camera": name,
        }
        for n, name in enumerate(("rear", None, "front", ""))
    ]
    images = pa.dataset.dataset(pa.Table.from_pylist(known, manifest.schema(["camera"])))
    ids = ["3.jpg", "2.jpg", "0.jpg", "elsewhere", "1.jpg"]
    rows = pa.table({"image_id": ids, "split": ["val", None, "test", "", "val"], "uri": [*"abcde"]})
    for by, expected in (
        ("split", ["val", "", "test", "", "val"]),
        ("uri", [*"abcde"]),  # not the manifest's, which may have a signature
        ("camera", ["", "front", "rear", "", ""]),
        ("size", ["1", "", "", "", "1"]),
    ):
        assert groups.with_group(rows, by, images)["group"].to_pylist() == expected


@pytest.mark.parametrize("by", ["lens", "directory:0", "captions", "image_id", "modified", ""])
def test_what_is_no_group_is_refused_with_what_there_is(by: str) -> None:
    columns = manifest.schema(["camera"])
    with pytest.raises(InputError, match=f"no column `{by}`; it has uri, .*, split, camera, and"):
        groups.check(by, columns)
    for fine in ("camera", "split", "size", "directory", "directory:12"):
        groups.check(fine, columns)


def test_a_column_of_some_images_is_in_their_order(tmp_path: Path) -> None:
    for part in range(3):
        some = [{"image_id": f"{n}", "size": n} for n in range(3 * part, 3 * part + 3)]
        table = pa.Table.from_pylist(
            some, pa.schema([("image_id", pa.string()), ("size", pa.int64())])
        )
        storage.write_table(str(tmp_path / f"{part}.parquet"), table)
    rows = parquet_dir.dataset(str(tmp_path))
    ids = pa.chunked_array([["7", "none"], ["2", "5", "2"]])
    assert groups.values(rows, ids, "size").to_pylist() == [7, None, 2, 5, 2]
    nothing = groups.values(rows, pa.chunked_array([], pa.string()), "size")
    assert nothing.to_pylist() == []
    assert nothing.type == pa.int64()
