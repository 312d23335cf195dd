from __future__ import annotations

import functools
import io
import struct
import time
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageFile

from captioner.images import Decoded, Preprocessing, decode, extension

MAX_PIXELS = 120_000_000
MEAN = STD = (0.5, 0.5, 0.5)
SIZES = [(31, 500), (333, 500), (224, 224), (225, 223), (223, 225), (1000, 3), (5, 7), (57, 56)]
MODES = ["RGB", "L", "CMYK", "RGBA", "LA"]

ResizeMode = Literal["shortest", "longest", "squash"]


def photograph(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Random noise over a gradient; opaque where the mode has an alpha channel."""
    dice = np.random.default_rng([seed, width, height])
    across = np.linspace(0, 150, width)[None, :, None]
    down = np.linspace(0, 60, height)[:, None, None]
    noise = dice.integers(0, 46, (height, width, 3))
    return Image.fromarray((across + down + noise).astype(np.uint8)).convert(mode)


@functools.cache
def photograph_file(width: int, height: int, mode: str) -> bytes:
    return encoded(photograph(width, height, mode), "JPEG" if mode == "CMYK" else "PNG")


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def decoded(data: bytes, side: int = 8, max_pixels: int = MAX_PIXELS) -> Decoded:
    return decode(data, Preprocessing(side, side, MEAN, STD), max_pixels)


def pixels_of(data: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    result = decode(data, preprocessing, MAX_PIXELS)
    assert result.error is None
    assert result.pixels is not None
    return result.pixels


def open_clip_pixels(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """open_clip's own preprocessing without its last two steps, ToTensor and Normalize."""
    target = PreprocessCfg(
        size=(preprocessing.height, preprocessing.width),
        interpolation=preprocessing.interpolation,
        resize_mode=preprocessing.resize_mode,
        fill_color=preprocessing.fill_color,
    )
    for step in image_transform_v2(target, is_train=False).transforms[:-2]:
        image = step(image)
    return np.asarray(image)


def assert_equals_open_clip(data: bytes, preprocessing: Preprocessing, mode: str) -> None:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.mode == mode
        expected = open_clip_pixels(image, preprocessing)
    found = pixels_of(data, preprocessing)
    assert found.shape == (preprocessing.height, preprocessing.width, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected, str((mode, image.size, preprocessing)))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("target", [(56, 56), (48, 80), (81, 57)])
def test_pixels_equal_those_of_open_clip(
    target: tuple[int, int], interpolation: str, resize_mode: ResizeMode
) -> None:
    preprocessing = Preprocessing(*target, MEAN, STD, interpolation, resize_mode)
    for mode in MODES:
        for size in SIZES:
            if resize_mode == "longest" and size == (1000, 3):
                continue  # open_clip fails: it would have a height of 0
            assert_equals_open_clip(photograph_file(*size, mode), preprocessing, mode)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_pixels_of_jpegs_equal_those_of_open_clip_at_the_size_of_clip(
    resize_mode: ResizeMode,
) -> None:
    preprocessing = Preprocessing(224, 224, MEAN, STD, resize_mode=resize_mode)
    for size in [(333, 500), (500, 375), (224, 224), (225, 223), (640, 427), (31, 90)]:
        data = encoded(photograph(*size), "JPEG", quality=85)
        assert_equals_open_clip(data, preprocessing, "RGB")


@pytest.mark.parametrize("mode", MODES)
def test_padding_has_the_colour_that_open_clip_gives_it(mode: str) -> None:
    preprocessing = Preprocessing(40, 56, MEAN, STD, resize_mode="longest", fill_color=127)
    for size in [(31, 100), (100, 31), (7, 7)]:
        data = photograph_file(*size, mode)
        assert_equals_open_clip(data, preprocessing, mode)


@pytest.mark.parametrize("mode", ["P", "1"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_palette_and_bilevel_images_are_those_of_open_clip_after_conversion_to_rgb(
    mode: str, resize_mode: ResizeMode
) -> None:
    preprocessing = Preprocessing(56, 56, MEAN, STD, resize_mode=resize_mode)
    for size in [(31, 100), (225, 223)]:
        image = photograph(*size).convert(mode)
        expected = open_clip_pixels(image.convert("RGB"), preprocessing)
        np.testing.assert_array_equal(pixels_of(encoded(image), preprocessing), expected)


def test_the_size_is_that_of_the_file() -> None:
    result = decoded(encoded(photograph(37, 11)))
    assert (result.width, result.height) == (37, 11)


def colour(data: bytes) -> list[int]:
    """Of an image that is all one colour."""
    pixels = decoded(data).pixels
    assert pixels is not None
    assert (pixels == pixels[0, 0]).all()
    return list(pixels[0, 0].tolist())


@pytest.mark.parametrize(
    ("mode", "fill", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (0, 0, 0, 128), [127, 127, 127]),
        ("LA", (40, 0), [255, 255, 255]),
        ("LA", (40, 255), [40, 40, 40]),
        ("L", 40, [40, 40, 40]),
        ("1", 1, [255, 255, 255]),
        ("1", 0, [0, 0, 0]),
        ("I;16", 65535, [255, 255, 255]),
        ("I;16", 257 * 100, [100, 100, 100]),
    ],
)
def test_a_plain_colour_of_each_mode(mode: str, fill: Any, expected: list[int]) -> None:
    assert colour(encoded(Image.new(mode, (9, 13), fill))) == expected


def test_transparency_is_laid_over_white_before_it_is_resized() -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 16, 8))
    pixels = pixels_of(encoded(image), Preprocessing(16, 16, MEAN, STD))
    assert (pixels[:8] == (200, 0, 0)).all()
    assert (pixels[8:] == 255).all()


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(format: str) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.paste(1, (0, 0, 8, 4))
    pixels = pixels_of(encoded(image, format, transparency=0), Preprocessing(8, 8, MEAN, STD))
    assert (pixels[:4] == (200, 100, 0)).all()
    assert (pixels[4:] == 255).all()


def test_a_transparent_colour_of_an_rgb_png_becomes_white() -> None:
    data = encoded(Image.new("RGB", (5, 5), (1, 2, 3)), transparency=(1, 2, 3))
    assert colour(data) == [255, 255, 255]


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    data = encoded(Image.fromarray(np.tile(ramp, (64, 1))))
    pixels = pixels_of(data, Preprocessing(64, 64, MEAN, STD))
    np.testing.assert_array_equal(pixels[0, :, 0], ramp // 257)


@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_floating_point_pixels_are_refused(value: float) -> None:
    result = decoded(encoded(Image.new("F", (4, 4), value), "TIFF"))
    assert result.pixels is None
    assert "floating-point" in str(result.error)


def test_integers_beyond_16_bits_are_refused() -> None:
    result = decoded(encoded(Image.new("I", (4, 4), 70_000), "TIFF"))
    assert result.pixels is None
    assert "outside 0..65535" in str(result.error)


def test_an_animation_gives_its_first_frame() -> None:
    red, blue = (Image.new("RGB", (6, 6), name) for name in ("red", "blue"))
    assert colour(encoded(red, "GIF", save_all=True, append_images=[blue])) == [255, 0, 0]
    assert colour(encoded(blue, "GIF", save_all=True, append_images=[red])) == [0, 0, 255]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation: int, format: str) -> None:
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste((200, 0, 0), (0, 0, 16, 8))  # red top left
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    if format == "WEBP":
        how = {"lossless": True}
    data = encoded(stored, format, exif=exif, **how)
    result = decode(data, Preprocessing(16, 32, MEAN, STD, resize_mode="squash"), MAX_PIXELS)
    assert (result.width, result.height) == (32, 16)
    assert result.pixels is not None
    np.testing.assert_allclose(result.pixels, np.asarray(upright), atol=12)


def exif_of(kind: int, value: bytes) -> bytes:
    """EXIF whose one entry, the orientation, is of this type."""
    entry = struct.pack("<HHI", 0x0112, kind, 1) + value.ljust(4, b"\0")
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        exif_of(3, b"\x09"),
        exif_of(3, b"\0"),
        exif_of(2, b"6"),
        exif_of(1, b"\xff"),
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0" + b"\xff" * 40,
    ],
)
def test_odd_exif_is_no_reason_to_refuse_or_turn_an_image(exif: bytes, format: str) -> None:
    image = photograph(64, 48)
    odd, plain = (encoded(image, format, **how) for how in ({"exif": exif}, {}))
    assert odd != plain
    found, expected = decoded(odd), decoded(plain)
    assert (found.width, found.height, found.error) == (64, 48, None)
    np.testing.assert_array_equal(found.pixels, expected.pixels)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_a_single_pixel_fills_the_target(resize_mode: ResizeMode) -> None:
    data = encoded(Image.new("RGB", (1, 1), (10, 20, 30)))
    preprocessing = Preprocessing(224, 224, MEAN, STD, resize_mode=resize_mode)
    pixels = pixels_of(data, preprocessing)
    assert (pixels == (10, 20, 30)).all()
    assert pixels.shape == (224, 224, 3)


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1)])
def test_a_very_long_and_thin_image_is_refused_before_it_is_resized(size: tuple[int, int]) -> None:
    # At 224 pixels on its short side it would have 2,007,040,000.
    start = time.perf_counter()
    result = decoded(encoded(Image.new("L", size)), side=224)
    assert result.pixels is None
    assert result.error == f"too long and thin: {size[0]} x {size[1]}"
    assert (result.width, result.height) == size
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("resize_mode", ["longest", "squash"])
def test_a_long_and_thin_image_is_fine_where_it_is_not_enlarged(resize_mode: ResizeMode) -> None:
    data = encoded(Image.new("RGB", (1, 40_000), (10, 20, 30)))
    pixels = pixels_of(data, Preprocessing(16, 16, MEAN, STD, resize_mode=resize_mode))
    assert pixels.shape == (16, 16, 3)
    assert (pixels[:, 8 if resize_mode == "squash" else 7] == (10, 20, 30)).all()


@pytest.mark.parametrize(
    ("side", "max_pixels"),
    [(20_000, MAX_PIXELS), (20_000, 178_956_970), (11_000, MAX_PIXELS)],  # Pillow refuses 20,000
)
def test_an_enormous_image_is_refused_and_not_decoded(
    side: int, max_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(Image.new("1", (side, side), 1))
    loads: list[str] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loads.append(image.mode))
    result = decoded(data, max_pixels=max_pixels)
    assert result.pixels is None
    assert str(side * side) in str(result.error).replace(",", "")
    assert f"image.max_pixels {max_pixels:,}" in str(result.error)
    assert loads == []


def test_the_bound_on_pixels_is_exact() -> None:
    data = encoded(photograph(20, 30))
    assert decoded(data, max_pixels=600).error is None
    result = decoded(data, max_pixels=599)
    assert result.error == "too many pixels: 600 of image.max_pixels 599"
    assert (result.pixels, result.width, result.height) == (None, 20, 30)


def damaged_png() -> bytes:
    data = bytearray(encoded(photograph(64, 64)))
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"image,caption\na.jpg,A dog.\n", "not an image"),
        (b"\x00" * 5000, "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (encoded(photograph(64, 64))[:20], None),
        (encoded(photograph(64, 64))[:3000], None),
        (encoded(photograph(64, 64), "JPEG")[:900], "truncated"),
        (encoded(photograph(64, 64), "JPEG")[:10], None),
        (damaged_png(), None),
    ],
    ids=[
        "empty",
        "text",
        "zeros",
        "signature",
        "png header",
        "png half",
        "jpeg half",
        "jpeg header",
        "png damaged",
    ],
)
def test_a_file_that_cannot_be_decoded_gives_a_reason(data: bytes, reason: str | None) -> None:
    result = decoded(data)
    assert result.pixels is None
    assert result.error
    assert "\n" not in result.error
    if reason:
        assert reason in result.error


def test_a_truncated_file_still_tells_its_size() -> None:
    result = decoded(encoded(photograph(64, 48), "JPEG")[:900])
    assert (result.width, result.height) == (64, 48)


def large_photograph(size: tuple[int, int], orientation: int = 1, mode: str = "RGB") -> bytes:
    """A smooth picture with a bright corner, as a JPEG."""
    width, height = size
    ramp = np.linspace(0, 200, width)[None, :] * np.linspace(0.2, 1, height)[:, None]
    image = Image.fromarray(ramp.astype(np.uint8), "L").convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [(1800, 1000), (1000, 1800), (450, 2000)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_jpegs_decoded_at_a_fraction_are_nearly_the_same(
    size: tuple[int, int], orientation: int, mode: str
) -> None:
    target = Preprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = large_photograph(size, orientation, mode)
    whole, scaled = (decode(data, target, 10**8, scaled=scaled) for scaled in (False, True))
    assert (scaled.width, scaled.height) == (whole.width, whole.height)
    assert whole.pixels is not None
    assert scaled.pixels is not None
    difference = np.abs(whole.pixels.astype(int) - scaled.pixels.astype(int))
    assert difference.mean() < 1.5


def test_the_fraction_is_the_smallest_that_is_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    resized_from = []
    resize = Image.Image.resize

    def watched(image: Image.Image, *arguments: object, **options: object) -> Image.Image:
        resized_from.append(image.size)
        return resize(image, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", watched)
    target = Preprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for size in ((1792, 1792), (1791, 1791), (3000, 900)):
        decode(large_photograph(size), target, 10**8, scaled=True)
    assert resized_from == [(448, 448), (750, 225)]


def test_small_jpegs_and_other_formats_are_decoded_as_ever() -> None:
    target = Preprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    png = io.BytesIO()
    Image.effect_noise((2000, 2000), 80).save(png, "PNG")
    for data in (large_photograph((440, 400)), png.getvalue()):
        whole, scaled = (decode(data, target, 10**8, scaled=scaled) for scaled in (False, True))
        assert np.array_equal(whole.pixels, scaled.pixels)


def test_a_truncated_large_jpeg_fails_at_a_fraction_too() -> None:
    target = Preprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data = large_photograph((2000, 1500))
    decoded = decode(data[: len(data) // 2], target, 10**8, scaled=True)
    assert decoded.pixels is None
    assert decoded.error is not None
    assert "truncated" in decoded.error


def test_the_bound_on_pixels_is_on_the_whole_image() -> None:
    target = Preprocessing(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    decoded = decode(large_photograph((2000, 1500)), target, 2_000_000, scaled=True)
    assert decoded.error is not None
    assert "image.max_pixels" in decoded.error


def test_formats_that_start_programs_are_no_images() -> None:
    """For EPS Pillow starts Ghostscript, on whatever bytes somebody has sent."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    decoded = decode(file.getvalue(), Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 1000)
    assert (decoded.pixels, decoded.error) == (None, "not an image")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("TIFF", "tiff"), (None, "bin")],
)
def test_the_bytes_say_what_a_file_is(kind: str | None, expected: str) -> None:
    data = b"no image" if kind is None else encoded(photograph(4, 4), kind)
    assert extension(data) == expected
