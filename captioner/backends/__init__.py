"""What turns pixels into captions: a model trained here, or somebody else's.

A model is a directory that ``captioner train`` has made, ``hf:NAME`` or ``coca:NAME``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from captioner import cpu
from captioner.config import Encoder as EncoderOptions
from captioner.config import Search
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.selection import Caption

if TYPE_CHECKING:  # open_clip takes seconds to import
    from captioner.encoder import Tower

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_PREFIXES = ("hf:", "coca:")


class Backend(Protocol):
    @property
    def identity(self) -> EncoderIdentity:
        """What looks at the images, and how it wants them."""

    def caption(
        self, pixels: Pixels, search: Search, image_ids: Sequence[str]
    ) -> Sequence[Caption | None]:
        """Caption ``pixels: (images, height, width, 3) uint8``. What is drawn for an image depends
        on its id. None: its features are no numbers."""


def is_foreign(model: str) -> bool:
    """Whether this is somebody else's captioner, and no model directory."""
    return model.startswith(_PREFIXES)


def load(
    model: str,
    encoder: EncoderOptions,
    search: Search,
    device: str | torch.device = "cpu",
    tower: Tower | None = None,
) -> Backend:
    """Load a captioner.

    Args:
        encoder: of a model directory, the tower to put in front; of others the precision counts.
        search: what it will be asked for.
        tower: the encoder's, where it is loaded already.

    Raises:
        InputError: it cannot be had, does not fit, or does not know such a search.
    """
    cpu.prepare()
    if not is_foreign(model):
        from captioner.backends.trained import TrainedCaptioner

        trained = TrainedCaptioner(model, encoder, device, tower)
        trained.check_search(search)
        return trained
    kind, _, name = model.partition(":")
    if kind == "coca":
        from captioner.backends.coca import CoCaCaptioner

        coca = CoCaCaptioner(name, encoder.precision, device)
        coca.check_search(search)
        return coca
    strange = ("consensus", "groups", "method", "banned_words", "required_words")
    for option in strange:
        if getattr(search, option) != getattr(Search(), option):
            raise InputError(f"search.{option}: {model} searches by itself, and knows no {option}")
    from captioner.backends.transformers import TransformersCaptioner

    theirs = TransformersCaptioner(name, encoder.precision, device)
    theirs.check_search(search)
    return theirs
