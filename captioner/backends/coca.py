"""open_clip's own captioner: CoCa (Yu et al., "CoCa: Contrastive Captioners are Image-Text
Foundation Models", TMLR 2022).

Its text tower reads the caption so far, its multimodal decoder looks at the image and scores the
next word. The search is this project's: open_clip's stands on parts of transformers that are no
longer there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor

from captioner import precision as precisions
from captioner.backends import Pixels
from captioner.backends.pixels import normalised
from captioner.config import Encoder as EncoderOptions
from captioner.config import Precision, Search
from captioner.encoder import create_model, preprocessing_of, weights_digest
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.language_model import FIRST
from captioner.search import find
from captioner.search.hypotheses import select
from captioner.search.rules import check_length
from captioner.selection import Caption, at, captions_of
from captioner.vocabulary import EOS


class State(NamedTuple):
    words: Tensor  # (images, rows, length), in CoCa's own ids


class Memory(NamedTuple):
    """What CoCa sees of an image, shared by all its rows."""

    whole: Tensor  # (images, embedding_size)
    tokens: Tensor  # (images, queries, channels)


class CoCaCaptioner:
    def __init__(self, name: str, precision: Precision, device: str | torch.device) -> None:
        """``name`` is MODEL or MODEL/WEIGHTS, as open_clip names them, the weights by a tag or a
        file's path, or ``local-dir:PATH``.

        Raises:
            InputError: its weights cannot be had, or it is no CoCa.
        """
        model, _, weights = name.partition("/")
        if ":" in model:  # local-dir: and hf-hub: bring their own
            model, weights = name, ""
        known = open_clip.list_pretrained_tags_by_model(model)
        # Those that have learned to caption after they have learned to compare, where there are.
        known.sort(key=lambda tag: not tag.startswith("mscoco_finetuned"))
        weights = weights or (known[0] if known else "")
        options = EncoderOptions(model=model, pretrained=weights or "its own")
        self._device = torch.device(device)
        self._dtype = precisions.choose(precision, self._device)
        try:
            coca, _ = create_model(options)
        except InputError as error:
            reason = str(error).splitlines()[0]
            if not reason.startswith("encoder.pretrained"):
                raise
            raise InputError(
                f"coca:{name}: {reason}\nWith a local file: coca:{model}//PATH/TO/WEIGHTS, or with "
                "a directory of both: coca:local-dir:PATH"
            ) from error
        if not hasattr(coca, "text_decoder"):
            raise InputError(f"coca:{name}: open_clip's {model} is no CoCa: it writes no captions")
        self._coca = coca.eval().requires_grad_(False).to(self._device)
        self._tokenizer = open_clip.get_tokenizer(model)
        self.identity = EncoderIdentity(
            model=f"coca:{model}",
            pretrained=options.pretrained,
            weights_sha256=weights_digest(coca),
            preprocessing=preprocessing_of(coca.visual),
            library=f"open_clip {open_clip.__version__}",
        )

    def check_search(self, search: Search) -> None:
        """
        Raises:
            InputError: words are required or banned, or longer captions wanted than it has places
                for.
        """
        check_length(search.max_words, self._coca.context_length - 1, self.identity.model)
        if search.required_words or search.banned_words:
            raise InputError(
                f"search: {self.identity.model} writes byte pairs, of which no words can be "
                "required or banned"
            )

    @torch.inference_mode()
    def caption(
        self, pixels: Pixels, search: Search, image_ids: Sequence[str]
    ) -> list[Caption | None]:
        """``search.max_words`` counts its byte pairs."""
        if not len(pixels):
            return []
        with precisions.autocast(self._device, self._dtype):
            memory = self.memory(normalised(pixels, self.identity.preprocessing, self._device))
            parts = [part.flatten(1).isfinite().all(dim=1) for part in memory]
            good = torch.stack(parts).all(dim=0)
            ids = [name for name, kept in zip(image_ids, good.tolist()) if kept]
            if not ids:
                return [None] * len(pixels)
            found = find(self, select(memory, good), ids, search)
        captions = captions_of(found, search, self._text, lambda ids: self._text(ids).split())
        return at(captions, good.tolist())

    def memory(self, images: Tensor) -> Memory:
        """``images: (images, 3, height, width)``, normalised."""
        return Memory(*self._coca._encode_image(images))

    def start(self, memory: Memory, rows: int) -> State:
        images = len(memory.tokens)
        return State(torch.empty(images, rows, 0, dtype=torch.int64, device=self._device))

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[Tensor, State, None]:
        """Read ``words: (images, rows)`` -> ``logits: (images, rows, vocabulary)``, in the order of
        ``BytePairVocabulary``. The caption so far is read anew: CoCa keeps no keys and values."""
        images, rows = words.shape
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        theirs = torch.where(words < FIRST, start, words - FIRST)
        state = State(torch.cat([state.words, theirs.unsqueeze(-1)], dim=-1))
        found: dict[str, Any] = self._coca(
            None,
            state.words.flatten(0, 1),
            image_latent=memory.whole.repeat_interleave(rows, dim=0),
            image_embs=memory.tokens.repeat_interleave(rows, dim=0),
            output_labels=False,
        )
        scores = found["logits"][:, -1].view(images, rows, -1).float()
        stops = scores[..., end : end + 1].clone()
        scores[..., [start, end]] = -torch.inf
        never = torch.full_like(stops, -torch.inf)
        return torch.cat([never, never, stops, never, scores], dim=-1), state, None

    def _text(self, ids: Sequence[int]) -> str:
        said = ids[: list(ids).index(EOS)] if EOS in ids else ids
        theirs = [number - FIRST for number in said if number >= FIRST]
        return str(self._tokenizer.decode(theirs)).strip()
