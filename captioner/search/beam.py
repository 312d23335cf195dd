"""Beam search, batched over images and beams."""

from __future__ import annotations

from typing import Any

import torch

from captioner.config import Search
from captioner.search.banks import Beams, banks_of
from captioner.search.hypotheses import Hypotheses, Leaving, Stepped, device_of, select
from captioner.search.rules import NEVER, NO_WORDS, Rules, Words
from captioner.vocabulary import EOS


@torch.inference_mode()
def beam_search(
    decoder: Any, memory: Any, images: int, options: Search, words: Words = NO_WORDS
) -> Hypotheses:
    """Find the captions of highest score for every image, as ``search/__init__.py`` describes.

    A finished caption keeps its place among the beams as long as none of higher score displaces it.

    Args:
        memory: ``decoder.memory(embedding, tokens)`` of the images.
    """
    banks, rules = banks_of(options, words), Rules(options, words)
    device = device_of(memory)
    beams = Beams.start(images, banks.first.to(device))
    leaving = Leaving(images, banks.rows, options.max_words + 1, device)
    stepped = Stepped.of(~beams.total.isinf())
    state = decoder.start(memory, stepped.rows.shape[1])
    for _ in range(options.max_words + 1):
        image_of = torch.arange(len(beams.words), device=device).unsqueeze(1)
        said = beams.words[image_of, stepped.rows]
        logits, state, _ = decoder.step(said[:, :, -1], state, memory)
        logits = logits.float()
        logits[:, :, NEVER] = -torch.inf
        norm = logits.logsumexp(dim=-1, keepdim=True)  # (images, rows that go on, 1)
        allowed, allowed_norm = rules.apply(logits, norm, said)
        choice = banks.choose(beams, allowed, allowed_norm, stepped.place)

        before, from_row = beams.at((image_of, choice.beam)), stepped.place.gather(1, choice.beam)
        own = logits[image_of, from_row, choice.word] - norm[image_of, from_row, 0]
        own = own.masked_fill(before.finished, 0.0)
        beams = Beams(
            words=torch.cat([before.words, choice.word.unsqueeze(-1)], dim=-1),
            finished=before.finished | (choice.word == EOS),
            length=before.length + (~before.finished),
            log_probability=before.log_probability + own,
            total=choice.total,
        )
        over = beams.finished | beams.total.isinf()
        stepped = Stepped.of(~over)
        if banks.rows > 1:  # else it is in order
            state = select(state, (image_of, from_row.gather(1, stepped.rows)))

        score = banks.final(beams.total / beams.length**options.length_penalty)
        # Where there are fewer captions than beams, some beams hold none.
        empty = score.isinf()
        own_of = beams.log_probability.masked_fill(empty, -torch.inf)
        stay = leaving.let_go(over.all(dim=-1), beams.words[:, :, 1:], own_of, score)
        if stay is not None:
            if not len(stay):
                break
            memory, state, beams = select(memory, stay), select(state, stay), beams.at(stay)
            stepped = select(stepped, stay)
    return leaving.found(options.beam_size)
