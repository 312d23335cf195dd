"""The second stage: reward captions that the decoder draws by how well they score.

Cross-entropy teaches the next word after a person's words, and never shows the decoder its own
captions. Here it draws several for an image, each is scored against the references, and those that
score better than the others of the image become more likely: REINFORCE (Rennie et al.,
"Self-critical Sequence Training for Image Captioning", CVPR 2017), each caption's baseline being
the mean reward of the others (Luo, "A Better Variant of Self-Critical Sequence Training", 2020).

The policy that draws and learns is the softmax of logits / temperature. A decoder that has learned
by cross-entropy draws many a stray word, and what pays first is to be surer, and to stop sooner. At
a temperature of a half its captions are near those that a search finds, and it is these that are
weighed against each other.

Rewarded for its own words alone, it learns the captions of the training images by heart.
``self_critical.cross_entropy`` has it learn people's words beside its own. ``patch_dropout`` has it
look at other parts of an image every time (Liu et al., "PatchDropout: Economizing Vision
Transformers Using Patch Dropout", WACV 2023): attention's weights add up to 1 over the patches that
are left, so that unlike other dropout this does not make the decoder another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captioner.config import SelfCritical, Train
from captioner.decoders.words import by_step
from captioner.language_model import AnyVocabulary
from captioner.metrics import CiderD, sentence_bleu_4
from captioner.search import NEVER, sample
from captioner.training.batches import Batch
from captioner.training.objective import Loss, cross_entropy, of_words
from captioner.vocabulary import END, EOS, PAD, SOS


class Reward:
    """CIDEr-D of a caption against the references of its image, with the document frequencies of
    the training references; BLEU-4 beside it where it is given a weight.

    The end of a caption counts as a word: without it, a caption that breaks off after "a man in a"
    scores better than a whole one.
    """

    def __init__(self, cider: CiderD, bleu_weight: float) -> None:
        self._cider, self._bleu_weight = cider, bleu_weight

    def of_image(
        self, captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
    ) -> list[float]:
        """The reward of each of the captions, which end with ``<EOS>`` if they do."""
        whole = [[*reference, END] for reference in references]
        prepared = self._cider.references(whole)
        rewards = [self._cider.score(caption, prepared) for caption in captions]
        if self._bleu_weight:
            for number, caption in enumerate(captions):
                rewards[number] += self._bleu_weight * sentence_bleu_4(caption, whole)
        return rewards


def self_critical(
    decoder: Any,
    model: nn.Module,
    batch: Batch,
    options: Train,
    vocabulary: AnyVocabulary,
    reward: Reward,
) -> Loss:
    """The loss whose gradient is REINFORCE's, a share of cross-entropy's beside it where there is
    to be one, and the mean reward to write down.

    Args:
        decoder: what captions are drawn from.
        model: the same, as it learns: wrapped for several workers, or itself.
    """
    # What is drawn and what learns must be the same decoder: with dropout it would be another one,
    # that finds its own words improbable, and the gradient is no longer REINFORCE's.
    critic = options.self_critical
    batch = batch.without_patches(critic.patch_dropout)
    decoder.eval()
    words = _drawn(decoder, batch, critic)  # (images, samples, length)
    rewards = torch.tensor(
        [
            reward.of_image([_tokens(ids, vocabulary) for ids in of_image], references)
            for of_image, references in zip(words.tolist(), batch.references)
        ],
        device=words.device,
    )  # (images, samples)
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (critic.samples - 1)
    advantage = (rewards - others).unsqueeze(-1).expand_as(words)

    keep = words != PAD
    start = torch.full_like(words[:, :, :1], SOS)
    inputs = torch.cat([start, words[:, :, :-1]], dim=-1)
    logits, _ = model(batch.embedding, batch.tokens, inputs, keep)
    logits = logits.float() / critic.temperature
    logits[:, NEVER] = -torch.inf  # as when they were drawn
    log_probability = logits.log_softmax(dim=-1)  # (words, vocabulary)
    said = of_words(log_probability, words, keep)
    loss = -(by_step(advantage)[by_step(keep)] * said).mean()
    decoder.train()
    if critic.cross_entropy:
        loss = loss + critic.cross_entropy * cross_entropy(model, batch, options).objective
    return Loss(loss, float(rewards.sum()), rewards.numel(), len(said))


@torch.no_grad()
def _drawn(decoder: Any, batch: Batch, options: SelfCritical) -> Tensor:
    """Captions, the longest of an image first: ``(images, samples, length)``, words and ``<EOS>``,
    then ``<PAD>``."""
    memory = decoder.memory(batch.embedding, batch.tokens)
    words = sample(
        decoder,
        memory,
        len(batch.embedding),
        options.samples,
        options.max_words,
        options.temperature,
    )
    order = (words != PAD).sum(dim=-1).argsort(dim=-1, descending=True)
    return words.gather(1, order.unsqueeze(-1).expand_as(words))


def _tokens(ids: Sequence[int], vocabulary: AnyVocabulary) -> list[str]:
    said = vocabulary.said(ids)
    return [*said, END] if EOS in ids else said
