"""The text side of a run's CLIP model: captions -> the space of the image embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import nn

from captioner import cpu
from captioner.config import Encoder as EncoderOptions
from captioner.encoder import create_model, weights_digest
from captioner.errors import InputError


class TextEncoder:
    """Runs a frozen text tower, in float32: a score should not depend on the device.

    ``image_weights_sha256`` says which image tower it belongs to.
    """

    def __init__(self, options: EncoderOptions, device: str | torch.device = "cpu") -> None:
        """
        Raises:
            InputError: the model has no text side that was ever trained, or no tokenizer for it.
        """
        cpu.prepare()
        self._model, _ = create_model(options)
        self.image_weights_sha256 = weights_digest(self._model.visual)
        self._model.visual = nn.Identity()
        self._model.eval().requires_grad_(False)
        if options.pretrained != "none" and _is_untrained(self._model):
            raise InputError(
                f"score.also: clip_score: the text side of {options.model} was never trained: this "
                "image tower is not CLIP's. Leave the score out, or use a CLIP model"
            )
        try:
            self._tokenizer = open_clip.get_tokenizer(options.model)
        except Exception as error:
            raise InputError(
                f"score.also: clip_score: no tokenizer for {options.model}: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._device = torch.device("cpu")
        try:
            self.encode([""])
        except IndexError:
            raise InputError(
                f"score.also: clip_score: the text side of {options.model} knows fewer words "
                "(text_cfg.vocab_size) than its tokenizer makes: it is not a CLIP model's"
            ) from None
        self._device = torch.device(device)
        self._model.to(self._device)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """``(texts, embedding_size) float32``, not normalised. Long texts are cut."""
        embedding = self._model.encode_text(self._tokenizer(list(texts)).to(self._device))
        values: NDArray[np.float32] = embedding.float().cpu().numpy()
        return values


def _is_untrained(model: Any) -> bool:
    """Whether every norm still multiplies by one and adds zero, as no training leaves it."""
    norms = [norm for norm in model.modules() if isinstance(norm, nn.LayerNorm)]
    return bool(norms) and all(
        bool((norm.weight == 1).all()) and bool((norm.bias == 0).all()) for norm in norms
    )
