"""Captions drawn word by word from the decoder's distribution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captioner.config import Search
from captioner.search.hypotheses import Hypotheses, Leaving, Stepped, device_of, select
from captioner.search.rules import NEVER, NO_WORDS, Rules, Words
from captioner.vocabulary import EOS, PAD, SOS


@torch.inference_mode()
def sample_captions(
    decoder: Any, memory: Any, options: Search, dice: Tensor, words: Words = NO_WORDS
) -> Hypotheses:
    """Draw ``beam_size`` captions of every image, as ``search/__init__.py`` describes.

    Args:
        memory: ``decoder.memory(embedding, tokens)`` of the images.
        dice: ``(images, beam_size, max_words + 1)``, from 0 up to 1: each decides one word, so that
            an image gets the same captions in any batch.
    """
    images, rows, length = dice.shape
    state = decoder.start(memory, rows)
    device = state[0].device
    rules = Rules(options, words)
    leaving = Leaving(images, rows, length, device)
    said = torch.full((images, rows, 1), SOS, device=device)
    finished = torch.zeros((images, rows), dtype=torch.bool, device=device)
    log_probability = torch.zeros((images, rows), device=device)
    going = Stepped.of(~finished)
    for position in range(length):
        image_of = torch.arange(len(said), device=device).unsqueeze(1)
        before = said[image_of, going.rows]
        logits, state, _ = decoder.step(before[:, :, -1], state, memory)
        logits = logits.float()
        logits[:, :, NEVER] = -torch.inf
        norm = logits.logsumexp(dim=-1, keepdim=True)
        allowed, _ = rules.apply(logits, norm, before)
        kept = truncated(allowed / options.temperature, options.top_k, options.top_p)
        drawn = draw(kept, dice[leaving.left.unsqueeze(1), going.rows, position])
        own = (logits.gather(-1, drawn.unsqueeze(-1)) - norm).squeeze(-1)
        word = torch.full_like(finished, PAD, dtype=torch.long).scatter(1, going.rows, drawn)
        said = torch.cat([said, word.masked_fill(finished, PAD).unsqueeze(-1)], dim=-1)
        own = own.masked_fill(finished.gather(1, going.rows), 0.0)
        log_probability = log_probability.scatter_add(1, going.rows, own)
        finished = finished | (word == EOS)
        going, state = _fewer(going, finished, state)
        tokens = (said[:, :, 1:] != PAD).sum(dim=-1)
        score = log_probability / tokens**options.length_penalty
        stay = leaving.let_go(finished.all(dim=-1), said[:, :, 1:], log_probability, score)
        if stay is not None:
            if not len(stay):
                break
            memory, state, going = select(memory, stay), select(state, stay), select(going, stay)
            said, finished, log_probability = said[stay], finished[stay], log_probability[stay]
    return leaving.found(rows)


def _fewer(going: Stepped, finished: Tensor, state: Any) -> tuple[Stepped, Any]:
    """The rows to step from here on, and their state."""
    fewer = Stepped.of(~finished)
    if fewer.rows.shape[1] == going.rows.shape[1]:
        return going, state
    image_of = torch.arange(len(finished), device=finished.device).unsqueeze(1)
    return fewer, select(state, (image_of, going.place.gather(1, fewer.rows)))


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Minus infinity for all but the ``top_k`` likeliest words (0: all), and of those for all but
    the fewest likeliest that have ``top_p`` of the probability."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1.0:
        ranked, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        needless = ranked.cumsum(dim=-1) - ranked >= top_p
        logits = logits.masked_fill(needless.gather(-1, order.argsort(dim=-1)), -torch.inf)
    return logits


@torch.no_grad()
def sample(
    decoder: Any, memory: Any, images: int, rows: int, max_words: int, temperature: float = 1.0
) -> Tensor:
    """Draw captions from the softmax of logits / temperature, several of every image, to learn
    from.

    A caption of more than ``max_words`` words stops without its end.

    Returns:
        ``(images, rows, length) int64``: words and ``<EOS>``, then ``<PAD>``.
    """
    device = device_of(memory)
    word = torch.full((images, rows), SOS, device=device)
    finished = torch.zeros_like(word, dtype=torch.bool)
    going = Stepped.of(~finished)
    state = decoder.start(memory, rows)
    words = []
    for _ in range(max_words + 1):
        logits, state, _ = decoder.step(word.gather(1, going.rows), state, memory)
        logits = logits.float() / temperature
        logits[:, :, NEVER] = -torch.inf
        dice = torch.rand(word.shape, device=device)
        drawn = draw(logits, dice.gather(1, going.rows))
        word = torch.full_like(word, PAD).scatter(1, going.rows, drawn)
        word = word.masked_fill(finished, PAD)
        words.append(word)
        finished |= word == EOS
        if bool(finished.all()):
            break
        going, state = _fewer(going, finished, state)
    return torch.stack(words, dim=-1)


def draw(logits: Tensor, dice: Tensor) -> Tensor:
    """A word from the softmax of ``logits: (..., vocabulary)``: the first at which the running sum
    of the probabilities passes ``dice: (...)``, which are from 0 up to 1."""
    reached = logits.float().softmax(dim=-1).cumsum(dim=-1)
    passed = reached <= dice.unsqueeze(-1) * reached[..., -1:]
    # Rounding may put the mark at the very end: the last word that has any probability is there.
    last = (reached < reached[..., -1:]).sum(dim=-1)
    return torch.minimum(passed.sum(dim=-1), last)
