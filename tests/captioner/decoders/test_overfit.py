"""Every decoder can learn what thirty-two pictures show, down to the words."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioner import decoders, references
from captioner.config import Decoder, Search, Train
from captioner.identity import EncoderIdentity
from captioner.language_model import LanguageModel
from captioner.scenes import Scene
from captioner.search import beam_search
from captioner.training.batches import Batch, padded
from captioner.training.learner import Learner
from captioner.training.objective import cross_entropy
from captioner.vocabulary import SPECIAL, Vocabulary, count_words, tokenize
from tests.conftest import SHARED

IMAGES, STEPS = 32, 120
FLICKR8K = SHARED / "flickr8k"  # photographs, where they are beside the checkout


Pictures = list[tuple[Image.Image, str]]  # each with a caption


def drawn_scenes() -> Pictures:
    dice = Random(0)
    scenes = [Scene.random(dice) for _ in range(IMAGES)]
    return [(scene.draw(dice), scene.captions()[0]) for scene in scenes]


def photographs() -> Pictures:
    captions = references.read(str(FLICKR8K / "captions.txt")).captions
    names = sorted(captions)[:IMAGES]
    return [(Image.open(FLICKR8K / "Images" / name), captions[name][0]) for name in names]


@pytest.fixture(
    scope="module",
    params=[photographs if FLICKR8K.is_dir() else drawn_scenes],
    ids=lambda made: made.__name__,  # says which
)
def pictures(request: pytest.FixtureRequest) -> tuple[Batch, Vocabulary, list[str]]:
    """Their features are their own pixels, without a tower: an embedding of 12 x 12 pixels, 6 x 6
    patches of 4 x 4."""
    found: Pictures = request.param()
    captions = [" ".join(tokenize(text)) for _, text in found]
    vocabulary = Vocabulary.build(count_words(captions), 1)
    whole, fine = (
        torch.from_numpy(np.stack([np.asarray(image.resize((side, side))) for image, _ in found]))
        for side in (12, 24)
    )
    patches = fine.view(IMAGES, 6, 4, 6, 4, 3).transpose(2, 3)
    batch = Batch(
        serials=np.arange(IMAGES),
        references=[[caption.split()] for caption in captions],
        embedding=whole.reshape(IMAGES, -1) / 128 - 1,
        tokens=patches.reshape(IMAGES, 36, 48) / 128 - 1,
        words=padded([[vocabulary.ids(caption.split())] for caption in captions]),
    )
    return batch, vocabulary, captions


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "additive", "gate": True, "tie_weights": True},
        {"attention": "multi_head"},
        {"attention": "none"},
        {"type": "transformer", "attention": "multi_head", "layers": 2},
        {"type": "gpt2", "attention": "none", "pretrained": "nowhere", "prefix_length": 4},
    ],
    ids=lambda options: f"{options.get('type', 'lstm')}, {options['attention']}",
)
def test_a_decoder_learns_thirty_two_pictures_by_heart(
    pictures: tuple[Batch, Vocabulary, list[str]],
    make_identity: Callable[..., EncoderIdentity],
    options: dict[str, Any],
) -> None:
    batch, vocabulary, captions = pictures
    assert batch.tokens is not None
    identity = make_identity(embedding_size=12 * 12 * 3, patches=36, channels=48)
    torch.manual_seed(0)
    sizes = {"embed_size": 64, "hidden_size": 128, "attention_size": 64, "heads": 4}
    end = len(vocabulary) - len(SPECIAL)  # behind its words
    size = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": end + 1}
    language = LanguageModel({**size, "bos_token_id": end, "eos_token_id": end}, end)
    decoder = decoders.build(Decoder(**{**sizes, **options}), identity, len(vocabulary), language)
    train = Train(precision="float32", gradient_clip=1.0, schedule="cosine")
    learner = Learner(decoder, train, 4e-3, STEPS, warmup_steps=10)
    for _ in range(STEPS):
        learner.learn(lambda: cross_entropy(decoder, batch, train, 0.0))
    decoder.eval()
    with torch.inference_mode():
        memory = decoder.memory(batch.embedding, batch.tokens)
    search = Search(beam_size=2, repetition_penalty=1.0)
    found = beam_search(decoder, memory, IMAGES, search)
    assert [vocabulary.decode(words) for words in found.words[:, 0].tolist()] == captions
