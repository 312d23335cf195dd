"""A captioner for a program or a notebook: images in, captions out, without Ray."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from PIL import ExifTags
from PIL import Image as PillowImage

from captioner import backends, configuration, model_files, storage, tower_copy
from captioner.config import Encoder as EncoderOptions
from captioner.config import Image, Search
from captioner.errors import InputError
from captioner.features import NO_NUMBERS
from captioner.fetching import Bytes, checked, fetch
from captioner.images import orientation
from captioner.reading import decoded
from captioner.selection import Caption

Source = str | os.PathLike[str] | bytes | PillowImage.Image
_ONE = (str, os.PathLike, bytes, PillowImage.Image)
_MODES_OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


class Captioner:
    """Captions images as the batch job does, with the settings of the model directory.

    >>> captioner = Captioner.load("runs/mine/model")
    >>> captioner.caption("photo.jpg").text
    'a cat sits on a chair'
    """

    def __init__(self, backend: backends.Backend, search: Search, limits: Image) -> None:
        self.backend, self.search, self._limits = backend, search, limits

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        encoder: str | os.PathLike[str] | None = None,
        **search: Any,
    ) -> Captioner:
        """From then on the process keeps memory that large tensors have freed (``cpu.prepare``).

        Args:
            model: a model directory, ``hf:NAME`` or ``coca:NAME``.
            device: None: a GPU where there is one.
            encoder: the image tower, or a file of its weights, where the model does not bring it
                along and it is not where the model says.
            search: options of ``config.Search`` that should differ, such as ``beam_size=1``.

        Raises:
            InputError: the model, its tower or the device cannot be had, or the search is none.
        """
        name = os.fspath(model)
        encoder = None if encoder is None else os.fspath(encoder)
        tower, options, limits = EncoderOptions(), {"repetition_penalty": 1.0}, Image()
        if not backends.is_foreign(name):
            config = configuration.parse(*model_files.read_config(name))
            tower = tower_copy.options_of(storage.resolve(name), config.encoder)
            options, limits = config.search.model_dump(), config.image
        elif encoder is not None:
            raise InputError(f"encoder: {name} has a tower of its own")
        if encoder is not None:
            changed = "pretrained" if os.path.isfile(encoder) else "model"
            if "/" in encoder and ":" not in encoder and not os.path.exists(encoder):
                raise InputError(f"encoder: {encoder}: no such file")
            tower = EncoderOptions(**{**tower.model_dump(), changed: encoder})
        wanted = configuration.parse_search({**options, **search}, name)
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _require(where)
        return cls(backends.load(name, tower, wanted, where), wanted, limits)

    def caption(self, image: Source) -> Caption:
        """
        Args:
            image: a path, an fsspec URL, the bytes of a file, or a picture of Pillow's.

        Raises:
            InputError: it cannot be read, with the reason.
        """
        return self.captions([image])[0]

    def captions(self, images: Iterable[Source]) -> list[Caption]:
        """The captions of some images, as many as fit into memory at once.

        Raises:
            InputError: one cannot be read, with the reason.
        """
        images = [images] if isinstance(images, _ONE) else list(images)
        names = [_name(image, place) for place, image in enumerate(images)]
        pixels = [self.pixels(image, name) for image, name in zip(images, names)]
        return self.of_pixels(np.stack(pixels), names) if pixels else []

    def of_pixels(self, pixels: Any, names: Sequence[str]) -> list[Caption]:
        """
        Raises:
            InputError: the tower makes no numbers of one.
        """
        captions = []
        # What is drawn of an image is decided by what it shows, and not by its name or place.
        ids = [sha256(image.tobytes()).hexdigest() for image in pixels]
        for name, caption in zip(names, self.backend.caption(pixels, self.search, ids)):
            if caption is None:
                raise InputError(f"{name}: {NO_NUMBERS}")
            captions.append(caption)
        return captions

    def pixels(self, image: Source, name: str = "image") -> Any:
        """What the tower sees of an image, ``(height, width, 3) uint8``."""
        data = _bytes(image, name, self._limits.max_bytes)
        found = decoded(data, self.backend.identity.preprocessing, self._limits)
        if found.pixels is None:
            raise InputError(f"{name}: {found.error}")
        return np.array(found.pixels)  # Pillow's memory is read-only, of which torch warns


def _require(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter of torch without CUDA
        raise InputError(f"device: {device}: {str(error).splitlines()[0]}") from None


def _name(image: Source, place: int) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {place}"


def _bytes(image: Source, name: str, most: int) -> Bytes:
    if isinstance(image, PillowImage.Image):
        return _of_picture(image, name)
    if isinstance(image, bytes):
        return checked(image, most)
    if isinstance(image, str | os.PathLike):
        return fetch(storage.resolve(image), most)
    raise InputError(
        f"{name}: {type(image).__name__}: give a path, a URL, the bytes of a file, or a picture of "
        "Pillow's"
    )


def _of_picture(image: PillowImage.Image, name: str) -> bytes:
    """A file of the same pixels, and with them which way is up: nothing is lost."""
    exif, file = PillowImage.Exif(), io.BytesIO()
    try:
        image.load()  # of TIFF Pillow turns it then, and forgets what its EXIF had
        exif[ExifTags.Base.Orientation] = orientation(image)
        image.save(file, "PNG" if image.mode in _MODES_OF_PNG else "TIFF", exif=exif)
    except Exception as error:  # of a closed file even an assertion fails
        why = str(error) or "its file is closed"
        raise InputError(f"{name}: {why}: load() it first, or convert it to RGB") from error
    return file.getvalue()
