"""GPT-2, told of an image by a prefix (Mokady, Hertz and Bermano, "ClipCap: CLIP Prefix for Image
Captioning", 2021).

A small network maps the image's embedding to a few vectors that stand where words would, before
the caption; the pretrained language model goes on from there:

    prefix = mapping(embedding)             prefix_length vectors, as wide as GPT-2's words
    hidden = GPT-2([prefix; <SOS>; words])  each sees what stands before it
    logits = hidden @ word embeddings       as GPT-2 scores words

Search goes word by word, and keeps the keys and values of what stands before (``State``). Those of
the prefix are the same for all rows of an image (``Memory``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from captioner.decoders.words import by_step
from captioner.errors import InputError
from captioner.language_model import FIRST, BytePairVocabulary, LanguageModel, needs_extra
from captioner.vocabulary import EOS

# The logit of what GPT-2 has no word for: low, yet finite, since label smoothing takes means.
_IMPOSSIBLE = -1e4


class State(NamedTuple):
    """What every layer remembers of the prefix and the words so far. Search reorders these along
    ``rows``."""

    keys: Tensor  # (images, rows, layers, heads, prefix + words, head_size)
    values: Tensor  # (images, rows, layers, heads, prefix + words, head_size)


class Memory(NamedTuple):
    """What every layer remembers of the prefix, shared by all rows of an image."""

    keys: Tensor  # (images, layers, heads, prefix, head_size)
    values: Tensor  # (images, layers, heads, prefix, head_size)


class GPT2Decoder(nn.Module):
    def __init__(
        self,
        *,
        language_model: LanguageModel,
        embedding_size: int,
        prefix_length: int = 10,
        freeze: bool = False,
        feature_dropout: float = 0.0,
    ) -> None:
        """With random weights; ``load_pretrained`` gets those of the language model.

        Args:
            embedding_size: the encoder's.
            freeze: learn the mapping alone, and leave the language model as it is.
        """
        super().__init__()
        with needs_extra():
            from transformers import GPT2Config, GPT2Model
        config = GPT2Config(**language_model.config)
        self.end, self.prefix_length, self.freeze = language_model.end, prefix_length, freeze
        size = prefix_length * config.n_embd
        # Towers differ in scale by orders of magnitude; the norm makes one learning rate fit all.
        self.embedding_norm = nn.LayerNorm(embedding_size)
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.mapping = nn.Sequential(
            nn.Linear(embedding_size, size // 2), nn.Tanh(), nn.Linear(size // 2, size)
        )
        self.gpt2 = GPT2Model(config)
        self.gpt2.requires_grad_(not freeze)

    @property
    def most_words(self) -> int:
        """Tokens of a caption that there are places for, behind the prefix and ``<SOS>``."""
        return int(self.gpt2.config.n_positions) - self.prefix_length - 1

    def load_pretrained(self, name: str) -> None:
        """The language model's weights, as safetensors, from a directory or the hub.

        Raises:
            InputError: they cannot be had.
        """
        from transformers import GPT2Model

        try:
            found = GPT2Model.from_pretrained(name, use_safetensors=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"decoder.pretrained: no weights of {name}: {error}") from error
        self.gpt2.load_state_dict(found.state_dict())

    def train(self, mode: bool = True) -> GPT2Decoder:
        """A frozen language model has no dropout either."""
        super().train(mode)
        if self.freeze:
            self.gpt2.eval()
        return self

    def memory(self, embedding: Tensor, tokens: Tensor | None) -> Memory:
        """Read the prefix of an image, once for all its captions or beams.

        Args:
            embedding: ``(images, embedding_size)``.
            tokens: not read.
        """
        seen = self.feature_dropout(self.embedding_norm(embedding))
        prefix = self.mapping(seen).view(len(embedding), self.prefix_length, -1)
        _, keys, values = self._read(prefix, None)
        return Memory(keys, values)

    def start(self, memory: Memory, rows: int) -> State:
        """The state before the first word, the same for every row of an image."""
        keys, values = (tensor.unsqueeze(1).expand(-1, rows, -1, -1, -1, -1) for tensor in memory)
        return State(keys, values)

    def step(self, words: Tensor, state: State, memory: Memory) -> tuple[Tensor, State, None]:
        """Read one word and score the next.

        Args:
            words: ``(images, rows) int64``, the latest word of every row.

        Returns:
            ``logits: (images, rows, vocabulary)``, the new state, and None: there are no patches
            to look at.
        """
        hidden, state = self._advance(words.unsqueeze(-1), state)
        return self._scores(hidden.squeeze(2)), state, None

    def forward(
        self, embedding: Tensor, tokens: Tensor | None, words: Tensor, keep: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Score the next word after every word of known captions (teacher forcing).

        Args:
            words: ``(images, captions, length) int64``: ``<SOS>`` and the words.
            keep: ``(images, captions, length) bool``: after which words to score; None: all.

        Returns:
            ``logits: (kept, vocabulary)``, step by step, as ``by_step(keep)`` orders them, and
            None.
        """
        keep = torch.ones_like(words, dtype=torch.bool) if keep is None else keep
        state = self.start(self.memory(embedding, tokens), words.shape[1])
        hidden, _ = self._advance(words, state)
        return self._scores(by_step(hidden)[by_step(keep)]), None

    def _advance(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Read ``words: (images, rows, new)`` after what the state remembers -> ``hidden: (images,
        rows, new, n_embd)``."""
        images, rows, new = words.shape
        theirs = torch.where(words < FIRST, self.end, words - FIRST)  # <SOS> is GPT-2's end of text
        past = state.keys.flatten(0, 1), state.values.flatten(0, 1)
        hidden, keys, values = self._read(self.gpt2.wte(theirs.flatten(0, 1)), past)
        shape = (images, rows, *keys.shape[1:])
        return hidden.view(images, rows, new, -1), State(keys.view(shape), values.view(shape))

    def _read(
        self, inputs: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``inputs: (batch, new, n_embd)`` after ``past`` -> hidden states, all keys, all values,
        the latter ``(batch, layers, heads, length, head_size)``."""
        from transformers import DynamicCache

        layers = None if past is None else list(zip(*(part.unbind(dim=1) for part in past)))
        found = self.gpt2(inputs_embeds=inputs, cache=DynamicCache(layers), use_cache=True)
        remembered: Any = found.cache.layers
        keys = torch.stack([layer.keys for layer in remembered], dim=1)
        values = torch.stack([layer.values for layer in remembered], dim=1)
        return found.last_hidden_state, keys, values

    def _scores(self, hidden: Tensor) -> Tensor:
        """``(..., n_embd)`` -> ``(..., vocabulary)``, in the order of ``BytePairVocabulary``."""
        theirs = hidden @ self.gpt2.wte.weight.T
        end = theirs[..., self.end : self.end + 1]
        never = torch.full_like(end, _IMPOSSIBLE)
        once = theirs.index_fill(-1, torch.tensor(self.end, device=hidden.device), _IMPOSSIBLE)
        return torch.cat([never, never, end, never, once], dim=-1)  # <PAD> <SOS> <EOS> <UNK>


def pretrained(name: str) -> tuple[LanguageModel, BytePairVocabulary, int]:
    """A language model, whose weights can be had, with its vocabulary, and for how many tokens it
    has places, behind a prefix of one.

    Raises:
        InputError: it, or its weights, cannot be had.
    """
    language_model, vocabulary = LanguageModel.pretrained(name)
    decoder = GPT2Decoder(language_model=language_model, embedding_size=1, prefix_length=1)
    decoder.load_pretrained(name)
    return language_model, vocabulary, decoder.most_words


assert (EOS, FIRST) == (2, 4)  # what _scores stands on
