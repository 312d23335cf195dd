"""A model directory with the tower that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from captioner.backends import Pixels
from captioner.config import Encoder as EncoderOptions
from captioner.config import Search
from captioner.encoder import Encoder
from captioner.identity import EncoderIdentity
from captioner.model import CaptionModel
from captioner.selection import Caption


class TrainedCaptioner:
    def __init__(self, model: str, encoder: EncoderOptions, device: str | torch.device) -> None:
        """
        Raises:
            InputError: there is no model, or it was trained on another tower.
        """
        self._model = CaptionModel.load(model, device)
        self._encoder = Encoder(encoder, device)
        self._model.check_encoder(self._encoder.identity, encoder.model)

    @property
    def identity(self) -> EncoderIdentity:
        return self._encoder.identity

    def caption(self, pixels: Pixels, search: Search, image_ids: Sequence[str]) -> list[Caption]:
        embedding, tokens = self._encoder.encode(pixels)
        return self._model.caption(
            embedding.numpy(), None if tokens is None else tokens.numpy(), search, image_ids
        )
