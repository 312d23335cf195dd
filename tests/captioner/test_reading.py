from __future__ import annotations

import contextlib
import datetime
import io
import itertools
import os
import resource
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner import fetching, manifest, storage
from captioner.errors import InputError, StorageUnavailable
from captioner.fetching import Bytes, Unreadable
from captioner.reading import DELETED, read_images
from tests.listings import listed, tar, write_parquet
from tests.s3 import BUCKET, Door

MAX = 1000


def rows_of(*images: dict[str, Any]) -> pa.Table:
    """Manifest rows, but for the columns that reading does not look at."""
    names = ("uri", "offset", "row", "size", "deleted")
    schema = pa.schema([manifest.SCHEMA.field(name) for name in names])
    return pa.Table.from_pylist([{name: row.get(name) for name in names} for row in images], schema)


def read(*images: dict[str, Any], image_column: str | None = None) -> list[Bytes]:
    return list(read_images(rows_of(*images), MAX, image_column))


def reason(*images: dict[str, Any]) -> str:
    """Why the last of these images cannot be read."""
    data = read(*images)[-1]
    assert isinstance(data, Unreadable), data
    return data.reason


def file(path: Path | str, content: bytes) -> dict[str, Any]:
    storage.write_bytes(str(path), content)
    return {"uri": str(path), "size": len(content)}


# Local files


def test_local_files_are_read_whole_and_in_order(tmp_path: Path) -> None:
    images = [file(tmp_path / f"{n}::{n}.jpg", b"%d" % n * n) for n in range(100)]
    assert read(*images) == [b"%d" % n * n for n in range(100)]
    unknown = [{"uri": image["uri"]} for image in images]
    assert read(*reversed(unknown)) == [b"%d" % n * n for n in reversed(range(100))]


def test_no_rows_are_no_bytes() -> None:
    assert read() == []


def test_a_missing_file_is_a_reason_between_files_that_are_read(tmp_path: Path) -> None:
    images = [file(tmp_path / "a", b"a"), {"uri": str(tmp_path / "b"), "size": 1}]
    found = read(*images, {"uri": str(tmp_path / "c")}, file(tmp_path / "d", b"d"))
    assert found[0] == b"a"
    assert found[3] == b"d"
    for data in found[1:3]:
        assert isinstance(data, Unreadable)
        assert data.reason.startswith("FileNotFoundError: ")


@pytest.mark.parametrize("size", [4096, 4, None])
def test_a_directory_is_a_reason(tmp_path: Path, size: int | None) -> None:
    found = reason({"uri": str(tmp_path), "size": size}).split(":")[0]
    assert found in ("not a regular file", "too large")


def test_a_pipe_is_a_reason_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason({"uri": str(tmp_path / "pipe.jpg"), "size": None}) == "not a regular file"


def test_a_file_that_has_grown_is_not_read_whole(tmp_path: Path) -> None:
    image = file(tmp_path / "a.jpg", b"a" * 10)
    with (tmp_path / "a.jpg").open("r+b") as grown:
        grown.truncate(10 * 1024**3)
    assert reason(image) == "too large: 1,001 bytes, more than image.max_bytes 1,000"


def test_a_machine_in_trouble_is_no_reason_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that cannot be opened because too many are open: they are waited for."""
    monkeypatch.setattr(fetching, "_STORAGE_PATIENCE_S", 3.0)
    image = file(tmp_path / "a.jpg", b"picture")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []

    def give_back() -> None:
        for descriptor in taken:
            os.close(descriptor)

    few = max(map(int, os.listdir("/proc/self/fd"))) + 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        timer = threading.Timer(1.0, give_back)
        timer.start()
        assert read(image) == [b"picture"]
        timer.join()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_a_reason(tmp_path: Path) -> None:
    image = file(tmp_path / "a.jpg", b"a")
    (tmp_path / "a.jpg").chmod(0)
    assert reason(image).startswith("PermissionError: ")


def test_large_files_are_refused_by_the_size_that_is_known_or_found(tmp_path: Path) -> None:
    exact, larger = file(tmp_path / "exact", b"x" * MAX), file(tmp_path / "larger", b"x" * 1001)
    grown = {**larger, "size": 3}  # since it was listed
    assert read(exact, {"uri": exact["uri"]}) == [b"x" * MAX, b"x" * MAX]
    for image in (larger, {"uri": larger["uri"]}, grown):
        assert reason(image) == "too large: 1,001 bytes, more than image.max_bytes 1,000"
    never_opened = {"uri": str(tmp_path / "nowhere"), "size": 2000}
    assert reason(never_opened) == "too large: 2,000 bytes, more than image.max_bytes 1,000"


def test_reasons_begin_with_words_that_many_images_share(tmp_path: Path) -> None:
    """Errors are counted by what stands before the colon."""
    images = [{"uri": "/nowhere", "size": MAX + n} for n in range(1, 4)]
    assert {data.reason.split(":")[0] for data in read(*images)} == {"too large"}  # type: ignore[union-attr]


def test_deleted_images_are_not_looked_for(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    parquet = write_parquet(tmp_path / "p.parquet", {"jpg": [b"0", b"1"]})
    images = [
        {"uri": "not-a-protocol://x", "deleted": now},
        file(tmp_path / "a", b"a"),
        {**file(tmp_path / "b", b"b"), "deleted": now},
        {"uri": str(parquet), "row": 1},
        {"uri": str(parquet), "row": 0, "deleted": now},
    ]
    gone = Unreadable(DELETED)
    assert read(*images) == [gone, b"a", gone, b"1", gone]


# Shards


def test_ranges_of_shards_are_read(tmp_path: Path) -> None:
    members = {f"{n}.jpg": os.urandom(n) for n in (0, 1, 511, 512, 513, 1000)}
    (tmp_path / "s.tar").write_bytes(tar(members))
    images, _ = listed(tmp_path / "s.tar")
    for order in (images, images[::-1]):
        expected = [members[row["image_id"].removeprefix("s.tar/")] for row in order]
        assert read(*order) == expected


def test_ranges_of_shards_are_read_on_any_file_system(memory_root: str) -> None:
    members = {f"{n}.jpg": os.urandom(n) for n in (0, 1, 511, 512, 513, 1000)}
    storage.write_bytes(f"{memory_root}/s.tar", tar(members))
    images, _ = listed(f"{memory_root}/s.tar")
    expected = [members[row["image_id"].removeprefix("s.tar/")] for row in images]
    assert read(*images) == expected


def test_a_shard_that_ends_too_early_is_a_reason(tmp_path: Path) -> None:
    whole = tar({"0.jpg": b"0" * 600, "1.jpg": b"1" * 600, "2.jpg": b"2" * 600})
    shard = tmp_path / "s.tar"
    shard.write_bytes(whole)
    images, _ = listed(shard)
    shard.write_bytes(whole[: images[1]["offset"] + 100])
    assert read(*images) == [
        b"0" * 600,
        Unreadable("damaged shard: 100 bytes where 600 should be"),
        Unreadable("damaged shard: 0 bytes where 600 should be"),
    ]


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar({"0.jpg": b"0" * 2000, "1.jpg": b"1"}))
    images, _ = listed(tmp_path / "s.tar")
    too_large = Unreadable("too large: 2,000 bytes, more than image.max_bytes 1,000")
    assert read(*images) == [too_large, b"1"]


# Parquet


@pytest.fixture
def tables(tmp_path: Path) -> list[dict[str, Any]]:
    """Rows of two files with several row groups, each larger than what is read at once; the
    bytes name the row."""
    for name in ("a", "b"):
        data = [b"%s %d" % (name.encode(), n) for n in range(230)]
        write_parquet(tmp_path / f"{name}.parquet", {"jpg": data}, row_group_size=90)
    return [
        {"uri": str(tmp_path / f"{name}.parquet"), "row": n} for name in "ab" for n in range(230)
    ]


def name_of(row: dict[str, Any]) -> bytes:
    return f"{Path(row['uri']).stem} {row['row']}".encode()


def test_all_rows_of_parquet_files_are_read_in_order(tables: list[dict[str, Any]]) -> None:
    assert read(*tables) == [name_of(row) for row in tables]


@pytest.mark.parametrize("seed", range(20))
def test_any_rows_of_parquet_files_come_in_the_order_that_is_asked_for(
    tables: list[dict[str, Any]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    places = random.permutation(len(tables))[: random.integers(1, 80)]
    if seed % 2:
        places.sort()
    rows = [tables[place] for place in places]
    assert read(*rows) == [name_of(row) for row in rows]


def test_keys_need_not_be_in_the_order_of_the_rows(tmp_path: Path) -> None:
    keys = [f"{n * 37 % 100:03}" for n in range(100)]
    path = write_parquet(
        tmp_path / "p.parquet", {"key": keys, "jpg": [key.encode() for key in keys]}
    )
    images, _ = listed(path)
    assert [image["row"] for image in images] != sorted(image["row"] for image in images)
    assert read(*images) == [f"{n:03}".encode() for n in range(100)]


def test_rows_without_bytes_are_a_reason(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"jpg": [b"0", None, b"x" * 1001, b""]})
    images, _ = listed(path)
    assert read(*images) == [
        b"0",
        Unreadable("no image bytes in its Parquet row"),
        Unreadable("too large: 1,001 bytes, more than image.max_bytes 1,000"),
        b"",
    ]


def test_bytes_may_stand_in_a_struct(tmp_path: Path) -> None:
    cells = [{"bytes": b"0", "path": "a"}, None, {"bytes": None, "path": "c"}, {"bytes": b"3"}]
    images, _ = listed(write_parquet(tmp_path / "p.parquet", {"image": cells}))
    none = Unreadable("no image bytes in its Parquet row")
    assert read(*images) == [b"0", none, none, b"3"]


def test_the_column_may_be_chosen(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"jpg": [b"small"], "full": [b"large"]})
    assert read({"uri": str(path), "row": 0}, image_column="full") == [b"large"]
    with pytest.raises(InputError, match=r"p\.parquet: column `none` does not hold image bytes"):
        read({"uri": str(path), "row": 0}, image_column="none")


def test_a_row_that_is_no_longer_there_is_a_reason(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", {"jpg": [b"0", b"1"]})
    images = [{"uri": str(path), "row": row} for row in (5, 1, 2)]
    gone = Unreadable("its Parquet file has no such row any more")
    assert read(*images) == [gone, b"1", gone]


def test_a_missing_or_damaged_file_is_a_reason_for_its_rows_alone(tmp_path: Path) -> None:
    write_parquet(tmp_path / "good.parquet", {"jpg": [b"0"]})
    (tmp_path / "bad.parquet").write_bytes(b"not Parquet")
    names = ["good", "missing", "missing", "bad", "good"]
    found = read(*({"uri": str(tmp_path / f"{name}.parquet"), "row": 0} for name in names))
    assert found[0] == found[4] == b"0"
    reasons = [data.reason.split(":")[0] for data in found[1:4] if isinstance(data, Unreadable)]
    assert reasons == ["FileNotFoundError", "FileNotFoundError", "ArrowInvalid"]


def damage_page(content: bytes, group: int) -> bytes:
    """A Parquet file of one column, the header of whose page in this row group is damaged."""
    metadata = pq.read_metadata(io.BytesIO(content))
    start = metadata.row_group(group).column(0).data_page_offset
    return content[:start] + b"\xff" * 20 + content[start + 20 :]


def test_rows_before_damaged_ones_are_read(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "p.parquet",
        {"jpg": [b"first" * 50, b"second" * 50]},
        row_group_size=1,
        use_dictionary=False,
    )
    path.write_bytes(damage_page(path.read_bytes(), 1))
    first, second = read(*({"uri": str(path), "row": row} for row in (0, 1)))
    assert first == b"first" * 50
    assert isinstance(second, Unreadable)


def test_rows_of_every_kind_may_stand_together(tmp_path: Path) -> None:
    """A source whose format has changed leaves such manifests."""
    (tmp_path / "s.tar").write_bytes(tar({"0.jpg": b"member"}))
    ((member,), _) = listed(tmp_path / "s.tar")
    path = write_parquet(tmp_path / "p.parquet", {"jpg": [b"row 0", b"row 1"]})
    images = [
        file(tmp_path / "a.jpg", b"file"),
        {"uri": str(path), "row": 1},
        member,
        {"uri": str(path), "row": 0},
    ]
    data = [b"file", b"row 1", b"member", b"row 0"]
    for order in itertools.permutations(range(4)):
        assert read(*(images[place] for place in order)) == [data[place] for place in order]


# Object stores


def test_remote_files_are_read_by_threads_in_order(memory_root: str) -> None:
    images = [file(f"{memory_root}/{n}", b"%d" % n) for n in range(100)]
    images[50] = {"uri": f"{memory_root}/missing", "size": 3}
    found = read(*images)
    assert isinstance(found[50], Unreadable)
    found[50] = b"50"
    assert found == [b"%d" % n for n in range(100)]


class Flaky(fsspec.AbstractFileSystem):
    """A storage that does not answer as often as it is told not to."""

    protocol = "flaky"
    files: ClassVar[dict[str, bytes]] = {}
    failures: ClassVar[int] = 0
    asked: ClassVar[Counter[str]] = Counter()
    _lock = threading.Lock()

    def _answer(self, path: str) -> bytes:
        path = self._strip_protocol(path)
        with Flaky._lock:
            Flaky.asked[path] += 1
            if Flaky.failures:
                Flaky.failures -= 1
                raise ConnectionError("the storage is away")
        if path not in Flaky.files:
            raise FileNotFoundError(path)
        return Flaky.files[path]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {"name": path, "size": len(Flaky.files[path]), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.BytesIO:
        return io.BytesIO(self._answer(path))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[Flaky]:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(fetching, "_STORAGE_PATIENCE_S", 2.0)
    Flaky.files, Flaky.failures, Flaky.asked = {"a": b"answer"}, 0, Counter()
    return Flaky


@pytest.mark.parametrize(
    "image", [{"size": 6}, {}, {"offset": 0, "size": 6}], ids=["whole", "unknown", "range"]
)
def test_a_storage_that_is_away_for_a_while_is_waited_for(
    flaky: type[Flaky], image: dict[str, Any]
) -> None:
    flaky.failures = 2
    started = time.monotonic()
    assert read({"uri": "flaky://a", **image}) == [b"answer"]
    assert flaky.asked["a"] == 3
    assert time.monotonic() - started > 1.0  # it is not hurried


def test_parquet_rows_wait_for_their_storage_too(flaky: type[Flaky]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": [b"0", b"1"]}), buffer)
    flaky.files["p.parquet"] = buffer.getvalue()
    flaky.failures = 1
    images = [{"uri": "flaky://p.parquet", "row": row} for row in (1, 0)]
    assert read(*images) == [b"1", b"0"]


@pytest.mark.parametrize("image", [{"size": 6}, {"row": 0}])
def test_a_storage_that_never_answers_stops_the_job(
    flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch, image: dict[str, Any]
) -> None:
    monkeypatch.setattr(fetching, "_STORAGE_PATIENCE_S", 1.0)
    flaky.failures = 1000
    with pytest.raises(StorageUnavailable, match=r"flaky://a: no answer for 1 s.*storage is away"):
        read({"uri": "flaky://a", **image})


def test_what_a_storage_says_about_a_file_is_not_asked_again(flaky: type[Flaky]) -> None:
    assert reason({"uri": "flaky://missing", "size": 3}) == "FileNotFoundError: missing"
    assert flaky.asked["missing"] == 1


def test_a_damaged_parquet_file_on_a_storage_is_a_reason_at_once(flaky: type[Flaky]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"jpg": [b"0"]}), buffer, use_dictionary=False)
    flaky.files["whole"] = b"not Parquet"
    flaky.files["page"] = damage_page(buffer.getvalue(), 0)
    for name in ("whole", "page"):
        started = time.monotonic()
        reason({"uri": f"flaky://{name}", "row": 0})
        assert time.monotonic() - started < 0.5


def test_a_protocol_that_nobody_knows_stops_the_job() -> None:
    with pytest.raises(InputError, match="not-a-protocol"):
        read({"uri": "not-a-protocol://x"})


# The web


class Site(BaseHTTPRequestHandler):
    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:  # as some servers do
        self.send_error(405)

    def do_GET(self) -> None:
        Site.asked[self.path] += 1
        name = self.path[1:]
        if name == "moved":
            self.send_response(302)
            self.send_header("Location", "/ok?size=large")
            self.end_headers()
        elif name.startswith("ok"):
            self._send(b"fine", {"Content-Length": "4"})
        elif name == "busy-once" and Site.asked[self.path] == 1:
            self.send_error(503)
        elif name == "busy-once":
            self._send(b"fine", {"Content-Length": "4"})
        elif name == "slow":  # neither its length nor all of it at once
            self._send(b"", {})
            for part in (b"one ", b"two ", b"three"):
                time.sleep(0.1)
                self.wfile.write(part)
        elif name == "endless":
            self._send(b"", {})
            try:
                while True:
                    self.wfile.write(b"x" * 100_000)
                    Site.asked["bytes"] += 100_000
            except OSError:
                pass
        elif name == "cut":
            self._send(b"fine", {"Content-Length": "400"})
        else:
            self.send_error(int(name))

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(fetching, "_WEB_PATIENCE_S", 1.0)
    Site.asked = Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_images_are_read_from_the_web_with_one_request(site: str) -> None:
    assert read({"uri": f"{site}/ok"}) == [b"fine"]
    assert Site.asked == {"/ok": 1}


def test_redirects_are_followed(site: str) -> None:
    assert read({"uri": f"{site}/moved"}) == [b"fine"]


def test_a_body_without_a_length_that_comes_in_pieces_is_read_whole(site: str) -> None:
    assert read({"uri": f"{site}/slow"}) == [b"one two three"]


def test_a_body_without_a_length_and_an_end_is_bounded(site: str) -> None:
    assert reason({"uri": f"{site}/endless"}).startswith("too large: 1,001 bytes")
    assert Site.asked["bytes"] < 50_000_000  # what the sockets hold, at most


@pytest.mark.parametrize(
    ("status", "said"), [(404, "FileNotFoundError"), (410, "410"), (403, "403")]
)
def test_what_a_site_refuses_is_a_reason_at_once(site: str, status: int, said: str) -> None:
    started = time.monotonic()
    assert said in reason({"uri": f"{site}/{status}"})
    assert time.monotonic() - started < 0.5
    assert Site.asked[f"/{status}"] == 1


@pytest.mark.parametrize("status", [500, 429])
def test_a_site_in_trouble_is_asked_again_and_then_a_reason(site: str, status: int) -> None:
    assert str(status) in reason({"uri": f"{site}/{status}"})
    assert Site.asked[f"/{status}"] == 2


def test_a_site_that_was_in_trouble_is_read(site: str) -> None:
    assert read({"uri": f"{site}/busy-once"}) == [b"fine"]


def test_half_a_body_is_a_reason(site: str) -> None:
    assert "Payload" in reason({"uri": f"{site}/cut"})


def test_a_site_that_is_not_there_is_a_reason_for_its_images_alone(site: str) -> None:
    found = read({"uri": "http://127.0.0.1:1/a.jpg"}, {"uri": f"{site}/ok"})
    assert isinstance(found[0], Unreadable)
    assert found[1] == b"fine"


def test_an_archive_that_is_not_there_is_a_reason_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.jpg", b"fine")
    there, gone = f"zip://x.jpg::{tmp_path}/a.zip", f"zip://x.jpg::{tmp_path}/gone.zip"
    assert read({"uri": there}) == [b"fine"]
    assert "No such file or directory" in reason({"uri": gone})


@pytest.mark.parametrize("place", ["local", "s3"])
def test_what_is_wrong_with_one_member_of_an_archive_is_its_own_reason(
    tmp_path: Path, s3: Door, place: str
) -> None:
    """At once: to ask again would not help, and to stop the job would stop it for ever."""
    members = {"fine": b"fine", "damaged": b"wrong" * 9, "packed": b"x" * 99, "secret": b"s"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            packed = zipfile.ZIP_DEFLATED if name == "packed" else zipfile.ZIP_STORED
            archive.writestr(name, data, packed)
    content = bytearray(buffer.getvalue())
    content[content.index(b"wrong")] ^= 1
    content[content.index(b"packed") + len("packed")] ^= 255
    content[content.rindex(b"secret") - 38] |= 1  # of its flags in the table of contents
    url = f"s3://{BUCKET}/odd.zip" if place == "s3" else str(tmp_path / "odd.zip")
    storage.write_bytes(url, bytes(content))
    fine, *odd = read(*({"uri": f"zip://{name}::{url}"} for name in members))
    assert fine == b"fine"
    for data, reason in zip(odd, ("Bad CRC", "Error -3", "encrypted"), strict=True):
        assert isinstance(data, Unreadable)
        assert reason in data.reason
