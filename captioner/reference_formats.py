"""The text of a captions file -> captions by image, a function for each form of it."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from captioner import storage
from captioner.errors import InputError

# Karpathy's "restval" is the rest of COCO's validation images, which everyone trains on.
_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
T = TypeVar("T")
_HALF = re.compile(r"(?<![a-z])(train|val|test)20\d\d")


@dataclass
class CaptionFile:
    """All captions of a file, grouped by the image's name as the file gives it."""

    captions: dict[str, list[str]]
    splits: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)  # COCO's number of an image -> its name


def with_words(captions: Iterable[str]) -> list[str]:
    """Those that have any: nothing is learned from others, and as references they would spoil the
    scores of what is right."""
    return [utf8(text.strip()) for text in captions if any(map(str.isalnum, text))]


def text_of(data: bytes) -> str:
    """The text of a small file of somebody's: UTF-16 where it begins as that does, else UTF-8, of
    which as much as can be is kept."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf16 else "utf-8-sig", "replace")


def utf8(text: str) -> str:
    """JSON may have half of a surrogate pair, which Arrow takes for an error."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_csv(url: str, text: str) -> CaptionFile:
    """``image,caption``, with that header: Kaggle's ``captions.txt`` of Flickr8k."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    captions: dict[str, list[str]] = defaultdict(list)
    try:
        header = [cell.strip() for cell in next(rows, [])]
        if header != ["image", "caption"]:
            found = ",".join(header)[:80]
            raise InputError(
                f"{url}, line 1: expected the header `image,caption`, found `{found}` "
                f"(source.captions_format: {', '.join(READERS)})"
            )
        for row in rows:
            if not row:
                continue
            if len(row) != 2:
                raise InputError(
                    f"{url}, line {rows.line_num}: expected 2 cells, found {len(row)}; "
                    "a caption with a comma needs quotes, with no space before them: "
                    'name.jpg,"A dog, running."'
                )
            captions[row[0].strip()].extend(with_words([row[1]]))
    except csv.Error as error:
        raise InputError(f"{url}, line {rows.line_num}: {error}") from None
    return CaptionFile(dict(captions))


def read_token(url: str, text: str) -> CaptionFile:
    """``name.jpg#0``, a tab, a caption: Flickr8k and Flickr30k as their authors give them."""
    captions: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(text.split("\n"), 1):
        name, tab, caption = line.partition("\t")
        image, mark, _ = name.rpartition("#")
        if line.strip() and not (tab and mark):
            raise InputError(f"{url}, line {number}: expected `name.jpg#0`, a tab, and a caption")
        if image:
            captions[image.strip()].extend(with_words([caption]))
    return CaptionFile(dict(captions))


def read_json(url: str, text: str) -> CaptionFile:
    """COCO's annotations if there are any, else Karpathy's document."""
    document = _parsed(url, text)
    is_coco = isinstance(document, dict) and "annotations" in document
    return _of_coco(url, document) if is_coco else _of_karpathy(url, document)


def read_karpathy(url: str, text: str) -> CaptionFile:
    return _of_karpathy(url, _parsed(url, text))


def read_coco(url: str, text: str) -> CaptionFile:
    return _of_coco(url, _parsed(url, text))


def _parsed(url: str, text: str) -> Any:
    try:
        return json.loads(text)
    except storage.NOT_JSON as error:
        raise InputError(f"{url}: not JSON: {error}") from None


def _text(value: Any) -> Any:
    return utf8(value) if isinstance(value, str) else value


def _id(value: Any) -> Any:
    return str(value) if type(value) is int else value


Text = Annotated[str, BeforeValidator(_text)]
Id = Annotated[str, BeforeValidator(_id)]


@dataclass(slots=True)
class _Sentence:
    raw: Text


@dataclass(slots=True)
class _Sentences:
    filename: Text
    sentences: list[_Sentence]
    filepath: Text | None = None
    split: Text | None = None
    cocoid: Id | None = None


@dataclass(slots=True)
class _Karpathy:
    images: list[_Sentences]


@dataclass(slots=True)
class _Image:
    id: Id
    file_name: Text
    coco_url: Text | None = None


@dataclass(slots=True)
class _Annotation:
    image_id: Id
    caption: Text


@dataclass(slots=True)
class _Coco:
    images: list[_Image]
    annotations: list[_Annotation]


def _of_karpathy(url: str, document: Any) -> CaptionFile:
    """Karpathy & Fei-Fei's data sets (CVPR 2015): captions and splits in one file."""
    file = CaptionFile({})
    for image in _shaped(_Karpathy, "karpathy", url, document).images:
        name = f"{image.filepath}/{image.filename}" if image.filepath else image.filename
        said = with_words(sentence.raw for sentence in image.sentences)
        file.captions.setdefault(name, []).extend(said)
        if image.cocoid:
            file.numbers[image.cocoid] = name
        if image.split in _KARPATHY_SPLITS:
            file.splits[name] = _KARPATHY_SPLITS[image.split]
    return file


def _of_coco(url: str, document: Any) -> CaptionFile:
    """COCO's own JSON. Its images' addresses name the half of COCO that they are of, ``train2017``
    or ``val2014``."""
    known = _shaped(_Coco, "coco", url, document)
    names: dict[str, str] = {}
    file = CaptionFile({}, numbers=names)
    for place, image in enumerate(known.images):
        if names.setdefault(image.id, image.file_name) != image.file_name:
            both = f"{names[image.id]} and {image.file_name}"
            raise _no(url, "coco", f"images[{place}].id", f"{image.id} is of both {both}")
        file.captions[image.file_name] = []
        if half := _HALF.search(f"{image.coco_url or ''} {image.file_name}"):
            file.splits[image.file_name] = half[1]
    for place, annotation in enumerate(known.annotations):
        if annotation.image_id not in names:
            what = f"{annotation.image_id} is the id of no image"
            raise _no(url, "coco", f"annotations[{place}].image_id", what)
        file.captions[names[annotation.image_id]] += with_words([annotation.caption])
    return file


def _shaped(shape: type[T], form: str, url: str, document: Any) -> T:
    """The document, of which is known that it has this shape.

    Raises:
        InputError: it has not; names the first place where.
    """
    try:
        return TypeAdapter(shape).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        place = "".join(steps).lstrip(".") or "the document"
        raise _no(url, form, place, first["msg"]) from None


def _no(url: str, form: str, place: str, what: str) -> InputError:
    return InputError(f"{url}: not {form} captions: {place}: {what} (expected {_EXPECTED[form]})")


_EXPECTED = {
    "coco": "images[].id, .file_name, annotations[].image_id, .caption",
    "karpathy": "images[].filename, .sentences[].raw",
}
Reader = Callable[[str, str], CaptionFile]
READERS: dict[str, Reader] = {  # by source.captions_format
    "csv": read_csv,
    "token": read_token,
    "karpathy": read_karpathy,
    "coco": read_coco,
}
