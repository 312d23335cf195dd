"""A model directory: decoder weights, vocabulary, configuration, history, encoder's identity."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from captioner import (
    configuration,
    cpu,
    decoders,
    features,
    model_files,
    precision,
    redaction,
    storage,
)
from captioner.config import JobConfig, Search
from captioner.decoders import onednn
from captioner.decoders.gpt2 import GPT2Decoder
from captioner.errors import InputError
from captioner.identity import EncoderIdentity
from captioner.language_model import AnyVocabulary, BytePairVocabulary, LanguageModel
from captioner.model_files import ENCODER, LANGUAGE_MODEL, REQUIRED, VOCABULARY, WEIGHTS, NotAModel
from captioner.search import Words, find
from captioner.search.rules import check_length
from captioner.selection import Caption, at, captions_of
from captioner.vocabulary import Vocabulary

METADATA_KEY = b"captioner.model"  # of caption shards: the digest of the model that has made them

# The words of a caption (<EOS> last), and the weights before each: (words, patches) float32.
Look = tuple[list[str], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class CaptionModel:
    """A trained decoder with all that it takes to caption. Its weights must not change once it has:
    a search may compute with copies of them (``_on_onednn``)."""

    decoder: Any
    vocabulary: AnyVocabulary
    config: JobConfig
    encoder: EncoderIdentity

    @classmethod
    def load(cls, url: str, device: str | torch.device = "cpu") -> CaptionModel:
        """Load a model directory.

        Raises:
            NotAModel: the directory has none, or a part of it is missing or damaged.
        """
        url = storage.resolve(url)
        missing = [name for name in REQUIRED if not storage.exists(storage.join(url, name))]
        if missing:
            raise NotAModel(f"{url}: not a model directory: {', '.join(missing)} missing")
        config = configuration.parse(*model_files.read_config(url))
        kind: type[AnyVocabulary] = Vocabulary
        language_model = None
        if config.decoder.type == "gpt2":
            kind = BytePairVocabulary
            with _whole(storage.join(url, LANGUAGE_MODEL)) as file:
                language_model = LanguageModel(**storage.read_json(file))
        with _whole(storage.join(url, ENCODER)) as file:
            identity = EncoderIdentity.from_dict(storage.read_json(file))
        with _whole(storage.join(url, VOCABULARY)) as file:
            vocabulary = kind.from_json(storage.read_text(file))
        decoder = decoders.build(config.decoder, identity, len(vocabulary), language_model)
        with _whole(storage.join(url, WEIGHTS)) as file:
            decoder.load_state_dict(safetensors.torch.load(storage.read_bytes(file)))
        cpu.prepare()
        return cls(decoder.eval().to(device), vocabulary, config, identity)

    def check_encoder(self, encoder: EncoderIdentity, origin: str) -> None:
        """Refuse features of another encoder than the model's.

        Raises:
            InputError: naming what differs.
        """
        difference = self.encoder.difference(encoder)
        if difference:
            raise InputError(
                f"{origin}: these features are of another encoder ({encoder.describe()}) than the "
                f"model's ({self.encoder.describe()}): {difference}"
            )

    def check_search(self, search: Search) -> None:
        """See that the model knows the words that are asked for, and has places for as many.

        Raises:
            InputError: naming the one that it does not know, or how many there may be.
        """
        Words.of(search, self.vocabulary)
        if isinstance(self.decoder, GPT2Decoder):
            check_length(search.max_words, self.decoder.most_words, "this model's GPT-2")

    @torch.inference_mode()
    def caption(
        self,
        embedding: np.ndarray[Any, Any],
        tokens: np.ndarray[Any, Any] | None,
        search: Search,
        image_ids: Sequence[str] | None = None,
    ) -> Sequence[Caption | None]:
        """Caption images by their features; None where these are no finite numbers.

        Args:
            embedding: ``(images, embedding_size)``.
            tokens: ``(images, patches, channels)``, or None for a decoder without attention.
            image_ids: by which captions are drawn, where they are; None: by their places.

        Raises:
            InputError: a required word is not known.
        """
        words = Words.of(search, self.vocabulary)
        if not len(embedding):
            return []
        ids = [str(n) for n in range(len(embedding))] if image_ids is None else image_ids
        dtype = precision.choose(search.precision, self._device)
        with precision.autocast(self._device, dtype):
            decoder = self._on_onednn if onednn.worthwhile(self._device, dtype) else self.decoder
            memory = decoder.memory(*self._features(embedding, tokens))
            hypotheses = find(decoder, memory, ids, search, words)
        good = hypotheses.log_probability.isfinite().any(dim=1).cpu().numpy()
        if not good.all():
            good |= features.finite(embedding, *(() if tokens is None else (tokens,)))
        if not good.all():
            some = None if tokens is None else tokens[good]
            known = [name for name, kept in zip(ids, good) if kept]
            return at(self.caption(embedding[good], some, search, known), good)
        return captions_of(hypotheses, search, self.vocabulary.decode, self.vocabulary.said)

    @torch.inference_mode()
    def attention(
        self, embedding: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any], captions: Sequence[str]
    ) -> list[Look]:
        """Where the decoder looks as it writes the given captions of the given images."""
        looks = []
        for row, caption in enumerate(captions):
            ids = self.vocabulary.encode(caption)
            _, weights = self.decoder(
                self._tensor(embedding[row : row + 1]),
                self._tensor(tokens[row : row + 1]),
                torch.tensor([[ids[:-1]]], device=self._device),
            )
            words = [self.vocabulary.words[number] for number in ids[1:]]
            looks.append((words, weights[0, 0].float().cpu().numpy()))
        return looks

    def memory(self, embedding: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any] | None) -> Any:
        return self.decoder.memory(*self._features(embedding, tokens))

    def _features(
        self, embedding: np.ndarray[Any, Any], tokens: np.ndarray[Any, Any] | None
    ) -> tuple[Tensor, Tensor | None]:
        return self._tensor(embedding), None if tokens is None else self._tensor(tokens)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and for Ray, which can hold no tensors of oneDNN's."""
        return {name: part for name, part in vars(self).items() if name != "_on_onednn"}

    @functools.cached_property
    def _on_onednn(self) -> Any:
        if isinstance(self.decoder, GPT2Decoder):  # no layers of ours
            return self.decoder
        return onednn.converted(self.decoder, self.decoder.words)

    def _tensor(self, values: np.ndarray[Any, Any]) -> Tensor:
        return torch.tensor(values, device=self._device).float()

    @property
    def _device(self) -> torch.device:
        return next(self.decoder.parameters()).device  # type: ignore[no-any-return]


@contextlib.contextmanager
def _whole(file: str) -> Iterator[str]:
    """
    Raises:
        NotAModel: what is read there is not what a model directory has.
    """
    try:
        yield file
    except (SafetensorError, RuntimeError, ValueError, LookupError, TypeError) as error:
        why = (str(error).splitlines() or [repr(error)])[0]
        raise NotAModel(f"{file}: damaged, or of another model: {why}") from None


def digest(url: str) -> str:
    """What tells a model directory from every other: the SHA-256 of its weights and words."""
    found = hashlib.sha256()
    for name in (WEIGHTS, VOCABULARY):
        found.update(storage.read_bytes(storage.join(url, name)))
    return found.hexdigest()


def save_weights(url: str, decoder: torch.nn.Module) -> None:
    storage.write_bytes(url, safetensors.torch.save(decoder.state_dict()))


def write_description(
    url: str,
    config: JobConfig,
    vocabulary: AnyVocabulary,
    encoder: EncoderIdentity,
    language_model: LanguageModel | None = None,
) -> None:
    """All of a model directory but its weights and history."""
    if language_model is not None:
        storage.write_json(storage.join(url, LANGUAGE_MODEL), language_model.to_dict())
    # A model directory is handed on, and nobody reads from it where its images were.
    described = redaction.clean(configuration.dump(config))
    storage.write_text(storage.join(url, model_files.CONFIG), described)
    storage.write_text(storage.join(url, VOCABULARY), vocabulary.to_json())
    storage.write_json(storage.join(url, ENCODER), encoder.to_dict())
