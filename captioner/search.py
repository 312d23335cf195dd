"""Beam search and sampling, batched over images and beams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captioner.config import Search
from captioner.vocabulary import EOS, PAD, SOS, UNK

NEVER = [PAD, SOS, UNK]


@dataclass(frozen=True)
class Hypotheses:
    """Captions of a batch of images, the best first."""

    words: Tensor  # (images, beams, length) int64: words, <EOS>, then <PAD>
    log_probability: Tensor  # (images, beams): of words and <EOS>, by the model alone
    score: Tensor  # (images, beams): what they are ordered by


@torch.inference_mode()
def beam_search(decoder: Any, memory: Any, images: int, options: Search) -> Hypotheses:
    """Find the captions of highest score for every image.

    The score of a caption of n tokens (``<EOS>`` counted) is the sum of its penalised
    log-probabilities divided by n ** length_penalty (Wu et al., "Google's Neural Machine
    Translation System", 2016, section 7, with the plain length in place of its (5 + n) / 6).
    The repetition penalty is that of Keskar et al., "CTRL", 2019, section 4.1: the logit of a
    word that the caption already has is divided by the penalty, or multiplied where negative.

    A finished caption keeps its place among the beams as long as none of higher score
    displaces it. After ``max_words`` words only ``<EOS>`` may follow. ``<PAD>``, ``<SOS>`` and
    ``<UNK>`` never occur: the distribution is renormalised over the other words.

    Args:
        memory: ``decoder.memory(embedding, tokens)`` of the images.
    """
    beams, penalty = options.beam_size, options.repetition_penalty
    state = decoder.start(memory, rows=beams)
    device = state[0].device
    row_of = torch.arange(images, device=device).unsqueeze(1)  # (images, 1), to index with beams

    words = torch.full((images, beams, 1), SOS, device=device)
    finished = torch.zeros((images, beams), dtype=torch.bool, device=device)
    length = torch.zeros((images, beams), device=device)
    log_probability = torch.zeros((images, beams), device=device)
    # All beams begin the same: only the first may be continued, or all would stay the same.
    total = torch.full((images, beams), -torch.inf, device=device)
    total[:, 0] = 0.0
    seen: Tensor | None = None  # (images, beams, vocabulary) bool

    for position in range(options.max_words + 1):
        logits, state, _ = decoder.step(words[:, :, -1], state, memory)
        logits = logits.float()
        logits[:, :, NEVER] = -torch.inf
        plain = logits.log_softmax(dim=-1)  # (images, beams, vocabulary)
        if seen is None:
            seen = torch.zeros_like(logits, dtype=torch.bool)
        penalised = plain
        if penalty != 1.0:
            lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
            penalised = torch.where(seen, lowered, logits).log_softmax(dim=-1)
        if position == options.max_words:
            penalised = penalised.clone()
            penalised[:, :, :EOS] = -torch.inf
            penalised[:, :, EOS + 1 :] = -torch.inf
        # A finished caption has one continuation: itself, at no cost.
        stay = torch.full_like(penalised[0, 0], -torch.inf)
        stay[PAD] = 0.0
        penalised = torch.where(finished.unsqueeze(-1), stay, penalised)

        totals = total.unsqueeze(-1) + penalised  # (images, beams, vocabulary)
        lengths = length + (~finished).float()
        scores = totals / lengths.unsqueeze(-1) ** options.length_penalty
        _, best = scores.flatten(1).topk(beams, dim=-1)  # (images, beams)
        beam, word = best // scores.shape[-1], best % scores.shape[-1]

        total = totals[row_of, beam, word]
        length = lengths[row_of, beam]
        was_finished = finished[row_of, beam]
        gained = torch.where(was_finished, 0.0, plain[row_of, beam, word])
        log_probability = log_probability[row_of, beam] + gained
        finished = was_finished | (word == EOS)
        seen = seen[row_of, beam].scatter(2, word.unsqueeze(-1), True)
        words = torch.cat([words[row_of, beam], word.unsqueeze(-1)], dim=-1)
        state = type(state)(*(tensor[row_of, beam] for tensor in state))
        if bool(finished.all()):
            break

    score = total / length**options.length_penalty
    # Where there are fewer captions than beams, some beams hold none.
    log_probability = log_probability.masked_fill(total.isinf(), -torch.inf)
    order = score.argsort(dim=-1, descending=True)
    return Hypotheses(
        words[row_of, order, 1:], log_probability[row_of, order], score[row_of, order]
    )


@torch.no_grad()
def sample(decoder: Any, memory: Any, images: int, rows: int, max_words: int) -> Tensor:
    """Draw captions from the decoder's own distribution, several of every image.

    ``<PAD>``, ``<SOS>`` and ``<UNK>`` never occur. A caption of more than ``max_words`` words
    stops without its end.

    Returns:
        ``(images, rows, length) int64``: words and ``<EOS>``, then ``<PAD>``.
    """
    state = decoder.start(memory, rows)
    word = torch.full((images, rows), SOS, device=state[0].device)
    finished = torch.zeros_like(word, dtype=torch.bool)
    words = []
    for _ in range(max_words + 1):
        logits, state, _ = decoder.step(word, state, memory)
        logits[:, :, NEVER] = -torch.inf
        word = draw(logits).masked_fill(finished, PAD)
        words.append(word)
        finished |= word == EOS
        if bool(finished.all()):
            break
    return torch.stack(words, dim=-1)


def draw(logits: Tensor) -> Tensor:
    """A word from ``logits: (..., vocabulary)``, by the Gumbel-max trick."""
    noise = -torch.empty_like(logits, dtype=torch.float32).exponential_().log()
    return (logits.float() + noise).argmax(dim=-1)
