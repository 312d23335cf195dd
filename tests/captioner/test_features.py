from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import captioner
from captioner import features, reading, storage
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from tests import shards

MakeIdentity = Callable[..., EncoderIdentity]
EMBEDDING = pa.list_(pa.float16(), 6)
TOKENS = pa.fixed_shape_tensor(pa.float16(), (4, 5))


def random_values(*shape: int) -> NDArray[np.float16]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float16)


def shard(identity: EncoderIdentity, errors: list[str | None]) -> pa.Table:
    """A feature shard with random features in the rows without an error."""
    valid = np.array([error is None for error in errors])
    count = int(valid.sum())
    rows = range(len(errors))
    shapes = {"embedding": (count, 6), "tokens": (count, 4, 5)}
    schema = features.schema(identity)
    columns: dict[str, Any] = {
        "image_id": [f"{row}.jpg" for row in rows],
        "serial": list(rows),
        "uri": [f"/photos/{row}.jpg" for row in rows],
        "split": ["train"] * len(errors),
        "captions": [["a dog", "a cat"] for _ in rows],
        "width": [640] * len(errors),
        "height": [480] * len(errors),
        "error": errors,
    }
    for name, shape in shapes.items():
        if name in schema.names:
            type_ = schema.field(name).type
            columns[name] = features.column(random_values(*shape), valid, type_)
    return pa.table(columns, schema=schema)


def write(url: str, table: pa.Table, name: str = "part-0.parquet") -> None:
    filesystem, path = storage.arrow_filesystem(url)
    filesystem.create_dir(path, recursive=True)
    pq.write_table(table, f"{path}/{name}", filesystem=filesystem)


@pytest.mark.parametrize(
    "valid",
    [[True, True, True], [False, True, False, True], [True, False], [False, False], []],
    ids=str,
)
@pytest.mark.parametrize(
    ("type_", "shape"), [(EMBEDDING, (6,)), (TOKENS, (4, 5))], ids=["embedding", "tokens"]
)
def test_a_column_round_trips_through_parquet_with_its_nulls(
    tmp_path: Path, type_: pa.DataType, shape: tuple[int, ...], valid: list[bool]
) -> None:
    mask = np.array(valid, dtype=bool)
    values = random_values(int(mask.sum()), *shape)
    pq.write_table(pa.table({"x": features.column(values, mask, type_)}), tmp_path / "x.parquet")
    column = pq.read_table(tmp_path / "x.parquet")["x"]
    assert column.type == type_
    assert column.is_valid().to_pylist() == valid
    found = features.to_numpy(column.drop_null())
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("type_", "shape"), [(EMBEDDING, (6,)), (TOKENS, (4, 5))], ids=["embedding", "tokens"]
)
def test_to_numpy_reads_one_array_several_chunks_and_slices(
    type_: pa.DataType, shape: tuple[int, ...]
) -> None:
    values = random_values(7, *shape)
    array = features.column(values, np.ones(7, dtype=bool), type_)
    chunked = pa.chunked_array([array[:3], array[3:3], array[3:]])
    np.testing.assert_array_equal(features.to_numpy(array), values)
    np.testing.assert_array_equal(features.to_numpy(chunked), values)
    np.testing.assert_array_equal(features.to_numpy(chunked.slice(2, 3)), values[2:5])
    np.testing.assert_array_equal(features.to_numpy(array[4:]), values[4:])
    np.testing.assert_array_equal(features.to_numpy(pa.chunked_array([array])), values)
    assert features.to_numpy(chunked[:0]).shape == (0, *shape)


def test_values_that_a_filter_has_left_are_read(make_identity: MakeIdentity) -> None:
    table = shard(make_identity(), [None, "broken", None, None])
    rows = table.filter(pa.array([True, False, False, True]))
    np.testing.assert_array_equal(features.to_numpy(rows["embedding"]), random_values(3, 6)[[0, 2]])
    np.testing.assert_array_equal(features.to_numpy(rows["tokens"]), random_values(3, 4, 5)[[0, 2]])


def test_a_reader_with_parquet_alone_sees_plain_columns(
    tmp_path: Path, make_identity: MakeIdentity
) -> None:
    write(str(tmp_path), shard(make_identity(), [None, "empty file", None]))
    rows = pq.read_table(tmp_path).to_pylist()
    assert [row["error"] for row in rows] == [None, "empty file", None]
    assert [row["embedding"] is None for row in rows] == [False, True, False]
    assert [row["tokens"] is None for row in rows] == [False, True, False]
    assert rows[0]["captions"] == ["a dog", "a cat"]
    assert (rows[0]["width"], rows[0]["height"]) == (640, 480)
    np.testing.assert_array_equal(rows[2]["embedding"], random_values(2, 6)[1])


def test_tokens_are_stored_as_plain_fixed_size_lists(
    tmp_path: Path, make_identity: MakeIdentity
) -> None:
    """A reader that does not know Arrow's tensor type gets lists of the same numbers."""
    write(str(tmp_path), shard(make_identity(), [None, None]))
    tokens = pq.read_table(tmp_path)["tokens"].combine_chunks()
    array = tokens.chunk(0) if isinstance(tokens, pa.ChunkedArray) else tokens
    assert array.storage.type == pa.list_(pa.float16(), 20)
    flat = np.array(array.storage.to_pylist(), np.float16)
    np.testing.assert_array_equal(flat.reshape(2, 4, 5), random_values(2, 4, 5))


def test_without_tokens_there_is_no_such_column(make_identity: MakeIdentity) -> None:
    names = features.schema(make_identity(patches=0, channels=0)).names
    assert "tokens" not in names
    assert {"image_id", "split", "captions", "embedding", "error"} <= set(names)


def test_views_have_columns_of_their_own(make_identity: MakeIdentity) -> None:
    plain, more = features.schema(make_identity()), features.schema(make_identity(), ["_a", "_b"])
    added = ["embedding_a", "tokens_a", "embedding_b", "tokens_b"]
    assert [name for name in more.names if name not in plain.names] == added
    for name in added:
        assert more.field(name).type == plain.field(name[:-2]).type


@pytest.mark.parametrize("place", ["local", "memory"])
def test_the_identity_is_read_from_the_shards(
    tmp_path: Path, memory_root: str, make_identity: MakeIdentity, place: str
) -> None:
    url = f"{tmp_path}/features" if place == "local" else f"{memory_root}/features"
    identity = make_identity(quick_gelu=True)
    write(url, shard(identity, [None]))
    assert features.read_identity(url) == identity


def test_the_metadata_can_be_read_without_captioner(
    tmp_path: Path, make_identity: MakeIdentity
) -> None:
    write(str(tmp_path), shard(make_identity(), [None]))
    metadata = pq.read_schema(tmp_path / "part-0.parquet").metadata
    encoder = json.loads(metadata[b"captioner.encoder"])
    assert encoder["weights_sha256"] == "0" * 64
    assert encoder["preprocessing"]["height"] == 8
    assert metadata[b"captioner.version"].decode() == captioner.__version__


def test_embeddings_are_found_by_serial_in_any_order(
    tmp_path: Path, make_identity: MakeIdentity
) -> None:
    table = shard(make_identity(), [None, "broken", None, None, None])
    write(str(tmp_path), table.slice(0, 3))
    write(str(tmp_path), table.slice(3), "part-1.parquet")
    expected = random_values(4, 6)  # of the images 0, 2, 3, 4
    found = features.embeddings(str(tmp_path), np.array([4, 0, 3]))
    assert found.tolist() == expected[[3, 0, 2]].tolist()
    for serials in ([0, 1], [9]):
        with pytest.raises(InputError, match="no features of 1 of the captioned images"):
            features.embeddings(str(tmp_path), np.array(serials))


def test_no_features_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no features here; run `captioner extract`"):
        features.read_identity(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no whole Parquet file here; run `captioner extract`"):
        features.read_identity(str(tmp_path))


def test_parquet_of_somebody_else_is_refused(tmp_path: Path) -> None:
    write(str(tmp_path), pa.table({"embedding": [1.0]}))
    with pytest.raises(InputError, match=r"part-0\.parquet: not a feature shard"):
        features.read_identity(str(tmp_path))


@pytest.mark.parametrize("place", ["local", "memory"])
def test_rows_and_errors_are_counted_over_all_shards(
    tmp_path: Path, memory_root: str, make_identity: MakeIdentity, place: str
) -> None:
    url = f"{tmp_path}/features" if place == "local" else f"{memory_root}/features"
    write(url, shard(make_identity(), [None, "empty file", None, "not an image"]))
    write(url, shard(make_identity(), ["not an image", None]), "part-1.parquet")
    counts = features.count(url)
    assert counts == features.Counts(6, {"empty file": 1, "not an image": 2})


def test_no_errors_are_counted_as_none(tmp_path: Path, make_identity: MakeIdentity) -> None:
    write(str(tmp_path), shard(make_identity(), [None, None]))
    assert features.count(str(tmp_path)) == features.Counts(2, {})


def test_half_a_file_hides_neither_the_encoder_nor_the_errors_of_the_others(
    tmp_path: Path, make_identity: Callable[..., EncoderIdentity]
) -> None:
    identity = make_identity()
    whole = shards.make(identity, [None, "not an image", reading.DELETED, None])
    (path,) = shards.write(tmp_path, whole)
    (tmp_path / "a-half.parquet").write_bytes(Path(path).read_bytes()[:200])
    assert features.read_identity(str(tmp_path)) == identity
    assert features.failed(str(tmp_path)).tolist() == [1]
    Path(path).unlink()
    assert features.find_identity(str(tmp_path)) is None
    with pytest.raises(InputError, match="no whole Parquet file"):
        features.read_identity(str(tmp_path))
