from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pytest

from captioner import storage
from captioner.errors import InputError
from tests.listings import ids, listed, tar


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return tmp_path / "s.tar"


def bytes_of(image: dict[str, Any]) -> bytes:
    with fsspec.open(image["uri"], "rb") as file:
        file.seek(image["offset"])
        data: bytes = file.read(image["size"])
    return data


def captions_of(shard: Path) -> dict[str, list[str]]:
    found, _ = listed(shard)
    return {row["image_id"].removeprefix("s.tar/"): row["captions"] for row in found}


def test_a_member_is_described_in_place(shard: Path) -> None:
    shard.write_bytes(tar({"0.jpg": b"first", "1.png": b"the second"}))
    os.utime(shard, (1_000_000, 1_000_000))
    found, skipped = listed(shard)
    assert [row["image_id"] for row in found] == ["s.tar/0.jpg", "s.tar/1.png"]
    assert not skipped
    assert [bytes_of(row) for row in found] == [b"first", b"the second"]
    for row in found:
        assert row["uri"] == str(shard)
        assert row["modified"].timestamp() == 1_000_000
        assert row["row"] is None
        assert row["captions"] == []


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_lead_to_the_bytes_whatever_stands_between(shard: Path, format_: int) -> None:
    long = "x" * 60
    members = {
        f"{long}/{long}/0.jpg": b"a" * 512,
        f"{long}/{long}/0.txt": b"not an image",
        f"{long}/{long}/1.jpg": b"",
        "2.jpg": b"b" * 513,
        "3.jpg": b"c" * 3,
    }
    if format_ != tarfile.USTAR_FORMAT:
        members[f"{long * 5}.jpg"] = b"longer than a header"
        members["Grüße ☃.jpg"] = b"d" * 1024
    shard.write_bytes(tar(members, format=format_))
    found, _ = listed(shard)
    images = {f"s.tar/{name}": data for name, data in members.items() if name.endswith(".jpg")}
    assert {row["image_id"]: bytes_of(row) for row in found} == images


def test_captions_come_from_the_samples_text_or_json(shard: Path) -> None:
    members = {
        "0.jpg": b"",
        "0.txt": " a dog läuft \n".encode(),
        "1.json": b'{"caption": "from json", "url": "http://x"}',
        "1.jpg": b"",
        "2.jpg": b"",
        "2.json": b'{"caption": ["one", " ", "two"]}',
        "3.jpg": b"",
        "4.jpg": b"",
        "4.txt": b"  ",
        "4.json": b'{"caption": "the text was empty"}',
    }
    shard.write_bytes(tar(members))
    assert captions_of(shard) == {
        "0.jpg": ["a dog läuft"],
        "1.jpg": ["from json"],
        "2.jpg": ["one", "two"],
        "3.jpg": [],
        "4.jpg": ["the text was empty"],
    }


def test_captions_come_from_the_key_that_is_chosen(shard: Path) -> None:
    said = b'{"caption": "as usual", "described": "by hand"}'
    members = {"0.jpg": b"", "0.txt": b"alt text", "0.json": said, "1.jpg": b"", "1.txt": b"x"}
    shard.write_bytes(tar(members))
    found, _ = listed(shard, caption_column="described")
    assert [row["captions"] for row in found] == [["by hand"], []]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_captions_may_begin_with_a_byte_order_mark(shard: Path, encoding: str) -> None:
    said = json.dumps({"caption": "ein Käfer"}, ensure_ascii=False)
    members = {"0.jpg": b"", "0.txt": "ein Hündchen".encode(encoding), "1.jpg": b""}
    shard.write_bytes(tar({**members, "1.json": said.encode(encoding)}))
    assert captions_of(shard) == {"0.jpg": ["ein Hündchen"], "1.jpg": ["ein Käfer"]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"{}",
        b'{"caption": null}',
        b'{"caption": 3}',
        b"\xff\xfe",
        b"9",
    ],
)
def test_json_without_a_caption_is_no_caption(shard: Path, content: bytes) -> None:
    shard.write_bytes(tar({"0.jpg": b"", "0.json": content}))
    assert captions_of(shard) == {"0.jpg": []}


@pytest.mark.parametrize("content", [b'{"n": ' + b"9" * 5000 + b"}", b"[" * 200_000])
def test_json_that_python_refuses_is_no_caption(shard: Path, content: bytes) -> None:
    shard.write_bytes(tar({"0.jpg": b"", "0.json": content}))
    assert captions_of(shard) == {"0.jpg": []}


def test_captions_that_are_not_unicode_do_not_stop_the_listing(shard: Path) -> None:
    members = {"0.jpg": b"", "0.json": rb'{"caption": "half \ud83d a smile"}', "1.jpg": b""}
    shard.write_bytes(tar({**members, "1.txt": b"latin \xe9"}))
    assert captions_of(shard) == {
        "0.jpg": ["half ? a smile"],
        "1.jpg": ["latin \N{REPLACEMENT CHARACTER}"],
    }


def test_a_sample_may_have_several_images_and_shares_its_captions(shard: Path) -> None:
    members = {"0.left.jpg": b"l", "0.right.jpg": b"r", "0.txt": b"two views", "1.left.jpg": b"n"}
    shard.write_bytes(tar(members))
    assert captions_of(shard) == {
        "0.left.jpg": ["two views"],
        "0.right.jpg": ["two views"],
        "1.left.jpg": [],
    }


def test_samples_are_told_apart_by_their_whole_path(shard: Path) -> None:
    members = {"a.b/0.jpg": b"", "a.b/0.txt": b"of a.b", "a.c/0.jpg": b"", "a.c/1.txt": b"of none"}
    shard.write_bytes(tar(members))
    assert captions_of(shard) == {"a.b/0.jpg": ["of a.b"], "a.c/0.jpg": []}


def test_members_are_left_out_by_the_same_globs_as_files(shard: Path) -> None:
    members = {"0.jpg": b"", "0.cls": b"7", "0.json": b"{}", "._0.jpg": b"", "masks/0.png": b""}
    shard.write_bytes(tar(members))
    found, skipped = ids(shard, exclude=["*.cls", "*.json", "*/masks/*"])
    assert found == ["s.tar/0.jpg"]
    assert skipped == {"in source.exclude": 3, "hidden file": 1}


def test_members_that_are_no_files_are_counted(shard: Path) -> None:
    with tarfile.open(shard, "w") as file:
        for name, kind in [("d", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("x.jpg", b"0")]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "x.jpg"
            file.addfile(member)
    assert ids(shard) == (["s.tar/x.jpg"], {"tar member that is no plain file": 1})


def test_member_names_that_are_not_utf_8_are_counted(shard: Path) -> None:
    shard.write_bytes(tar({"\udcff.jpg": b"", "a.jpg": b""}, format=tarfile.GNU_FORMAT))
    assert ids(shard) == (["s.tar/a.jpg"], {"name is not UTF-8": 1})


def test_of_a_truncated_shard_is_listed_what_is_before_the_damage(shard: Path) -> None:
    members = {f"{n}.{kind}": kind.encode() * 300 for n in range(4) for kind in ("jpg", "png")}
    whole = tar(members)
    shard.write_bytes(whole)
    images, _ = listed(shard, exclude=[])
    end = 8 * (512 + 1024)  # of the last member; then come blocks of zeros
    for cut in range(0, end, 256):
        shard.write_bytes(whole[:cut])
        found, skipped = listed(shard, exclude=[])
        # A member whose header is there is an image, even if reading it will say that it is short.
        there = [row["image_id"] for row in images if row["offset"] <= cut]
        assert [row["image_id"] for row in found] == there, cut
        if cut % (512 + 1024) or not cut:  # else it looks like an archive without an end marker
            (reason,) = skipped
            assert "damaged" in reason
            assert "s.tar" in reason
    shard.write_bytes(whole[:end])
    assert ids(shard, exclude=[]) == ([row["image_id"] for row in images], {})


def test_captions_before_the_damage_are_kept(shard: Path) -> None:
    whole = tar({"0.jpg": b"", "0.txt": b"kept", "1.jpg": b"", "1.txt": b"lost" * 200})
    shard.write_bytes(whole[: 5 * 512 + 100])
    assert captions_of(shard) == {"0.jpg": ["kept"], "1.jpg": []}


def test_garbage_between_members_is_not_taken_for_the_end(shard: Path) -> None:
    whole = bytearray(tar({f"{n}.jpg": b"x" * 512 for n in range(4)}))
    whole[2048:2560] = b"\xa5" * 512  # the header of the third
    shard.write_bytes(whole)
    found, skipped = ids(shard)
    assert found == ["s.tar/0.jpg", "s.tar/1.jpg"]
    (reason,) = skipped
    assert "the rest of a damaged or compressed tar file: s.tar" in reason


def header(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One that says so, whether or not it can be."""
    member = tarfile.TarInfo("1.jpg")
    member.type = kind
    block = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size.to_bytes(12, "big", signed=True)
    if size >= 0:
        block[124] = 0x80
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**headers: str) -> bytes:
    """A member with such headers, without what stands before and after it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("1.jpg")
        member.pax_headers = {name.replace("_", "."): value for name, value in headers.items()}
        file.addfile(member)
        return buffer.getvalue()[: file.offset]


DAMAGES = {
    "back to itself": header(-512),
    "back to the beginning": header(-5000),
    "a byte less than nothing": header(-1),
    "beyond any file": header(2**70),
    "beyond any disk": header(2**62),
    "a name of a gigabyte": header(2**30, tarfile.GNUTYPE_LONGNAME),
    "a name of no size": header(-512, tarfile.GNUTYPE_LONGNAME),
    "PAX headers back to themselves": header(-512, tarfile.XHDTYPE),
    "by PAX less than nothing": pax(size="-512"),
    "by PAX beyond any file": pax(size="1" + 26 * "0"),
    "by PAX no number": pax(GNU_sparse_size="abc"),
    "by PAX no map": pax(GNU_sparse_map="abc"),
    "by PAX sparse, and is not": pax(GNU_sparse_major="1", GNU_sparse_minor="0"),
}


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_headers_that_cannot_be_end_their_shard_and_no_other(
    tmp_path: Path, damage: bytes, place: str
) -> None:
    before = tar({"0.jpg": b"x"})[:1024] if place == "second" else b""
    (tmp_path / "bad.tar").write_bytes(before + damage + bytes(1024))
    (tmp_path / "good.tar").write_bytes(tar({"0.jpg": b""}))
    found, skipped = ids(tmp_path, format="webdataset")
    # Of one that is too short there is still a row, which says so when it is read.
    possible = [["bad.tar/0.jpg"] * bool(before) + rest for rest in ([], ["bad.tar/1.jpg"])]
    assert found in [[*some, "good.tar/0.jpg"] for some in possible]
    (reason,) = skipped
    assert "bad.tar" in reason


@pytest.mark.parametrize("content", [b"", gzip.compress(tar({"0.jpg": b"x" * 9999})), b"x" * 9999])
def test_what_is_no_tar_file_is_skipped_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(content)
    (tmp_path / "good.tar").write_bytes(tar({"0.jpg": b""}))
    found, skipped = ids(tmp_path, format="webdataset")
    assert found == ["good.tar/0.jpg"]
    (reason,) = skipped
    assert "bad.tar" in reason


def test_an_archive_without_members_is_just_empty(shard: Path) -> None:
    shard.write_bytes(tar({}))
    assert ids(shard) == ([], {})


def test_ids_begin_with_the_shards_path_below_the_glob_or_directory(tmp_path: Path) -> None:
    for name in ("train/0.tar", "train/1.tar", "val/0.TAR", "val/deep/2.tar", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(tar({"a.jpg": name.encode()}))
    assert ids(tmp_path / "train" / "*.tar")[0] == ["0.tar/a.jpg", "1.tar/a.jpg"]
    assert ids(tmp_path / "*" / "?.tar")[0] == ["train/0.tar/a.jpg", "train/1.tar/a.jpg"]
    assert ids(tmp_path / "**" / "*.tar")[0] == [
        "train/0.tar/a.jpg",
        "train/1.tar/a.jpg",
        "val/deep/2.tar/a.jpg",
    ]
    found, _ = listed(tmp_path, format="webdataset")
    assert [row["image_id"] for row in found] == [
        "train/0.tar/a.jpg",
        "train/1.tar/a.jpg",
        "val/0.TAR/a.jpg",
        "val/deep/2.tar/a.jpg",
    ]
    assert [bytes_of(row).decode() for row in found] == [
        row["image_id"].removesuffix("/a.jpg") for row in found
    ]


@pytest.mark.parametrize("form", ["{}/*.tar", "{}/a.tar", "{}/[a-c].tar"])
def test_shards_on_any_file_system(memory_root: str, form: str) -> None:
    storage.write_bytes(f"{memory_root}/a.tar", tar({"deep/0.jpg": b"zero", "0.txt": b"no"}))
    ((image,), _) = listed(form.format(memory_root))
    assert image["image_id"] == "a.tar/deep/0.jpg"
    assert bytes_of(image) == b"zero"


def test_a_glob_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\*\.tar: no \.tar file \(source\.images\)"):
        ids(tmp_path / "*.tar")


def test_keys_of_a_samples_json_are_kept(shard: Path) -> None:
    members = {
        "0.jpg": b"0",
        "0.json": b'{"caption": "a dog", "camera": "front", "lens": 35, "boxes": [1, 2]}',
        "1.json": b'{"camera": null, "night": true}',
        "1.jpg": b"1",
        "2.jpg": b"2",
    }
    shard.write_bytes(tar(members))
    found, _ = listed(shard, exclude=["*.json"], keep_columns=["camera", "lens", "night", "boxes"])
    names = ("camera", "lens", "night", "boxes")
    assert [tuple(row[name] for name in names) for row in found] == [
        ("front", "35", None, None),
        (None, None, "true", None),
        (None, None, None, None),
    ]
    assert found[0]["captions"] == ["a dog"]
