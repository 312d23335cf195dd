"""Every configuration of a public data set reads its files, in the layout that they come in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner import configuration, parquet_dir
from jobs import index
from tests.listings import fill, tar

CONFIGS = Path(__file__).parents[2] / "configs"
Made = tuple[dict[str, Any], dict[str, tuple[str | None, list[str]]]]


def karpathy(*images: tuple[str | None, str, str]) -> dict[str, Any]:
    rows = [
        {"filename": name, "split": split, "sentences": [{"raw": f"About {name}."}, {"raw": "X."}]}
        | ({"filepath": folder} if folder else {})
        for folder, name, split in images
    ]
    return {"dataset": "x", "images": rows}


def flickr30k(root: Path) -> Made:
    splits = {"1.jpg": "train", "2.jpg": "val", "3.jpg": "test"}
    fill(root / "flickr30k-images", *splits)
    rows = [(None, name, split) for name, split in splits.items()]
    (root / "dataset.json").write_text(json.dumps(karpathy(*rows)))
    places = {"images": f"{root}/flickr30k-images", "captions": f"{root}/dataset.json"}
    expected = {name: (split, [f"About {name}.", "X."]) for name, split in splits.items()}
    return places, expected


def coco2014(root: Path) -> Made:
    names = {
        f"{half}/COCO_{half}_00000000000{n}.jpg": split
        for n, (half, split) in enumerate(
            [
                ("train2014", "train"),
                ("val2014", "restval"),
                ("val2014", "val"),
                ("val2014", "test"),
            ]
        )
    }
    fill(root, *names, "test2014/COCO_test2014_000000000009.jpg")
    rows = [(*name.split("/"), split) for name, split in names.items()]
    (root / "dataset_coco.json").write_text(json.dumps(karpathy(*rows)))
    expected = {
        name: (split.replace("restval", "train"), [f"About {name.split('/')[1]}.", "X."])
        for name, split in names.items()
    }
    return {"images": str(root), "captions": f"{root}/dataset_coco.json"}, expected


def coco2017(root: Path) -> Made:
    names = {"train2017/000000000001.jpg": "train", "val2017/000000000002.jpg": "val"}
    fill(root, *names, "test2017/000000000003.jpg")
    (root / "annotations").mkdir()
    for name in names:
        half, file = name.split("/")
        url = f"http://images.example.org/{half}/{file}"
        document = {
            "images": [{"id": 7, "file_name": file, "coco_url": url}],
            "annotations": [{"id": n, "image_id": 7, "caption": f"{half} {n}"} for n in (1, 2)],
        }
        (root / "annotations" / f"captions_{half}.json").write_text(json.dumps(document))
    (root / "annotations" / "instances_val2017.json").write_text("{}")
    expected = {
        name: (split, [f"{split}2017 1", f"{split}2017 2"]) for name, split in names.items()
    }
    return {"images": str(root), "captions": f"{root}/annotations/captions_*2017.json"}, expected


def coco2017_karpathy(root: Path) -> Made:
    """Karpathy's file is of COCO 2014; the images of 2017 are the same under other names."""
    names = {
        "train2017/000000000001.jpg": ("COCO_train2014_000000000001.jpg", "train"),
        "train2017/000000000002.jpg": ("COCO_val2014_000000000002.jpg", "restval"),
        "val2017/000000000030.jpg": ("COCO_val2014_000000000030.jpg", "test"),
    }
    fill(root, *names, "test2017/000000000004.jpg")
    document = karpathy(*((old.split("_")[1], old, split) for old, split in names.values()))
    for image, name in zip(document["images"], names):
        image["cocoid"] = int(name.split("/")[1].removesuffix(".jpg"))
    (root / "dataset_coco.json").write_text(json.dumps(document))
    expected = {
        name: (split.replace("restval", "train"), [f"About {old}.", "X."])
        for name, (old, split) in names.items()
    }
    return {"images": str(root), "captions": f"{root}/dataset_coco.json"}, expected


def coco2014_official(root: Path) -> Made:
    names = {
        f"{half}/COCO_{half}_00000000000{n}.jpg": half[:-4]
        for n, half in enumerate(["train2014", "val2014"])
    }
    fill(root, *names, "test2014/COCO_test2014_000000000009.jpg")
    (root / "annotations").mkdir()
    for name in names:
        half, file = name.split("/")
        document = {
            "images": [{"id": 7, "file_name": file}],
            "annotations": [{"id": n, "image_id": 7, "caption": f"{half} {n}"} for n in (1, 2)],
        }
        (root / "annotations" / f"captions_{half}.json").write_text(json.dumps(document))
    expected = {
        name: (split, [f"{split}2014 1", f"{split}2014 2"]) for name, split in names.items()
    }
    return {"images": str(root), "captions": f"{root}/annotations/captions_*2014.json"}, expected


def cc3m(root: Path) -> Made:
    members = {"000000000.jpg": b"x", "000000000.txt": b"a very typical bus station"}
    members |= {"000000000.json": json.dumps({"caption": "the same", "status": "success"}).encode()}
    (root / "00000.tar").write_bytes(tar(members))
    expected = {"00000.tar/000000000.jpg": ("train", ["a very typical bus station"])}
    return {"images": f"{root}/*.tar"}, expected


def cc3m_tsv(root: Path) -> Made:
    (root / "GCC-training.tsv").write_text("a very typical bus station\thttp://example.org/1.jpg\n")
    places = {"images": f"{root}/GCC-training.tsv", "allow_http": True}
    return places, {"http://example.org/1.jpg": ("train", ["a very typical bus station"])}


def cc3m_parquet(root: Path) -> Made:
    """``--output_format parquet`` of img2dataset: what could not be fetched has no bytes."""
    columns = {
        "key": ["000000000", "000000001"],
        "status": ["success", "failed_to_download"],
        "error_message": [None, "HTTP Error 404: Not Found"],
        "caption": ["a very typical bus station", "gone"],
        "url": ["http://example.org/1.jpg", "http://example.org/2.jpg"],
        "jpg": [b"x", None],
    }
    pq.write_table(pa.table(columns), root / "00000.parquet")
    expected = {"00000.parquet/000000000": ("train", ["a very typical bus station"])}
    return {"images": f"{root}/*.parquet"}, expected


READERS = [
    flickr30k,
    coco2014,
    coco2014_official,
    coco2017,
    coco2017_karpathy,
    cc3m,
    cc3m_tsv,
    cc3m_parquet,
]


@pytest.mark.parametrize("made", READERS)
def test_a_data_set_is_read_as_it_comes(
    cluster: str, tmp_path: Path, made: Callable[[Path], Made]
) -> None:
    places, expected = made(tmp_path)
    name = made.__name__.partition("_")[0]
    overrides = [f"source.{key}={value}" for key, value in places.items()]
    overrides += [f"run={tmp_path}/run", "source.exclude=[run/*, '*.json', '*.txt']"]
    config = configuration.load(str(CONFIGS / f"{name}.yaml"), overrides)
    index.index(config)
    rows = parquet_dir.read(config.at("manifest")).to_pylist()
    assert {row["image_id"]: (row["split"], row["captions"]) for row in rows} == expected
