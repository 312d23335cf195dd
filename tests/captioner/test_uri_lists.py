from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from captioner import storage
from captioner.errors import InputError
from tests.listings import ids, listed, write_parquet


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return tmp_path / "list.txt"


def places(images: Path | str, **options: Any) -> dict[str, str]:
    found, _ = listed(images, **options)
    return {row["image_id"]: row["uri"] for row in found}


def test_every_line_is_an_image(text: Path) -> None:
    text.write_bytes(
        b"\xef\xbb\xbf/data/a.jpg\r\n\r\n   \n  s3://bucket/b c.jpg  \nfile:///data/d.jpg\n/\xc3\xa4.jpg"
    )
    found, skipped = listed(text)
    assert [row["image_id"] for row in found] == [
        "/data/a.jpg",
        "/ä.jpg",
        "file:///data/d.jpg",
        "s3://bucket/b c.jpg",
    ]
    assert not skipped
    for row in found:
        assert row["uri"] == row["image_id"]
        assert row["captions"] == []
        assert {row[name] for name in ("offset", "row", "size", "modified", "etag")} == {None}


def test_relative_paths_start_at_the_list(text: Path, memory_root: str) -> None:
    text.write_text("a.jpg\ndeep/b.jpg\n/c.jpg\n")
    folder = str(text.parent)
    assert places(text) == {
        "a.jpg": f"{folder}/a.jpg",
        "deep/b.jpg": f"{folder}/deep/b.jpg",
        "/c.jpg": "/c.jpg",
    }
    storage.write_text(f"{memory_root}/lists/l.txt", "a.jpg\n")
    storage.write_text(f"{memory_root}/lists/a.jpg", "its bytes")
    assert storage.read_text(places(f"{memory_root}/lists/l.txt")["a.jpg"]) == "its bytes"


def test_a_parquet_list_has_keys_and_captions(tmp_path: Path) -> None:
    columns = {
        "url": ["/a.jpg", " /b.jpg ", "/c.jpg"],
        "caption": ["a", None, "c"],
        "key": ["k0", "k1", None],
    }
    found, skipped = listed(write_parquet(tmp_path / "l.parquet", columns))
    assert [(row["image_id"], row["uri"], row["captions"]) for row in found] == [
        ("/c.jpg", "/c.jpg", ["c"]),
        ("k0", "/a.jpg", ["a"]),
        ("k1", "/b.jpg", []),
    ]
    assert {row["row"] for row in found} == {None}  # that is for image bytes
    assert not skipped


def test_columns_of_a_parquet_list_may_be_chosen(tmp_path: Path) -> None:
    columns = {"url": ["/a.jpg"], "small": ["/a_s.jpg"], "sha": ["f00"], "alt": ["text"]}
    path = write_parquet(tmp_path / "l.parquet", columns)
    chosen = {"image_column": "small", "key_column": "sha", "caption_column": "alt"}
    ((row,), _) = listed(path, **chosen)
    assert (row["image_id"], row["uri"], row["captions"]) == ("f00", "/a_s.jpg", ["text"])


def test_a_usual_name_of_the_wrong_type_is_passed_over(tmp_path: Path) -> None:
    columns = {"uri": [1], "path": ["/a.jpg"]}
    assert ids(write_parquet(tmp_path / "l.parquet", columns))[0] == ["/a.jpg"]


def test_rows_without_a_uri_are_counted(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "l.parquet", {"url": ["/a.jpg", None, "", "  "]})
    assert ids(path) == (["/a.jpg"], {"no URI in the list": 3})


def test_conceptual_captions_are_a_caption_and_a_uri_a_line(tmp_path: Path) -> None:
    path = tmp_path / "GCC-training.tsv"
    path.write_text(
        "caption\turl\n"
        'a very typical "bus" station\thttp://example.org/a b.jpg?x=1\r\n'
        "with\ttwo tabs\thttps://example.org/b\n\n"
        "local\tpictures/c.jpg\n"
        "no address\n",
        encoding="utf-8",
        newline="",
    )
    found, skipped = listed(path, allow_http=True)
    assert {row["uri"]: row["captions"] for row in found} == {
        "http://example.org/a b.jpg?x=1": ['a very typical "bus" station'],
        "https://example.org/b": ["with\ttwo tabs"],
        f"{tmp_path}/pictures/c.jpg": ["local"],
    }
    assert skipped == {"no URI in the list": 2}
    with pytest.raises(InputError, match=r"line 2: .*allow_http"):
        listed(path)
    path.write_text("https://example.org/a.jpg\tA dog runs. It is happy\n")  # as of 12M
    assert [(row["uri"], row["captions"]) for row in listed(path, allow_http=True)[0]] == [
        ("https://example.org/a.jpg", ["A dog runs. It is happy"])
    ]
    labels = "dog,grass\t/m/0bt9lr,/m/08t9c_\t0.94,0.8"  # of which some are
    path.write_text(f"a dog\thttps://example.org/a.jpg\t{labels}\n")
    assert [(row["uri"], row["captions"]) for row in listed(path, allow_http=True)[0]] == [
        ("https://example.org/a.jpg", ["a dog"])
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"l\.parquet: no column holds URIs; it has n \(source\.image_column\)"),
        ({"image_column": "n"}, r"l\.parquet: column `n` does not hold URIs"),
        ({"key_column": "k"}, r"l\.parquet: no column"),
    ],
)
def test_a_parquet_list_without_the_column_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = write_parquet(tmp_path / "l.parquet", {"n": [1]})
    with pytest.raises(InputError, match=message):
        listed(path, **options)


def test_a_damaged_parquet_list_is_skipped_by_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", {"url": ["/a.jpg"]})
    (tmp_path / "1.parquet").write_bytes(b"PAR1 and no more")
    found, skipped = ids(tmp_path / "*.parquet")
    assert found == ["/a.jpg"]
    (reason,) = skipped
    assert reason.startswith("the rest of a damaged Parquet file: 1.parquet (")


@pytest.mark.parametrize("uri", ["http://x/a.jpg", "https://x/a.jpg", "HTTPS://x/a.jpg"])
def test_the_web_is_refused_unless_it_is_allowed(text: Path, uri: str) -> None:
    text.write_text(f"/a.jpg\n{uri}\n")
    with pytest.raises(InputError, match=r"list\.txt, line 2: .*x/a\.jpg.*source\.allow_http=true"):
        ids(text)
    assert ids(text, allow_http=True)[0] == ["/a.jpg", uri.replace("HTTPS", "https")]


def test_the_hub_is_the_web(text: Path) -> None:
    text.write_text("hf://datasets/x/a.jpg")
    with pytest.raises(InputError, match=r"line 1: .*source\.allow_http=true"):
        ids(text)


def test_an_address_that_leads_nowhere_is_named_before_work_starts(text: Path) -> None:
    text.write_text("/a.jpg\ns3://[x/a.jpg\n")
    with pytest.raises(InputError, match=r"list\.txt, line 2: s3://\[x/a\.jpg"):
        ids(text)


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://x/a.jpg",
        "sftp://x/a.jpg",
        "data://image/png;base64,AAAA",
        "github://x/a.jpg",
        "reference://a",
        "simplecache::https://x/a.jpg",
        "zip://a.jpg::s3://bucket/x.zip",
        "s3://bucket/a::file:///etc/passwd",
        "https://x/a::simplecache::file:///etc/passwd",
        "local::s3://x",
    ],
)
def test_other_protocols_and_chains_are_refused_whatever_is_allowed(text: Path, uri: str) -> None:
    text.write_text(uri)
    with pytest.raises(InputError, match=r"list\.txt, line 1: .*: not a protocol that a list may"):
        ids(text, allow_http=True)


def test_the_row_of_a_refused_uri_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "l.parquet", {"url": ["/a.jpg", "ftp://x"]})
    with pytest.raises(InputError, match=r"l\.parquet, row 1: ftp://x"):
        ids(path)


def test_without_slashes_a_protocol_is_a_file_name(text: Path) -> None:
    names = ["data:image/png;base64,AAAA", "file:a.jpg", "simplecache::a.jpg"]
    text.write_text("\n".join(names))
    assert places(text) == {name: f"{text.parent}/{name}" for name in names}


def test_two_colons_in_a_name_are_no_chain(text: Path) -> None:
    uris = ["https://x/a::b.jpg", "s3://bucket/a::b::c.jpg", "/data/a::b.jpg"]
    text.write_text("\n".join(uris))
    assert places(text, allow_http=True) == {uri: uri for uri in uris}


def test_globs_see_a_uri_without_its_query(text: Path) -> None:
    text.write_text("http://x/a.jpg?size=1&b.png\nhttp://x/a.png?v=a.jpg\nhttp://x/.jpg\n")
    found, skipped = ids(text, allow_http=True, include=["*.jpg"])
    assert found == ["http://x/a.jpg?size=1&b.png"]
    assert skipped == {"not in source.include": 1, "hidden file": 1}


def test_a_line_that_is_not_utf_8_is_an_image_that_will_not_be_found(text: Path) -> None:
    text.write_bytes(b"/caf\xe9.jpg\nhttp://x/a.jpg?q=\xe9\n")
    assert ids(text, allow_http=True) == ([r"/caf\xe9.jpg", r"http://x/a.jpg?q=\xe9"], {})


def test_several_lists_are_one_source(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "l.txt").write_text(f"{name}.jpg\n")
    assert places(tmp_path / "*" / "l.txt") == {
        "one.jpg": f"{tmp_path}/one/one.jpg",
        "two.jpg": f"{tmp_path}/two/two.jpg",
    }


def test_a_list_on_any_file_system(memory_root: str) -> None:
    storage.write_table(f"{memory_root}/l.parquet", pa.table({"url": [f"{memory_root}/a.jpg"]}))
    assert places(f"{memory_root}/l.parquet") == {f"{memory_root}/a.jpg": f"{memory_root}/a.jpg"}


def test_columns_that_are_to_be_kept_are_kept_as_text(tmp_path: Path) -> None:
    columns = {
        "url": ["/a.jpg", "/b.jpg", "/c.jpg"],
        "camera": pa.array(["front", "rear", None]).dictionary_encode(),
        "weather": ["sun", None, ""],
        "year": [2024, None, -1],
        "night": [True, False, None],
    }
    path = write_parquet(tmp_path / "l.parquet", columns)
    found, _ = listed(path, keep_columns=["camera", "year", "night", "weather"])
    names = ("camera", "year", "night", "weather")
    assert [tuple(row[name] for name in names) for row in found] == [
        ("front", "2024", "true", "sun"),
        ("rear", None, "false", None),
        (None, "-1", None, ""),
    ]
    assert set(listed(path)[0][0]) & set(names) == set()


def test_a_column_that_cannot_be_kept_is_refused(tmp_path: Path, text: Path) -> None:
    path = write_parquet(tmp_path / "l.parquet", {"url": ["/a.jpg"], "score": [0.5]})
    for name in ("score", "camera"):
        with pytest.raises(InputError, match=f"no column `{name}` of text.*it has url, score"):
            listed(path, keep_columns=[name])
    text.write_text("/a.jpg\n")
    with pytest.raises(InputError, match=r"source\.keep_columns: .*list\.txt has no columns"):
        listed(text, keep_columns=["camera"])
    with pytest.raises(InputError, match="has no columns"):
        listed(tmp_path, keep_columns=["camera"])


def test_a_caption_that_is_not_utf_8_is_counted_and_its_image_has_none(tmp_path: Path) -> None:
    text = tmp_path / "list.tsv"
    text.write_bytes("Un chat.\t/photos/a.jpg\nUn caf\xe9.\t/photos/b.jpg\n".encode("latin-1"))
    found, skipped = listed(text)
    captions = {row["image_id"]: row["captions"] for row in found}
    assert captions == {"/photos/a.jpg": ["Un chat."], "/photos/b.jpg": []}
    assert skipped == {"caption that is not UTF-8": 1}


@pytest.mark.parametrize("name", ["list.txt", "list.tsv"])
def test_a_list_in_utf_16_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("A cat.\t/photos/a.jpg\n".encode("utf-16"))
    with pytest.raises(InputError, match=rf"{name}, line 1: null characters: is it UTF-16"):
        ids(tmp_path / name)
