"""Cross-entropy of known captions, and what may be added to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioner.config import Train
from captioner.decoders.words import by_step
from captioner.search import draw
from captioner.training.batches import Batch
from captioner.vocabulary import EOS, PAD


@dataclass(frozen=True)
class Loss:
    """What a step lowers, and what is written down."""

    objective: Tensor  # (), with a gradient
    total: float  # summed over what it counts: plain cross-entropy in nats, or reward
    count: int  # words, or captions
    words: int  # that the objective is a mean over


def cross_entropy(decoder: nn.Module, batch: Batch, options: Train, own_words: float = 0.0) -> Loss:
    """The mean over a batch's words of -log p(word | the words before it).

    - Label smoothing (Szegedy et al., CVPR 2016, section 7) gives a share of the probability to
      all words alike.
    - Attention regularisation (Xu et al., ICML 2015, equation 14) adds, for every caption and
      patch, the square of what its attention over all steps is short of 1 (or beyond), as a mean.
    - ``own_words`` is the share of words read that are the decoder's own instead of the caption's
      (Bengio et al., "Scheduled Sampling", NeurIPS 2015), all steps in one pass from a first,
      teacher-forced one (Duckworth et al., "Parallel Scheduled Sampling", 2019).

    Padding counts for nothing.
    """
    inputs, targets = batch.words[:, :, :-1], batch.words[:, :, 1:]
    keep = targets != PAD  # (images, captions, length)
    if own_words:
        inputs = _with_own_words(decoder, batch, inputs, keep, own_words)
    logits, looks = decoder(batch.embedding, batch.tokens, inputs, keep)
    log_probability = logits.float().log_softmax(dim=-1)  # (words, vocabulary)
    said = of_words(log_probability, targets, keep)
    loss = -said.mean()
    if options.label_smoothing:
        even = -log_probability.mean(dim=-1).mean()
        loss = (1 - options.label_smoothing) * loss + options.label_smoothing * even
    if options.attention_regularisation and looks is not None:
        looks = looks.float() * keep.unsqueeze(-1)  # (images, captions, length, patches)
        uneven = ((1 - looks.sum(dim=2)) ** 2)[keep.any(dim=-1)].mean()
        loss = loss + options.attention_regularisation * uneven
    return Loss(loss, -float(said.detach().sum()), len(said), len(said))


def of_words(log_probability: Tensor, words: Tensor, keep: Tensor) -> Tensor:
    """``log_probability: (kept, vocabulary)`` -> ``(kept,)``, of the words that are kept."""
    said = by_step(words)[by_step(keep)]
    return log_probability.gather(-1, said.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def _with_own_words(
    decoder: nn.Module, batch: Batch, inputs: Tensor, keep: Tensor, share: float
) -> Tensor:
    """Put words drawn from the decoder's own distribution in the places of some."""
    logits, _ = decoder(batch.embedding, batch.tokens, inputs, keep)
    logits[:, EOS] = -torch.inf  # nothing is read after the end
    drawn = torch.zeros_like(inputs)
    by_step(drawn)[by_step(keep)] = draw(logits, torch.rand(len(logits), device=logits.device))
    shifted = torch.cat([inputs[:, :, :1], drawn[:, :, :-1]], dim=2)  # <SOS> stays
    replaced = (torch.rand(inputs.shape, device=inputs.device) < share) & keep
    replaced[:, :, 0] = False
    return torch.where(replaced, shifted, inputs)
