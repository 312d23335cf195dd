"""Rates that ``captioner bench extract --out FILE`` has measured, for a plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from captioner import storage
from captioner.errors import InputError


@dataclass(frozen=True)
class Measured:
    encoder: str  # the tower's name
    on_gpu: bool
    cores: int
    hardware: str
    date: str
    encoder_images_per_second: float  # of one GPU, or of all cores
    decode_images_per_second: float  # of one core, at the size of the images measured with


def write(url: str, measured: Measured) -> None:
    storage.write_json(url, asdict(measured))


def read(url: str, model: str, device: str) -> tuple[float, float, str]:
    """Images per second of one device, and of one decoding core; and where and when measured.

    Raises:
        InputError: not such a file, or of another tower, or of no GPU.
    """
    try:
        found = Measured(**storage.read_json(url))
        encoder = float(found.encoder_images_per_second) / (1 if found.on_gpu else found.cores)
        decode = float(found.decode_images_per_second)
    except (OSError, ValueError, TypeError, ZeroDivisionError, InputError) as error:
        raise InputError(
            f"--measured {url}: not a file of `captioner bench extract --out`: {error}"
        ) from None
    if found.encoder != model:
        raise InputError(f"--measured {url}: of {found.encoder}, and the plan is for {model}")
    if found.on_gpu != (device != "cpu"):
        where = "on a GPU" if found.on_gpu else "without a GPU"
        raise InputError(f"--measured {url}: measured {where} ({found.hardware}), not on {device}")
    origin = f"measured on {found.hardware}, {found.date}, with the images of that bench ({url})"
    return encoder, decode, origin
