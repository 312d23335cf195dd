"""What must hold of every decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from captioner import decoders
from captioner.config import Decoder as Options
from captioner.config import Search
from captioner.decoders import attention, onednn
from captioner.decoders.words import by_step
from captioner.identity import EncoderIdentity
from captioner.language_model import LanguageModel
from captioner.search import NEVER, beam_search, sample
from captioner.vocabulary import EOS, PAD, SOS

VOCABULARY, EMBEDDING, PATCHES, CHANNELS = 11, 6, 4, 5
SMALL: dict[str, Any] = {"embed_size": 6, "hidden_size": 8, "attention_size": 4, "heads": 2}
TRANSFORMER = {"type": "transformer", "attention": "multi_head"}
GPT2 = {"type": "gpt2", "attention": "none", "pretrained": "nowhere", "prefix_length": 3}
SIZES = {"vocab_size": VOCABULARY - 4, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 64}
LANGUAGE = LanguageModel({**SIZES, "bos_token_id": 0, "eos_token_id": 0}, end=0)
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "lstm, two layers": {"layers": 2},
    "lstm, three layers, gated, tied": {"layers": 3, "gate": True, "tie_weights": True},
    "lstm, multi-head": {"attention": "multi_head", "gate": True},
    "lstm, blind to patches": {"attention": "none", "layers": 2},
    "transformer": {**TRANSFORMER, "layers": 2},
    "transformer, tied": {**TRANSFORMER, "tie_weights": True},
    "transformer, blind to patches": {**TRANSFORMER, "attention": "none"},
    "gpt2, blind to patches": GPT2,
    "gpt2, frozen, blind to patches": {**GPT2, "freeze": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_seeing_kind = pytest.mark.parametrize("kind", [k for k in KINDS if "blind" not in k])

Make = Callable[..., Any]


@pytest.fixture
def make(make_identity: Callable[..., EncoderIdentity]) -> Make:
    """Builds a small decoder of a kind, with other options where they are given."""

    def build(kind: str, **changes: Any) -> Any:
        torch.manual_seed(0)
        options = Options(**{**SMALL, **KINDS[kind], **changes})
        return decoders.build(options, make_identity(), VOCABULARY, LANGUAGE).eval()

    return build


def features(images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    embedding = torch.randn(images, EMBEDDING, generator=dice)
    return embedding, torch.randn(images, PATCHES, CHANNELS, generator=dice)


def random_words(images: int, captions: int, length: int) -> Tensor:
    dice = torch.Generator().manual_seed(1)
    words = torch.randint(4, VOCABULARY, (images, captions, length), generator=dice)
    words[:, :, 0] = SOS
    return words


def logits_of(decoder: Any, embedding: Tensor, tokens: Tensor | None, words: Tensor) -> Tensor:
    """``(images, captions, length, vocabulary)``"""
    logits, _ = decoder(embedding, tokens, words)
    return logits.view(*by_step(words).shape, VOCABULARY).movedim(0, 2)


@every_kind
def test_shapes_of_training_and_of_a_step(make: Make, kind: str) -> None:
    decoder = make(kind)
    embedding, tokens = features(2)
    logits, weights = decoder(embedding, tokens, random_words(2, 3, 5))
    assert logits.shape == (2 * 3 * 5, VOCABULARY)
    memory = decoder.memory(embedding, tokens)
    state = decoder.start(memory, 3)
    step_logits, state, step_weights = decoder.step(random_words(2, 3, 1)[:, :, 0], state, memory)
    assert step_logits.shape == (2, 3, VOCABULARY)
    assert all(tensor.shape[:2] == (2, 3) for tensor in state)
    if "blind" not in kind:
        assert weights.shape == (2, 3, 5, PATCHES)
        assert step_weights.shape == (2, 3, PATCHES)


@every_kind
def test_teacher_forcing_equals_going_step_by_step(make: Make, kind: str) -> None:
    decoder = make(kind)
    embedding, tokens = features(2)
    words = random_words(2, 3, 5)
    logits = logits_of(decoder, embedding, tokens, words)
    _, weights = decoder(embedding, tokens, words)
    memory = decoder.memory(embedding, tokens)
    state = decoder.start(memory, 3)
    for position in range(5):
        step_logits, state, step_weights = decoder.step(words[:, :, position], state, memory)
        torch.testing.assert_close(step_logits, logits[:, :, position])
        if weights is not None:
            torch.testing.assert_close(step_weights, weights[:, :, position])


@every_kind
def test_captions_of_an_image_share_its_features_as_if_it_stood_there_for_each(
    make: Make, kind: str
) -> None:
    decoder = make(kind)
    embedding, tokens = features(2)
    words = random_words(2, 3, 5)
    together = logits_of(decoder, embedding, tokens, words)
    copies = embedding.repeat_interleave(3, dim=0), tokens.repeat_interleave(3, dim=0)
    apart = logits_of(decoder, *copies, words.flatten(0, 1).unsqueeze(1))
    torch.testing.assert_close(together.flatten(0, 1), apart.squeeze(1))


@every_kind
def test_images_of_a_batch_do_not_see_each_other(make: Make, kind: str) -> None:
    decoder = make(kind)
    embedding, tokens = features(3)
    words = random_words(3, 2, 5)
    together = logits_of(decoder, embedding, tokens, words)
    for image in range(3):
        one = slice(image, image + 1)
        alone = logits_of(decoder, embedding[one], tokens[one], words[one])
        torch.testing.assert_close(together[one], alone)


@every_seeing_kind
def test_attention_weights_are_positive_and_add_up_to_one(make: Make, kind: str) -> None:
    _, weights = make(kind)(*features(3), random_words(3, 2, 6))
    assert (weights > 0).all()
    assert weights.std() > 1e-5
    # The transformer's also look at the whole image, which is no patch.
    assert (weights.sum(-1) <= 1 + 1e-6).all()
    if kind.startswith("lstm"):
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 6))


@every_seeing_kind
def test_the_order_of_the_patches_does_not_matter(make: Make, kind: str) -> None:
    decoder = make(kind)
    embedding, tokens = features(2)
    words = random_words(2, 2, 5)
    order = torch.tensor([2, 0, 3, 1])
    logits, weights = decoder(embedding, tokens, words)
    moved_logits, moved_weights = decoder(embedding, tokens[:, order], words)
    torch.testing.assert_close(moved_logits, logits)
    torch.testing.assert_close(moved_weights, weights[:, :, :, order])


@every_seeing_kind
def test_the_patches_matter(make: Make, kind: str) -> None:
    decoder = make(kind)
    embedding, tokens = features(2)
    words = random_words(2, 2, 5)
    other = features(2, seed=9)[1]
    assert not torch.allclose(
        decoder(embedding, tokens, words)[0], decoder(embedding, other, words)[0]
    )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "blind" in kind])
def test_without_attention_no_tokens_are_needed(make: Make, kind: str) -> None:
    decoder = make(kind)
    embedding, tokens = features(2)
    words = random_words(2, 2, 5)
    before = decoder(embedding, None, words)[0]
    torch.testing.assert_close(before, decoder(embedding, tokens, words)[0])
    other = features(2, seed=9)[0]
    assert not torch.allclose(before, decoder(other, None, words)[0])


@every_seeing_kind
def test_attention_without_tokens_is_refused(make: Make, kind: str) -> None:
    with pytest.raises(ValueError, match="patch tokens"):
        make(kind)(features(1)[0], None, random_words(1, 1, 3))


@every_kind
def test_a_word_does_not_see_those_after_it(make: Make, kind: str) -> None:
    decoder = make(kind)
    words = random_words(1, 1, 6)
    changed = words.clone()
    changed[0, 0, 4] = 4 + (words[0, 0, 4] - 3) % (VOCABULARY - 4)
    before, after = (logits_of(decoder, *features(1), each) for each in (words, changed))
    torch.testing.assert_close(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4], after[:, :, 4])


@every_kind
def test_the_scale_of_the_features_hardly_matters(make: Make, kind: str) -> None:
    """Towers differ in scale by orders of magnitude."""
    decoder = make(kind)
    embedding, tokens = features(2)
    words = random_words(2, 2, 5)
    small, large = (
        decoder(embedding, tokens, words)[0],
        decoder(embedding * 100, tokens * 100, words)[0],
    )
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)


def loss_of(decoder: nn.Module, words: Tensor) -> Tensor:
    """Of all words but padding."""
    targets = words[:, :, 1:]
    keep = targets != PAD
    logits, _ = decoder(*features(len(words)), words[:, :, :-1], keep)
    said = by_step(targets)[by_step(keep)]
    return nn.functional.cross_entropy(logits, said, reduction="sum")


def learning(decoder: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [each for each in decoder.named_parameters() if each[1].requires_grad]


@every_kind
def test_padding_has_no_influence_on_gradients(make: Make, kind: str) -> None:
    words = random_words(2, 2, 6)
    words[:, :, 5] = EOS
    padded = torch.full((2, 3, 9), PAD)
    padded[:, :2, :6] = words
    gradients = []
    for batch in (words, padded):
        decoder = make(kind)
        loss_of(decoder, batch).backward()
        gradients.append({name: value.grad for name, value in learning(decoder)})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


@every_kind
def test_scoring_some_words_alone_gives_them_the_same_scores(make: Make, kind: str) -> None:
    decoder = make(kind)
    arguments = (*features(2), random_words(2, 3, 5))
    keep = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(2)) > 0.5
    expected = by_step(logits_of(decoder, *arguments))[by_step(keep)]
    torch.testing.assert_close(decoder(*arguments, keep)[0], expected)


@every_kind
def test_captions_that_end_early_do_not_change_the_longer_ones(make: Make, kind: str) -> None:
    decoder = make(kind)
    arguments = (*features(2), random_words(2, 3, 6))
    lengths = torch.tensor([[6, 4, 1], [5, 5, 2]])
    keep = torch.arange(6) < lengths.unsqueeze(-1)
    logits, weights = decoder(*arguments, keep)
    expected = by_step(logits_of(decoder, *arguments))[by_step(keep)]
    torch.testing.assert_close(logits, expected)
    if weights is not None:
        torch.testing.assert_close(weights[keep], decoder(*arguments)[1][keep])


@every_kind
def test_every_weight_learns(make: Make, kind: str) -> None:
    decoder = make(kind)
    loss_of(decoder, random_words(2, 2, 6)).backward()
    still = {name for name, value in learning(decoder) if not value.grad.any()}
    if kind == "transformer, blind to patches":  # the whole image alone: there is nothing to choose
        still -= {name for name in still if "look.query" in name or "look_norm" in name}
    assert not still


@every_kind
@pytest.mark.parametrize("where", ["dropout", "embed_dropout", "feature_dropout"])
def test_dropout_acts_in_training_alone(make: Make, kind: str, where: str) -> None:
    if "frozen" in kind and where != "feature_dropout":
        pytest.skip("a frozen language model has no dropout")
    decoder = make(kind, **{where: 0.5})
    arguments = (*features(2), random_words(2, 2, 5))
    torch.testing.assert_close(decoder(*arguments)[0], decoder(*arguments)[0])
    decoder.train()
    assert not torch.allclose(decoder(*arguments)[0], decoder(*arguments)[0])


@every_kind
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_captions_are_drawn_as_often_as_the_decoder_finds_them_likely(
    make: Make, kind: str, temperature: float
) -> None:
    decoder = make(kind)
    memory = decoder.memory(*features(1))
    torch.manual_seed(0)
    words = sample(decoder, memory, images=1, rows=4000, max_words=1, temperature=temperature)
    logits, _, _ = decoder.step(torch.tensor([[SOS]]), decoder.start(memory, 1), memory)
    logits[:, :, [PAD, SOS, 3]] = -torch.inf
    often = torch.bincount(words[0, :, 0], minlength=VOCABULARY) / 4000
    expected = (logits[0, 0] / temperature).softmax(-1)
    torch.testing.assert_close(often, expected, atol=0.03, rtol=0)


@every_kind
@torch.inference_mode()
def test_search_gives_captions_the_probability_that_training_would(make: Make, kind: str) -> None:
    """What it remembers of a beam goes with the beam."""
    decoder = make(kind)
    embedding, tokens = features(3)
    search = Search(beam_size=4, length_penalty=0.5, repetition_penalty=1.0, max_words=5)
    found = beam_search(decoder, decoder.memory(embedding, tokens), 3, search)
    inputs = torch.cat([torch.full((3, 4, 1), SOS), found.words[:, :, :-1]], dim=-1)
    logits = logits_of(decoder, embedding, tokens, inputs)
    logits[..., NEVER] = -torch.inf
    each = logits.log_softmax(-1).gather(-1, found.words.unsqueeze(-1)).squeeze(-1)
    total = each.masked_fill(found.words == PAD, 0.0).sum(-1)
    torch.testing.assert_close(total, found.log_probability)


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "transformer", "attention": "additive"},
        {"type": "transformer", "attention": "multi_head", "gate": True},
        {"type": "transformer", "attention": "multi_head", "hidden_size": 15, "heads": 5},
        {"type": "transformer", "attention": "multi_head", "hidden_size": 12, "heads": 8},
        {"attention": "multi_head", "attention_size": 12, "heads": 8},
        {**GPT2, "attention": "additive"},
        {**GPT2, "gate": True},
        {**GPT2, "pretrained": None},
        {"pretrained": "gpt2"},
    ],
)
def test_options_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"transformer|heads|gpt2"):
        Options(**wrong)


def test_the_size_that_heads_do_not_divide_is_named() -> None:
    with pytest.raises(ValidationError, match="8 do not divide attention_size 12"):
        Options(attention="multi_head", attention_size=12, heads=8)
    with pytest.raises(ValidationError, match="8 do not divide hidden_size 12"):
        Options(attention="multi_head", hidden_size=12, heads=8)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "gpt2" not in kind])
@torch.inference_mode()
def test_by_onednn_it_says_the_same(make: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_NARROW", 2)
    decoder = make(kind)
    other = onednn.converted(decoder, decoder.words)
    parts = [type(m).__name__ for m in other.modules() if type(m).__module__ == onednn.__name__]
    assert "_Linear" in parts
    assert ("_Cell" in parts) == ("lstm" in kind)
    assert ("_Scores" in parts) == ("tied" in kind)
    assert not any(type(m).__module__ == onednn.__name__ for m in decoder.modules())

    embedding, tokens = features(3)
    search = Search(beam_size=4, length_penalty=0.5, repetition_penalty=1.0, max_words=5)
    found = [beam_search(one, one.memory(embedding, tokens), 3, search) for one in (decoder, other)]
    assert torch.equal(found[0].words, found[1].words)
    torch.testing.assert_close(found[0].log_probability, found[1].log_probability)


@pytest.mark.parametrize("images", [0, 1, 2, 5])
@pytest.mark.parametrize("autocast", [False, True])
def test_additive_attention_in_parts_is_that_of_all(
    images: int, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And learns the same."""
    rows, size = 3, 8
    torch.manual_seed(0)
    additive = attention.AdditiveAttention(6, 7, size)
    query, values = torch.randn(images, rows, 7), torch.randn(images, PATCHES, 6)
    one = 4 * rows * PATCHES * size  # the bytes of an image's sum
    found = []
    for cache in (100 * one, 2 * one, one // 2, 1):
        monkeypatch.setattr(attention, "_CACHE", cache)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            context, weights = additive(query, additive.keys(values), values)
        context.float().square().sum().backward()
        gradients = [p.grad for p in additive.parameters()]
        additive.zero_grad()
        found.append((context, weights, gradients))
    scores = additive.score(
        torch.tanh(additive.query(query)[:, :, None] + additive.keys(values)[:, None])
    )
    assert weights.shape == (images, rows, PATCHES)
    near = {"atol": 2e-2, "rtol": 2e-2} if autocast else {}
    torch.testing.assert_close(weights.float(), scores.squeeze(-1).softmax(dim=-1), **near)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], **near)


@pytest.mark.parametrize(
    ("cpu", "capability", "device", "dtype", "worthwhile"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", "cpu", torch.float32, True),
        ("vendor_id : AuthenticAMD", "AVX2", "cpu", torch.float32, False),
        ("vendor_id : GenuineIntel", "AVX512", "cpu", torch.float32, False),
        (None, "AVX512", "cpu", torch.float32, False),
        ("vendor_id : AuthenticAMD", "AVX512", "cpu", torch.bfloat16, False),
        ("vendor_id : AuthenticAMD", "AVX512", "cuda", torch.float32, False),
    ],
)
def test_onednn_is_for_float32_on_amds_wide_cpus(
    cpu: str | None,
    capability: str,
    device: str,
    dtype: torch.dtype,
    worthwhile: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cpu is not None:
        (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(onednn, "_CPUS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    onednn._amd_with_avx512.cache_clear()
    try:
        assert onednn.worthwhile(torch.device(device), dtype) is worthwhile
    finally:
        onednn._amd_with_avx512.cache_clear()
