"""One image, to look at: what a model says of it, and where it looked."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from captioner import configuration, looks, storage
from captioner.backends.trained import TrainedCaptioner
from captioner.config import Search
from captioner.one_by_one import Captioner

_EMPTY = "(no words)"


def widened(search: Search, best: int) -> Search:
    """A search with so many captions to show, whose first is what the model's own search gives if
    that has beams enough.

    Raises:
        InputError: it cannot have so many.
    """
    beams = -(-max(best, search.beam_size) // search.groups) * search.groups
    wanted = {**search.model_dump(), "n_best": best, "beam_size": beams}
    return configuration.parse_search(wanted, f"--best {best}")


def view(image: str, captioner: Captioner, out: str) -> list[str]:
    """Write the attention figure to ``out``, and return what there is to read, in lines.

    Raises:
        InputError: the image cannot be read.
    """
    pixels = captioner.pixels(image, image)
    (caption,) = captioner.of_pixels(pixels[None], [image])
    assert caption.confidence is not None
    lines = [f"{caption.text or _EMPTY}    (confidence {caption.confidence:.2f})"]
    lines += [f"  {log:8.2f}  {text or _EMPTY}" for text, log in caption.n_best]
    drawn = _attention(captioner.backend, pixels, caption.text)
    if isinstance(drawn, str):
        return [*lines, f"attention: {drawn}"]
    file = io.BytesIO()
    drawn.savefig(file, format=out.rpartition(".")[2], dpi=100)
    storage.write_bytes(storage.resolve(out), file.getvalue())
    return [*lines, f"attention: {out}"]


def _attention(backend: Any, pixels: Any, caption: str) -> Any:
    """The figure, or why there is none."""
    if not isinstance(backend, TrainedCaptioner):
        return "only models that were trained here tell where they look"
    preprocessing = backend.identity.preprocessing
    if reason := looks.why_not(backend.identity.patches, preprocessing):
        return reason
    found = backend.attention(pixels[None], [caption])
    if isinstance(found, str):
        return found
    ((words, weights),) = found
    return looks.figure(Image.fromarray(pixels), caption, words, weights)
