from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from captioner import parquet_dir, storage, storage_errors, urls
from captioner.errors import InputError


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, memory_root: str) -> str:
    return str(tmp_path) if request.param == "local" else memory_root


@pytest.mark.parametrize(
    ("url", "parts", "joined"),
    [
        ("s3://bucket/run", ["model", "config.yaml"], "s3://bucket/run/model/config.yaml"),
        ("s3://bucket/run/", ["model"], "s3://bucket/run/model"),
        ("/runs/n", ["a.json"], "/runs/n/a.json"),
        ("/runs/n/", [], "/runs/n"),
    ],
)
def test_places_are_joined_by_one_slash(url: str, parts: list[str], joined: str) -> None:
    assert storage.join(url, *parts) == joined


@pytest.mark.parametrize(
    ("url", "resolved"),
    [
        ("s3://bucket/run/", "s3://bucket/run"),
        ("memory://run", "memory://run"),
        ("/runs/../runs/n/", "/runs/n"),
        ("runs/n", "{here}/runs/n"),
        (".", "{here}"),
        ("~/runs", "{home}/runs"),
        (Path("runs/n"), "{here}/runs/n"),
    ],
)
def test_local_paths_become_absolute_and_urls_stay(
    url: str | Path, resolved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here, home = os.getcwd(), os.path.expanduser("~")
    assert storage.resolve(url) == resolved.format(here=here, home=home)


def test_bytes_text_and_json_round_trip_and_folders_are_made(root: str) -> None:
    url = storage.join(root, "deep", "er", "file")
    assert not storage.exists(url)
    storage.write_bytes(url, b"\x00\xff")
    assert storage.exists(url)
    assert storage.read_bytes(url) == b"\x00\xff"
    storage.write_text(url, "Grüße\r\n")
    assert storage.read_text(url) == "Grüße\r\n"
    storage.write_json(url, {"ü": [1, 2.5, None]})
    assert storage.read_json(url) == {"ü": [1, 2.5, None]}
    assert "ü" in storage.read_text(url)


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
    storage.write_text(url, "a long first text")
    with open(url) as reader:
        storage.write_text(url, "second")
        assert reader.read() == "a long first text"  # who has the old file open reads it to its end
    assert storage.read_text(url) == "second"
    assert os.listdir(tmp_path) == ["file"]


def test_several_may_write_the_same_file_at_the_same_time(tmp_path: Path) -> None:
    url, failed = str(tmp_path / "file"), []

    def write(text: str) -> None:
        try:
            for _ in range(50):
                storage.write_text(url, text)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter * 1000,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert storage.read_text(url) in {letter * 1000 for letter in "abcd"}
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "file")
    storage.write_text(url, "old")

    def fail(fs: object, path: str, data: bytes) -> None:
        Path(path).write_bytes(data[:1])
        raise OSError("No space left on device")

    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "pipe_file", fail)
    with pytest.raises(OSError, match="No space left"):
        storage.write_text(url, "new")
    assert storage.read_text(url) == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_table_is_written_whole(root: str) -> None:
    url = storage.join(root, "deep", "part.parquet")
    for numbers in ([1, 2, 3, 4, 5], [6]):
        storage.write_table(url, pa.table({"x": numbers}), row_group_size=2)
        filesystem, path = storage.arrow_filesystem(url)
        file = pq.ParquetFile(path, filesystem=filesystem)
        assert file.read()["x"].to_pylist() == numbers
        assert file.metadata.num_row_groups == (len(numbers) + 1) // 2
    assert [path.rpartition("/")[2] for path in storage.files(storage.join(root, "deep"), "")] == [
        "part.parquet"
    ]


def test_a_killed_write_leaves_the_old_table_and_nothing_that_parquet_readers_see(
    tmp_path: Path,
) -> None:
    url = str(tmp_path / "part.parquet")
    storage.write_table(url, pa.table({"x": [1]}))
    killed = (
        "import os, signal, sys; import pyarrow as pa; from captioner import storage\n"
        "os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.write_table(sys.argv[1], pa.table({'x': [2]}))"
    )
    assert subprocess.run([sys.executable, "-c", killed, url]).returncode == -9
    assert len(os.listdir(tmp_path)) == 2
    assert parquet_dir.read(str(tmp_path))["x"].to_pylist() == [1]


def test_a_directory_is_removed_with_all_that_is_in_it(root: str) -> None:
    storage.write_text(storage.join(root, "gone", "deep", "file"), "x")
    storage.write_text(storage.join(root, "kept"), "x")
    storage.remove(storage.join(root, "gone"))
    assert not storage.exists(storage.join(root, "gone"))
    assert storage.exists(storage.join(root, "kept"))
    storage.remove(storage.join(root, "gone"))


def test_a_stage_has_a_summary_once_it_has_ended(root: str) -> None:
    stage = storage.join(root, "features")
    assert storage.read_summary(stage) is None
    storage.write_summary(stage, {"rows": 3})
    assert storage.read_summary(stage) == {"rows": 3}


def test_parquet_readers_skip_the_summary(root: str) -> None:
    filesystem, path = storage.arrow_filesystem(root)
    storage.write_summary(root, {"rows": 3})
    pq.write_table(pa.table({"x": [1, 2]}), f"{path}/part.parquet", filesystem=filesystem)
    assert pq.read_table(path, filesystem=filesystem)["x"].to_pylist() == [1, 2]


def test_arrow_and_fsspec_see_the_same_files(root: str) -> None:
    storage.write_bytes(storage.join(root, "by-fsspec"), b"one")
    filesystem, path = storage.arrow_filesystem(root)
    with filesystem.open_input_stream(f"{path}/by-fsspec") as stream:
        assert stream.read() == b"one"
    with filesystem.open_output_stream(f"{path}/by-arrow") as stream:
        stream.write(b"two")
    assert storage.read_bytes(storage.join(root, "by-arrow")) == b"two"


def test_local_files_go_through_arrows_own_file_system(tmp_path: Path) -> None:
    filesystem, path = storage.arrow_filesystem(str(tmp_path))
    assert isinstance(filesystem, pyarrow.fs.LocalFileSystem)
    assert path == str(tmp_path)


@pytest.mark.parametrize("name", ["a::b.jpg", "Zürich::1::2.txt", "a b", "%41", "#", "x?y*[z]"])
def test_local_names_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    storage.write_text(str(tmp_path / name), name)
    assert os.listdir(tmp_path) == [name]
    assert storage.read_text(str(tmp_path / name)) == name


@pytest.mark.parametrize(
    ("url", "chain"),
    [
        ("simplecache::s3://bucket/a", True),
        ("filecache::memory://a", True),
        ("zip://a.jpg::s3://bucket/x.zip", True),
        ("zip://::file:///x.zip", True),
        ("s3://bucket/a::file:///etc/passwd", True),
        ("s3://bucket/a", False),
        ("s3://bucket/a::b.jpg", False),
        ("s3://bucket/2024-01-01T10::30/a://b", False),
        ("/data/a::b.jpg", False),
        ("a::b", False),
        ("zip://a.jpg::/photos/a.zip", True),
        ("tar://a.jpg::photos.tar", True),
    ],
)
def test_only_protocols_make_a_chain_of_file_systems(url: str, chain: bool) -> None:
    assert urls.is_chain(url) == chain


def test_a_uri_leads_back_to_its_file(root: str) -> None:
    storage.write_text(storage.join(root, "deep", "file"), "x")
    fs, path = storage.filesystem(root)
    (found,) = fs.find(path)
    uri = storage.uri(fs, found)
    assert storage.read_text(uri) == "x"
    assert storage.uri(*storage.filesystem(uri)) == uri
    assert ("://" in uri) == ("://" in root)


def test_a_uri_of_a_local_file_is_its_path(tmp_path: Path) -> None:
    for url in (f"{tmp_path}/a", f"file://{tmp_path}/a", f"local://{tmp_path}/a"):
        fs, path = storage.filesystem(url)
        assert storage.is_local(fs)
        assert storage.uri(fs, path) == f"{tmp_path}/a"


def test_a_cache_in_front_of_a_remote_storage_is_not_local() -> None:
    fs, _ = storage.filesystem("filecache::memory://a")
    assert not storage.is_local(fs)


def test_files_are_found_by_how_their_names_begin(root: str) -> None:
    directory = storage.join(root, "run[1]")
    for name in ("part-1", "part-0", "_summary.json", "other/part-2"):
        storage.write_text(storage.join(directory, name), name)
    found = storage.files(directory, "part-")
    assert [path.rpartition("/")[2] for path in found] == ["part-0", "part-1"]
    fs, _ = storage.filesystem(directory)
    assert [storage.read_text(storage.uri(fs, path)) for path in found] == ["part-0", "part-1"]
    assert storage.files(storage.join(root, "nowhere"), "part-") == []


def test_a_missing_file_system_is_named_with_the_extra_that_brings_it() -> None:
    extras = {
        "s3://bucket/run": "s3",
        "gs://bucket/run": "gcs",
        "abfs://container/run": "azure",
        "https://host/a.tar": "http",
    }
    # In a process of its own, where none of them is installed.
    code = """
import sys
sys.modules.update(dict.fromkeys(("s3fs", "gcsfs", "adlfs", "aiohttp")))
from captioner import storage
from captioner.errors import InputError
for url in sys.argv[1:]:
    try:
        storage.filesystem(url)
    except InputError as error:
        print(error)
"""
    command = [sys.executable, "-c", code, *extras]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == [
        f"{url}: its file system is not installed: pip install 'captioner[{extra}]'"
        for url, extra in extras.items()
    ]


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(InputError, match=r"nonsense://x: .*nonsense"):
        storage.filesystem("nonsense://x")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/photos"),
        PermissionError("Access Denied"),
        RuntimeError("botocore.exceptions.NoCredentialsError: Unable to locate credentials"),
    ],
)
def test_a_storage_that_says_no_is_neither_away_nor_full(error: Exception) -> None:
    assert storage_errors.is_refused(error)
    assert not storage_errors.is_away(error)
    assert not storage_errors.is_full(error)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_is_full_whoever_passes_it_on(number: int) -> None:
    error = OSError(number, os.strerror(number))
    other = "rank 1:\n  File x, line 2\nRuntimeError: the other one is gone"
    passed_on = RuntimeError(f"rank 0:\n  File x, line 1\nOSError: {error}\n{other}")
    assert storage_errors.is_full(error)
    assert storage_errors.is_full(passed_on)
    assert storage_errors.reason(passed_on) == f"OSError: {error}"


def test_what_a_killed_process_was_writing_is_deleted(tmp_path: Path) -> None:
    killed = f"import os\nfrom captioner import storage\nurl = {str(tmp_path / 'a.txt')!r}\n"
    killed += "with storage.writer(url) as file:\n    os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", killed], check=False)
    assert len(list(tmp_path.glob("*.partial"))) == 1
    kept = ["_mine.partial", "_summary.json", "captions.jsonl"]
    for name in kept:
        (tmp_path / name).touch()
    storage.remove_partial(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == kept
    storage.remove_partial(str(tmp_path / "nowhere"))
