"""The captions that a search has found, and the batch that it works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captioner.vocabulary import PAD

# Images leave the batch together, once they are a quarter of it: each time, what is left is copied.
_WORTH_LEAVING = 0.25


@dataclass(frozen=True)
class Hypotheses:
    """Captions of a batch of images, the best first."""

    words: Tensor  # (images, beams, length) int64: words, <EOS>, then <PAD>
    log_probability: Tensor  # (images, beams): of words and <EOS>, by the model alone
    score: Tensor  # (images, beams): what they are ordered by


class Leaving:
    """Lets images go whose captions are complete: what is left of a batch takes less time."""

    def __init__(self, images: int, rows: int, length: int, device: torch.device) -> None:
        """``rows`` of at most ``length`` words an image."""
        self.left = torch.arange(images, device=device)  # which images are still there
        self._words = torch.full((images, rows, length), PAD, device=device)
        # Of captions that never end, since nothing in them is a number: there are none.
        self._log_probability = torch.full((images, rows), -torch.inf, device=device)
        self._score = self._log_probability.clone()

    def let_go(
        self, done: Tensor, words: Tensor, log_probability: Tensor, score: Tensor
    ) -> Tensor | None:
        """Note the captions of the images that are ``done: (left,) bool``, if they are enough.

        Returns:
            The places of those that stay, if any go. None of them: the search is over.
        """
        count = int(done.sum())
        if not count or (count < len(done) and count < _WORTH_LEAVING * len(done)):
            return None
        gone = self.left[done]
        self._words[gone, :, : words.shape[-1]] = words[done]
        self._log_probability[gone] = log_probability[done]
        self._score[gone] = score[done]
        stay = (~done).nonzero().squeeze(-1)
        self.left = self.left[stay]
        return stay

    def found(self, best: int) -> Hypotheses:
        """The ``best`` captions of every image."""
        order = self._score.argsort(dim=-1, descending=True, stable=True)[:, :best]
        row_of = torch.arange(len(order), device=order.device).unsqueeze(1)
        words = self._words[row_of, order]
        length = int((words != PAD).any(dim=0).any(dim=0).sum())
        return Hypotheses(
            words[:, :, :length], self._log_probability[row_of, order], self._score[row_of, order]
        )


class Stepped(NamedTuple):
    """The rows of a batch that a decoder still has to step: captions that are over need it no more,
    and before the first word one stands for all that are the same."""

    rows: Tensor  # (images, most) int64: of each image; where it needs fewer, others too
    place: Tensor  # (images, rows) int64: where each row stands there; 0 if it does not

    @classmethod
    def of(cls, needed: Tensor) -> Stepped:
        """``needed: (images, rows) bool``; as many of each image as the most that one needs."""
        most = max(1, int(needed.sum(dim=1).max()))
        rows = (~needed).byte().argsort(dim=1, stable=True)[:, :most]
        place = torch.arange(most, device=needed.device).expand_as(rows)
        return cls(rows, torch.zeros_like(needed, dtype=torch.long).scatter(1, rows, place))


def select(tensors: Any, index: Tensor | tuple[Tensor, ...]) -> Any:
    """A named tuple of tensors, such as a decoder's state, indexed."""
    return type(tensors)(*(None if tensor is None else tensor[index] for tensor in tensors))


def device_of(memory: Any) -> torch.device:
    """Where a decoder's memory is; what it does without is None."""
    device: torch.device = next(tensor.device for tensor in memory if tensor is not None)
    return device
