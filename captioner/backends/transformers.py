"""transformers' image-to-text models: BLIP, GIT, ViT-GPT2 and others with ``generate``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from captioner import precision as precisions
from captioner.backends import Pixels
from captioner.backends.pixels import normalised
from captioner.config import Precision, Search
from captioner.encoder import weights_digest
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.images import Preprocessing
from captioner.language_model import needs_extra
from captioner.search.rules import check_length
from captioner.selection import Caption, different

_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class TransformersCaptioner:
    def __init__(self, name: str, precision: Precision, device: str | torch.device) -> None:
        """``name``: a directory in transformers' format, or of the Hugging Face hub. Its code is
        transformers' own; what comes with the weights is never run.

        Raises:
            InputError: it cannot be had, or prepares images in a way that is not known here.
        """
        with needs_extra():
            import transformers
            from transformers import (
                AutoImageProcessor,
                AutoModelForImageTextToText,
                AutoTokenizer,
            )
        try:
            model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=False)
            processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(
                f"hf:{name}: neither a directory with an image-to-text model nor one that the "
                f"Hugging Face hub gives: {str(error).splitlines()[0]}\n"
                "Copy that repository to a directory and give hf:/path/to/it"
            ) from None
        self._device = torch.device(device)
        self._dtype = precisions.choose(precision, self._device)
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._ends = _ends(model)
        self.identity = EncoderIdentity(
            model=f"hf:{name}",
            pretrained="its own",
            weights_sha256=weights_digest(model),
            preprocessing=preprocessing_of(processor, f"hf:{name}"),
            library=f"transformers {transformers.__version__}",
        )

    def check_search(self, search: Search) -> None:
        """
        Raises:
            InputError: longer captions are wanted than it has places for.
        """
        text = self._model.config.get_text_config(decoder=True)
        places = getattr(text, "max_position_embeddings", None)  # others' names map to this one
        most = None if places is None else places - 1
        check_length(search.max_words, most, self.identity.model)

    @torch.inference_mode()
    def caption(
        self, pixels: Pixels, search: Search, image_ids: Sequence[str]
    ) -> list[Caption | None]:
        """By transformers' beam search, ``search.max_words`` counting the model's own tokens. The
        log-probability is after the repetition penalty."""
        if not len(pixels):
            return []
        images = normalised(pixels, self.identity.preprocessing, self._device)
        with precisions.autocast(self._device, self._dtype):
            found = self._model.generate(
                pixel_values=images,
                num_beams=search.beam_size,
                do_sample=False,
                length_penalty=search.length_penalty,
                repetition_penalty=search.repetition_penalty,
                no_repeat_ngram_size=search.no_repeat_ngram,
                min_new_tokens=search.min_words,
                num_return_sequences=search.n_best,
                max_new_tokens=search.max_words,
                return_dict_in_generate=True,
                output_scores=True,
            )
        texts = self._tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        texts = [" ".join(text.split()) for text in texts]
        totals, tokens = (values.tolist() for values in self._log_probability(found))
        captions: list[Caption | None] = []
        for first in range(0, len(texts), search.n_best):
            if not math.isfinite(totals[first]):  # nor are what the model sees of the image
                captions.append(None)
                continue
            best = slice(first, first + search.n_best)
            confidence = math.exp(totals[first] / max(1, tokens[first]))
            n_best = different(zip(texts[best], totals[best]), search.n_best)
            captions.append(Caption(texts[first], totals[first], confidence, n_best))
        return captions

    def _log_probability(self, found: Any) -> tuple[Tensor, Tensor]:
        """Of the tokens and the first that ends them, ``(captions,)``, and how many they are."""
        beams = getattr(found, "beam_indices", None)
        writer = getattr(self._model, "text_decoder", self._model)  # BLIP's own generates
        each = writer.compute_transition_scores(
            found.sequences, found.scores, beams, normalize_logits=beams is None
        )  # (captions, new tokens); 0 after the end where there are beams
        new = found.sequences[:, -each.shape[1] :]
        ended = torch.isin(new, torch.tensor(self._ends, device=new.device)).cumsum(dim=1)
        after = (ended.roll(1, dims=1) > 0) & (torch.arange(new.shape[1], device=new.device) > 0)
        return each.masked_fill(after, 0.0).sum(dim=1), (~after).sum(dim=1)


def _ends(model: Any) -> list[int]:
    """The tokens that end a caption."""
    ends: set[int] = set()
    text = getattr(model.config, "text_config", None)
    for owner, name in (
        (model.generation_config, "eos_token_id"),
        (model.config, "eos_token_id"),
        (text, "sep_token_id"),  # BLIP
        (text, "eos_token_id"),
    ):
        value = getattr(owner, name, None)
        ends.update(value if isinstance(value, list) else [value] if value is not None else [])
    return sorted(ends)


def preprocessing_of(processor: Any, origin: str) -> Preprocessing:
    """How transformers' image processor prepares an image, in this project's terms.

    Raises:
        InputError: it does something else.
    """
    size = dict(processor.size or {})
    crop = (
        dict(getattr(processor, "crop_size", None) or {}) if _does(processor, "center_crop") else {}
    )
    edge = size.get("shortest_edge")
    square = (size.get("height"), size.get("width"))
    if edge and crop.get("height") == crop.get("width") == edge:
        mode, (height, width) = "shortest", (edge, edge)
    elif all(square) and (not crop or (crop.get("height"), crop.get("width")) == square):
        mode, (height, width) = "squash", square
    else:
        raise InputError(
            f"{origin}: it resizes images to {size} and crops {crop or 'nothing'}, which is not "
            "known here"
        )
    interpolation = _INTERPOLATIONS.get(int(processor.resample))
    if interpolation is None or not (_does(processor, "resize") and _does(processor, "rescale")):
        raise InputError(
            f"{origin}: its image processor resizes with filter {processor.resample}, which is "
            "not known here (bilinear and bicubic are)"
        )
    plain = (0.0,) * 3, (1.0,) * 3
    mean, std = (
        (tuple(processor.image_mean), tuple(processor.image_std))
        if _does(processor, "normalize")
        else plain
    )
    return Preprocessing(height, width, mean, std, interpolation, mode)  # type: ignore[arg-type]


def _does(processor: Any, what: str) -> bool:
    return bool(getattr(processor, f"do_{what}", False))
