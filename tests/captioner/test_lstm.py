from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captioner import decoders
from captioner.config import Decoder as Options
from captioner.decoders.attention import AdditiveAttention
from captioner.decoders.lstm import LSTMDecoder
from captioner.identity import EncoderIdentity
from captioner.vocabulary import EOS, PAD, SOS

VOCABULARY, EMBEDDING, PATCHES, CHANNELS = 11, 6, 4, 5
SHAPES = [(1, True), (2, True), (3, True), (1, False), (2, False)]

every_shape = pytest.mark.parametrize(("layers", "attention"), SHAPES)


def make(layers: int = 1, attention: bool = True, **changes: Any) -> LSTMDecoder:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocabulary_size": VOCABULARY,
        "embedding_size": EMBEDDING,
        "channels": CHANNELS if attention else 0,
        "embed_size": 8,
        "hidden_size": 7,
        "attention_size": 9,
        "layers": layers,
    }
    return LSTMDecoder(**{**options, **changes}).eval()


def features(images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    embedding = torch.randn(images, EMBEDDING, generator=dice)
    return embedding, torch.randn(images, PATCHES, CHANNELS, generator=dice)


def random_words(images: int, captions: int, length: int) -> Tensor:
    dice = torch.Generator().manual_seed(1)
    words = torch.randint(4, VOCABULARY, (images, captions, length), generator=dice)
    words[:, :, 0] = SOS
    return words


@every_shape
def test_shapes_of_training_and_of_a_step(layers: int, attention: bool) -> None:
    decoder = make(layers, attention)
    embedding, tokens = features(2)
    logits, weights = decoder(embedding, tokens, random_words(2, 3, 5))
    assert logits.shape == (2, 3, 5, VOCABULARY)
    memory = decoder.memory(embedding, tokens)
    state = decoder.start(memory, rows=3)
    step_logits, state, step_weights = decoder.step(random_words(2, 3, 1)[:, :, 0], state, memory)
    assert step_logits.shape == (2, 3, VOCABULARY)
    assert state.hidden.shape == state.cell.shape == (2, 3, layers, 7)
    if attention:
        assert weights.shape == (2, 3, 5, PATCHES)
        assert step_weights is not None
        assert step_weights.shape == (2, 3, PATCHES)
    else:
        assert weights is None
        assert step_weights is None


@every_shape
def test_teacher_forcing_equals_going_step_by_step(layers: int, attention: bool) -> None:
    decoder = make(layers, attention)
    embedding, tokens = features(2)
    words = random_words(2, 3, 5)
    logits, weights = decoder(embedding, tokens, words)
    memory = decoder.memory(embedding, tokens)
    state = decoder.start(memory, rows=3)
    for position in range(5):
        step_logits, state, step_weights = decoder.step(words[:, :, position], state, memory)
        torch.testing.assert_close(step_logits, logits[:, :, position])
        if attention:
            assert step_weights is not None
            torch.testing.assert_close(step_weights, weights[:, :, position])


@every_shape
@torch.no_grad()
def test_the_decoder_computes_what_its_module_says(layers: int, attention: bool) -> None:
    """One image, one caption, word by word and layer by layer, in so many words."""
    decoder = make(layers, attention)
    embedding, tokens = features(1)
    words = random_words(1, 1, 4)
    seen = decoder.embedding_norm(embedding[0])
    hidden = list(torch.tanh(decoder.first_hidden(seen)).view(layers, 7))
    cell = list(decoder.first_cell(seen).view(layers, 7))
    expected = []
    for word in words[0, 0]:
        context = torch.zeros(0)
        if decoder.attention is not None:
            values = decoder.value(decoder.token_norm(tokens[0]))
            keys, query = decoder.attention.key(values), decoder.attention.query(hidden[-1])
            scores = decoder.attention.score(torch.tanh(keys + query)).squeeze(-1)
            context = scores.softmax(0) @ values
        below = torch.cat([decoder.words.weight[word], context])
        for layer, lstm in enumerate(decoder.cells):
            hidden[layer], cell[layer] = lstm(below, (hidden[layer], cell[layer]))
            below = hidden[layer]
        expected.append(decoder.output(torch.cat([hidden[-1], context])))
    logits, _ = decoder(embedding, tokens, words)
    torch.testing.assert_close(logits[0, 0], torch.stack(expected))


@every_shape
def test_captions_of_an_image_share_its_features_as_if_it_stood_there_for_each(
    layers: int, attention: bool
) -> None:
    decoder = make(layers, attention)
    embedding, tokens = features(2)
    words = random_words(2, 3, 5)
    together, _ = decoder(embedding, tokens, words)
    copies = embedding.repeat_interleave(3, dim=0), tokens.repeat_interleave(3, dim=0)
    apart, _ = decoder(*copies, words.flatten(0, 1).unsqueeze(1))
    torch.testing.assert_close(together.flatten(0, 1), apart.squeeze(1))


@every_shape
def test_images_of_a_batch_do_not_see_each_other(layers: int, attention: bool) -> None:
    decoder = make(layers, attention)
    embedding, tokens = features(3)
    words = random_words(3, 2, 5)
    together, _ = decoder(embedding, tokens, words)
    for image in range(3):
        one = slice(image, image + 1)
        alone, _ = decoder(embedding[one], tokens[one], words[one])
        torch.testing.assert_close(together[one], alone)


def test_attention_weights_are_positive_and_add_up_to_one() -> None:
    _, weights = make()(*features(3), random_words(3, 2, 6))
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 6))
    assert weights.std() > 1e-4


def test_attention_is_that_of_the_paper() -> None:
    """score = v . tanh(W patch + U state), patch by patch."""
    torch.manual_seed(0)
    attention = AdditiveAttention(value_size=3, query_size=4, attention_size=5)
    query, values = torch.randn(1, 1, 4), torch.randn(1, 6, 3)
    context, weights = attention(query, attention.key(values), values)
    scores = torch.stack(
        [
            attention.score.weight[0]
            @ torch.tanh(
                attention.key.weight @ patch
                + attention.key.bias
                + attention.query.weight @ query[0, 0]
            )
            for patch in values[0]
        ]
    )
    expected = scores.exp() / scores.exp().sum()
    torch.testing.assert_close(weights[0, 0], expected)
    torch.testing.assert_close(context[0, 0], sum(w * v for w, v in zip(expected, values[0])))


def test_the_order_of_the_patches_does_not_matter() -> None:
    decoder = make()
    embedding, tokens = features(2)
    words = random_words(2, 2, 5)
    order = torch.tensor([2, 0, 3, 1])
    logits, weights = decoder(embedding, tokens, words)
    moved_logits, moved_weights = decoder(embedding, tokens[:, order], words)
    torch.testing.assert_close(moved_logits, logits)
    torch.testing.assert_close(moved_weights, weights[:, :, :, order])


def test_with_attention_the_patches_matter() -> None:
    decoder = make()
    embedding, tokens = features(2)
    words = random_words(2, 2, 5)
    other = features(2, seed=9)[1]
    assert not torch.allclose(
        decoder(embedding, tokens, words)[0], decoder(embedding, other, words)[0]
    )


def test_without_attention_no_tokens_are_needed() -> None:
    decoder = make(attention=False)
    embedding, tokens = features(2)
    words = random_words(2, 2, 5)
    torch.testing.assert_close(decoder(embedding, None, words), decoder(embedding, tokens, words))
    other = features(2, seed=9)[0]
    assert not torch.allclose(decoder(embedding, None, words)[0], decoder(other, None, words)[0])


def test_attention_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="patch tokens"):
        make()(features(1)[0], None, random_words(1, 1, 3))


def test_a_word_does_not_see_those_after_it() -> None:
    decoder = make()
    words = random_words(1, 1, 6)
    changed = words.clone()
    changed[0, 0, 4] = 4 + (words[0, 0, 4] - 3) % (VOCABULARY - 4)
    before, after = decoder(*features(1), words)[0], decoder(*features(1), changed)[0]
    torch.testing.assert_close(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4], after[:, :, 4])


def test_the_scale_of_the_features_hardly_matters() -> None:
    """Towers differ in scale by orders of magnitude."""
    decoder = make()
    embedding, tokens = features(2)
    words = random_words(2, 2, 5)
    small, large = (
        decoder(embedding, tokens, words)[0],
        decoder(embedding * 100, tokens * 100, words)[0],
    )
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)


def loss_of(decoder: nn.Module, words: Tensor) -> Tensor:
    logits, _ = decoder(*features(len(words)), words[:, :, :-1])
    return nn.functional.cross_entropy(
        logits.flatten(0, 2), words[:, :, 1:].flatten(), ignore_index=PAD, reduction="sum"
    )


@every_shape
def test_padding_has_no_influence_on_gradients(layers: int, attention: bool) -> None:
    words = random_words(2, 2, 6)
    words[:, :, 5] = EOS
    padded = torch.full((2, 3, 9), PAD)
    padded[:, :2, :6] = words
    gradients = []
    for batch in (words, padded):
        decoder = make(layers, attention)
        loss_of(decoder, batch).backward()
        gradients.append({name: value.grad for name, value in decoder.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)
    assert not gradients[1]["words.weight"][PAD].any()


@every_shape
def test_scoring_some_words_alone_gives_them_the_same_scores(layers: int, attention: bool) -> None:
    decoder = make(layers, attention)
    arguments = (*features(2), random_words(2, 3, 5))
    keep = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(2)) > 0.5
    torch.testing.assert_close(decoder(*arguments, keep)[0], decoder(*arguments)[0][keep])


@every_shape
def test_every_weight_learns(layers: int, attention: bool) -> None:
    decoder = make(layers, attention)
    loss_of(decoder, random_words(2, 2, 6)).backward()
    still = [name for name, value in decoder.named_parameters() if not value.grad.any()]
    assert still == []


def test_dropout_acts_in_training_alone() -> None:
    decoder = make(layers=2, dropout=0.5)
    arguments = (*features(2), random_words(2, 2, 5))
    torch.testing.assert_close(decoder(*arguments), decoder(*arguments))
    decoder.train()
    assert not torch.allclose(decoder(*arguments)[0], decoder(*arguments)[0])


@every_shape
def test_four_captions_are_learned_by_heart(layers: int, attention: bool) -> None:
    """Four images that differ in their features alone, and four captions to tell them apart."""
    decoder = make(layers, attention, hidden_size=24, embed_size=12).train()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    words = random_words(4, 1, 7)
    words[:, :, 6] = EOS
    for _ in range(150):
        loss = loss_of(decoder, words)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    decoder.eval()
    memory = decoder.memory(*features(4))
    state = decoder.start(memory, rows=1)
    written = [words[:, :, 0]]
    for _ in range(6):
        logits, state, _ = decoder.step(written[-1], state, memory)
        written.append(logits.argmax(-1))
    assert torch.equal(torch.stack(written, dim=2), words)


def test_the_configured_decoder_fits_the_encoder(
    make_identity: Callable[..., EncoderIdentity],
) -> None:
    options = Options(embed_size=8, hidden_size=7, attention_size=9, layers=2)
    decoder = decoders.build(options, make_identity(), VOCABULARY)
    logits, weights = decoder(*features(2), random_words(2, 1, 3))
    assert logits.shape == (2, 1, 3, VOCABULARY)
    assert weights.shape == (2, 1, 3, PATCHES)
    blind = decoders.build(Options(attention="none"), make_identity(patches=0), VOCABULARY)
    assert blind.attention is None
    assert blind(features(2)[0], None, random_words(2, 1, 3))[1] is None
