"""Bytes -> uint8 pixels at the encoder's size, or a reason why not.

The pixels equal those of open_clip's own preprocessing before normalisation. It is written
here with Pillow alone, because a decoding worker then starts without importing torch.

Three corrections go before it, since open_clip's transform leaves them to its caller: the
EXIF orientation is applied, 16-bit grey is scaled to 8 bits instead of clipped, and
transparency is laid over white (what stands behind transparent pixels is arbitrary).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# What photographs and web pictures come as. Pillow knows more, and starts programs for some of
# them: Ghostscript for EPS.
_KNOWN = "AVIF BMP DIB GIF ICO JPEG JPEG2000 MPO PCX PNG PPM TGA TIFF WEBP"
Image.init()
FORMATS = [name for name in _KNOWN.split() if name in Image.OPEN]
_EXTENSIONS = {"jpeg": "jpg", "mpo": "jpg", "jpeg2000": "jp2", "dib": "bmp"}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_QUARTER_TURNS = [_TURNS[orientation] for orientation in (5, 6, 7, 8)]

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Preprocessing:
    """How an encoder wants its images (open_clip's ``PreprocessCfg``)."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"  # or "bilinear"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0


@dataclass(frozen=True)
class Part:
    """Of an image, in shares of its width and height."""

    left: float
    top: float
    width: float
    height: float
    mirrored: bool


@dataclass(frozen=True)
class Decoded:
    """``pixels: (height, width, 3) uint8``, or an ``error``. Sizes are the upright image's own."""

    pixels: Pixels | None
    width: int | None
    height: int | None
    error: str | None
    parts: tuple[Pixels, ...] = ()


def extension(data: bytes) -> str:
    """What names of such image files end in: ``jpg``, ``png``, ``webp`` and so on; ``bin`` for what
    is no image. Only its first bytes are looked at: a name may say anything, or nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                name = (image.format or "bin").lower()
    except Exception:  # as below
        return "bin"
    return _EXTENSIONS.get(name, name)


def decode(
    data: bytes,
    preprocessing: Preprocessing,
    max_pixels: int,
    scaled: bool = False,
    parts: Sequence[Part] = (),
) -> Decoded:
    """Decode one image file of any of ``FORMATS``; never raises on bad data. ``parts`` of it are
    brought to the same size as the whole.

    ``scaled`` decodes JPEGs at the smallest of 1/1, 1/2, 1/4 and 1/8 that is not smaller than
    what is needed. That is several times as fast for photographs of many megapixels; the
    pixels are not quite the same.
    """
    width = height = None
    try:
        with warnings.catch_warnings():
            # Pillow warns of what max_pixels bounds, and of odd metadata in fine images.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    reason = (
                        f"too many pixels: {width * height:,} of image.max_pixels {max_pixels:,}"
                    )
                    return Decoded(None, width, height, reason)
                turn = _turn(image)
                if turn in _QUARTER_TURNS:
                    width, height = height, width
                scaled_width, scaled_height = _scale_to((width, height), preprocessing)
                if scaled_width * scaled_height > max_pixels:
                    reason = f"too long and thin: {width} x {height}"
                    return Decoded(None, width, height, reason)
                if scaled and image.format == "JPEG":
                    needed = scaled_width, scaled_height
                    image.draft(None, needed if image.size == (width, height) else needed[::-1])
                upright = _8_bit(image if turn is None else image.transpose(turn))
                pixels = _to_size(upright, preprocessing)
                seen = tuple(_part(upright, part, preprocessing) for part in parts)
                return Decoded(pixels, width, height, None, seen)
    except UnidentifiedImageError:
        return Decoded(None, None, None, "empty file" if not data else "not an image")
    except Image.DecompressionBombError as error:  # beyond Pillow's own bound: opened, not decoded
        reason = f"too many pixels: more than image.max_pixels {max_pixels:,}; {error}"
        return Decoded(None, width, height, reason[:200])
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error ...
        return Decoded(None, width, height, f"{type(error).__name__}: {error}"[:200])


def _part(image: Image.Image, part: Part, preprocessing: Preprocessing) -> Pixels:
    width, height = (
        max(1, round(n)) for n in (image.width * part.width, image.height * part.height)
    )
    left = min(round(image.width * part.left), image.width - width)
    top = min(round(image.height * part.top), image.height - height)
    pixels = _to_size(image.crop((left, top, left + width, top + height)), preprocessing)
    return pixels[:, ::-1] if part.mirrored else pixels


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What its EXIF orientation asks for. (Pillow's exif_transpose writes all of the EXIF anew,
    which fails where anything is odd in it.)"""
    if image.format == "TIFF":  # Pillow has turned it
        return None
    if image.format == "PNG":
        image.load()  # its EXIF may stand at the end
    return _TURNS.get(orientation(image))


def orientation(image: Image.Image) -> int:
    """As its EXIF has it, 1 to 8; 1 where that is none, or nothing that there is."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # no EXIF after all
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _8_bit(image: Image.Image) -> Image.Image:
    """First frame, in a mode that open_clip's transform treats well."""
    if image.mode.startswith("I"):  # 16-bit grey, in files of 16 or 32 bits
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"{image.mode} pixels outside 0..65535")
        return Image.fromarray((grey // 257).astype(np.uint8), "L")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", rgba.size, "white")
            return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode in ("1", "P", "PA"):  # Pillow resizes these without interpolation
        return image.convert("RGB")
    return image


def _scale_to(size: tuple[int, int], preprocessing: Preprocessing) -> tuple[int, int]:
    """The size that the whole image is resized to, before cropping or padding: width, height."""
    (width, height), target = size, preprocessing
    if target.resize_mode == "squash":
        return target.width, target.height
    if target.resize_mode == "shortest" and target.height == target.width:
        # torchvision.transforms.Resize with one number cuts the long side down to a whole pixel
        if width <= height:
            return target.width, max(1, int(target.width * height / width))
        return max(1, int(target.height * width / height)), target.height
    ratios = (height / target.height, width / target.width)
    ratio = max(ratios) if target.resize_mode == "longest" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _to_size(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """open_clip.transform.image_transform_v2 up to, but without, ToTensor."""
    square = preprocessing.height == preprocessing.width
    bilinear = preprocessing.interpolation == "bilinear" and (
        square or preprocessing.resize_mode != "shortest"  # open_clip ignores the choice there
    )
    filter_ = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    size = _scale_to(image.size, preprocessing)
    if image.size != size:
        image = image.resize(size, filter_)
    width, height = preprocessing.width, preprocessing.height
    if image.width < width or image.height < height:
        left, top = max(0, (width - image.width) // 2), max(0, (height - image.height) // 2)
        canvas = Image.new(
            image.mode,
            (max(width, image.width), max(height, image.height)),
            (preprocessing.fill_color,) * len(image.getbands()),
        )
        canvas.paste(image, (left, top))
        image = canvas
    if image.size != (width, height):
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image.convert("RGB"))
