"""Decoder and image features -> captions: beam search, greedy search, sampling.

What each option of ``config.Search`` means, and whose idea it is:

``beam_size``
    Captions kept at every step (beam.py). 1 is greedy search. Of ``method: sample`` the captions
    drawn.
``length_penalty``
    Captions are compared by log-probability / length ** penalty (Wu et al., "Google's Neural
    Machine Translation System", 2016, section 7, with the plain length, ``<EOS>`` counted, in place
    of its (5 + length) / 6). 0 compares probabilities; more favours longer captions.
``repetition_penalty``
    The logit of a word that the caption already has is divided by it, or multiplied where negative
    (Keskar et al., "CTRL", 2019, section 4.1). 1 is none.
``no_repeat_ngram``
    A word is forbidden where it would complete so many words in a row that the caption already has
    (Paulus et al., "A Deep Reinforced Model for Abstractive Summarization", ICLR 2018, section
    2.5, there for three). 0 forbids none.
``min_words``, ``max_words``
    ``<EOS>`` is forbidden before the one, and the only word allowed after the other. Of ``gpt2``
    words are byte pairs, here and in ``no_repeat_ngram``.
``banned_words``, ``required_words``
    The former are never said. The latter all are, as far as ``max_words`` allows: beams are kept
    for every subset of them (Anderson et al., "Guided Open Vocabulary Image Captioning with
    Constrained Beam Search", EMNLP 2017), which takes 2 ** n times as long for n of them. Of
    ``gpt2`` they are refused: a word can be put together of byte pairs in many ways.
``groups``, ``diversity_penalty``
    Diverse beam search (Vijayakumar et al., AAAI 2018, section 4): beams in groups, each of which
    pays the penalty for every beam of the groups before it that says the same word at the same
    place (its Hamming diversity).
``method: sample`` with ``temperature``, ``top_k``, ``top_p``, ``seed``
    Words are drawn instead (sampling.py): from the softmax of logits / temperature, cut to the
    ``top_k`` likeliest words (Fan et al., "Hierarchical Neural Story Generation", ACL 2018, section
    5.4), then to the fewest likeliest that have ``top_p`` of the probability (Holtzman et al., "The
    Curious Case of Neural Text Degeneration", ICLR 2020, section 3.1).
``consensus``
    Which of the captions found is given: captioner/consensus.py.

``<PAD>``, ``<SOS>`` and ``<UNK>`` are never said: the distribution is that of the other words. The
``log_probability`` of a caption is always the model's own, whatever the options.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from captioner.config import Search
from captioner.search.beam import beam_search
from captioner.search.hypotheses import Hypotheses, device_of
from captioner.search.rules import NEVER, NO_WORDS, Words
from captioner.search.sampling import draw, sample, sample_captions

__all__ = [
    "NEVER",
    "NO_WORDS",
    "Hypotheses",
    "Words",
    "beam_search",
    "draw",
    "find",
    "sample",
    "sample_captions",
]


def find(
    decoder: Any,
    memory: Any,
    image_ids: Sequence[str],
    options: Search,
    words: Words = NO_WORDS,
) -> Hypotheses:
    """Captions of the images, by the method of the options.

    Args:
        memory: ``decoder.memory(embedding, tokens)`` of the images.
        image_ids: what is drawn for an image depends on its id and the seed, and not on the images
            beside it.
    """
    if options.method == "beam":
        return beam_search(decoder, memory, len(image_ids), options, words)
    shape = options.beam_size, options.max_words + 1
    dice = [
        np.random.default_rng([options.seed, zlib.crc32(image_id.encode())]).random(shape, "f4")
        for image_id in image_ids
    ]
    drawn = torch.from_numpy(np.stack(dice)).to(device_of(memory))
    return sample_captions(decoder, memory, options, drawn, words)
