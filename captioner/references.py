"""Caption files -> captions by image; and which image trains, validates or tests."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from glob import has_magic

from captioner import chance, reference_formats, storage
from captioner.config import CaptionsFormat, Split
from captioner.errors import InputError
from captioner.reference_formats import CaptionFile

_COCO_2017 = re.compile(r"(?=\d{12}\.)0*(\d+)\.")
_COCO_2014 = re.compile(r"COCO_(?:train|val|test)20\d\d_\d{12}\.")
_TOKEN = re.compile(r"[^\n\t]*#\d+\t")


def read(url: str, format: CaptionsFormat = "auto") -> CaptionFile:
    """Read a caption file: CSV, the ``.token`` of Flickr8k and Flickr30k, Karpathy's JSON, or
    COCO's annotation JSON. A glob stands for several files, whose captions are put together.

    Raises:
        InputError: no such file, not of that format, or a row that cannot be read.
    """
    urls = _glob(url)
    if not urls:
        raise InputError(f"{url}: no such captions file (source.captions)")
    first, *others = [_read(each, format) for each in urls]
    for other in others:
        for name, texts in other.captions.items():
            first.captions.setdefault(name, []).extend(texts)
        first.splits |= other.splits
        first.numbers |= other.numbers
    if set(first.splits.values()) == {"train"}:  # alone, it leaves none to validate by
        first.splits = {}
    return first


def _glob(url: str) -> list[str]:
    if storage.exists(url):
        return [url]
    fs, path = storage.filesystem(url)
    return [storage.uri(fs, found) for found in sorted(fs.glob(path))] if has_magic(path) else []


def _read(url: str, format: CaptionsFormat) -> CaptionFile:
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
    except IsADirectoryError:
        raise InputError(f"{url}: a directory, and no captions file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{url}: not UTF-8 text: {error}") from None
    if format == "auto" and text.lstrip().startswith("[") and url.lower().endswith(".json"):
        raise InputError(
            f"{url}: a list, as captions that somebody has made are; references are COCO's "
            "annotations, Karpathy's JSON, or a CSV"
        )
    reader = _reader_of(text) if format == "auto" else reference_formats.READERS[format]
    return reader(url, text)


def _reader_of(text: str) -> reference_formats.Reader:
    start = text.lstrip()
    if start.startswith("{"):
        return reference_formats.read_json
    is_token = _TOKEN.match(start) is not None
    return reference_formats.read_token if is_token else reference_formats.read_csv


class Names:
    """Finds the row of an annotation file for an image, by relative path, else by as much of the
    path as both have, else by COCO's number.

    Annotation files often give bare file names while the images stand in folders; but of two
    folders, each with a ``001.jpg``, one is not the other. Those of COCO 2014 name its images
    ``COCO_val2014_000000000042.jpg``, which in 2017 are ``000000000042.jpg``, in whatever folders.
    """

    def __init__(
        self, names: list[str], origin: str, numbers: Mapping[str, str] | None = None
    ) -> None:
        """``numbers``: COCO's number of an image -> its name."""
        self._origin = origin
        self._names = set(names)
        self._numbers = numbers or {}
        self._by_file_name: dict[str, list[str]] = defaultdict(list)
        for name in names:
            self._by_file_name[name.rpartition("/")[2]].append(name)
        self._user: dict[str, str] = {}  # name -> the image that took it

    def find(self, image_id: str) -> str | None:
        """The annotation's name of this image, or None.

        Raises:
            InputError: two images claim the same name.
        """
        name = image_id if image_id in self._names else None
        if name is None:
            file_name = image_id.rpartition("/")[2]
            candidates = self._by_file_name.get(file_name, [])
            if not _COCO_2014.match(file_name):
                candidates = [known for known in candidates if _may_be_one(known, image_id)]
            name = candidates[0] if len(candidates) == 1 else None
            if not candidates and (number := _COCO_2017.match(file_name)):
                of_2014 = self._numbers.get(number[1], "")
                name = of_2014 if of_2014.endswith(f"_{file_name}") else None
        if name is not None and self._user.setdefault(name, image_id) != image_id:
            raise InputError(
                f"{self._origin}: `{name}` stands for both {self._user[name]} and {image_id}; "
                "give paths there in the place of bare file names (relative to the directory of "
                "the images), or leave one of these out (source.exclude)"
            )
        return name

    @property
    def unused(self) -> set[str]:
        """Names that no image has asked for: annotations of images that are not there."""
        return self._names - self._user.keys()


def _may_be_one(one: str, other: str) -> bool:
    """Whether one of two paths is the end of the other."""
    longer, shorter = sorted([f"/{one}", f"/{other}"], key=len, reverse=True)
    return longer.endswith(shorter)


def read_list(url: str) -> list[str]:
    """A split list: one image name a line.

    Raises:
        InputError: no such file, or no text.
    """
    if not storage.exists(url):
        raise InputError(f"{url}: no such split list")
    try:
        text = storage.read_bytes(url).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{url}: not UTF-8 text: {error}") from None
    return [line.strip() for line in text.split("\n") if line.strip()]


def hashed_split(image_id: str, options: Split) -> str:
    """The split of an image by a hash of its id: stable when other images come and go."""
    place = int.from_bytes(chance.of_image(image_id, options.seed), "big") / 2**64
    if place < options.train:
        return "train"
    return "val" if place < options.train + options.val else "test"


class Splitter:
    """Which split an image belongs to: the lists, else the captions file's own, else a hash."""

    def __init__(self, options: Split, file: CaptionFile | None) -> None:
        self._options = options
        listed: dict[str, str] = {}
        numbers: dict[str, str] = {}
        for split, url in options.lists.items():
            for name in read_list(url):
                if listed.setdefault(name, split) != split:
                    raise InputError(f"{url}: {name} is on the {listed[name]} list too")
        if options.lists and not listed:
            raise InputError(f"{', '.join(options.lists.values())}: no image is on these lists")
        if not listed and file is not None:
            listed = file.splits
            numbers = {key: name for key, name in file.numbers.items() if name in listed}
        self._split_of = listed
        self._names = Names(list(listed), "split lists", numbers)

    def split(self, image_id: str) -> str | None:
        """``train``, ``val`` or ``test``; None for an image that stands on no list."""
        if not self._split_of:
            return hashed_split(image_id, self._options)
        name = self._names.find(image_id)
        return None if name is None else self._split_of[name]

    @property
    def unused(self) -> set[str]:
        return self._names.unused
