"""A model directory with the tower that it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from captioner.backends import Pixels
from captioner.config import Encoder as EncoderOptions
from captioner.config import Search
from captioner.encoder import Encoder, Tower
from captioner.identity import EncoderIdentity
from captioner.model import CaptionModel, Look
from captioner.selection import Caption


class TrainedCaptioner:
    def __init__(
        self,
        model: str,
        encoder: EncoderOptions,
        device: str | torch.device,
        tower: Tower | None = None,
    ) -> None:
        """
        Raises:
            InputError: there is no model, or it was trained on another tower.
        """
        self._model = CaptionModel.load(model, device)
        self._encoder = Encoder(encoder, device, tower)
        self._model.check_encoder(self._encoder.identity, encoder.model)

    @property
    def identity(self) -> EncoderIdentity:
        return self._encoder.identity

    def check_search(self, search: Search) -> None:
        """
        Raises:
            InputError: a required word is not known.
        """
        self._model.check_search(search)

    def attention(self, pixels: Pixels, captions: Sequence[str]) -> list[Look] | str:
        """Where the decoder looks as it writes these captions, or why that cannot be told."""
        if self._model.config.decoder.attention == "none":
            return "this model looks at no patches (decoder.attention: none)"
        embedding, tokens = self._encoder.encode(pixels)
        assert tokens is not None
        return self._model.attention(embedding.numpy(), tokens.numpy(), captions)

    def caption(
        self, pixels: Pixels, search: Search, image_ids: Sequence[str]
    ) -> Sequence[Caption | None]:
        embedding, tokens = self._encoder.encode(pixels)
        return self._model.caption(
            embedding.numpy(), None if tokens is None else tokens.numpy(), search, image_ids
        )
