from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from captioner import references
from captioner.config import Split
from captioner.errors import InputError
from captioner.reference_formats import CaptionFile
from captioner.references import Names, Splitter

KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "val2014",
            "filename": "a.jpg",
            "split": "restval",
            "sentences": [{"raw": " A dog. ", "tokens": ["a", "dog"]}, {"raw": "Two, dogs."}],
        },
        {"filename": "b.jpg", "split": "train", "sentences": [{"raw": "A cat."}]},
        {"filename": "c.jpg", "split": "val", "sentences": []},
        {"filename": "d.jpg", "split": "test", "sentences": [{"raw": "A bird."}]},
        {"filename": "e.jpg", "sentences": [{"raw": "A cow."}]},
    ],
}
COCO = {
    "info": {"year": 2017},
    "images": [
        {"id": 7, "file_name": "000007.jpg", "height": 1, "width": 1},
        {"id": 3, "file_name": "000003.jpg"},
        {"id": 9, "file_name": "000009.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "caption": "A bus. "},
        {"id": 2, "image_id": 7, "caption": "A train."},
        {"id": 3, "image_id": 3, "caption": "The bus, again."},
    ],
}


def write(folder: Path, content: str | bytes | dict[str, Any], name: str = "captions.txt") -> str:
    path = folder / name
    text = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def csv_rows(folder: Path, rows: str) -> dict[str, list[str]]:
    return references.read(write(folder, f"image,caption\n{rows}")).captions


def test_all_captions_of_an_image_are_grouped_in_order(tmp_path: Path) -> None:
    rows = "a.jpg,first\nb.jpg,other\na.jpg,second\na.jpg,first\n"
    assert csv_rows(tmp_path, rows) == {"a.jpg": ["first", "second", "first"], "b.jpg": ["other"]}


@pytest.mark.parametrize(
    ("row", "caption"),
    [
        ("a.jpg,A dog runs .\n", "A dog runs ."),
        ('a.jpg,"A dog, running."\n', "A dog, running."),
        ('a.jpg,"A sign says ""stop""."\n', 'A sign says "stop".'),
        ('a.jpg,"A dog\nand a cat."\n', "A dog\nand a cat."),
        ("a.jpg,  spaces around  \n", "spaces around"),
        ("a.jpg,Ein Hund läuft über 草地", "Ein Hund läuft über 草地"),
        ("a.jpg,no newline at the end", "no newline at the end"),
        ("a.jpg,carriage returns\r\n\r\n", "carriage returns"),
    ],
)
def test_csv_quoting(tmp_path: Path, row: str, caption: str) -> None:
    assert csv_rows(tmp_path, row) == {"a.jpg": [caption]}


@pytest.mark.parametrize("row", ["a.jpg,\n", "a.jpg, . \n", 'a.jpg,"--"\n'])
def test_a_caption_without_words_is_none(tmp_path: Path, row: str) -> None:
    """As a reference it would have no length, and so spoil the scores of what is right."""
    assert csv_rows(tmp_path, row) == {"a.jpg": []}
    assert csv_rows(tmp_path, row + "a.jpg,A dog.\n") == {"a.jpg": ["A dog."]}


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    url = write(tmp_path, b"\xef\xbb\xbfimage,caption\r\na.jpg,A dog.\r\n")
    assert references.read(url).captions == {"a.jpg": ["A dog."]}


@pytest.mark.parametrize(
    "text", ["a.jpg,A dog.\n", "", "\n", "image\tcaption\n", "caption,image\n"]
)
def test_a_missing_header_names_the_file_and_the_header(tmp_path: Path, text: str) -> None:
    url = write(tmp_path, text)
    with pytest.raises(InputError) as refusal:
        references.read(url)
    assert f"{url}, line 1: expected the header `image,caption`" in str(refusal.value)


@pytest.mark.parametrize(
    ("row", "cells"), [("c.jpg,A dog, running.\n", 3), ("c.jpg\n", 1), ("c.jpg,,,\n", 4)]
)
def test_a_wrong_number_of_cells_names_the_line(tmp_path: Path, row: str, cells: int) -> None:
    rows = 'a.jpg,"two\nlines"\nb.jpg,fine\n'  # lines 2 to 4
    with pytest.raises(InputError, match=rf"line 5: expected 2 cells, found {cells}"):
        csv_rows(tmp_path, rows + row)


@pytest.mark.parametrize("text", ['image,caption\na.jpg,"never closed\n', '"image,caption\n'])
def test_a_quote_that_is_never_closed_is_refused(tmp_path: Path, text: str) -> None:
    url = write(tmp_path, text)
    with pytest.raises(InputError, match=r"captions\.txt, line \d: unexpected end of data"):
        references.read(url)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: no such captions file"):
        references.read(str(tmp_path / "nowhere.txt"))


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    url = write(tmp_path, "image,caption\na.jpg,caf\xe9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"captions\.txt: not UTF-8 text"):
        references.read(url)


def test_a_directory_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: a directory, and no captions file"):
        references.read(str(tmp_path))


def test_captions_that_were_made_are_no_references(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('[{"image_id": 42, "caption": "a dog"}]')
    with pytest.raises(InputError, match=r"results\.json: a list, as captions that somebody"):
        references.read(str(tmp_path / "results.json"))


@pytest.mark.parametrize("format", ["auto", "token"])
def test_the_authors_own_form_of_flickr(tmp_path: Path, format: references.Format) -> None:
    lines = "a.jpg#0\tA dog .\nb#1.jpg#0\tA cat,\ton a mat .\r\n\na.jpg#1\tTwo dogs .\n"
    file = references.read(write(tmp_path, lines, "Flickr8k.token.txt"), format)
    assert file.captions == {"a.jpg": ["A dog .", "Two dogs ."], "b#1.jpg": ["A cat,\ton a mat ."]}
    url = write(tmp_path, f"{lines}c.jpg A hen .\n", "Flickr8k.token.txt")
    with pytest.raises(InputError, match=r"token\.txt, line 5: expected `name\.jpg#0`, a tab"):
        references.read(url, format)


@pytest.mark.parametrize("format", ["auto", "karpathy"])
def test_karpathy_json_gives_captions_and_splits(tmp_path: Path, format: references.Format) -> None:
    file = references.read(write(tmp_path, KARPATHY), format)
    assert file.captions == {
        "val2014/a.jpg": ["A dog.", "Two, dogs."],
        "b.jpg": ["A cat."],
        "c.jpg": [],
        "d.jpg": ["A bird."],
        "e.jpg": ["A cow."],
    }
    assert file.splits == {
        "val2014/a.jpg": "train",
        "b.jpg": "train",
        "c.jpg": "val",
        "d.jpg": "test",
    }


@pytest.mark.parametrize("format", ["auto", "coco"])
def test_coco_json_gives_captions_by_file_name(tmp_path: Path, format: references.Format) -> None:
    file = references.read(write(tmp_path, COCO), format)
    assert file.captions == {
        "000007.jpg": ["A train."],
        "000003.jpg": ["A bus.", "The bus, again."],
        "000009.jpg": [],
    }
    assert file.splits == {}


def coco(half: str, *numbers: int) -> dict[str, Any]:
    """The official JSON of one half of COCO 2017 or, its file names telling, of 2014."""
    prefix = f"COCO_{half}_" if "2014" in half else ""
    files = {number: f"{prefix}{number:012}.jpg" for number in numbers}
    images = [
        {"id": number, "file_name": name, "coco_url": f"http://images.example.org/{half}/{name}"}
        for number, name in files.items()
    ]
    captions = [{"id": 9, "image_id": number, "caption": f"Number {number}."} for number in files]
    return {"info": {}, "images": images, "annotations": captions}


@pytest.mark.parametrize(("year", "prefix"), [(2017, ""), (2014, "COCO_val2014_")])
def test_official_coco_is_two_files_each_a_split(tmp_path: Path, year: int, prefix: str) -> None:
    for half, numbers in ((f"train{year}", (1, 2)), (f"val{year}", (3,))):
        write(tmp_path, coco(half, *numbers), f"captions_{half}.json")
    file = references.read(str(tmp_path / f"captions_*{year}.json"))
    assert sorted(file.splits.values()) == ["train", "train", "val"]
    name = f"{prefix}000000000003.jpg"
    assert file.splits[name] == "val"
    assert file.captions[name] == ["Number 3."]
    assert references.read(str(tmp_path / f"captions_val{year}.json")).splits == {name: "val"}


def test_training_images_alone_are_left_to_the_hash(tmp_path: Path) -> None:
    assert references.read(write(tmp_path, coco("train2017", 1, 2))).splits == {}


def test_json_captions_without_words_are_none(tmp_path: Path) -> None:
    document = coco("train2017", 1, 2)
    document["annotations"].append({"id": 7, "image_id": 1, "caption": "\n"})
    found = references.read(write(tmp_path, document)).captions
    assert found == {"000000000001.jpg": ["Number 1."], "000000000002.jpg": ["Number 2."]}
    sentences = [{"raw": text} for text in ("", "A dog.", " .")]
    karpathy = {"images": [{"filename": "a.jpg", "sentences": sentences}]}
    assert references.read(write(tmp_path, karpathy)).captions == {"a.jpg": ["A dog."]}


def test_a_glob_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"captions_\*\.json: no such captions file"):
        references.read(str(tmp_path / "captions_*.json"))


def test_json_after_a_byte_order_mark_is_recognised(tmp_path: Path) -> None:
    url = write(tmp_path, b"\xef\xbb\xbf\n" + json.dumps(COCO).encode())
    assert len(references.read(url).captions) == 3


@pytest.mark.parametrize("format", ["auto", "karpathy", "coco"])
def test_broken_json_names_the_file(tmp_path: Path, format: references.Format) -> None:
    url = write(tmp_path, json.dumps(COCO)[:-20])
    with pytest.raises(InputError, match=r"captions\.txt: not JSON"):
        references.read(url, format)


@pytest.mark.parametrize("text", ['{"images": ' + 5000 * "1" + "}", 99_999 * '{"images":'])
def test_json_that_python_refuses_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"captions\.txt: not JSON"):
        references.read(write(tmp_path, text))


def test_half_a_surrogate_pair_is_no_reason_to_refuse_a_file(tmp_path: Path) -> None:
    images = [{"filename": "a\ud83d.jpg", "sentences": [{"raw": "a dog \ud83d"}]}]
    assert references.read(write(tmp_path, {"images": images})).captions == {"a?.jpg": ["a dog ?"]}


def test_captions_of_an_image_that_is_named_twice_are_put_together(tmp_path: Path) -> None:
    images = [{"filename": "a.jpg", "sentences": [{"raw": text}]} for text in ("one", "two")]
    file = references.read(write(tmp_path, {"images": images}))
    assert file.captions == {"a.jpg": ["one", "two"]}


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"pictures": []}, "images: Field required"),
        ({"images": [{"filename": "a.jpg"}]}, "images[0].sentences: Field required"),
        ({"images": [{"sentences": []}]}, "images[0].filename: Field required"),
        ({"images": ["a.jpg"]}, "images[0]: Input should be"),
        (
            {"images": [{"filename": "a.jpg", "sentences": [{"raw": "A dog."}, {"raw": None}]}]},
            "images[0].sentences[1].raw: Input should be a valid string",
        ),
        ({"images": [{"id": 1}], "annotations": []}, "images[0].file_name: Field required"),
        (
            {"images": [], "annotations": [{"image_id": 5, "caption": "of no image"}]},
            "annotations[0].image_id: 5 is the id of no image",
        ),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]},
            "annotations[0].caption: Field required",
        ),
        (
            {"images": [{"id": 1, "file_name": name} for name in "aab"], "annotations": []},
            "images[2].id: 1 is of both a and b",
        ),
        ({"images": [{"filename": 5, "sentences": []}]}, "images[0].filename: Input should be"),
        ({"images": [{"id": 1, "file_name": 5}], "annotations": []}, "images[0].file_name: Input"),
    ],
)
def test_json_of_another_shape_says_where_and_what_is_expected(
    tmp_path: Path, document: dict[str, Any], place: str
) -> None:
    told = rf"captions\.txt: not .* captions: {re.escape(place)}.* \(expected images\[\]"
    with pytest.raises(InputError, match=told):
        references.read(write(tmp_path, document))


def test_csv_is_not_read_as_json_when_json_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not JSON"):
        references.read(write(tmp_path, "image,caption\na.jpg,A dog.\n"), "coco")


# Whoever changes these moves images from training to test in every run that exists.
@pytest.mark.parametrize(
    ("image_id", "seed", "split"),
    [
        ("a.jpg", 0, "train"),
        ("a.jpg", 1, "val"),
        ("d.jpg", 1, "val"),
        ("e.jpg", 1, "train"),
        ("f.jpg", 0, "train"),
        ("f.jpg", 1, "test"),
        ("folder/a.jpg", 1, "test"),
        ("1000268201_693b08cb0e.jpg", 0, "train"),
        ("ü.jpg", 1, "train"),
    ],
)
def test_the_hashed_split_never_changes(image_id: str, seed: int, split: str) -> None:
    assert references.hashed_split(image_id, Split(seed=seed)) == split


def test_hashed_splits_have_the_configured_sizes() -> None:
    names = [f"folder/{number}.jpg" for number in range(20_000)]
    sizes = Counter(references.hashed_split(name, Split()) for name in names)
    # Four standard deviations of a binomial count.
    assert sizes["train"] == pytest.approx(16_000, abs=227)
    assert sizes["val"] == pytest.approx(2_000, abs=170)
    assert sizes["test"] == pytest.approx(2_000, abs=170)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_of_everything_leaves_nothing_to_the_others(split: str) -> None:
    options = Split(**{**dict.fromkeys(("train", "val", "test"), 0.0), split: 1.0})
    assert {references.hashed_split(f"{n}.jpg", options) for n in range(500)} == {split}


def test_another_seed_splits_otherwise() -> None:
    names = [f"{number}.jpg" for number in range(500)]
    first, second = (
        [references.hashed_split(name, Split(seed=seed)) for name in names] for seed in (0, 1)
    )
    assert first != second


def test_more_images_move_none_to_another_split() -> None:
    few, many = Splitter(Split(), None), Splitter(Split(), None)
    names = [f"{number}.jpg" for number in range(300)]
    before = {name: few.split(name) for name in names[100:200]}
    after = {name: many.split(name) for name in reversed(names)}
    assert {name: after[name] for name in before} == before


def lists(folder: Path, **names: str) -> Split:
    urls = {f"{split}_list": write(folder, text, f"{split}.txt") for split, text in names.items()}
    return Split(**urls)


def test_split_lists_win_and_an_image_on_none_has_no_split(tmp_path: Path) -> None:
    options = lists(tmp_path, train="a.jpg\nb.jpg\n", test="\n  c.jpg  \n\n", val="d.jpg\ngone.jpg")
    file = CaptionFile({"a.jpg": ["A dog."]}, {"a.jpg": "test", "e.jpg": "test"})
    splitter = Splitter(options, file)
    found = [splitter.split(f"Images/{name}.jpg") for name in "abcde"]
    assert found == ["train", "train", "test", "val", None]
    assert splitter.unused == {"gone.jpg"}


def test_an_image_on_two_lists_is_refused(tmp_path: Path) -> None:
    options = lists(tmp_path, train="a.jpg\nb.jpg\n", val="b.jpg\n")
    with pytest.raises(InputError, match=r"val\.txt: b\.jpg is on the train list too"):
        Splitter(options, None)


def test_an_image_twice_on_one_list_is_fine(tmp_path: Path) -> None:
    splitter = Splitter(lists(tmp_path, train="a.jpg\na.jpg\n"), None)
    assert splitter.split("a.jpg") == "train"


def test_a_byte_order_mark_is_no_part_of_a_lists_first_name(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfA.jpg\r\nB\xc2\x85.jpg\r\n\r\n")
    assert references.read_list(str(tmp_path / "train.txt")) == ["A.jpg", "B\x85.jpg"]


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes("é.jpg".encode("utf-16"))
    for name in ("train.txt", ""):
        with pytest.raises(InputError, match="not UTF-8 text"):
            references.read_list(str(tmp_path / name))


def test_a_missing_split_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: no such split list"):
        Splitter(Split(val_list=str(tmp_path / "nowhere.txt")), None)


def test_the_splits_of_the_captions_file_come_before_the_hash() -> None:
    names = {f"{number}.jpg": "test" for number in range(50)}
    splitter = Splitter(Split(), CaptionFile({}, names))
    assert {splitter.split(name) for name in names} == {"test"}
    assert splitter.split("other.jpg") is None
    assert splitter.unused == set()


def test_a_captions_file_without_splits_leaves_it_to_the_hash() -> None:
    splitter = Splitter(Split(seed=1), CaptionFile({"a.jpg": []}))
    assert [splitter.split(name) for name in ("a.jpg", "e.jpg", "f.jpg")] == [
        "val",
        "train",
        "test",
    ]


def test_names_are_found_by_path_and_else_by_file_name() -> None:
    names = Names(["x/a.jpg", "b.jpg", "deep/er/c.jpg"], "captions.txt")
    assert names.find("x/a.jpg") == "x/a.jpg"
    assert names.find("any/where/b.jpg") == "b.jpg"
    assert names.find("c.jpg") == "deep/er/c.jpg"
    assert names.find("d.jpg") is None


def test_a_path_tells_images_of_one_file_name_apart() -> None:
    names = Names(["x/a.jpg", "y/a.jpg"], "captions.txt")
    assert (names.find("y/a.jpg"), names.find("x/a.jpg")) == ("y/a.jpg", "x/a.jpg")
    assert names.find("z/a.jpg") is None


def test_an_image_in_another_folder_is_another_image() -> None:
    names = Names(["cat/001.jpg", "dog/001.jpg", "cat/002.jpg"], "captions.txt")
    assert names.find("dog/002.jpg") is None
    assert names.find("cat/002.jpg") == "cat/002.jpg"
    assert names.find("bobcat/001.jpg") is None
    assert names.find("photos/cat/001.jpg") == "cat/001.jpg"
    assert names.find("photos.tar/dog/001.jpg") == "dog/001.jpg"


def test_cocos_names_are_its_own_in_whatever_folder() -> None:
    name = "val2014/COCO_val2014_000000000042.jpg"
    assert Names([name], "c.json").find("00000.tar/COCO_val2014_000000000042.jpg") == name


def test_two_images_that_claim_one_bare_name_are_refused() -> None:
    names = Names(["a.jpg"], "captions.txt")
    assert names.find("x/a.jpg") == "a.jpg"
    assert names.find("x/a.jpg") == "a.jpg"  # the same image may ask again
    with pytest.raises(InputError, match=r"captions\.txt: `a\.jpg` .* x/a\.jpg and y/a\.jpg"):
        names.find("y/a.jpg")


def test_images_of_coco_2017_are_found_by_their_number_and_no_others() -> None:
    numbers = {"42": "val2014/COCO_val2014_000000000042.jpg", "3": "000000000002.jpg"}
    names = Names(list(numbers.values()), "captions.json", numbers)
    assert names.find("val2017/000000000042.jpg") == "val2014/COCO_val2014_000000000042.jpg"
    assert names.find("val2017/000000000002.jpg") == "000000000002.jpg"
    # A file of one's own may number its images in another way than their names.
    assert names.find("val2017/000000000003.jpg") is None
    assert names.find("42.jpg") is None


def test_names_that_no_image_asked_for_are_known() -> None:
    names = Names(["a.jpg", "b.jpg", "c.jpg"], "captions.txt")
    assert names.unused == {"a.jpg", "b.jpg", "c.jpg"}
    names.find("b.jpg")
    names.find("x/c.jpg")
    names.find("d.jpg")
    assert names.unused == {"a.jpg"}


def test_lists_without_any_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(InputError, match=r"train\.txt: no image is on these lists"):
        references.Splitter(Split(train_list=str(tmp_path / "train.txt")), None)
